// What the warps of a grid do to decode waves. As rans/warp.hpp, on which it is built, this is
// written for all 32 threads of a warp at once and runs on the GPU and, in the tests, on the host.
//
// A Grid has Grid::Warp, see rans/warp.hpp; block(), blocks(), warp_of_block(), warps_of_block(),
// which are the same in all threads of a warp; and sync(), where all warps meet: what any wrote
// before it, all can read after it.
//
// Data that the kernel itself writes are read by load_shared() and never through the read-only
// cache or the first-level cache, which do not see what other multiprocessors write.
#pragma once

#include <cstdint>

#include "cuda/int8.hpp"
#include "cuda/wave_network.hpp"
#include "rans/warp.hpp"

namespace pycodec::cuda {

#ifdef __CUDACC__
#define PYCODEC_UNROLL _Pragma("unroll")
#define PYCODEC_UNROLL_4 _Pragma("unroll 4")
#else
#define PYCODEC_UNROLL
#define PYCODEC_UNROLL_4
#endif

template <class T>
PYCODEC_HOST_DEVICE T load_shared(const T* p) {
#ifdef __CUDA_ARCH__
  return __ldcg(p);
#else
  return *p;
#endif
}

struct WaveWeights {
  std::uint32_t words[4];
};

// Rows of a group that have a symbol in wave t: `count` of them from `first` on, row_stride apart.
struct WaveRows {
  std::int64_t rest;  // t less the group's part
  std::int64_t first, count;
};

// They solve row_step * row = rest (modulo column_step) with a column inside of the picture.
PYCODEC_HOST_DEVICE inline WaveRows wave_rows(const WaveDecodeArguments& a, std::int64_t t,
                                              int group) {
  const WaveCudaOrder& order = a.order;
  WaveRows rows = {t - order.group_step * group, 0, 0};
  if (rows.rest < 0 || rows.rest % order.divisor != 0) return rows;
  const std::int64_t beyond = rows.rest - order.column_step * (a.width - 1);
  std::int64_t low = 0;
  std::int64_t high = a.height - 1;
  if (order.row_step > 0) {
    if (beyond > 0) low = (beyond + order.row_step - 1) / order.row_step;
    const std::int64_t last = rows.rest / order.row_step;
    if (last < high) high = last;
  } else if (beyond > 0) {
    return rows;
  }
  const std::int64_t residue =
      rows.rest / order.divisor % order.row_stride * order.inverse % order.row_stride;
  rows.first = low + (residue + order.row_stride - low % order.row_stride) % order.row_stride;
  if (rows.first <= high) rows.count = (high - rows.first) / order.row_stride + 1;
  return rows;
}

struct WavePosition {
  std::int64_t row, column;
};

PYCODEC_HOST_DEVICE inline WavePosition wave_position(const WaveDecodeArguments& a,
                                                      const WaveRows& rows, std::int64_t n) {
  const std::int64_t row = rows.first + n * a.order.row_stride;
  const std::int64_t rest = rows.rest - a.order.row_step * row;
  return {row, a.order.column_step == 1 ? rest : rest / a.order.column_step};  // nearly always 1
}

// The symbols of wave t in groups before `group`.
template <class Warp>
PYCODEC_DEVICE std::int64_t wave_begin(const WaveDecodeArguments& a, std::int64_t t, int group) {
  typename Warp::template PerThread<std::int64_t> sum;
  Warp::each([&](unsigned thread) {
    sum[thread] = 0;
    for (int g = static_cast<int>(thread); g < group; g += static_cast<int>(rans::kWarpThreads)) {
      sum[thread] += wave_rows(a, t, g).count;
    }
  });
  for (unsigned distance = rans::kWarpThreads / 2; distance > 0; distance /= 2) {
    typename Warp::template PerThread<unsigned> source;
    Warp::each([&](unsigned thread) { source[thread] = thread ^ distance; });
    const auto other = Warp::shuffle(sum, source);
    Warp::each([&](unsigned thread) { sum[thread] += other[thread]; });
  }
  return Warp::broadcast(sum, 0);
}

// Sums of the products of words slice, slice + 8, ... that a group sees from a pixel, for eight
// output channels.
PYCODEC_HOST_DEVICE inline void wave_accumulate(const std::int8_t* pixel,
                                                const std::int32_t* offsets,
                                                const WaveWeights* weights, int words, int slice,
                                                std::int32_t (&acc)[kWaveChannels]) {
  PYCODEC_UNROLL
  for (int j = 0; j < kWaveChannels; ++j) acc[j] = 0;
  PYCODEC_UNROLL_4
  for (int word = slice; word < words; word += kWaveChannels) {
    const std::uint32_t x = load_shared(
        reinterpret_cast<const std::uint32_t*>(pixel + rans::load_constant(offsets + word)));
    PYCODEC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const WaveWeights four = rans::load_constant_16(weights + 2 * word + half);
      PYCODEC_UNROLL
      for (int j = 0; j < 4; ++j) acc[4 * half + j] = dot4(x, four.words[j], acc[4 * half + j]);
    }
  }
}

