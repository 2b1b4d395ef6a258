// AVX2: four inputs are widened to int16 and multiplied by pairs, since the instruction that takes
// uint8 saturates. A vector of 16-bit weights holds four output channels, two pairs each.
#include <immintrin.h>

#include "cpu/quantized_trimmed_conv2d_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kPositions = 4;

inline __m256i load_8(const std::int32_t* values) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
}

struct Requantizer {
  explicit Requantizer(const TrimmedLayer& layer)
      : half(_mm256_set1_epi64x(std::int64_t{1} << (layer.shift - 1))),
        sign(_mm256_set1_epi64x(std::int64_t{-1} << 63)),
        shifted_sign(_mm256_set1_epi64x(std::int64_t{1} << (63 - layer.shift))),
        shift(_mm_cvtsi32_si128(layer.shift)),
        lower(_mm256_set1_epi64x(layer.lower)),
        upper(_mm256_set1_epi64x(layer.upper)),
        flip(_mm256_set1_epi32(layer.flip)),
        residual_flip(_mm_set1_epi8(static_cast<char>(layer.residual_flip))) {}

  // The even 32-bit lanes; results are 64 bits wide. There is no arithmetic shift of 64 bits: with
  // the sign bit flipped, a logical one is the same but for where that bit then is.
  __m256i even(__m256i acc, __m256i multiplier, __m256i residual,
               __m256i residual_multiplier) const {
    __m256i x = _mm256_add_epi64(_mm256_mul_epi32(acc, multiplier), half);
    x = _mm256_add_epi64(x, _mm256_mul_epi32(residual, residual_multiplier));
    x = _mm256_srl_epi64(_mm256_xor_si256(x, sign), shift);
    x = _mm256_sub_epi64(x, shifted_sign);
    x = _mm256_blendv_epi8(x, lower, _mm256_cmpgt_epi64(lower, x));
    return _mm256_blendv_epi8(x, upper, _mm256_cmpgt_epi64(x, upper));
  }

  // Eight outputs as 32-bit lanes, of which the lowest byte counts.
  __m256i run(__m256i acc, __m256i positive, __m256i negative, __m256i residual,
              __m256i residual_multiplier) const {
    const __m256i multiplier = _mm256_blendv_epi8(positive, negative, _mm256_srai_epi32(acc, 31));
    const __m256i evens = even(acc, multiplier, residual, residual_multiplier);
    const __m256i odds =
        even(_mm256_srli_epi64(acc, 32), _mm256_srli_epi64(multiplier, 32),
             _mm256_srli_epi64(residual, 32), _mm256_srli_epi64(residual_multiplier, 32));
    return _mm256_xor_si256(_mm256_blend_epi32(evens, _mm256_slli_epi64(odds, 32), 0xAA), flip);
  }

  __m256i half, sign, shifted_sign;
  __m128i shift;
  __m256i lower, upper, flip;
  __m128i residual_flip;
};

// Up to kPositions positions, one vector of 8 lanes: as two halves of 4 lanes x 2 partial sums.
void run_tile(const TrimmedLayer& layer, const TrimmedTile& tile, const Requantizer& requantizer,
              std::int64_t position, int vector, const std::int8_t* weights, int chunk_vectors) {
  const std::int64_t left = tile.positions - position;
  const int positions = left < kPositions ? static_cast<int>(left) : kPositions;
  std::int64_t places[kPositions];
  __m256i acc[kPositions][2];
  for (int p = 0; p < kPositions; ++p) {
    places[p] = (position + (p < positions ? p : positions - 1)) * tile.window_step;
    acc[p][0] = acc[p][1] = _mm256_setzero_si256();
  }
  const std::int64_t step = std::int64_t{chunk_vectors} * kTrimmedLanes * kTrimmedGroup;
  for (int i = 0; i < layer.num_inputs; ++i, weights += step) {
    const __m128i* w8 = reinterpret_cast<const __m128i*>(weights);
    const __m256i low = _mm256_cvtepi8_epi16(_mm_load_si128(w8));
    const __m256i high = _mm256_cvtepi8_epi16(_mm_load_si128(w8 + 1));
    const std::uint8_t* window = tile.window + layer.inputs[i];
#pragma GCC unroll 4
    for (int p = 0; p < kPositions; ++p) {
      std::int32_t group;
      __builtin_memcpy(&group, window + places[p], sizeof group);
      const __m256i x = _mm256_cvtepu8_epi16(_mm_set1_epi32(group));
      acc[p][0] = _mm256_add_epi32(acc[p][0], _mm256_madd_epi16(x, low));
      acc[p][1] = _mm256_add_epi32(acc[p][1], _mm256_madd_epi16(x, high));
    }
  }
  const int first = vector * kTrimmedLanes;
  const int channels = layer.width - first < kTrimmedLanes ? layer.width - first : kTrimmedLanes;
  const __m256i bias = load_8(layer.bias + first);
  const __m256i positive = load_8(layer.multiplier + first);
  const __m256i negative = load_8(layer.negative_multiplier + first);
  const __m256i of_residual = load_8(layer.residual_multiplier + first);
  for (int p = 0; p < positions; ++p) {
    // Adding neighbours leaves lanes 0 1 4 5 | 2 3 6 7.
    const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[p][0], acc[p][1]), 0xD8);
    __m256i residual = _mm256_setzero_si256();
    if (tile.residual) {
      std::uint8_t bytes[kTrimmedLanes] = {};
      const std::uint8_t* from = tile.residual + (position + p) * tile.residual_step + first;
      for (int c = 0; c < channels; ++c) bytes[c] = from[c];
      const __m128i values = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
      residual = _mm256_cvtepi8_epi32(_mm_xor_si128(values, requantizer.residual_flip));
    }
    const __m256i out =
        requantizer.run(_mm256_add_epi32(sums, bias), positive, negative, residual, of_residual);
    alignas(32) std::int32_t lanes[kTrimmedLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), out);
    std::uint8_t* to = tile.out + (position + p) * tile.out_step + first;
    for (int c = 0; c < channels; ++c) to[c] = static_cast<std::uint8_t>(lanes[c]);
  }
}

}  // namespace

void run_trimmed_avx2(const TrimmedLayer& layer, const TrimmedTile& tile) {
  const Requantizer requantizer(layer);
  const std::int8_t* weights = layer.weights;
  for (int first = 0; first < layer.vectors; first += kTrimmedMaxVectors) {
    const int left = layer.vectors - first;
    const int vectors = left < kTrimmedMaxVectors ? left : kTrimmedMaxVectors;
    for (int v = 0; v < vectors; ++v) {
      const std::int8_t* vector_weights = weights + v * kTrimmedLanes * kTrimmedGroup;
      for (std::int64_t position = 0; position < tile.positions; position += kPositions) {
        run_tile(layer, tile, requantizer, position, first + v, vector_weights, vectors);
      }
    }
    weights += std::int64_t{layer.num_inputs} * vectors * kTrimmedLanes * kTrimmedGroup;
  }
}

}  // namespace pycodec
