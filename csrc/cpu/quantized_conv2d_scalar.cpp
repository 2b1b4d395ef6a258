// Portable: a dot product an output, in a form that compilers vectorize for SSE2 and NEON.
#include "cpu/quantized_conv2d_kernel.hpp"

namespace pycodec {
namespace {

// Unsigned sums wrap modulo 2^32, as the definition says; signed ones would be undefined.
std::uint32_t dot(const std::int16_t* a, const std::int16_t* b, int n) {
  std::uint32_t sum = 0;
  for (int i = 0; i < n; ++i) sum += static_cast<std::uint32_t>(a[i] * b[i]);
  return sum;
}

std::int32_t requantize(std::int32_t acc, std::int32_t multiplier, const Requantization& r,
                        std::int32_t residual) {
  const std::int64_t half = std::int64_t{1} << (r.shift - 1);
  const std::int64_t value = ((std::int64_t{acc} * multiplier + half) >> r.shift) + residual;
  const std::int64_t clamped = value < r.lower ? r.lower : value > r.upper ? r.upper : value;
  return static_cast<std::int32_t>(clamped);
}

void run(const ConvLayer& layer, const ConvTile& tile) {
  const auto* weights = reinterpret_cast<const std::int16_t*>(layer.weights);
  const int n = layer.row_groups;  // groups of one
  for (int c = 0; c < layer.out_channels; ++c, weights += layer.window_rows * n) {
    for (int p = 0; p < tile.positions; ++p) {
      auto acc = static_cast<std::uint32_t>(layer.bias[c]);
      for (int row = 0; row < layer.window_rows; ++row) {
        const std::uint8_t* x = tile.windows[p] + row * tile.row_stride;
        acc += dot(reinterpret_cast<const std::int16_t*>(x), weights + row * n, n);
      }
      const std::int32_t residual = tile.residuals ? tile.residuals[p][c] : 0;
      store_output(layer.output_type, tile.outs[p], c,
                   requantize(static_cast<std::int32_t>(acc), layer.multiplier[c],
                              layer.requantization, residual));
    }
  }
}

}  // namespace

const ConvKernel kConvKernelScalar = {"scalar", 2, 1, 1, 1, 2, 24, false, run};

}  // namespace pycodec
