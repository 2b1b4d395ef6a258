// Portable. What is written past the cache elsewhere is copied here.
#include <algorithm>
#include <cstring>

#include "cpu/elements.hpp"
#include "cpu/pseudocylindrical_pad_kernel.hpp"

namespace pycodec {
namespace {

void interpolate(const PadInterpolation& row, const float* in, float* out) {
  for (std::int64_t i = 0; i < row.columns; ++i) {
    out[i] = (1 - row.weight[i]) * in[row.left[i]] + row.weight[i] * in[row.right[i]];
  }
}

void stream(std::uint8_t* to, const std::uint8_t* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
}

}  // namespace

void copy_around(const PadCopy& row, const std::uint8_t* in, std::uint8_t* out) {
  std::int64_t done = 0;
  for (std::int64_t column = row.first; done < row.columns; column = 0) {
    const std::int64_t count = std::min(row.columns - done, row.source - column);
    std::memcpy(out + done, in + column, static_cast<std::size_t>(count));
    done += count;
  }
  std::memset(out + done, 0, static_cast<std::size_t>(row.total - done));
}

void widen_float16(const std::uint16_t* in, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    Float16 value;
    value.bits = in[i];
    out[i] = static_cast<float>(value);
  }
}

void narrow_float16(const float* in, std::int64_t count, std::uint16_t* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = Float16(in[i]).bits;
}

void widen_bfloat16(const std::uint16_t* in, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = float_of_bits(std::uint32_t{in[i]} << 16);
}

void narrow_bfloat16(const float* in, std::int64_t count, std::uint16_t* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = Bfloat16(in[i]).bits;
}

const PadKernel kPadKernelScalar = {"scalar",       interpolate,    copy_around,     widen_float16,
                                    narrow_float16, widen_bfloat16, narrow_bfloat16, stream};

}  // namespace pycodec
