// An implicit matrix product: rows are output positions, columns output channels, and the inner
// dimension runs over kernel taps and, within a tap, groups of four input channels. A block
// computes kTile x kTile outputs, a thread 4 x 4 of them, with dp4a: four products and their sum,
// exact in 32 bits. Inputs and weights pass through shared memory kDepth groups at a time; those of
// 16 bits as a group of high bytes and one of low bytes, whose products are shifted and added up.

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

// The sum of four products of int8, or where not kSigned uint8. Sums wrap.
template <bool kSignedX, bool kSignedWeight>
__device__ int dot4(unsigned x, unsigned weight, int acc) {
  int result;
  if constexpr (kSignedX && kSignedWeight) {
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(weight), "r"(acc));
  } else if constexpr (kSignedWeight) {
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(weight), "r"(acc));
  } else if constexpr (kSignedX) {
    asm("dp4a.s32.u32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(weight), "r"(acc));
  } else {
    asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(weight), "r"(acc));
  }
  return result;
}

__device__ int shift_left(int value, int bits) {
  return static_cast<int>(static_cast<unsigned>(value) << bits);
}

__device__ int add(int a, int b) {
  return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
}

// Four values from `first` on, of which `count` exist, the others are 0: their bytes, or of int16
// the high bytes as group 0 and the low ones as group 1.
template <int kPlanes>
__device__ void load_group(const void* values, long long first, int count, bool aligned,
                           unsigned (&group)[kPlanes]) {
  for (unsigned& g : group) g = 0;
  if constexpr (kPlanes == 1) {
    const auto* bytes = static_cast<const unsigned char*>(values) + first;
    if (aligned && count >= 4) {
      group[0] = *reinterpret_cast<const unsigned*>(bytes);
      return;
    }
    for (int i = 0; i < 4 && i < count; ++i) group[0] |= static_cast<unsigned>(bytes[i]) << (8 * i);
  } else {
    const auto* words = static_cast<const unsigned short*>(values) + first;
    for (int i = 0; i < 4 && i < count; ++i) {
      group[0] |= static_cast<unsigned>(words[i] >> 8) << (8 * i);
      group[1] |= static_cast<unsigned>(words[i] & 255) << (8 * i);
    }
  }
}

