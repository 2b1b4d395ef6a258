// The parts of the padding that depend on the SIMD level.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycodec {

constexpr int kPadBlock = 16;
constexpr int kPadSpan = 32;

// How a row of float32 is read from a row of another tile: out[i] = (1 - weight[i]) * in[left[i]] +
// weight[i] * in[right[i]]. The arrays go on to a multiple of kPadBlock columns, with zeros.
//
// base[b] says where block b may read kPadSpan values, or what is left of `width`, at once: what
// its columns read lies there, but for the `exceptions`. Or it is -1.
struct PadInterpolation {
  std::int64_t columns, width;
  const std::int32_t* left;
  const std::int32_t* right;
  const float* weight;
  const std::int32_t* base;
  const std::int32_t* exceptions;
  std::int64_t exception_count;
};

// A row that is copied around a row of `source` bytes, from `first` on: `columns` bytes, and zeros
// up to `total`.
struct PadCopy {
  std::int64_t source, first, columns, total;
};

struct PadKernel {
  const char* name;
  void (*interpolate)(const PadInterpolation& row, const float* in, float* out);
  void (*copy)(const PadCopy& row, const std::uint8_t* in, std::uint8_t* out);
  // Words of 16-bit floats to float32 and back, rounded to nearest.
  void (*widen_float16)(const std::uint16_t* in, std::int64_t count, float* out);
  void (*narrow_float16)(const float* in, std::int64_t count, std::uint16_t* out);
  void (*widen_bfloat16)(const std::uint16_t* in, std::int64_t count, float* out);
  void (*narrow_bfloat16)(const float* in, std::int64_t count, std::uint16_t* out);
  // Copies whole cache lines, from and to their starts, past the cache.
  void (*stream)(std::uint8_t* to, const std::uint8_t* from, std::size_t bytes);
};

// The portable ones.
void copy_around(const PadCopy& row, const std::uint8_t* in, std::uint8_t* out);
void widen_float16(const std::uint16_t* in, std::int64_t count, float* out);
void narrow_float16(const float* in, std::int64_t count, std::uint16_t* out);
void widen_bfloat16(const std::uint16_t* in, std::int64_t count, float* out);
void narrow_bfloat16(const float* in, std::int64_t count, std::uint16_t* out);

extern const PadKernel kPadKernelScalar;
extern const PadKernel kPadKernelAvx2;
extern const PadKernel kPadKernelAvx512Vnni;

}  // namespace pycodec
