// What the warps of a grid do to decode waves. As rans/warp.hpp, on which it is built, this is
// written for all 32 threads of a warp at once and runs on the GPU and, in the tests, on the host.
//
// A Grid has Grid::Warp, see rans/warp.hpp; block(), blocks(), warp_of_block(), warps_of_block(),
// which are the same in all threads of a warp; sync(), where all warps meet: what any wrote before
// it, all can read after it; shared(), the memory of a block; and sync_block(), where its warps
// meet.
//
// Data that the kernel itself writes are read by load_shared() and never through the read-only
// cache or the first-level cache, which do not see what other multiprocessors write.
#pragma once

#include <cstdint>

#include "cuda/int8.hpp"
#include "cuda/wave_network.hpp"
#include "rans/warp.hpp"

namespace pycodec::cuda {

template <class T>
PYCODEC_HOST_DEVICE T load_shared(const T* p) {
#ifdef __CUDA_ARCH__
  return __ldcg(p);
#else
  return *p;
#endif
}

// What does not change, from the block's own memory, or by way of the read-only cache.
template <bool kStaged, class T>
PYCODEC_HOST_DEVICE T load_static(const T* p) {
  if constexpr (kStaged) {
    return *p;
  } else if constexpr (sizeof(T) == 16) {
    return rans::load_constant_struct(p);
  } else {
    return rans::load_constant(p);
  }
}

// The symbols of a group in a wave.
struct WaveSpan {
  std::int64_t begin;    // of all places
  std::int64_t in_wave;  // the same, from the wave's first place on
  std::int64_t count;
};

PYCODEC_HOST_DEVICE inline WaveSpan wave_span(const WaveDecodeArguments& a, std::int64_t t,
                                              int group) {
  const std::int64_t* const of_wave = a.begin + t * a.groups;
  const std::int64_t begin = rans::load_constant(of_wave + group);
  return {begin, begin - rans::load_constant(of_wave),
          rans::load_constant(of_wave + group + 1) - begin};
}

struct WavePlace {
  std::uint32_t group, row, column;
};

PYCODEC_HOST_DEVICE inline WavePlace wave_place(std::uint64_t place) {
  constexpr std::uint64_t kMask = (std::uint64_t{1} << kWaveSideBits) - 1;
  return {static_cast<std::uint32_t>(place >> (2 * kWaveSideBits)),
          static_cast<std::uint32_t>(place >> kWaveSideBits & kMask),
          static_cast<std::uint32_t>(place & kMask)};
}

// Number of the place's pixel, counted from (0, 0) on; one product of 32 bits.
PYCODEC_HOST_DEVICE inline std::int64_t pixel_number(const WaveDecodeArguments& a,
                                                     const WavePlace& p) {
  const auto pitch = static_cast<std::uint32_t>(a.pitch);
  return static_cast<std::int64_t>(std::uint64_t{p.row} * pitch + p.column);
}

// A layer for one group.
PYCODEC_HOST_DEVICE inline WaveGroupLayer group_layer(const WaveCudaLayer& layer, int group) {
  const std::int64_t begin = rans::load_constant(layer.word_begin + group);
  const auto words =
      static_cast<std::int32_t>(rans::load_constant(layer.word_begin + group + 1) - begin);
  const std::int64_t channel = group * layer.out_width;
  const std::int64_t chunks = wave_chunks(static_cast<int>(layer.out_width));
  return {layer.input,
          layer.residual == nullptr ? nullptr : layer.residual + channel,
          layer.output == nullptr ? nullptr : layer.output + channel,
          layer.active,
          layer.offsets + begin,
          reinterpret_cast<const WaveWeights*>(layer.weights) + 2 * begin * chunks,
          layer.bias + channel,
          layer.multiplier + channel,
          layer.negative_multiplier + channel,
          layer.residual == nullptr ? nullptr : layer.residual_multiplier + channel,
          layer.input_bytes,
          layer.residual_bytes,
          layer.output_bytes,
          words,
          static_cast<std::int32_t>(layer.out_width),
          {static_cast<int>(layer.shift), static_cast<std::int32_t>(layer.lower),
           static_cast<std::int32_t>(layer.upper)}};
}

// STAGING. Where the blocks meet, a multiprocessor forgets what its first-level cache held; so each
// layer would wait for the second-level cache before it knew where to look, and for each weight.
// Where there is a block for each group, and its memory holds what all layers have for that group,
// the block keeps it there: see WaveGroupLayer.

// What the layers are to a warp: those of its block's memory, or null and those of the arguments.
struct WaveLayers {
  const WaveGroupLayer* staged;
  const std::int32_t* stages;  // WaveDecodeArguments::stages
};

// Copies `count` items with all threads of the block, and moves `memory` behind them. Returns the
// copy.
template <class Grid, class T>
PYCODEC_DEVICE const T* stage(const Grid& grid, std::uint8_t*& memory, const T* from,
                              std::int64_t count) {
  T* const to = reinterpret_cast<T*>(memory);
  const int threads = grid.warps_of_block() * static_cast<int>(rans::kWarpThreads);
  Grid::Warp::each([&](unsigned t) {
    const int first = grid.warp_of_block() * static_cast<int>(rans::kWarpThreads);
    for (std::int64_t i = first + static_cast<int>(t); i < count; i += threads) {
      to[i] = load_static<false>(from + i);
    }
  });
  memory += wave_staged_bytes(static_cast<std::int64_t>(sizeof(T)) * count);
  return to;
}

// All layers for a group; and the tables, if they are to be there.
template <class Grid>
PYCODEC_DEVICE WaveLayers stage_group(Grid& grid, const WaveDecodeArguments& a, int group,
                                      rans::DeviceTables& tables) {
  auto* const layers = reinterpret_cast<WaveGroupLayer*>(grid.shared());
  const std::int32_t count = a.stages[a.num_stages];
  std::uint8_t* memory = grid.shared() + count * sizeof(WaveGroupLayer);
  const std::int32_t* const stages = stage(grid, memory, a.stages, a.num_stages + 1);
  for (std::int32_t l = 0; l < count; ++l) {
    WaveGroupLayer layer = group_layer(a.layers[l], group);
    const std::int64_t chunks = wave_chunks(layer.out_width);
    layer.weights = stage(grid, memory, layer.weights, 2 * chunks * layer.words);
    layer.offsets = stage(grid, memory, layer.offsets, layer.words);
    layer.bias = stage(grid, memory, layer.bias, layer.out_width);
    layer.multiplier = stage(grid, memory, layer.multiplier, layer.out_width);
    layer.negative_multiplier = stage(grid, memory, layer.negative_multiplier, layer.out_width);
    if (layer.residual != nullptr) {
      layer.residual_multiplier = stage(grid, memory, layer.residual_multiplier, layer.out_width);
    }
    Grid::Warp::each([&](unsigned t) {
      if (grid.warp_of_block() == 0 && t == 0) layers[l] = layer;
    });
  }
  if (a.stages_tables) {
    auto* const to = reinterpret_cast<rans::TableOfTwo*>(memory);
    Grid::Warp::each([&](unsigned t) {
      if (grid.warp_of_block() != 0) return;
      for (std::uint32_t i = t; i < tables.num_tables; i += rans::kWarpThreads) {
        to[i] = rans::load_table_of_two(tables, i);
      }
    });
    tables.of_two = to;
  }
  grid.sync_block();
  return {layers, stages};
}

// Adds the products of kRounds words, every eighth: all of them are on their way at once.
template <bool kStaged, int kRounds>
PYCODEC_HOST_DEVICE inline void wave_multiply(const std::int8_t* pixel, const std::int32_t* offsets,
                                              const WaveWeights* weights,
                                              std::int32_t (&acc)[kWaveChannels]) {
  std::int32_t offset[kRounds];
  std::uint32_t x[kRounds];
  PYCODEC_UNROLL
  for (int i = 0; i < kRounds; ++i) offset[i] = load_static<kStaged>(offsets + i * kWaveChannels);
  PYCODEC_UNROLL
  for (int i = 0; i < kRounds; ++i) {
    x[i] = load_shared(reinterpret_cast<const std::uint32_t*>(pixel + offset[i]));
  }
  PYCODEC_UNROLL
  for (int half = 0; half < 2 * kRounds; ++half) {
    const WaveWeights four = load_static<kStaged>(weights + half * kWaveChannels);
    PYCODEC_UNROLL
    for (int j = 0; j < 4; ++j) {
      std::int32_t& sum = acc[4 * (half % 2) + j];
      sum = dot4(x[half / 2], four.words[j], sum);
    }
  }
}

// Sums of the products of words slice, slice + 8, ... that a group sees from a pixel, for eight
// output channels.
template <bool kStaged>
PYCODEC_HOST_DEVICE inline void wave_accumulate(const std::int8_t* pixel,
                                                const std::int32_t* offsets,
                                                const WaveWeights* weights, int words, int slice,
                                                std::int32_t (&acc)[kWaveChannels]) {
  constexpr int kMany = 6, kFew = 2;
  static_assert(kWaveWords == kFew * kWaveChannels && kMany % kFew == 0);
  PYCODEC_UNROLL
  for (int j = 0; j < kWaveChannels; ++j) acc[j] = 0;
  const int rounds = words / kWaveChannels;
  int round = 0;
  for (; round + kMany <= rounds; round += kMany) {
    wave_multiply<kStaged, kMany>(pixel, offsets + round * kWaveChannels + slice,
                                  weights + 2 * round * kWaveChannels + slice, acc);
  }
  for (; round < rounds; round += kFew) {
    wave_multiply<kStaged, kFew>(pixel, offsets + round * kWaveChannels + slice,
                                 weights + 2 * round * kWaveChannels + slice, acc);
  }
}

// The places of kWavePositions positions of a group in a wave, from `first` on: thread t has that
// of position t / 8. Threads without a position have that of the first one, so that all do the
// same.
template <class Warp>
using WavePlaces = typename Warp::template PerThread<std::uint64_t>;

template <class Warp>
PYCODEC_DEVICE WavePlaces<Warp> load_places(const WaveDecodeArguments& a, const WaveSpan& span,
                                            std::int64_t first) {
  WavePlaces<Warp> places;
  Warp::each([&](unsigned t) {
    const std::int64_t n = first + t / kWaveChannels;
    places[t] = rans::load_constant(a.places + span.begin + (n < span.count ? n : first));
  });
  return places;
}

// Computes kWaveChannels output channels of a group at kWavePositions positions of a wave: thread
// t has position t / 8, of the words that the group sees every eighth from t % 8 on, and in the
// end output channel t % 8.
template <class Warp, bool kStaged>
PYCODEC_DEVICE void run_wave_task(const WaveDecodeArguments& a, const WaveGroupLayer& layer,
                                  const WaveSpan& span, const WavePlaces<Warp>& places, int chunk,
                                  std::int64_t first) {
  static_assert(kWavePositions * kWaveChannels == rans::kWarpThreads);
  const WaveWeights* const weights = layer.weights + 2 * std::int64_t{chunk} * layer.words;
  typename Warp::template PerThread<std::int32_t[kWaveChannels]> acc;
  typename Warp::template PerThread<std::int64_t> pixel;
  Warp::each([&](unsigned t) {
    const WavePlace p = wave_place(places[t]);
    pixel[t] = pixel_number(a, p);
    const auto phase_height = static_cast<std::uint32_t>(a.phase_height);
    const auto phase_width = static_cast<std::uint32_t>(a.phase_width);
    const bool sees = layer.active == nullptr ||
                      rans::load_constant(layer.active + p.row % phase_height * phase_width +
                                          p.column % phase_width) != 0;
    wave_accumulate<kStaged>(layer.input + pixel[t] * layer.input_bytes, layer.offsets, weights,
                             sees ? layer.words : 0, static_cast<int>(t % kWaveChannels), acc[t]);
  });
  // Eight sums over eight threads: of two threads `half` apart one takes the upper half of the
  // channels that both have, the other the lower.
  PYCODEC_UNROLL
  for (int half = kWaveChannels / 2; half > 0; half /= 2) {
    typename Warp::template PerThread<unsigned> source;
    Warp::each([&](unsigned t) { source[t] = t ^ static_cast<unsigned>(half); });
    PYCODEC_UNROLL
    for (int j = 0; j < half; ++j) {
      typename Warp::template PerThread<std::int32_t> given;
      Warp::each([&](unsigned t) {
        const bool upper = (t & static_cast<unsigned>(half)) != 0;
        given[t] = upper ? acc[t][j] : acc[t][j + half];
        if (upper) acc[t][j] = acc[t][j + half];
      });
      const auto taken = Warp::shuffle(given, source);
      Warp::each([&](unsigned t) { acc[t][j] = add(acc[t][j], taken[t]); });
    }
  }
  Warp::each([&](unsigned t) {
    const std::int64_t n = first + t / kWaveChannels;
    const int channel =
        chunk * kWaveChannels + static_cast<int>(t % kWaveChannels);  // of the group
    if (n >= span.count || channel >= layer.out_width) return;
    std::int64_t residual = 0;
    if (layer.residual != nullptr) {
      residual = load_shared(layer.residual + pixel[t] * layer.residual_bytes + channel);
      residual *= load_static<kStaged>(layer.residual_multiplier + channel);
    }
    const std::int32_t value =
        requantize(layer.requantization, add(acc[t][0], load_static<kStaged>(layer.bias + channel)),
                   load_static<kStaged>(layer.multiplier + channel),
                   load_static<kStaged>(layer.negative_multiplier + channel), residual);
    if (layer.output != nullptr) {
      layer.output[pixel[t] * layer.output_bytes + channel] = static_cast<std::int8_t>(value);
    } else {
      a.indexes[span.in_wave + n] = static_cast<std::uint8_t>(value);
    }
  });
}

// The groups of a warp, and its share of them: where there are blocks enough, all warps of a block
// have the same group, whose weights then stay in its multiprocessor's cache.
struct WaveSeat {
  int first_group, group_step;
  std::int64_t member, members;  // of the warps with this group
};

template <class Grid>
PYCODEC_DEVICE WaveSeat wave_seat(const Grid& grid, int groups) {
  const int blocks = grid.blocks();
  const int warps = grid.warps_of_block();
  if (blocks >= groups) {
    const int group = grid.block() % groups;
    const std::int64_t blocks_of_group = (blocks - group - 1) / groups + 1;
    return {group, groups, std::int64_t{grid.block() / groups} * warps + grid.warp_of_block(),
            blocks_of_group * warps};
  }
  // A warp has several groups, or a group several warps; never both.
  const int warp = grid.block() * warps + grid.warp_of_block();
  const int all = blocks * warps;
  if (all <= groups) return {warp, all, 0, 1};
  const int group = warp % groups;
  return {group, groups, warp / groups, (all - group - 1) / groups + 1};
}

// What a warp can know of a wave before it begins: its first group, and its first places there.
template <class Warp>
struct WaveAhead {
  WaveSpan span;
  WavePlaces<Warp> places;
};

template <class Warp>
PYCODEC_DEVICE WaveAhead<Warp> look_ahead(const WaveDecodeArguments& a, const WaveSeat& seat,
                                          std::int64_t t) {
  WaveAhead<Warp> ahead;
  ahead.span = {0, 0, 0};
  if (t < a.num_waves && seat.first_group < a.groups) {
    ahead.span = wave_span(a, t, seat.first_group);
    const std::int64_t first = seat.member * kWavePositions;
    if (first < ahead.span.count) ahead.places = load_places<Warp>(a, ahead.span, first);
  }
  return ahead;
}

// A warp's share of one stage in wave t. Where a stage has several layers, each has one chunk, so
// that all that they need of each other is made by the same warp.
template <class Warp, bool kStaged>
PYCODEC_DEVICE void run_wave_stage(const WaveDecodeArguments& a, int stage, const WaveSeat& seat,
                                   const WaveLayers& layers, const WaveAhead<Warp>& ahead,
                                   std::int64_t t) {
  const std::int32_t begin = load_static<kStaged>(layers.stages + stage);
  const std::int32_t end = load_static<kStaged>(layers.stages + stage + 1);
  const std::int64_t chunks = wave_chunks(kStaged ? layers.staged[begin].out_width
                                                  : static_cast<int>(a.layers[begin].out_width));
  for (int group = seat.first_group; group < a.groups; group += seat.group_step) {
    const bool is_known = group == seat.first_group;
    const WaveSpan span = is_known ? ahead.span : wave_span(a, t, group);
    const std::int64_t tasks = (span.count + kWavePositions - 1) / kWavePositions * chunks;
    for (std::int64_t task = seat.member; task < tasks; task += seat.members) {
      const std::int64_t block = task / chunks;
      const std::int64_t first = block * kWavePositions;
      const WavePlaces<Warp> places =
          is_known && block == seat.member ? ahead.places : load_places<Warp>(a, span, first);
      for (std::int32_t l = begin; l < end; ++l) {
        if (l > begin) Warp::sync();
        const auto chunk = static_cast<int>(task % chunks);
        if constexpr (kStaged) {
          run_wave_task<Warp, true>(a, layers.staged[l], span, places, chunk, first);
        } else {
          run_wave_task<Warp, false>(a, group_layer(a.layers[l], group), span, places, chunk,
                                     first);
        }
      }
    }
  }
}

// Pops the symbols of a wave and puts them in their places; returns a failure_report().
template <class Warp, int kLanesPerThread>
PYCODEC_DEVICE std::uint64_t draw_wave(const WaveDecodeArguments& a,
                                       rans::WarpDecoder<Warp, kLanesPerThread>& decoder,
                                       std::int64_t t) {
  const std::int64_t begin = rans::load_constant(a.begin + t * a.groups);
  const auto count =
      static_cast<std::uint32_t>(rans::load_constant(a.begin + (t + 1) * a.groups) - begin);
  if (a.check_indexes) {
    // Before any symbol is popped, as on the CPU.
    for (std::uint32_t first = 0; first < count; first += rans::kWarpThreads) {
      typename Warp::template PerThread<bool> wrong;
      Warp::each([&](unsigned i) {
        wrong[i] = first + i < count && load_shared(a.indexes + first + i) >= a.tables.num_tables;
      });
      const std::uint32_t mask = Warp::ballot(wrong);
      if (mask != 0) {
        return rans::failure_report(rans::Failure::kNoTable, 0, first + rans::lowest_bit(mask));
      }
    }
  }
  struct Fetched {
    std::uint32_t index;
    std::uint64_t place;
  };
  return decoder.decode(
      count,
      [&](std::uint32_t n) {
        return Fetched{load_shared(a.indexes + n), rans::load_constant(a.places + begin + n)};
      },
      [&](std::uint32_t n, const Fetched& fetched, std::int32_t symbol) {
        const WavePlace p = wave_place(fetched.place);
        a.symbols[begin + n] = symbol;
        const std::int32_t clamped = symbol < -128 ? -128 : symbol > 127 ? 127 : symbol;
        a.symbol_frame[pixel_number(a, p) * a.symbol_bytes + p.group] =
            static_cast<std::int8_t>(clamped);
      });
}

template <class Warp>
PYCODEC_DEVICE void report_failure(const WaveDecodeArguments& a, std::int64_t wave,
                                   std::uint64_t report) {
  Warp::each([&](unsigned t) {
    if (t != 0 || report == 0) return;
    a.state->failure = report;
    a.state->wave = wave;
    a.state->stopped = 1;
  });
}

// All waves. While the first warp draws a wave's symbols the others wait for it.
template <int kLanesPerThread, bool kStaged, class Grid>
PYCODEC_DEVICE void decode_waves(Grid& grid, const WaveDecodeArguments& a) {
  using Warp = typename Grid::Warp;
  // A failure need not be seen at once, but for an index without a table, which the host looks for.
  constexpr int kWavesToLook = 32;
  const WaveSeat seat = wave_seat(grid, a.groups);
  WaveLayers layers = {nullptr, a.stages};
  rans::DeviceTables tables = a.tables;
  if constexpr (kStaged) layers = stage_group(grid, a, seat.first_group, tables);
  const bool draws = grid.block() == 0 && grid.warp_of_block() == 0;
  rans::WarpDecoder<Warp, kLanesPerThread> decoder(tables, a.lanes);
  std::uint64_t report = 0;
  if (draws) {
    report = decoder.start(a.body, a.body_size);
    report_failure<Warp>(a, 0, report);
  }
  WaveAhead<Warp> ahead = look_ahead<Warp>(a, seat, 0);
  for (std::int64_t t = 0; t < a.num_waves; ++t) {
    for (int stage = 0; stage < a.num_stages; ++stage) {
      run_wave_stage<Warp, kStaged>(a, stage, seat, layers, ahead, t);
      grid.sync();
    }
    if (draws && report == 0) {
      report = draw_wave<Warp>(a, decoder, t);
      report_failure<Warp>(a, t, report);
    }
    ahead = look_ahead<Warp>(a, seat, t + 1);
    grid.sync();
    const bool looks = a.check_indexes || t % kWavesToLook == kWavesToLook - 1;
    if (looks && load_shared(&a.state->stopped) != 0) return;
  }
  if (draws && report == 0) report_failure<Warp>(a, a.num_waves, decoder.finish());
}

// The same in launches: one stage of the wave that the state is at.
template <class Grid>
PYCODEC_DEVICE void decode_wave_stage(const Grid& grid, const WaveDecodeArguments& a, int stage) {
  using Warp = typename Grid::Warp;
  if (load_shared(&a.state->stopped) != 0) return;
  const std::int64_t t = load_shared(&a.state->wave);
  if (t >= a.num_waves) return;
  const WaveSeat seat = wave_seat(grid, a.groups);
  run_wave_stage<Warp, false>(a, stage, seat, {nullptr, a.stages}, look_ahead<Warp>(a, seat, t), t);
}

// And the draw, by one warp, which then goes on to the next wave.
template <class Warp, int kLanesPerThread>
PYCODEC_DEVICE void decode_wave_draw(const WaveDecodeArguments& a) {
  if (load_shared(&a.state->stopped) != 0) return;
  const std::int64_t t = load_shared(&a.state->wave);
  rans::WarpDecoder<Warp, kLanesPerThread> decoder(a.tables, a.lanes);
  std::uint64_t report = 0;
  if (t == 0) {
    report = decoder.start(a.body, a.body_size);
  } else {
    decoder.resume(a.body, a.body_size, a.checkpoint);
  }
  if (report == 0 && t < a.num_waves) report = draw_wave<Warp>(a, decoder, t);
  if (report == 0 && t + 1 >= a.num_waves) report = decoder.finish();
  report_failure<Warp>(a, t, report);
  decoder.save(a.checkpoint);
  Warp::each([&](unsigned thread) {
    if (thread == 0 && report == 0) a.state->wave = t + 1;
  });
}

}  // namespace pycodec::cuda
