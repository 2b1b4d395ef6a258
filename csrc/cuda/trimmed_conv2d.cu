// The kernels of trimmed_conv2d.hpp; trimmed_conv2d_tile.hpp has what they do.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/trimmed_conv2d.hpp"
#include "cuda/trimmed_conv2d_tile.hpp"

namespace pycodec::cuda {
namespace {

template <class Element, class Accumulator, class Tile>
__global__ void __launch_bounds__(kTrimmedThreads) trimmed_kernel(TrimmedConv2dArguments a) {
  __shared__ TrimmedShared<Accumulator, Tile> shared;
  trimmed_conv2d_block<DeviceBlock, Element, Accumulator, Tile>(
      a, blockIdx.x, static_cast<int>(blockIdx.y), shared);
}

template <class Tile>
__global__ void __launch_bounds__(kTrimmedThreads)
    quantized_trimmed_kernel(QuantizedTrimmedConv2dArguments a) {
  __shared__ QuantizedTrimmedShared<Tile> shared;
  quantized_trimmed_conv2d_block<DeviceBlock, Tile>(a, blockIdx.x, static_cast<int>(blockIdx.y),
                                                    shared);
}

template <class Arguments>
void launch(void (*kernel)(Arguments), const Arguments& a, const TrimmedGrid& grid, void* stream,
            const char* name) {
  if (grid.x == 0) return;
  if (grid.x > std::numeric_limits<int>::max() || grid.y > 65535) {
    throw std::runtime_error(std::string(name) + ": too many positions or channels");
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
  kernel<<<blocks, kTrimmedThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(status));
  }
}

template <class Element, class Accumulator>
void run(const TrimmedConv2dArguments& a, void* stream) {
  with_trimmed_tile(a.shape, [&](auto tile) {
    using Tile = decltype(tile);
    launch(trimmed_kernel<Element, Accumulator, Tile>, a, trimmed_grid<Tile>(a.shape, true), stream,
           "trimmed_conv2d");
  });
}

}  // namespace

void trimmed_conv2d(const TrimmedConv2dArguments& a, void* stream) {
  switch (a.type) {
    case FloatType::kFloat32:
      return run<float, float>(a, stream);
    case FloatType::kFloat64:
      return run<double, double>(a, stream);
    case FloatType::kFloat16:
      return run<__half, float>(a, stream);
    case FloatType::kBfloat16:
      return run<__nv_bfloat16, float>(a, stream);
  }
}

void quantized_trimmed_conv2d(const QuantizedTrimmedConv2dArguments& a, void* stream) {
  const QuantizedConv2dArguments all = untrimmed(a);
  if (mma_suits(all) && device_has_mma()) return quantized_conv2d(all, "mma", stream);
  with_trimmed_tile(a.shape, [&](auto tile) {
    using Tile = decltype(tile);
    launch(quantized_trimmed_kernel<Tile>, a, trimmed_grid<Tile>(a.shape, false), stream,
           "quantized_trimmed_conv2d");
  });
}

}  // namespace pycodec::cuda
