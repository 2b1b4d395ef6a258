// AVX-512 VNNI in vectors of 8 lanes, as groups of a context network are narrow. Where a group has
// no more than these, pairs of inputs fill 16 lanes, which halves the loads. Requantization has 8
// lanes of 64 bits.
#include <immintrin.h>

#include <type_traits>

#include "cpu/quantized_trimmed_conv2d_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kVectorBytes = 32;

inline __m256i load_8(const std::int32_t* values) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
}

// What the outputs of a layer share.
struct Requantizer {
  explicit Requantizer(const TrimmedLayer& layer)
      : half(_mm512_set1_epi64(std::int64_t{1} << (layer.shift - 1))),
        shift(_mm_cvtsi32_si128(layer.shift)),
        lower(_mm_set1_epi16(static_cast<short>(layer.lower))),
        upper(_mm_set1_epi16(static_cast<short>(layer.upper))),
        flip(_mm_set1_epi8(static_cast<char>(layer.flip))),
        residual_flip(_mm_set1_epi8(static_cast<char>(layer.residual_flip))) {}

  // Eight outputs in the low bytes. A lane of acc has the accumulator in its low half and the same
  // sign. Saturation to 16 bits leaves every clamp to a byte as it is.
  template <bool HasResidual>
  __m128i run(__m512i acc, __m512i positive, __m512i negative, __m128i residual,
              __m512i residual_multiplier) const {
    const __mmask8 is_negative = _mm512_cmplt_epi64_mask(acc, _mm512_setzero_si512());
    const __m512i multiplier = _mm512_mask_mov_epi64(positive, is_negative, negative);
    __m512i sum = _mm512_mul_epi32(acc, multiplier);
    sum = _mm512_add_epi64(sum, half);
    if (HasResidual) {
      const __m512i value = _mm512_cvtepi8_epi64(_mm_xor_si128(residual, residual_flip));
      sum = _mm512_add_epi64(sum, _mm512_mul_epi32(value, residual_multiplier));
    }
    __m128i out = _mm512_cvtsepi64_epi16(_mm512_sra_epi64(sum, shift));
    out = _mm_min_epi16(_mm_max_epi16(out, lower), upper);
    return _mm_xor_si128(_mm_cvtepi16_epi8(out), flip);
  }

  __m512i half;
  __m128i shift, lower, upper, flip, residual_flip;
};

inline __m512i widened(const std::int32_t* values) { return _mm512_cvtepi32_epi64(load_8(values)); }

inline __m256i load_group(const std::uint8_t* p) {
  std::int32_t group;
  __builtin_memcpy(&group, p, sizeof group);
  return _mm256_set1_epi32(group);
}

// acc += x * weights. In assembly, since GCC 12 copies every
// accumulator twice for the intrinsic. All loops over accumulators must be unrolled, as an index
// known at run time only would keep them in memory.
template <typename Vector>
inline void add_products(Vector& acc, Vector x, Vector weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(weights));
}

// The first `count` <= 8 bytes: masked stores are slow on some processors.
inline void store_bytes(std::uint8_t* out, __m128i bytes, int count) {
  auto rest = static_cast<std::uint64_t>(_mm_cvtsi128_si64(bytes));
  if (count >= 8) {
    __builtin_memcpy(out, &rest, 8);
    return;
  }
  if (count & 4) {
    __builtin_memcpy(out, &rest, 4);
    out += 4;
    rest >>= 32;
  }
  if (count & 2) {
    __builtin_memcpy(out, &rest, 2);
    out += 2;
    rest >>= 16;
  }
  if (count & 1) *out = static_cast<std::uint8_t>(rest);
}

// acc += what the positions from `row` on have at one place of their windows.
template <int Vectors, int Positions>
inline void add_input(__m256i (&acc)[Positions][Vectors], const std::uint8_t* row,
                      std::int64_t step, const std::int8_t* weights) {
  constexpr int kRows = (Positions + 3) / 4;  // of four positions, for short addresses
  __m256i w[Vectors];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    w[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + v * kVectorBytes));
  }
