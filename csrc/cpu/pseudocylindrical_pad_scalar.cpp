// Portable. What is written past the cache elsewhere is copied here.
#include <cstring>

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

const PadKernel kPadKernelScalar = {"scalar", interpolate, stream};

}  // namespace pycodec
