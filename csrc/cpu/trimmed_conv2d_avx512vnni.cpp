// AVX-512 VNNI in vectors of 8 lanes: groups of a context network are narrow, and a processor that
// halves its 512-bit vectors loses nothing.
#include <immintrin.h>

#include "cpu/trimmed_conv2d_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kVectorBytes = 32;

// Of the 32 registers, 24 are accumulators at most.
constexpr int positions_in_tile(int vectors) { return vectors <= 2 ? 12 / vectors : 6; }

struct Requantizer {
  explicit Requantizer(const TrimmedLayer& layer)
      : half(_mm256_set1_epi64x(std::int64_t{1} << (layer.shift - 1))),
        shift(_mm_cvtsi32_si128(layer.shift)),
        lower(_mm256_set1_epi64x(layer.lower)),
        upper(_mm256_set1_epi64x(layer.upper)),
        residual_multiplier(_mm256_set1_epi32(layer.residual_multiplier)) {}

  // The even 32-bit lanes; results are 64 bits wide.
  __m256i even(__m256i acc, __m256i multiplier, __m256i residual) const {
    __m256i x = _mm256_add_epi64(_mm256_mul_epi32(acc, multiplier), half);
    x = _mm256_add_epi64(x, _mm256_mul_epi32(residual, residual_multiplier));
    return _mm256_min_epi64(_mm256_max_epi64(_mm256_sra_epi64(x, shift), lower), upper);
  }

  __m256i operator()(__m256i acc, __m256i positive, __m256i negative, __m256i residual) const {
    const __m256i multiplier = _mm256_mask_mov_epi32(positive, is_negative(acc), negative);
    const __m256i evens = even(acc, multiplier, residual);
    const __m256i odds = even(_mm256_srli_epi64(acc, 32), _mm256_srli_epi64(multiplier, 32),
                              _mm256_srli_epi64(residual, 32));
    return _mm256_mask_blend_epi32(0xAA, evens, _mm256_slli_epi64(odds, 32));
  }

  static __mmask8 is_negative(__m256i x) {
    return _mm256_cmplt_epi32_mask(x, _mm256_setzero_si256());
  }

  __m256i half;
  __m128i shift;
  __m256i lower, upper, residual_multiplier;
};

inline std::int32_t load_group(const std::uint8_t* p) {
  std::int32_t group;
  __builtin_memcpy(&group, p, sizeof group);
  return group;
}

// The outputs of a tile's positions, from `position` on, in the Vectors vectors from `first`.
template <int Vectors>
void run_tile(const TrimmedLayer& layer, const TrimmedTile& tile, const Requantizer& requantize,
              int position, int first, const std::int8_t* weights) {
  constexpr int kPositions = positions_in_tile(Vectors);
  const int left = tile.positions - position;
  const int positions = left < kPositions ? left : kPositions;
  __m256i acc[kPositions][Vectors];
  const std::uint8_t* windows[kPositions];
  for (int p = 0; p < kPositions; ++p) {
    windows[p] = tile.windows[position + (p < positions ? p : positions - 1)];
    for (int v = 0; v < Vectors; ++v) {
      acc[p][v] = _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(layer.bias + (first + v) * kTrimmedLanes));
    }
  }
  for (int s = 0; s < layer.num_segments; ++s) {
    const std::int64_t begin = layer.segments[s].offset;
    const std::int64_t end = begin + std::int64_t{kTrimmedGroup} * layer.segments[s].groups;
    for (std::int64_t i = begin; i < end; i += kTrimmedGroup) {
      __m256i w[Vectors];
      for (int v = 0; v < Vectors; ++v, weights += kVectorBytes) {
        w[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights));
      }
#pragma GCC unroll 12
      for (int p = 0; p < kPositions; ++p) {
        const __m256i group = _mm256_set1_epi32(load_group(windows[p] + i));
        for (int v = 0; v < Vectors; ++v) acc[p][v] = _mm256_dpbusd_epi32(acc[p][v], group, w[v]);
      }
    }
  }
  for (int v = 0; v < Vectors; ++v) {
    const int channel = (first + v) * kTrimmedLanes;
    const int channels_left = layer.width - channel;
    const auto mask =
        static_cast<__mmask16>(channels_left < kTrimmedLanes ? (1 << channels_left) - 1 : 0xFF);
    const auto load = [&](const std::int32_t* values) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + channel));
    };
    const __m256i positive = load(layer.multiplier);
    const __m256i negative = load(layer.negative_multiplier);
    const __m128i flip = _mm_set1_epi8(static_cast<char>(layer.flip));
#pragma GCC unroll 12
    for (int p = 0; p < kPositions; ++p) {
      if (p >= positions) break;
      __m256i residual = _mm256_setzero_si256();
      if (tile.residuals) {
        const __m128i bytes = _mm_maskz_loadu_epi8(mask, tile.residuals[position + p] + channel);
        residual = _mm256_cvtepi8_epi32(_mm_xor_si128(bytes, _mm_set1_epi8(-128)));
      }
      const __m256i out = requantize(acc[p][v], positive, negative, residual);
      _mm_mask_storeu_epi8(tile.outs[position + p] + channel, mask,
                           _mm_xor_si128(_mm256_cvtepi32_epi8(out), flip));
    }
  }
}

constexpr decltype(&run_tile<1>) kRunTile[kTrimmedMaxVectors] = {run_tile<1>, run_tile<2>,
                                                                 run_tile<3>, run_tile<4>};

}  // namespace

void run_trimmed_avx512vnni(const TrimmedLayer& layer, const TrimmedTile& tile) {
  const Requantizer requantize(layer);
  std::int64_t groups = 0;
  for (int s = 0; s < layer.num_segments; ++s) groups += layer.segments[s].groups;
  const std::int8_t* weights = layer.weights;
  for (int first = 0; first < layer.vectors; first += kTrimmedMaxVectors) {
    const int left = layer.vectors - first;
    const int vectors = left < kTrimmedMaxVectors ? left : kTrimmedMaxVectors;
    const int step = positions_in_tile(vectors);
    for (int position = 0; position < tile.positions; position += step) {
      kRunTile[vectors - 1](layer, tile, requantize, position, first, weights);
    }
    weights += groups * vectors * kVectorBytes;
  }
}

}  // namespace pycodec