// Computes kWaveChannels output channels of a group at kWavePositions positions of a wave: thread
// t has position t / 8, of the words that the group sees every eighth from t % 8 on, and in the
// end output channel t % 8.
template <class Warp>
PYCODEC_DEVICE void run_wave_task(const WaveDecodeArguments& a, const WaveCudaLayer& layer,
                                  int group, const WaveRows& rows, std::int64_t begin, int chunk,
                                  std::int64_t first) {
  static_assert(kWavePositions * kWaveChannels == rans::kWarpThreads);
  const std::int64_t word_begin = rans::load_constant(layer.word_begin + group);
  const int words =
      static_cast<int>(rans::load_constant(layer.word_begin + group + 1) - word_begin);
  const int chunks = static_cast<int>((layer.out_width + kWaveChannels - 1) / kWaveChannels);
  const std::int32_t* const offsets = layer.offsets + word_begin;
  const auto* const weights = reinterpret_cast<const WaveWeights*>(layer.weights) +
                              2 * (word_begin * chunks + std::int64_t{chunk} * words);

  typename Warp::template PerThread<std::int32_t[kWaveChannels]> acc;
  Warp::each([&](unsigned t) {
    const std::int64_t n = first + t / kWaveChannels;
    // Threads without a position do the same work as the first one, so that all stay together.
    const WavePosition p = wave_position(a, rows, n < rows.count ? n : first);
    wave_accumulate(layer.input + (p.row * a.pitch + p.column) * layer.input_bytes, offsets,
                    weights, words, static_cast<int>(t % kWaveChannels), acc[t]);
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
    const std::int64_t in_group = std::int64_t{chunk} * kWaveChannels + t % kWaveChannels;
    if (n >= rows.count || in_group >= layer.out_width) return;
    const WavePosition p = wave_position(a, rows, n);
    const std::int64_t pixel = p.row * a.pitch + p.column;
    const std::int64_t channel = group * layer.out_width + in_group;
    const Requantization q = {static_cast<std::int32_t>(layer.residual_multiplier),
                              static_cast<int>(layer.shift), static_cast<std::int32_t>(layer.lower),
                              static_cast<std::int32_t>(layer.upper)};
    const std::int32_t value =
        requantize(q, add(acc[t][0], rans::load_constant(layer.bias + channel)),
                   rans::load_constant(layer.multiplier + channel),
                   rans::load_constant(layer.negative_multiplier + channel),
                   layer.residual == nullptr
                       ? 0
                       : load_shared(layer.residual + pixel * layer.residual_bytes + channel));
    if (layer.output != nullptr) {
      layer.output[pixel * layer.output_bytes + channel] = static_cast<std::int8_t>(value);
      return;
    }
    a.indexes[begin + n] = static_cast<std::uint8_t>(value);
    a.places[begin + n] = (group * a.height + p.row) * a.width + p.column;
    a.pixels[begin + n] = pixel * a.symbol_bytes + group;
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

// A warp's share of one layer in wave t.
template <class Warp>
PYCODEC_DEVICE void run_wave_layer(const WaveDecodeArguments& a, const WaveCudaLayer& layer,
                                   const WaveSeat& seat, int group, const WaveRows& rows,
                                   std::int64_t begin) {
  const std::int64_t chunks = (layer.out_width + kWaveChannels - 1) / kWaveChannels;
  const std::int64_t tasks = (rows.count + kWavePositions - 1) / kWavePositions * chunks;
  for (std::int64_t task = seat.member; task < tasks; task += seat.members) {
    run_wave_task<Warp>(a, layer, group, rows, begin, static_cast<int>(task % chunks),
                        task / chunks * kWavePositions);
  }
}

// Pops the symbols of a wave and puts them in their places; returns a failure_report().
template <class Warp, int kLanesPerThread>
PYCODEC_DEVICE std::uint64_t draw_wave(const WaveDecodeArguments& a,
                                       rans::WarpDecoder<Warp, kLanesPerThread>& decoder,
                                       std::uint32_t count) {
  if (a.check_indexes) {
    // Before any symbol is popped, as on the CPU.
    for (std::uint32_t first = 0; first < count; first += rans::kWarpThreads) {
      typename Warp::template PerThread<bool> wrong;
      Warp::each([&](unsigned t) {
        wrong[t] = first + t < count && load_shared(a.indexes + first + t) >= a.tables.num_tables;
      });
      const std::uint32_t mask = Warp::ballot(wrong);
      if (mask != 0) {
        return rans::failure_report(rans::Failure::kNoTable, 0, first + rans::lowest_bit(mask));
      }
    }
  }
  return decoder.decode(
      count, [&](std::uint32_t n) -> std::uint32_t { return load_shared(a.indexes + n); },
      [&](std::uint32_t n, std::int32_t symbol) {
        a.symbols[load_shared(a.places + n)] = symbol;
        const std::int32_t clamped = symbol < -128 ? -128 : symbol > 127 ? 127 : symbol;
        a.symbol_frame[load_shared(a.pixels + n)] = static_cast<std::int8_t>(clamped);
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
template <int kLanesPerThread, class Grid>
PYCODEC_DEVICE void decode_waves(Grid& grid, const WaveDecodeArguments& a) {
  using Warp = typename Grid::Warp;
  const WaveSeat seat = wave_seat(grid, a.groups);
  const bool draws = grid.block() == 0 && grid.warp_of_block() == 0;
  rans::WarpDecoder<Warp, kLanesPerThread> decoder(a.tables, a.lanes);
  std::uint64_t report = 0;
  if (draws) report = decoder.start(a.body, a.body_size);
  // Of the warp's group, nearly always its only one; a wave's are found while the one before is
  // drawn.
  WaveRows own_rows = wave_rows(a, 0, seat.first_group);
  std::int64_t own_begin = wave_begin<Warp>(a, 0, seat.first_group);
  for (std::int64_t t = 0; t < a.num_waves; ++t) {
    for (int l = 0; l < a.num_layers; ++l) {
      run_wave_layer<Warp>(a, a.layers[l], seat, seat.first_group, own_rows, own_begin);
      for (int group = seat.first_group + seat.group_step; group < a.groups;
           group += seat.group_step) {
        run_wave_layer<Warp>(a, a.layers[l], seat, group, wave_rows(a, t, group),
                             wave_begin<Warp>(a, t, group));
      }
      grid.sync();
    }
    if (draws) {
      if (report == 0) {
        const std::int64_t count = wave_begin<Warp>(a, t, a.groups);
        report = draw_wave<Warp>(a, decoder, static_cast<std::uint32_t>(count));
      }
      report_failure<Warp>(a, t, report);
    }
    own_rows = wave_rows(a, t + 1, seat.first_group);
    own_begin = wave_begin<Warp>(a, t + 1, seat.first_group);
    grid.sync();
    if (load_shared(&a.state->stopped) != 0) return;
  }
  if (draws) {
    if (report == 0) report = decoder.finish();
    report_failure<Warp>(a, a.num_waves, report);
  }
}

// The same in launches: one layer of the wave that the state is at.
template <class Grid>
PYCODEC_DEVICE void decode_wave_layer(const Grid& grid, const WaveDecodeArguments& a, int number) {
  using Warp = typename Grid::Warp;
  if (load_shared(&a.state->stopped) != 0) return;
  const std::int64_t t = load_shared(&a.state->wave);
  const WaveSeat seat = wave_seat(grid, a.groups);
  for (int group = seat.first_group; group < a.groups; group += seat.group_step) {
    run_wave_layer<Warp>(a, a.layers[number], seat, group, wave_rows(a, t, group),
                         wave_begin<Warp>(a, t, group));
  }
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
  if (report == 0 && t < a.num_waves) {
    const std::int64_t count = wave_begin<Warp>(a, t, a.groups);
    report = draw_wave<Warp>(a, decoder, static_cast<std::uint32_t>(count));
  }
  if (report == 0 && t + 1 >= a.num_waves) report = decoder.finish();
  report_failure<Warp>(a, t, report);
  decoder.save(a.checkpoint);
  Warp::each([&](unsigned thread) {
    if (thread == 0 && report == 0) a.state->wave = t + 1;
  });
}

}  // namespace pycodec::cuda