#pragma GCC unroll 3
  for (int r = 0; r < kRows; ++r, row += 4 * step) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const int p = 4 * r + k;
      if (p >= Positions) break;
      const __m256i group = load_group(row + k * step);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) add_products(acc[p][v], group, w[v]);
    }
  }
}

// The outputs of Positions positions in the Vectors vectors from `first` on.
template <int Vectors, int Positions, bool HasResidual>
void run_tile(const TrimmedLayer& layer, const TrimmedTile& tile, const Requantizer& requantizer,
              std::int64_t position, int first, const std::int8_t* weights) {
  // Where there are few accumulators, inputs go to several sets in turn: an instruction waits for
  // its accumulator.
  constexpr int kSets = Positions * Vectors >= 8 ? 1 : Positions * Vectors >= 4 ? 2 : 4;
  constexpr int kInputBytes = Vectors * kVectorBytes;
  __m256i acc[Positions][Vectors];
#pragma GCC unroll 12
  for (int p = 0; p < Positions; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      acc[p][v] = load_8(layer.bias + (first + v) * kTrimmedLanes);
    }
  }
  const std::int64_t step = tile.window_step;
  const std::uint8_t* window = tile.window + position * step;
  int i = 0;
  if constexpr (kSets > 1) {
    __m256i others[kSets - 1][Positions][Vectors] = {};
    for (; i + kSets <= layer.num_inputs; i += kSets, weights += kSets * kInputBytes) {
      add_input(acc, window + layer.inputs[i], step, weights);
#pragma GCC unroll 3
      for (int set = 1; set < kSets; ++set) {
        add_input(others[set - 1], window + layer.inputs[i + set], step,
                  weights + set * kInputBytes);
      }
    }
#pragma GCC unroll 3
    for (int set = 1; set < kSets; ++set) {
#pragma GCC unroll 4
      for (int p = 0; p < Positions; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
          acc[p][v] = _mm256_add_epi32(acc[p][v], others[set - 1][p][v]);
        }
      }
    }
  }
  for (; i < layer.num_inputs; ++i, weights += kInputBytes) {
    add_input(acc, window + layer.inputs[i], step, weights);
  }
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    const int channel = (first + v) * kTrimmedLanes;
    const int channels = layer.width - channel;
    const auto mask = static_cast<__mmask16>(channels < kTrimmedLanes ? (1 << channels) - 1 : 0xFF);
    const __m512i positive = widened(layer.multiplier + channel);
    const __m512i negative = widened(layer.negative_multiplier + channel);
    const __m512i of_residual = widened(layer.residual_multiplier + channel);
    std::uint8_t* out = tile.out + position * tile.out_step + channel;
    const std::uint8_t* residual =
        HasResidual ? tile.residual + position * tile.residual_step + channel : nullptr;
#pragma GCC unroll 12
    for (int p = 0; p < Positions; ++p, out += tile.out_step) {
      __m128i bytes = _mm_setzero_si128();
      if (HasResidual) {
        bytes = _mm_maskz_loadu_epi8(mask, residual);
        residual += tile.residual_step;
      }
      const __m512i wide = _mm512_cvtepi32_epi64(acc[p][v]);
      bytes = requantizer.run<HasResidual>(wide, positive, negative, bytes, of_residual);
      store_bytes(out, bytes, channels);
    }
  }
}

