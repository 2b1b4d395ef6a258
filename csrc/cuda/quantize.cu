// The kernels of quantize.hpp; quantize_thread.hpp has what they do.

#include <cuda_runtime.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/quantize.hpp"
#include "cuda/quantize_thread.hpp"

namespace pycodec::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kQuantizeThreads) quantize_kernel(QuantizeArguments a) {
  quantize_thread<T>(a, blockIdx.x, static_cast<int>(threadIdx.x));
}

template <class T>
__global__ void __launch_bounds__(kQuantizeThreads) dequantize_kernel(QuantizeArguments a) {
  dequantize_thread<T>(a, blockIdx.x, static_cast<int>(threadIdx.x));
}

void launch(void (*kernel)(QuantizeArguments), const QuantizeArguments& a, void* stream) {
  const std::int64_t blocks = quantize_blocks(a);
  if (blocks == 0) return;
  if (blocks > std::numeric_limits<int>::max()) {
    throw std::runtime_error("quantize: too many values");
  }
  kernel<<<static_cast<unsigned>(blocks), kQuantizeThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      a);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("quantize: ") + cudaGetErrorString(status));
  }
}

}  // namespace

void quantize(const QuantizeArguments& a, void* stream) {
  launch(a.bytes == 2  ? quantize_kernel<std::int16_t>
         : a.is_signed ? quantize_kernel<std::int8_t>
                       : quantize_kernel<std::uint8_t>,
         a, stream);
}

void dequantize(const QuantizeArguments& a, void* stream) {
  launch(a.bytes == 2  ? dequantize_kernel<std::int16_t>
         : a.is_signed ? dequantize_kernel<std::int8_t>
                       : dequantize_kernel<std::uint8_t>,
         a, stream);
}

}  // namespace pycodec::cuda
