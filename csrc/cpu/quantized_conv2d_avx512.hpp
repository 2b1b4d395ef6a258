// From accumulators to outputs, for the kernels with AVX-512.
#pragma once

#include <immintrin.h>

#include "cpu/quantized_conv2d_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kLanes = 16;

struct Requantizer {
  explicit Requantizer(const Requantization& r)
      : half(_mm512_set1_epi64(std::int64_t{1} << (r.shift - 1))),
        shift(_mm_cvtsi32_si128(r.shift)),
        lower64(_mm512_set1_epi64(r.lower)),
        upper64(_mm512_set1_epi64(r.upper)),
        lower(_mm512_set1_epi32(r.lower)),
        upper(_mm512_set1_epi32(r.upper)),
        // |acc * multiplier| <= 2^62, so what is left is below 2^30, and no sum exceeds 32 bits.
        narrow(r.shift >= 33) {}

  // The even 32-bit lanes of a and b; results are 64 bits wide.
  __m512i even(__m512i a, __m512i b) const {
    return _mm512_sra_epi64(_mm512_add_epi64(_mm512_mul_epi32(a, b), half), shift);
  }

  __m512i clamp64(__m512i x) const {
    return _mm512_min_epi64(_mm512_max_epi64(x, lower64), upper64);
  }

  __m512i operator()(__m512i acc, __m512i multiplier, __m512i residual) const {
    __m512i evens = even(acc, multiplier);
    __m512i odds = even(_mm512_srli_epi64(acc, 32), _mm512_srli_epi64(multiplier, 32));
    if (narrow) {
      const __m512i x = _mm512_mask_blend_epi32(0xAAAA, evens, _mm512_slli_epi64(odds, 32));
      return _mm512_min_epi32(_mm512_max_epi32(_mm512_add_epi32(x, residual), lower), upper);
    }
    evens =
        clamp64(_mm512_add_epi64(evens, _mm512_srai_epi64(_mm512_slli_epi64(residual, 32), 32)));
    odds = clamp64(_mm512_add_epi64(odds, _mm512_srai_epi64(residual, 32)));
    return _mm512_mask_blend_epi32(0xAAAA, evens, _mm512_slli_epi64(odds, 32));
  }

  __m512i half;
  __m128i shift;
  __m512i lower64, upper64, lower, upper;
  bool narrow;
};

inline void store(OutputType type, std::uint8_t* out, std::int64_t index, __mmask16 mask,
                  __m512i values) {
  switch (type) {
    case OutputType::kInt32:
      _mm512_mask_storeu_epi32(out + index * 4, mask, values);
      break;
    case OutputType::kInt16:
      _mm256_mask_storeu_epi16(out + index * 2, mask, _mm512_cvtepi32_epi16(values));
      break;
    default:
      _mm_mask_storeu_epi8(out + index, mask, _mm512_cvtepi32_epi8(values));
  }
}

// What follows the sums of products, for one vector of output channels.
struct Epilogue {
  Epilogue(const ConvLayer& layer, const ConvTile& tile, int vector)
      : type(layer.output_type),
        outs(tile.outs),
        residuals(tile.residuals),
        channel(vector * kLanes),
        bias(_mm512_loadu_si512(layer.bias + channel)),
        multiplier(_mm512_loadu_si512(layer.multiplier + channel)) {
    const int left = layer.out_channels - channel;
    mask = static_cast<__mmask16>(left < kLanes ? (1 << left) - 1 : 0xFFFF);
  }

  void operator()(const Requantizer& requantize, __m512i products, int position) const {
    const __m512i residual =
        residuals
            ? _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, residuals[position] + channel))
            : _mm512_setzero_si512();
    store(type, outs[position], channel, mask,
          requantize(_mm512_add_epi32(products, bias), multiplier, residual));
  }

  OutputType type;
  std::uint8_t* const* outs;
  const std::int16_t* const* residuals;
  int channel;
  __m512i bias, multiplier;
  __mmask16 mask;
};

}  // namespace
}  // namespace pycodec
