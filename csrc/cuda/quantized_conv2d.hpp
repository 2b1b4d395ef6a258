// The integer convolution on a GPU. pycodec/ops/quantized_conv2d.py is its definition.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

namespace pycodec::cuda {

// All pointers are to device memory.
struct QuantizedConv2dArguments {
  const void* x;       // int8, uint8 or int16 [batch][height][width][in_channels]
  const void* weight;  // int8 or int16 [out_channels][kernel_height][kernel_width][in_channels], or
                       // of 4 bits, two input channels a byte
  const std::int32_t* bias;
  const std::int32_t* multiplier;
  const std::int16_t* zero_point;  // [in_channels]: x outside the picture; null for 0
  const std::int16_t* residual;    // like out; null for none
  // Of the trimmed convolution, null for none: multipliers of negative sums, and a residual that is
  // added with multipliers of its own before the shift.
  const std::int32_t* negative_multiplier;
  const std::int8_t* scaled_residual;
  const std::int32_t* residual_multiplier;
  void* out;  // [batch][out_height * upscale][out_width * upscale][...], out_bytes a value
  std::int64_t batch, height, width;
  int in_channels, out_channels, kernel_height, kernel_width;
  int x_bytes, weight_bits, out_bytes;  // weight_bits: 4, 8 or 16
  bool x_is_signed;
  int stride, upscale, shift;
  std::int32_t lower, upper;

  // Positions of outputs, before they are spread to patches. Strides are 1 or 2.
#ifdef __CUDACC__
  __host__ __device__
#endif
      std::int64_t out_height() const {
    return stride == 1 ? height : (height + 1) >> 1;
  }
#ifdef __CUDACC__
  __host__ __device__
#endif
      std::int64_t out_width() const {
    return stride == 1 ? width : (width + 1) >> 1;
  }
};

// The kernels. Those with mma multiply on tensor cores; the numbers are the positions and output
// channels of a block, see quantized_conv2d_mma.hpp.
enum class ConvKernel { kDp4a, kMma128x96, kMma128x64, kMma64x32 };

struct ConvTileSize {
  ConvKernel kernel;
  int positions, outputs;
  bool wide;    // also for inputs or weights of 16 bits
  double cost;  // of an output, relative: instructions and shared memory beside the products
};

constexpr ConvTileSize kConvMmaTiles[] = {
    {ConvKernel::kMma128x96, 128, 96, false, 1.0},
    {ConvKernel::kMma128x64, 128, 64, true, 1.12},
    {ConvKernel::kMma64x32, 64, 32, true, 2.2},
};

// A block alone on a multiprocessor waits for its data: it takes as long as so many of several.
constexpr double kMmaAlone = 1.5;

// With fewer channels than these most of a tensor core's products are by zeros.
constexpr int kMinMmaInputs = 16;
constexpr int kMinMmaOutputs = 8;

// The largest window of the kernels with mma, which keep a bit of 16 for each of its rows, and of
// the three past it that a stage may reach, and of its columns.
constexpr int kMaxMmaWindow = 11;

// What the kernels with mma count in 32 bits, and their windows.
inline bool mma_can(const QuantizedConv2dArguments& a) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() - 128;
  return a.kernel_height <= kMaxMmaWindow && a.kernel_width <= kMaxMmaWindow &&
         a.batch * a.height * a.width <= kMost &&
         std::int64_t{a.in_channels} * a.kernel_height * a.kernel_width <= kMost / 2;
}

// Whether the kernels with mma are the fast ones.
inline bool mma_suits(const QuantizedConv2dArguments& a) {
  return mma_can(a) && a.in_channels >= kMinMmaInputs && a.out_channels >= kMinMmaOutputs;
}

// The tile with the least work for the busiest of the GPU's multiprocessors.
inline ConvKernel choose_mma_tile(const QuantizedConv2dArguments& a, int processors) {
  const std::int64_t positions = a.batch * a.out_height() * a.out_width();
  double least = std::numeric_limits<double>::infinity();
  ConvKernel best = ConvKernel::kDp4a;
  for (const ConvTileSize& tile : kConvMmaTiles) {
    if (!tile.wide && (a.x_bytes == 2 || a.weight_bits == 16)) continue;
    const std::int64_t blocks = ((positions + tile.positions - 1) / tile.positions) *
                                ((a.out_channels + tile.outputs - 1) / tile.outputs);
    const auto most = static_cast<double>((blocks + processors - 1) / processors);
    const double work = std::max(most, kMmaAlone) * tile.positions * tile.outputs * tile.cost;
    if (work < least) {
      least = work;
      best = tile.kernel;
    }
  }
  return best;
}

// `name` is that of a kernel, "mma" for the best one with mma, or "" for the best one of all.
// `has_mma`: the GPU is of sm_80 or later.
inline ConvKernel choose_kernel(const QuantizedConv2dArguments& a, const std::string& name,
                                bool has_mma, int processors) {
  if (name == "dp4a") return ConvKernel::kDp4a;
  const bool can = has_mma && mma_can(a);
  if (name.empty()) {
    return has_mma && mma_suits(a) ? choose_mma_tile(a, processors) : ConvKernel::kDp4a;
  }
  if (!can) throw std::runtime_error("quantized_conv2d: no mma for this size or on this GPU");
  if (name == "mma") return choose_mma_tile(a, processors);
  if (name == "mma128x96") return ConvKernel::kMma128x96;
  if (name == "mma128x64") return ConvKernel::kMma128x64;
  if (name == "mma64x32") return ConvKernel::kMma64x32;
  throw std::invalid_argument("quantized_conv2d: there is no kernel " + name);
}

// Queues a kernel, see choose_kernel(), on `stream` (a cudaStream_t) of the current device; does
// not wait for it. Throws std::runtime_error where it cannot be launched.
void quantized_conv2d(const QuantizedConv2dArguments& arguments, const std::string& kernel,
                      void* stream);

// Whether the current device has the tensor cores of sm_80.
bool device_has_mma();

}  // namespace pycodec::cuda
