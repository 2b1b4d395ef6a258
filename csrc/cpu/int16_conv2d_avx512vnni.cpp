// AVX-512 VNNI: vpdpwssd multiplies two pairs of int16 and adds the products to an int32, modulo
// 2^32.
#include <immintrin.h>

#include "cpu/int16_conv2d_kernel.hpp"

namespace pycodec {
namespace {

struct Requantizer {
  explicit Requantizer(const Int16Chunk& chunk)
      : half(_mm512_set1_epi64(std::int64_t{1} << (chunk.shift - 1))),
        shift(_mm_cvtsi32_si128(chunk.shift)),
        lower(_mm512_set1_epi64(-std::int64_t{chunk.limit})),
        upper(_mm512_set1_epi64(chunk.limit)) {}

  // The even 32-bit lanes of a and b; results are 64 bits wide.
  __m512i even(__m512i a, __m512i b) const {
    const __m512i x = _mm512_add_epi64(_mm512_mul_epi32(a, b), half);
    return _mm512_min_epi64(_mm512_max_epi64(_mm512_sra_epi64(x, shift), lower), upper);
  }

  __m512i operator()(__m512i acc, __m512i multiplier, __m512i negative_multiplier) const {
    const __m512i by = _mm512_mask_blend_epi32(_mm512_cmplt_epi32_mask(acc, _mm512_setzero_si512()),
                                               multiplier, negative_multiplier);
    const __m512i evens = even(acc, by);
    const __m512i odds = even(_mm512_srli_epi64(acc, 32), _mm512_srli_epi64(by, 32));
    return _mm512_mask_blend_epi32(0xAAAA, evens, _mm512_slli_epi64(odds, 32));
  }

  __m512i half;
  __m128i shift;
  __m512i lower, upper;
};

template <int Positions, int Vectors>
void run_tile(const Int16Chunk& chunk, const Int16Tile& tile) {
  __m512i acc[Positions][Vectors];
  for (int v = 0; v < Vectors; ++v) {
    const __m512i bias = _mm512_loadu_si512(chunk.bias + v * kInt16Lanes);
    for (int p = 0; p < Positions; ++p) acc[p][v] = bias;
  }
  const std::int16_t* weights = chunk.weights;
  for (int tap = 0; tap < chunk.num_taps; ++tap) {
    const std::int16_t* x[Positions];
    for (int p = 0; p < Positions; ++p) x[p] = tile.x[p] + chunk.taps[tap];
    for (std::int64_t i = 0; i < 2 * std::int64_t{chunk.pairs}; i += 2) {
      __m512i w[Vectors];
      for (int v = 0; v < Vectors; ++v, weights += 2 * kInt16Lanes) {
        w[v] = _mm512_loadu_si512(weights);
      }
#pragma GCC unroll 8
      for (int p = 0; p < Positions; ++p) {
        std::int32_t both;
        __builtin_memcpy(&both, x[p] + i, sizeof both);
        const __m512i value = _mm512_set1_epi32(both);
        for (int v = 0; v < Vectors; ++v) acc[p][v] = _mm512_dpwssd_epi32(acc[p][v], value, w[v]);
      }
    }
  }
  const Requantizer requantize(chunk);
  for (int v = 0; v < Vectors; ++v) {
    const int first = v * kInt16Lanes;
    const int left = chunk.channels - first;
    const auto mask = static_cast<__mmask16>(left < kInt16Lanes ? (1 << left) - 1 : 0xFFFF);
    const __m512i multiplier = _mm512_loadu_si512(chunk.multiplier + first);
    const __m512i negative = _mm512_loadu_si512(chunk.negative_multiplier + first);
    for (int p = 0; p < Positions; ++p) {
      const __m512i values = requantize(acc[p][v], multiplier, negative);
      const std::int64_t at = p * tile.out_step + first;
      if (tile.out_is_int32) {
        _mm512_mask_storeu_epi32(static_cast<std::int32_t*>(tile.out) + at, mask, values);
      } else {
        _mm256_mask_storeu_epi16(static_cast<std::int16_t*>(tile.out) + at, mask,
                                 _mm512_cvtepi32_epi16(values));
      }
    }
  }
}

using Runs = void (*)(const Int16Chunk&, const Int16Tile&);
constexpr Runs kRuns[kInt16MaxVectors][kInt16MaxPositions] = {
    {run_tile<1, 1>, run_tile<2, 1>, run_tile<3, 1>, run_tile<4, 1>, run_tile<5, 1>, run_tile<6, 1>,
     run_tile<7, 1>, run_tile<8, 1>},
    {run_tile<1, 2>, run_tile<2, 2>, run_tile<3, 2>, run_tile<4, 2>, run_tile<5, 2>, run_tile<6, 2>,
     run_tile<7, 2>, run_tile<8, 2>},
    {run_tile<1, 3>, run_tile<2, 3>, run_tile<3, 3>, run_tile<4, 3>, run_tile<5, 3>, run_tile<6, 3>,
     run_tile<7, 3>, run_tile<8, 3>},
};

}  // namespace

void run_int16_avx512vnni(const Int16Chunk& chunk, const Int16Tile& tile) {
  kRuns[chunk.vectors - 1][tile.positions - 1](chunk, tile);
}

}  // namespace pycodec
