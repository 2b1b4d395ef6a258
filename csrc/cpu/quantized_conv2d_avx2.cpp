// AVX2: pairs of int16 through vpmaddwd, which is exact. (vpmaddubsw takes int8 at twice the rate,
// but saturates its pair sums at 16 bits.)
#include <immintrin.h>

#include "cpu/quantized_conv2d_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kGroup = 2;
constexpr int kLanes = 8;
constexpr int kPositions = 6;  // 6 x 2 accumulators, 2 vectors of weights, 2 for the product

struct Requantizer {
  explicit Requantizer(const Requantization& r)
      : half(_mm256_set1_epi64x(std::int64_t{1} << (r.shift - 1))),
        shift(_mm_cvtsi32_si128(r.shift)),
        sign(_mm256_set1_epi64x(std::int64_t{1} << (63 - r.shift))),
        lower(_mm256_set1_epi64x(r.lower)),
        upper(_mm256_set1_epi64x(r.upper)) {}

  // The even 32-bit lanes of a and b; results and residuals are 64 bits wide.
  __m256i even(__m256i a, __m256i b, __m256i residual) const {
    __m256i x = _mm256_add_epi64(_mm256_mul_epi32(a, b), half);
    // AVX2 has no arithmetic shift of 64 bits: shift in zeros, then extend the sign.
    x = _mm256_sub_epi64(_mm256_xor_si256(_mm256_srl_epi64(x, shift), sign), sign);
    x = _mm256_add_epi64(x, residual);
    x = _mm256_blendv_epi8(x, lower, _mm256_cmpgt_epi64(lower, x));
    return _mm256_blendv_epi8(x, upper, _mm256_cmpgt_epi64(x, upper));
  }

  __m256i operator()(__m256i acc, __m256i multiplier, __m256i residual) const {
    const __m256i sign_bits = _mm256_srai_epi32(residual, 31);
    const __m256i odd_residual =
        _mm256_blend_epi32(_mm256_srli_epi64(residual, 32), sign_bits, 0xAA);
    const __m256i even_residual =
        _mm256_blend_epi32(residual, _mm256_slli_epi64(sign_bits, 32), 0xAA);
    const __m256i evens = even(acc, multiplier, even_residual);
    const __m256i odds =
        even(_mm256_srli_epi64(acc, 32), _mm256_srli_epi64(multiplier, 32), odd_residual);
    return _mm256_blend_epi32(evens, _mm256_slli_epi64(odds, 32), 0xAA);
  }

  __m256i half;
  __m128i shift;
  __m256i sign, lower, upper;
};

inline std::int32_t load_pair(const std::uint8_t* p) {
  std::int32_t pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return pair;
}

// The outputs of `positions` <= kPositions positions in the Vectors vectors of channels from
// `first`.
template <int Vectors>
void run_tile(const ConvLayer& layer, const ConvTile& tile, const Requantizer& requantize,
              int position, int positions, int first, const std::uint8_t* weights) {
  __m256i acc[kPositions][Vectors];
  const std::uint8_t* x[kPositions];
  for (int p = 0; p < kPositions; ++p) {
    x[p] = tile.windows[position + (p < positions ? p : positions - 1)];
    for (int v = 0; v < Vectors; ++v) {
      acc[p][v] =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(layer.bias + (first + v) * kLanes));
    }
  }
  for (int row = 0; row < layer.window_rows; ++row) {
    for (std::int64_t i = 0; i < layer.row_groups * std::int64_t{4}; i += 4) {
      __m256i w[Vectors];
      for (int v = 0; v < Vectors; ++v, weights += 32) {
        w[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights));
      }
#pragma GCC unroll 6
      for (int p = 0; p < kPositions; ++p) {
        const __m256i pair = _mm256_set1_epi32(load_pair(x[p] + i));
        for (int v = 0; v < Vectors; ++v) {
          acc[p][v] = _mm256_add_epi32(acc[p][v], _mm256_madd_epi16(pair, w[v]));
        }
      }
    }
    for (int p = 0; p < kPositions; ++p) x[p] += tile.row_stride;
  }
  for (int v = 0; v < Vectors; ++v) {
    const int channel = (first + v) * kLanes;
    const int left = layer.out_channels - channel;
    const __m256i multiplier =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(layer.multiplier + channel));
    for (int p = 0; p < positions; ++p) {
      const int lanes = left < kLanes ? left : kLanes;
      alignas(32) std::int32_t values[kLanes] = {};
      if (tile.residuals) {
        for (int lane = 0; lane < lanes; ++lane) {
          values[lane] = tile.residuals[position + p][channel + lane];
        }
      }
      const __m256i residual = _mm256_load_si256(reinterpret_cast<const __m256i*>(values));
      _mm256_store_si256(reinterpret_cast<__m256i*>(values),
                         requantize(acc[p][v], multiplier, residual));
      for (int lane = 0; lane < lanes; ++lane) {
        store_output(layer.output_type, tile.outs[position + p], channel + lane, values[lane]);
      }
    }
  }
}

constexpr decltype(&run_tile<1>) kRunTile[] = {run_tile<1>, run_tile<2>};
constexpr int kMaxChunkVectors = sizeof kRunTile / sizeof *kRunTile;

void run(const ConvLayer& layer, const ConvTile& tile) {
  const Requantizer requantize(layer.requantization);
  const std::uint8_t* weights = layer.weights;
  for (int first = 0; first < layer.vectors;) {
    const int vectors = chunk_vectors(first, layer.vectors, kMaxChunkVectors);
    for (int position = 0; position < tile.positions; position += kPositions) {
      const int left = tile.positions - position;
      kRunTile[vectors - 1](layer, tile, requantize, position,
                            left < kPositions ? left : kPositions, first, weights);
    }
    first += vectors;
    weights += std::int64_t{layer.window_rows} * layer.row_groups * vectors * 32;
  }
}

}  // namespace

const ConvKernel kConvKernelAvx2 = {"avx2", 2, kGroup, kLanes, kMaxChunkVectors, 4, 24, false, run};

}  // namespace pycodec
