// What a thread does in the kernels of quantize.cu. Threads do not talk to each other, so the tests
// run them one by one on the host.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/quantize.hpp"
#include "rans/device.hpp"  // PYCODEC_HOST_DEVICE

namespace pycodec::cuda {

constexpr int kQuantizeThreads = 256;
constexpr int kQuantizeItems = 4;  // of a thread, a block's threads apart

// The blocks for all values.
inline std::int64_t quantize_blocks(const QuantizeArguments& a) {
  constexpr std::int64_t kBlock = kQuantizeThreads * kQuantizeItems;
  return (a.values + kBlock - 1) / kBlock;
}

template <class T>
PYCODEC_HOST_DEVICE inline void quantize_thread(const QuantizeArguments& a, std::int64_t block,
                                                int thread) {
  std::int64_t i = block * kQuantizeThreads * kQuantizeItems + thread;
  for (int item = 0; item < kQuantizeItems && i < a.values; ++item, i += kQuantizeThreads) {
    const auto c = static_cast<int>(i % a.channels);
    const std::int32_t zero = a.zero_point[c];
    const float value = a.real[i] * (1.0F / a.scale[c]);
    const auto low = static_cast<float>(a.lower - zero), high = static_cast<float>(a.upper - zero);
    // fmaxf returns the other one of NaN and a number; rintf rounds halves to even.
    const float rounded = rintf(fminf(fmaxf(value, low), high));
    static_cast<T*>(a.integers)[i] = static_cast<T>(static_cast<std::int32_t>(rounded) + zero);
  }
}

template <class T>
PYCODEC_HOST_DEVICE inline void dequantize_thread(const QuantizeArguments& a, std::int64_t block,
                                                  int thread) {
  std::int64_t i = block * kQuantizeThreads * kQuantizeItems + thread;
  for (int item = 0; item < kQuantizeItems && i < a.values; ++item, i += kQuantizeThreads) {
    const auto c = static_cast<int>(i % a.channels);
    const auto q = static_cast<std::int32_t>(static_cast<const T*>(a.integers)[i]);
    a.real[i] = static_cast<float>(q - a.zero_point[c]) * a.scale[c];
  }
}

}  // namespace pycodec::cuda
