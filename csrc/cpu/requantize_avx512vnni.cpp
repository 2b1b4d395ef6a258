#include <immintrin.h>

#include "cpu/requantize_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kLanes = 16;

// All pixels in the 16 channels from `channel`.
void run_channels(const RequantizeLayer& layer, const RequantizeRow& row, int channel) {
  const int left = layer.channels - channel;
  const auto mask = static_cast<__mmask16>(left < kLanes ? (1 << left) - 1 : 0xFFFF);
  const __m512i multiplier = _mm512_maskz_loadu_epi32(mask, layer.multiplier + channel);
  const __m512i odd_multiplier = _mm512_srli_epi64(multiplier, 32);
  alignas(64) std::int64_t offsets[2][8] = {};
  for (int i = 0; i < kLanes && i < left; ++i) offsets[i % 2][i / 2] = layer.offset[channel + i];
  const __m512i even_offset = _mm512_load_si512(offsets[0]);
  const __m512i odd_offset = _mm512_load_si512(offsets[1]);
  const __m128i shift = _mm_cvtsi32_si128(layer.shift);
  const __m512i lower = _mm512_set1_epi64(layer.lower), upper = _mm512_set1_epi64(layer.upper);
  const __m128i flip = _mm_set1_epi8(static_cast<char>(row.flip));

  const auto half = [&](__m512i x, __m512i m, __m512i offset) {
    const __m512i sum = _mm512_add_epi64(_mm512_mul_epi32(x, m), offset);
    return _mm512_min_epi64(_mm512_max_epi64(_mm512_sra_epi64(sum, shift), lower), upper);
  };
  const auto* x16 = static_cast<const std::int16_t*>(row.x) + channel;
  const auto* x32 = static_cast<const std::int32_t*>(row.x) + channel;
  std::uint8_t* out = row.out;
  for (std::int64_t p = 0; p < row.pixels; ++p, out += row.pixel_bytes) {
    const std::int64_t index = p * layer.channels;
    const __m512i x = row.wide ? _mm512_maskz_loadu_epi32(mask, x32 + index)
                               : _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, x16 + index));
    const __m512i evens = half(x, multiplier, even_offset);
    const __m512i odds = half(_mm512_srli_epi64(x, 32), odd_multiplier, odd_offset);
    const __m512i value = _mm512_mask_blend_epi32(0xAAAA, evens, _mm512_slli_epi64(odds, 32));
    switch (row.store) {
      case RequantizeStore::kBytes:
        _mm_mask_storeu_epi8(out + channel, mask, _mm_xor_si128(_mm512_cvtepi32_epi8(value), flip));
        break;
      case RequantizeStore::kPlanes: {
        const __m512i high =
            _mm512_srli_epi32(_mm512_add_epi32(value, _mm512_set1_epi32(0x8000)), 8);
        _mm_mask_storeu_epi8(out + channel, mask, _mm512_cvtepi32_epi8(high));
        _mm_mask_storeu_epi8(out + row.plane_stride + channel, mask, _mm512_cvtepi32_epi8(value));
        break;
      }
      default:
        _mm256_mask_storeu_epi16(out + 2 * channel, mask, _mm512_cvtepi32_epi16(value));
    }
  }
}

}  // namespace

void requantize_avx512vnni(const RequantizeLayer& layer, const RequantizeRow& row) {
  for (int channel = 0; channel < layer.channels; channel += kLanes) {
    run_channels(layer, row, channel);
  }
}

}  // namespace pycodec
