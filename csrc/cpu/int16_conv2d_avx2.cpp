// AVX2: vpmaddwd multiplies two pairs of int16 and adds the products, modulo 2^32.
#include <immintrin.h>

#include "cpu/int16_conv2d_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kPositions = 4;  // 4 x 2 accumulators, 2 vectors of weights, a broadcast, a product

// Positions `first` to first + kPositions - 1; those that do not exist are computed as the last.
void run_vector(const Int16Chunk& chunk, const Int16Tile& tile, int first, int v) {
  const int left = tile.positions - first;
  const std::int16_t* x[kPositions];
  __m256i acc[kPositions][2];
  for (int p = 0; p < kPositions; ++p) {
    x[p] = tile.x[first + (p < left ? p : left - 1)];
    for (int half = 0; half < 2; ++half) {
      acc[p][half] = _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(chunk.bias + v * kInt16Lanes + half * 8));
    }
  }
  const std::int16_t* w = chunk.weights + v * 2 * kInt16Lanes;
  for (int tap = 0; tap < chunk.num_taps; ++tap) {
    const std::int64_t offset = chunk.taps[tap];
    for (int pair = 0; pair < chunk.pairs; ++pair, w += chunk.vectors * 2 * kInt16Lanes) {
      const __m256i w0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
      const __m256i w1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 16));
#pragma GCC unroll 4
      for (int p = 0; p < kPositions; ++p) {
        std::int32_t both;
        __builtin_memcpy(&both, x[p] + offset + 2 * pair, sizeof both);
        const __m256i value = _mm256_set1_epi32(both);
        acc[p][0] = _mm256_add_epi32(acc[p][0], _mm256_madd_epi16(value, w0));
        acc[p][1] = _mm256_add_epi32(acc[p][1], _mm256_madd_epi16(value, w1));
      }
    }
  }
  for (int p = 0; p < (left < kPositions ? left : kPositions); ++p) {
    alignas(32) std::int32_t sums[kInt16Lanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums), acc[p][0]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums + 8), acc[p][1]);
    store_int16_lanes(chunk, tile, first + p, v * kInt16Lanes, sums);
  }
}

}  // namespace

void run_int16_avx2(const Int16Chunk& chunk, const Int16Tile& tile) {
  for (int v = 0; v < chunk.vectors; ++v) {
    for (int first = 0; first < tile.positions; first += kPositions) {
      run_vector(chunk, tile, first, v);
    }
  }
}

}  // namespace pycodec
