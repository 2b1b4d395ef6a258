// Integer arithmetic that the convolution kernels share, for the GPU and, in the tests, the host.
#pragma once

#include <cstdint>

#include "cuda/block.hpp"
#include "rans/device.hpp"  // PYCODEC_HOST_DEVICE

namespace pycodec::cuda {

// acc + the sum of four products of int8. Wraps modulo 2^32.
PYCODEC_HOST_DEVICE inline std::int32_t dot4(std::uint32_t x, std::uint32_t weight,
                                             std::int32_t acc) {
#ifdef __CUDA_ARCH__
  std::int32_t result;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(weight), "r"(acc));
  return result;
#else
  auto sum = static_cast<std::uint32_t>(acc);
  for (int i = 0; i < 32; i += 8) {
    sum += static_cast<std::uint32_t>(static_cast<std::int8_t>(x >> i) *
                                      static_cast<std::int8_t>(weight >> i));
  }
  return static_cast<std::int32_t>(sum);
#endif
}

// The same with products of a uint8 by an int8.
PYCODEC_HOST_DEVICE inline std::int32_t dot4_unsigned(std::uint32_t x, std::uint32_t weight,
                                                      std::int32_t acc) {
#ifdef __CUDA_ARCH__
  std::int32_t result;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(weight), "r"(acc));
  return result;
#else
  auto sum = static_cast<std::uint32_t>(acc);
  for (int i = 0; i < 32; i += 8) {
    sum += static_cast<std::uint32_t>(static_cast<std::uint8_t>(x >> i) *
                                      static_cast<std::int8_t>(weight >> i));
  }
  return static_cast<std::int32_t>(sum);
#endif
}

// The same with products of an int8, or uint8 if not kSigned, by a uint8.
template <bool kSigned>
PYCODEC_HOST_DEVICE inline std::int32_t dot4_by_unsigned(std::uint32_t x, std::uint32_t weight,
                                                         std::int32_t acc) {
#ifdef __CUDA_ARCH__
  std::int32_t result;
  if constexpr (kSigned) {
    asm("dp4a.s32.u32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(weight), "r"(acc));
  } else {
    asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(weight), "r"(acc));
  }
  return result;
#else
  auto sum = static_cast<std::uint32_t>(acc);
  for (int i = 0; i < 32; i += 8) {
    const int value =
        kSigned ? int{static_cast<std::int8_t>(x >> i)} : int{static_cast<std::uint8_t>(x >> i)};
    sum += static_cast<std::uint32_t>(value * static_cast<std::uint8_t>(weight >> i));
  }
  return static_cast<std::int32_t>(sum);
#endif
}

// Four bytes from `bytes` on, of which the first `count` exist; the others are 0.
PYCODEC_HOST_DEVICE inline std::uint32_t load_word(const std::int8_t* bytes, int count,
                                                   bool aligned) {
  if (aligned && count >= 4) return *reinterpret_cast<const std::uint32_t*>(bytes);
  std::uint32_t word = 0;
  PYCODEC_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (i < count) word |= std::uint32_t{static_cast<std::uint8_t>(bytes[i])} << (8 * i);
  }
  return word;
}

// Sums wrap modulo 2^32.
PYCODEC_HOST_DEVICE inline std::int32_t add(std::int32_t a, std::int32_t b) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(a) + static_cast<std::uint32_t>(b));
}

// What is the same for all outputs of an integer layer.
struct Requantization {
  int shift;
  std::int32_t lower, upper;
};

// A layer's output from its accumulator, see pycodec/ops/quantized_trimmed_conv2d.py. `residual`:
// times its multiplier; 0 for none.
PYCODEC_HOST_DEVICE inline std::int32_t requantize(const Requantization& q, std::int32_t acc,
                                                   std::int32_t multiplier,
                                                   std::int32_t negative_multiplier,
                                                   std::int64_t residual) {
  std::int64_t sum = std::int64_t{acc} * (acc >= 0 ? multiplier : negative_multiplier) + residual +
                     (std::int64_t{1} << (q.shift - 1));
  sum >>= q.shift;
  if (sum < q.lower) sum = q.lower;
  if (sum > q.upper) sum = q.upper;
  return static_cast<std::int32_t>(sum);
}

}  // namespace pycodec::cuda
