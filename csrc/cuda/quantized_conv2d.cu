// The kernel of quantized_conv2d.hpp; quantized_conv2d_tile.hpp has what it does.

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/quantized_conv2d.hpp"
#include "cuda/quantized_conv2d_tile.hpp"

namespace pycodec::cuda {
namespace {

constexpr unsigned kMaxGridX = 0x7FFFFFFF;

template <bool kSigned, int kXPlanes, int kWeightBits>
__global__ void __launch_bounds__(kConvThreads)
    quantized_conv2d_kernel(QuantizedConv2dArguments a) {
  __shared__ QuantizedConv2dShared<kXPlanes, kWeightBits> shared;
  quantized_conv2d_block<DeviceBlock, kSigned, kXPlanes, kWeightBits>(
      a, blockIdx.x, static_cast<int>(blockIdx.y), shared);
}

}  // namespace

void quantized_conv2d(const QuantizedConv2dArguments& a, void* stream) {
  const std::int64_t positions = a.batch * a.out_height() * a.out_width();
  if (positions == 0) return;
  const std::int64_t blocks = (positions + kConvTile - 1) / kConvTile;
  if (blocks > kMaxGridX) throw std::runtime_error("quantized_conv2d: too many positions");
  const dim3 grid(static_cast<unsigned>(blocks), (a.out_channels + kConvTile - 1) / kConvTile);
  dispatch_types(a, [&](auto is_signed, auto x_planes, auto weight_bits) {
    quantized_conv2d_kernel<is_signed(), x_planes(), weight_bits()>
        <<<grid, kConvThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("quantized_conv2d: ") + cudaGetErrorString(status));
  }
}

}  // namespace pycodec::cuda