// The outputs of Positions positions in a single vector, from pairs of inputs.
template <int Positions, bool HasResidual>
void run_pair_tile(const TrimmedLayer& layer, const TrimmedTile& tile,
                   const Requantizer& requantizer, std::int64_t position) {
  constexpr int kSets = Positions >= 8 ? 1 : Positions >= 4 ? 2 : 4;  // as in run_tile
  constexpr int kRows = (Positions + 3) / 4;
  constexpr int kPairBytes = kTrimmedLanes * kTrimmedPair;
  // A lane of 64 bits is an output: what the first inputs of the pairs give, and the second.
  __m512i acc[kSets][Positions] = {};
  const __m512i bias = _mm512_cvtepu32_epi64(load_8(layer.bias));
#pragma GCC unroll 12
  for (int p = 0; p < Positions; ++p) acc[0][p] = bias;
  const std::int64_t step = tile.window_step;
  const std::uint8_t* window = tile.window + position * step;
  const std::int8_t* weights = layer.pair_weights;
  const auto add_pair = [&](__m512i(&sums)[Positions], const std::uint8_t* row,
                            const std::int8_t* of_pair) {
    const __m512i w = _mm512_load_si512(of_pair);
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r, row += 4 * step) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        if (4 * r + k >= Positions) break;
        std::int64_t pair;
        __builtin_memcpy(&pair, row + k * step, sizeof pair);
        add_products(sums[4 * r + k], _mm512_set1_epi64(pair), w);
      }
    }
  };
  int i = 0;
  for (; i + kSets <= layer.num_pairs; i += kSets, weights += kSets * kPairBytes) {
#pragma GCC unroll 4
    for (int set = 0; set < kSets; ++set) {
      add_pair(acc[set], window + layer.pairs[i + set], weights + set * kPairBytes);
    }
  }
  for (; i < layer.num_pairs; ++i, weights += kPairBytes) {
    add_pair(acc[0], window + layer.pairs[i], weights);
  }
  const auto mask =
      static_cast<__mmask16>(layer.width < kTrimmedLanes ? (1 << layer.width) - 1 : 0xFF);
  const __m512i positive = widened(layer.multiplier);
  const __m512i negative = widened(layer.negative_multiplier);
  const __m512i of_residual = widened(layer.residual_multiplier);
  std::uint8_t* out = tile.out + position * tile.out_step;
  const std::uint8_t* residual =
      HasResidual ? tile.residual + position * tile.residual_step : nullptr;
#pragma GCC unroll 12
  for (int p = 0; p < Positions; ++p, out += tile.out_step) {
    __m512i sum = acc[0][p];
#pragma GCC unroll 3
    for (int set = 1; set < kSets; ++set) sum = _mm512_add_epi32(sum, acc[set][p]);
    // Both halves of a lane become its whole sum.
    sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, _MM_PERM_CDAB));
    __m128i bytes = _mm_setzero_si128();
    if (HasResidual) {
      bytes = _mm_maskz_loadu_epi8(mask, residual);
      residual += tile.residual_step;
    }
    bytes = requantizer.run<HasResidual>(sum, positive, negative, bytes, of_residual);
    store_bytes(out, bytes, layer.width);
  }
}

// Calls run_tile<Positions>(position) until all positions are covered, in tiles of at most
// Positions. What is left is covered by a tile that begins earlier: to compute an output twice does
// no harm.
template <int Positions, typename RunTile>
void cover(std::int64_t positions, const RunTile& run_tile) {
  if constexpr (Positions > 1) {
    if (positions < Positions) {
      cover<(Positions > 8 ? 8 : Positions > 4 ? 4 : Positions / 2)>(positions, run_tile);
      return;
    }
  }
  const std::integral_constant<int, Positions> count;
  std::int64_t position = 0;
  for (; position + Positions <= positions; position += Positions) run_tile(count, position);
  if (position < positions) run_tile(count, positions - Positions);
}

// All positions for Vectors vectors.
template <int Vectors, int Positions, bool HasResidual>
void run_chunk(const TrimmedLayer& layer, const TrimmedTile& tile, const Requantizer& requantizer,
               int first, const std::int8_t* weights) {
  cover<Positions>(tile.positions, [&](auto count, std::int64_t position) {
    run_tile<Vectors, count.value, HasResidual>(layer, tile, requantizer, position, first, weights);
  });
}

template <bool HasResidual>
void run_pairs(const TrimmedLayer& layer, const TrimmedTile& tile) {
  const Requantizer requantizer(layer);
  cover<12>(tile.positions, [&](auto count, std::int64_t position) {
    run_pair_tile<count.value, HasResidual>(layer, tile, requantizer, position);
  });
}