// Four weights of 4 bits as int8.
__device__ unsigned load_packed(const void* values, long long first_byte, int count) {
  const auto* bytes = static_cast<const unsigned char*>(values) + first_byte;
  unsigned group = 0;
  for (int i = 0; i < 4 && i < count; ++i) {
    const int nibble = bytes[i / 2] >> (i % 2 * 4) & 15;
    group |= static_cast<unsigned>(((nibble ^ 8) - 8) & 255) << (8 * i);
  }
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

template <bool kSigned, int kXPlanes, int kWeightBits>
__global__ void __launch_bounds__(kThreads* kThreads)
    quantized_conv2d_kernel(QuantizedConv2dArguments a) {
  constexpr int kWeightPlanes = kWeightBits == 16 ? 2 : 1;
  // One column more than needed, so that threads which read a column meet different banks.
  __shared__ unsigned x_tile[kXPlanes][kTile][kDepth + 1];
  __shared__ unsigned weight_tile[kWeightPlanes][kTile][kDepth + 1];

  const int thread = threadIdx.y * kThreads + threadIdx.x;
  const long long out_height = (a.height - 1) / a.stride + 1;
  const long long out_width = (a.width - 1) / a.stride + 1;
  const long long positions = a.batch * out_height * out_width;
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
        const long long image = position / out_width / out_height;
        const long long source_y = position / out_width % out_height * a.stride + dy;
        const long long source_x = position % out_width * a.stride + dx;
        const bool inside =
            source_y >= 0 && source_y < a.height && source_x >= 0 && source_x < a.width;
        unsigned x_group[kXPlanes] = {};
        if (position < positions && inside) {
          const long long pixel = (image * a.height + source_y) * a.width + source_x;
          load_group<kXPlanes>(a.x, pixel * a.in_channels + channel, left, aligned, x_group);
        } else if (position < positions && a.zero_point) {
          unsigned zero[2];
          load_group<2>(a.zero_point, channel, left, false, zero);
          x_group[0] = zero[kXPlanes == 1];
          if constexpr (kXPlanes == 2) x_group[1] = zero[1];
        }
        for (int plane = 0; plane < kXPlanes; ++plane) x_tile[plane][row][depth] = x_group[plane];

        const int out = first_out + row;
        const long long window = static_cast<long long>(out) * taps + tap;
        unsigned weight_group[kWeightPlanes] = {};
        if (out < a.out_channels) {
          if constexpr (kWeightBits == 4) {
            const long long row_bytes = (a.in_channels + 1) / 2;
            weight_group[0] = load_packed(a.weight, window * row_bytes + channel / 2, left);
          } else {
            load_group<kWeightPlanes>(a.weight, window * a.in_channels + channel, left, aligned,
                                      weight_group);
          }
        }
        for (int plane = 0; plane < kWeightPlanes; ++plane) {
          weight_tile[plane][row][depth] = weight_group[plane];
        }
      }
      __syncthreads();
      for (int depth = 0; depth < kDepth; ++depth) {
        for (int i = 0; i < kPerThread; ++i) {
          const int x_row = threadIdx.y + i * kThreads;
          const unsigned x0 = x_tile[0][x_row][depth];
          for (int j = 0; j < kPerThread; ++j) {
            const int weight_row = threadIdx.x + j * kThreads;
            const unsigned w0 = weight_tile[0][weight_row][depth];
            int& sum = acc[i][j];
            if constexpr (kXPlanes == 1 && kWeightPlanes == 1) {
              sum = dot4<kSigned, true>(x0, w0, sum);
              continue;
            }
            int high = dot4<kSigned, true>(x0, w0, 0);
            if constexpr (kXPlanes == 2 && kWeightPlanes == 2) {
              const unsigned x1 = x_tile[1][x_row][depth], w1 = weight_tile[1][weight_row][depth];
              high = dot4<false, true>(x1, w0, shift_left(high, 8));
              high = dot4<true, false>(x0, w1, high);
              sum = dot4<false, false>(x1, w1, add(sum, shift_left(high, 8)));
            } else if constexpr (kXPlanes == 2) {
              sum = add(sum, shift_left(high, 8));
              sum = dot4<false, true>(x_tile[1][x_row][depth], w0, sum);
            } else if constexpr (kWeightPlanes == 2) {
              sum = add(sum, shift_left(high, 8));
              sum = dot4<kSigned, false>(x0, weight_tile[1][weight_row][depth], sum);
            }
          }
        }
      }
      __syncthreads();
    }
  }

  const long long half = 1LL << (a.shift - 1);
  const int channels = a.out_channels / (a.upscale * a.upscale);
  for (int j = 0; j < kPerThread; ++j) {
    const int out = first_out + threadIdx.x + j * kThreads;
    if (out >= a.out_channels) continue;
    const int patch = out / channels;
    for (int i = 0; i < kPerThread; ++i) {
      const long long position = first_position + threadIdx.y + i * kThreads;
      if (position >= positions) continue;
      const int sum = add(acc[i][j], a.bias[out]);
      long long value = (static_cast<long long>(sum) * a.multiplier[out] + half) >> a.shift;
      if (a.residual) value += a.residual[position * a.out_channels + out];
      const long long clamped =
          min(max(value, static_cast<long long>(a.lower)), static_cast<long long>(a.upper));
      const long long y = position / out_width * a.upscale + patch / a.upscale;  // of all images
      const long long x = position % out_width * a.upscale + patch % a.upscale;
      const long long index = (y * out_width * a.upscale + x) * channels + out % channels;
      store_output(a.out, index, a.out_bytes, static_cast<int>(clamped));
    }
  }
}

template <bool kSigned, int kXPlanes>
auto* kernel_for(int weight_bits) {
  switch (weight_bits) {
    case 4:
      return quantized_conv2d_kernel<kSigned, kXPlanes, 4>;
    case 16:
      return quantized_conv2d_kernel<kSigned, kXPlanes, 16>;
    default:
      return quantized_conv2d_kernel<kSigned, kXPlanes, 8>;
  }
}

}  // namespace

void quantized_conv2d(const QuantizedConv2dArguments& a, void* stream) {
  if (a.batch == 0 || a.height == 0 || a.width == 0) return;
  const std::int64_t positions =
      a.batch * ((a.height - 1) / a.stride + 1) * ((a.width - 1) / a.stride + 1);
  const std::int64_t blocks = (positions + kTile - 1) / kTile;
  if (blocks > kMaxGridX) throw std::runtime_error("quantized_conv2d: too many positions");
  const dim3 grid(static_cast<unsigned>(blocks), (a.out_channels + kTile - 1) / kTile);
  const dim3 block(kThreads, kThreads);
  auto* kernel = a.x_bytes == 2  ? kernel_for<true, 2>(a.weight_bits)
                 : a.x_is_signed ? kernel_for<true, 1>(a.weight_bits)
                                 : kernel_for<false, 1>(a.weight_bits);
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(a);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("quantized_conv2d: ") + cudaGetErrorString(status));
  }
}

}  // namespace pycodec::cuda
