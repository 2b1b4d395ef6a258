// An implicit matrix product: rows are output positions, columns output channels, and the inner
// dimension runs over kernel taps and, within a tap, groups of four input channels. A block
// computes kTile x kTile outputs, a thread 4 x 4 of them, with dp4a: four products and their sum,
// exact in 32 bits. Inputs and weights pass through shared memory kDepth groups at a time.

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/quantized_conv2d.hpp"

namespace pycodec::cuda {
namespace {

constexpr int kTile = 64;     // positions and output channels in a block
constexpr int kDepth = 8;     // groups of four channels in shared memory
constexpr int kThreads = 16;  // along each side of a block
constexpr int kPerThread = kTile / kThreads;
constexpr unsigned kMaxGridX = 0x7FFFFFFF;

// acc + the sum of four products of an int8 (or, unless kSigned, uint8) by an int8. Sums wrap.
template <bool kSigned>
__device__ int dot4(unsigned x, unsigned weight, int acc) {
  int result;
  if constexpr (kSigned) {
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(weight), "r"(acc));
  } else {
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(weight), "r"(acc));
  }
  return result;
}

// Four bytes from `bytes` on, of which the first `count` exist; the others are 0.
__device__ unsigned load_group(const unsigned char* bytes, int count, bool aligned) {
  if (aligned && count >= 4) return *reinterpret_cast<const unsigned*>(bytes);
  unsigned group = 0;
  for (int i = 0; i < 4 && i < count; ++i) group |= static_cast<unsigned>(bytes[i]) << (8 * i);
  return group;
}

__device__ void store_output(void* out, long long index, int bytes, int value) {
  switch (bytes) {
    case 4:
      static_cast<int*>(out)[index] = value;
      break;
    case 2:
      static_cast<short*>(out)[index] = static_cast<short>(value);
      break;
    default:
      static_cast<unsigned char*>(out)[index] = static_cast<unsigned char>(value);
  }
}

template <bool kSigned>
__global__ void __launch_bounds__(kThreads* kThreads)
    quantized_conv2d_kernel(QuantizedConv2dArguments a) {
  // One column more than needed, so that threads which read a column meet different banks.
  __shared__ unsigned x_tile[kTile][kDepth + 1];
  __shared__ unsigned weight_tile[kTile][kDepth + 1];

  const auto* x = static_cast<const unsigned char*>(a.x);
  const auto* weight = reinterpret_cast<const unsigned char*>(a.weight);
  const int thread = threadIdx.y * kThreads + threadIdx.x;
  const long long positions = a.batch * a.height * a.width;
  const long long first_position = static_cast<long long>(blockIdx.x) * kTile;
  const int first_out = blockIdx.y * kTile;
  const int groups = (a.in_channels + 3) / 4;
  const int taps = a.kernel_height * a.kernel_width;
  const bool aligned = a.in_channels % 4 == 0 && reinterpret_cast<size_t>(a.x) % 4 == 0 &&
                       reinterpret_cast<size_t>(a.weight) % 4 == 0;

  int acc[kPerThread][kPerThread] = {};
  for (int tap = 0; tap < taps; ++tap) {
    const int dy = tap / a.kernel_width - a.kernel_height / 2;
    const int dx = tap % a.kernel_width - a.kernel_width / 2;
    for (int first_group = 0; first_group < groups; first_group += kDepth) {
      for (int i = thread; i < kTile * kDepth; i += kThreads * kThreads) {
        const int row = i / kDepth;
        const int depth = i % kDepth;
        const int channel = (first_group + depth) * 4;
        const int left = a.in_channels - channel;  // at most 0 past the last group

        const long long position = first_position + row;
        const long long source_y = position / a.width % a.height + dy;
        const long long source_x = position % a.width + dx;
        const bool inside = position < positions && source_y >= 0 && source_y < a.height &&
                            source_x >= 0 && source_x < a.width;
        const long long pixel = position + dy * a.width + dx;
        x_tile[row][depth] =
            inside ? load_group(x + pixel * a.in_channels + channel, left, aligned) : 0;

        const int out = first_out + row;
        const long long window = static_cast<long long>(out) * taps + tap;
        weight_tile[row][depth] =
            out < a.out_channels
                ? load_group(weight + window * a.in_channels + channel, left, aligned)
                : 0;
      }
      __syncthreads();
      for (int depth = 0; depth < kDepth; ++depth) {
        for (int i = 0; i < kPerThread; ++i) {
          const unsigned group = x_tile[threadIdx.y + i * kThreads][depth];
          for (int j = 0; j < kPerThread; ++j) {
            acc[i][j] =
                dot4<kSigned>(group, weight_tile[threadIdx.x + j * kThreads][depth], acc[i][j]);
          }
        }
      }
      __syncthreads();
    }
  }

  const long long half = 1LL << (a.shift - 1);
  for (int j = 0; j < kPerThread; ++j) {
    const int out = first_out + threadIdx.x + j * kThreads;
    if (out >= a.out_channels) continue;
    for (int i = 0; i < kPerThread; ++i) {
      const long long position = first_position + threadIdx.y + i * kThreads;
      if (position >= positions) continue;
      const int sum =
          static_cast<int>(static_cast<unsigned>(acc[i][j]) + static_cast<unsigned>(a.bias[out]));
      const long long value = (static_cast<long long>(sum) * a.multiplier[out] + half) >> a.shift;
      const long long clamped =
          min(max(value, static_cast<long long>(a.lower)), static_cast<long long>(a.upper));
      store_output(a.out, position * a.out_channels + out, a.out_bytes, static_cast<int>(clamped));
    }
  }
}

}  // namespace

void quantized_conv2d(const QuantizedConv2dArguments& a, void* stream) {
  const std::int64_t positions = a.batch * a.height * a.width;
  if (positions == 0) return;
  const std::int64_t blocks = (positions + kTile - 1) / kTile;
  if (blocks > kMaxGridX) throw std::runtime_error("quantized_conv2d: too many positions");
  const dim3 grid(static_cast<unsigned>(blocks), (a.out_channels + kTile - 1) / kTile);
  const dim3 block(kThreads, kThreads);
  auto* kernel = a.x_is_signed ? quantized_conv2d_kernel<true> : quantized_conv2d_kernel<false>;
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(a);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("quantized_conv2d: ") + cudaGetErrorString(status));
  }
}

}  // namespace pycodec::cuda