template <bool HasResidual>
void run_chunks(const TrimmedLayer& layer, const TrimmedTile& tile) {
  // Of the 32 registers, 24 are accumulators at most.
  constexpr decltype(&run_chunk<1, 12, HasResidual>) kRunChunk[kTrimmedMaxVectors] = {
      run_chunk<1, 12, HasResidual>, run_chunk<2, 6, HasResidual>, run_chunk<3, 6, HasResidual>,
      run_chunk<4, 6, HasResidual>};
  const Requantizer requantizer(layer);
  const std::int8_t* weights = layer.weights;
  for (int first = 0; first < layer.vectors; first += kTrimmedMaxVectors) {
    const int left = layer.vectors - first;
    const int vectors = left < kTrimmedMaxVectors ? left : kTrimmedMaxVectors;
    kRunChunk[vectors - 1](layer, tile, requantizer, first, weights);
    weights += std::int64_t{layer.num_inputs} * vectors * kVectorBytes;
  }
}

// The sums of eight vectors, each a lane.
inline __m256i sums_of_8(const __m256i* v) {
  const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
  const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                          _mm256_permute2x128_si256(a, b, 0x31));
}

// One output channel: lanes are input channels, and after the sum eight positions.
void run_narrow(const TrimmedLayer& layer, const TrimmedTile& tile) {
  const Requantizer requantizer(layer);
  const __m256i bias = _mm256_set1_epi32(layer.bias[0]);
  const __m512i positive = _mm512_set1_epi64(layer.multiplier[0]);
  const __m512i negative = _mm512_set1_epi64(layer.negative_multiplier[0]);
  const __m512i of_residual = _mm512_set1_epi64(layer.residual_multiplier[0]);
  for (std::int64_t position = 0; position < tile.positions; position += 8) {
    const std::int64_t left = tile.positions - position;
    const int count = left < 8 ? static_cast<int>(left) : 8;
    // Positions beyond the last are computed like it and not stored.
    std::int64_t places[8];
    __m256i acc[8];
#pragma GCC unroll 8
    for (int p = 0; p < 8; ++p) {
      places[p] = (position + (p < count ? p : count - 1)) * tile.window_step;
      acc[p] = _mm256_setzero_si256();
    }
    for (int b = 0; b < layer.num_blocks; ++b) {
      const __m256i w = _mm256_load_si256(
          reinterpret_cast<const __m256i*>(layer.block_weights + std::int64_t{b} * kTrimmedBlock));
      const std::uint8_t* window = tile.window + layer.blocks[b];
#pragma GCC unroll 8
      for (int p = 0; p < 8; ++p) {
        const auto* pixel = reinterpret_cast<const __m256i*>(window + places[p]);
        add_products(acc[p], _mm256_loadu_si256(pixel), w);
      }
    }
    const __m512i sums = _mm512_cvtepi32_epi64(_mm256_add_epi32(sums_of_8(acc), bias));
    __m128i bytes = _mm_setzero_si128();
    if (tile.residual) {
      std::uint8_t residuals[8] = {};
      for (int p = 0; p < count; ++p) {
        residuals[p] = tile.residual[(position + p) * tile.residual_step];
      }
      bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(residuals));
      bytes = requantizer.run<true>(sums, positive, negative, bytes, of_residual);
    } else {
      bytes = requantizer.run<false>(sums, positive, negative, bytes, of_residual);
    }
    auto outs = static_cast<std::uint64_t>(_mm_cvtsi128_si64(bytes));
    std::uint8_t* out = tile.out + position * tile.out_step;
    if (tile.out_step == 1 && count == 8) {
      __builtin_memcpy(out, &outs, 8);
    } else {
      for (int p = 0; p < count; ++p, outs >>= 8, out += tile.out_step) {
        *out = static_cast<std::uint8_t>(outs);
      }
    }
  }
}

}  // namespace

void run_trimmed_avx512vnni(const TrimmedLayer& layer, const TrimmedTile& tile) {
  if (layer.num_blocks > 0) {
    run_narrow(layer, tile);
  } else if (layer.num_pairs > 0) {
    tile.residual ? run_pairs<true>(layer, tile) : run_pairs<false>(layer, tile);
  } else if (tile.residual) {
    run_chunks<true>(layer, tile);
  } else {
    run_chunks<false>(layer, tile);
  }
}

}  // namespace pycodec
