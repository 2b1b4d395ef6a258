// A warp a substream: its threads are the interleaved lanes, and what they do is in rans/warp.hpp.
// A turn of a warp, a symbol a lane, is a chain of a table look-up, a ballot and two shuffles, some
// 150 cycles; to keep a GPU busy takes many warps, not much of each.

#include <cuda_runtime.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/rans.hpp"
#include "cuda/rans_substreams.hpp"
#include "rans/warp.hpp"

namespace pycodec::cuda {
namespace {

using rans::DeviceWarp;

constexpr int kMaxWarps = 4;  // in a block
// Below it, a warp a block spreads them over all multiprocessors, which hold 32 blocks each.
constexpr std::int64_t kManySubstreams = 8192;

// The substream of this warp; it may be past the last.
__device__ std::int64_t this_substream() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}

template <int kLanesPerThread, class Index>
__global__ void __launch_bounds__(rans::kWarpThreads* kMaxWarps, 1)
    decode_kernel(RansDecodeArguments a) {
  const std::int64_t number = this_substream();
  if (number >= a.num_substreams) return;
  decode_substream<DeviceWarp, kLanesPerThread, Index>(a, number);
}

template <int kLanesPerThread, class Index>
__global__ void __launch_bounds__(rans::kWarpThreads* kMaxWarps)
    encode_kernel(RansEncodeArguments a) {
  const std::int64_t number = this_substream();
  if (number >= a.num_substreams) return;
  encode_substream<DeviceWarp, kLanesPerThread, Index>(a, number);
}

__global__ void __launch_bounds__(rans::kWarpThreads* kMaxWarps) copy_kernel(RansCopyArguments a) {
  const std::int64_t number = this_substream();
  if (number >= a.num_substreams) return;
  copy_substream<DeviceWarp>(a, number);
}

template <class Arguments>
void launch(void (*kernel)(Arguments), const Arguments& a, void* stream, const char* name) {
  if (a.num_substreams == 0) return;
  const unsigned warps = a.num_substreams < kManySubstreams ? 1 : kMaxWarps;
  const std::int64_t blocks = (a.num_substreams + warps - 1) / warps;
  if (blocks > std::numeric_limits<int>::max()) {
    throw std::runtime_error(std::string(name) + ": too many substreams");
  }
  const dim3 block(rans::kWarpThreads, warps);
  kernel<<<static_cast<unsigned>(blocks), block, 0, static_cast<cudaStream_t>(stream)>>>(a);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(status));
  }
}

}  // namespace

void rans_decode(const RansDecodeArguments& a, void* stream) {
  const bool wide = a.index_bytes == 2;
  auto* kernel = wide ? decode_kernel<1, std::uint16_t> : decode_kernel<1, std::uint8_t>;
  if (rans::lanes_per_thread(a.lanes) == 2) {
    kernel = wide ? decode_kernel<2, std::uint16_t> : decode_kernel<2, std::uint8_t>;
  }
  launch(kernel, a, stream, "rans_decode");
}

void rans_encode(const RansEncodeArguments& a, void* stream) {
  const bool wide = a.index_bytes == 2;
  auto* kernel = wide ? encode_kernel<1, std::uint16_t> : encode_kernel<1, std::uint8_t>;
  if (rans::lanes_per_thread(a.most_lanes) == 2) {
    kernel = wide ? encode_kernel<2, std::uint16_t> : encode_kernel<2, std::uint8_t>;
  }
  launch(kernel, a, stream, "rans_encode");
}

void rans_copy(const RansCopyArguments& a, void* stream) {
  launch(copy_kernel, a, stream, "rans_copy");
}

}  // namespace pycodec::cuda
