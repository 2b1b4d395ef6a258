// Portable. What is written past the cache elsewhere is copied here.
#include <algorithm>
#include <cstring>

#include "cpu/pseudocylindrical_pad_kernel.hpp"

namespace pycodec {
namespace {

void interpolate(const PadInterpolation& row, const float* in, float* out, PadDistance) {
  for (std::int64_t i = 0; i < row.columns; ++i) {
    out[i] = (1 - row.weight[i]) * in[row.left[i]] + row.weight[i] * in[row.right[i]];
  }
  std::fill(out + row.columns, out + row.total, 0.0f);
}

void stream(std::uint8_t* to, const std::uint8_t* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
}

}  // namespace

void copy_around(const PadCopy& row, const std::uint8_t* in, std::uint8_t* out, PadDistance) {
  std::int64_t done = 0;
  for (std::int64_t column = row.first; done < row.columns; column = 0) {
    const std::int64_t count = std::min(row.columns - done, row.source - column);
    std::memcpy(out + done, in + column, static_cast<std::size_t>(count));
    done += count;
  }
  std::memset(out + done, 0, static_cast<std::size_t>(row.total - done));
}

const PadKernel kPadKernelScalar = {"scalar",    interpolate, nullptr, nullptr,
                                    copy_around, stream,      false};

}  // namespace pycodec
