// AVX2: four inputs are widened to int16 and multiplied by pairs, since the instruction that takes
// uint8 saturates. A vector of 16-bit weights holds four output channels, two pairs each.
#include <immintrin.h>

#include "cpu/trimmed_conv2d_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kPositions = 4;

// kPositions positions, one vector of 8 lanes: as two halves of 4 lanes x 2 partial sums.
void run_tile(const TrimmedLayer& layer, const TrimmedTile& tile, int position, int vector,
              const std::int8_t* weights, int chunk_vectors) {
  const int left = tile.positions - position;
  const int positions = left < kPositions ? left : kPositions;
  const std::uint8_t* windows[kPositions];
  __m256i acc[kPositions][2];
  for (int p = 0; p < kPositions; ++p) {
    windows[p] = tile.windows[position + (p < positions ? p : positions - 1)];
    acc[p][0] = acc[p][1] = _mm256_setzero_si256();
  }
  const std::int64_t step = std::int64_t{chunk_vectors} * kTrimmedLanes * kTrimmedGroup;
  for (int s = 0; s < layer.num_segments; ++s) {
    const std::int64_t begin = layer.segments[s].offset;
    const std::int64_t end = begin + std::int64_t{kTrimmedGroup} * layer.segments[s].groups;
    for (std::int64_t i = begin; i < end; i += kTrimmedGroup, weights += step) {
      const __m128i* w8 = reinterpret_cast<const __m128i*>(weights);
      const __m256i low = _mm256_cvtepi8_epi16(_mm_load_si128(w8));
      const __m256i high = _mm256_cvtepi8_epi16(_mm_load_si128(w8 + 1));
#pragma GCC unroll 4
      for (int p = 0; p < kPositions; ++p) {
        std::int32_t group;
        __builtin_memcpy(&group, windows[p] + i, sizeof group);
        const __m256i x = _mm256_cvtepu8_epi16(_mm_set1_epi32(group));
        acc[p][0] = _mm256_add_epi32(acc[p][0], _mm256_madd_epi16(x, low));
        acc[p][1] = _mm256_add_epi32(acc[p][1], _mm256_madd_epi16(x, high));
      }
    }
  }
  const int first = vector * kTrimmedLanes;
  for (int p = 0; p < positions; ++p) {
    // Adding neighbours leaves lanes 0 1 4 5 | 2 3 6 7.
    const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[p][0], acc[p][1]), 0xD8);
    const __m256i bias = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(layer.bias + first));
    alignas(32) std::int32_t lanes[kTrimmedLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi32(sums, bias));
    const std::uint8_t* residual = tile.residuals ? tile.residuals[position + p] : nullptr;
    for (int lane = 0; lane < kTrimmedLanes && first + lane < layer.width; ++lane) {
      tile.outs[position + p][first + lane] =
          trimmed_output(layer, first + lane, lanes[lane], residual);
    }
  }
}

}  // namespace

void run_trimmed_avx2(const TrimmedLayer& layer, const TrimmedTile& tile) {
  std::int64_t groups = 0;
  for (int s = 0; s < layer.num_segments; ++s) groups += layer.segments[s].groups;
  const std::int8_t* weights = layer.weights;
  for (int first = 0; first < layer.vectors; first += kTrimmedMaxVectors) {
    const int left = layer.vectors - first;
    const int vectors = left < kTrimmedMaxVectors ? left : kTrimmedMaxVectors;
    for (int v = 0; v < vectors; ++v) {
      const std::int8_t* vector_weights = weights + v * kTrimmedLanes * kTrimmedGroup;
      for (int position = 0; position < tile.positions; position += kPositions) {
        run_tile(layer, tile, position, first + v, vector_weights, vectors);
      }
    }
    weights += groups * vectors * kTrimmedLanes * kTrimmedGroup;
  }
}

}  // namespace pycodec
