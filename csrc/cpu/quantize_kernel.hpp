// What the SIMD variants of quantize.hpp have in common. Only plain structs: see simd_level.hpp.
#pragma once

#include <cstdint>

namespace pycodec {

enum class QuantizedType { kUint8, kInt8, kInt16 };

// Of each channel; low and high bound the rounded value before the zero point is added.
struct QuantizeChannels {
  const float *inverse_scale, *low, *high;
  const std::int32_t* zero_point;
};

struct DequantizeChannels {
  const float* scale;
  const std::int32_t* zero_point;
};

struct QuantizeKernels {
  // `pixels` of `channels` values each, dense.
  void (*quantize)(const QuantizeChannels& parameters, int channels, const float* x,
                   std::int64_t pixels, QuantizedType type, void* out);
  void (*dequantize)(const DequantizeChannels& parameters, int channels, const void* q,
                     QuantizedType type, std::int64_t pixels, float* out);
};

QuantizeKernels quantize_scalar();
QuantizeKernels quantize_avx2();
QuantizeKernels quantize_avx512vnni();

}  // namespace pycodec
