// The loops of quantize.hpp, which the compiler turns into the vector code of each SIMD variant.
// Only functions with internal linkage: see simd_level.hpp.
#pragma once

#include "cpu/quantize_kernel.hpp"

namespace pycodec {
namespace {

// 1.5 * 2^23: a float of at most 2^22 that is added to it is rounded to an integer, halves to even.
constexpr float kRounding = 12582912.0F;

template <class T>
void quantize_pixels(const QuantizeChannels& p, int channels, const float* __restrict x,
                     std::int64_t pixels, T* __restrict out) {
  const float* __restrict inverse = p.inverse_scale, * __restrict low = p.low, * __restrict high = p.high;
  const std::int32_t* __restrict zero = p.zero_point;
  for (std::int64_t pixel = 0; pixel < pixels; ++pixel, x += channels, out += channels) {
    for (int c = 0; c < channels; ++c) {
      float value = x[c] * inverse[c];
      value = value > low[c] ? value : low[c];  // NaN, too
      value = value < high[c] ? value : high[c];
      const float rounded = (value + kRounding) - kRounding;
      out[c] = static_cast<T>(static_cast<std::int32_t>(rounded) + zero[c]);
    }
  }
}

template <class T>
void dequantize_pixels(const DequantizeChannels& p, int channels, const T* __restrict q,
                       std::int64_t pixels, float* __restrict out) {
  const float* __restrict scale = p.scale;
  const std::int32_t* __restrict zero = p.zero_point;
  for (std::int64_t pixel = 0; pixel < pixels; ++pixel, q += channels, out += channels) {
    for (int c = 0; c < channels; ++c) {
      out[c] = static_cast<float>(static_cast<std::int32_t>(q[c]) - zero[c]) * scale[c];
    }
  }
}

void quantize_any(const QuantizeChannels& p, int channels, const float* x, std::int64_t pixels,
                  QuantizedType type, void* out) {
  switch (type) {
    case QuantizedType::kUint8:
      return quantize_pixels(p, channels, x, pixels, static_cast<std::uint8_t*>(out));
    case QuantizedType::kInt8:
      return quantize_pixels(p, channels, x, pixels, static_cast<std::int8_t*>(out));
    case QuantizedType::kInt16:
      return quantize_pixels(p, channels, x, pixels, static_cast<std::int16_t*>(out));
  }
}

void dequantize_any(const DequantizeChannels& p, int channels, const void* q, QuantizedType type,
                    std::int64_t pixels, float* out) {
  switch (type) {
    case QuantizedType::kUint8:
      return dequantize_pixels(p, channels, static_cast<const std::uint8_t*>(q), pixels, out);
    case QuantizedType::kInt8:
      return dequantize_pixels(p, channels, static_cast<const std::int8_t*>(q), pixels, out);
    case QuantizedType::kInt16:
      return dequantize_pixels(p, channels, static_cast<const std::int16_t*>(q), pixels, out);
  }
}

}  // namespace
}  // namespace pycodec
