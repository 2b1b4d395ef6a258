// The kernels of quantized_conv2d.hpp; quantized_conv2d_tile.hpp and quantized_conv2d_mma.hpp have
// what they do.

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/quantized_conv2d.hpp"
#include "cuda/quantized_conv2d_mma.hpp"
#include "cuda/quantized_conv2d_tile.hpp"

namespace pycodec::cuda {
namespace {

constexpr unsigned kMaxGridX = 0x7FFFFFFF;

void check(cudaError_t status) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("quantized_conv2d: ") + cudaGetErrorString(status));
  }
}

unsigned checked_grid(std::int64_t blocks) {
  if (blocks > kMaxGridX) throw std::runtime_error("quantized_conv2d: too many positions");
  return static_cast<unsigned>(blocks);
}

template <bool kSigned, int kXPlanes, int kWeightBits>
__global__ void __launch_bounds__(kConvThreads)
    quantized_conv2d_kernel(QuantizedConv2dArguments a) {
  __shared__ QuantizedConv2dShared<kXPlanes, kWeightBits> shared;
  quantized_conv2d_block<DeviceBlock, kSigned, kXPlanes, kWeightBits>(
      a, blockIdx.x, static_cast<int>(blockIdx.y), shared);
}

void launch_dp4a(const QuantizedConv2dArguments& a, std::int64_t positions, cudaStream_t stream) {
  const dim3 grid(checked_grid((positions + kConvTile - 1) / kConvTile),
                  (a.out_channels + kConvTile - 1) / kConvTile);
  dispatch_types(a, [&](auto is_signed, auto x_planes, auto weight_bits) {
    quantized_conv2d_kernel<is_signed(), x_planes(), weight_bits()>
        <<<grid, kConvThreads, 0, stream>>>(a);
  });
}

template <class Types, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, (mma_blocks_at_once<Types, Tile>()))
    quantized_conv2d_mma_kernel(QuantizedConv2dArguments a) {
  extern __shared__ Chunk memory[];
  quantized_conv2d_mma_block<DeviceWarps, Types, Tile>(a, blockIdx.x,
                                                       *reinterpret_cast<MmaShared<Tile>*>(memory));
}

void launch_mma(const QuantizedConv2dArguments& a, ConvKernel kernel, cudaStream_t stream) {
  dispatch_mma(a, kernel, [&](auto tile, auto types) {
    using Tile = decltype(tile);
    constexpr int kShared = static_cast<int>(sizeof(MmaShared<Tile>));
    const unsigned grid = checked_grid(mma_blocks<Tile>(a));
    const auto function = quantized_conv2d_mma_kernel<decltype(types), Tile>;
    // Beyond 48 KiB a kernel has to ask.
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
    function<<<grid, Tile::kThreads, kShared, stream>>>(a);
  });
}

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

}  // namespace

bool device_has_mma() { return device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8; }

void quantized_conv2d(const QuantizedConv2dArguments& a, const std::string& kernel, void* stream) {
  const std::int64_t positions = a.batch * a.out_height() * a.out_width();
  if (positions == 0) return;
  const int processors = device_attribute(cudaDevAttrMultiProcessorCount);
  const ConvKernel chosen = choose_kernel(a, kernel, device_has_mma(), processors);
  if (chosen == ConvKernel::kDp4a) {
    launch_dp4a(a, positions, static_cast<cudaStream_t>(stream));
  } else {
    launch_mma(a, chosen, static_cast<cudaStream_t>(stream));
  }
  check(cudaGetLastError());
}

}  // namespace pycodec::cuda
