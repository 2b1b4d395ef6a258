// Quantization's CUDA kernels on the host: the very code that the GPU runs, a thread after the
// other. With csrc/bindings/cuda_quantize.cpp it makes a module with these functions of
// pycodec._cuda, which take addresses of host memory instead.
#include <pybind11/pybind11.h>

#include "bindings/cuda_module.hpp"
#include "cuda/quantize.hpp"
#include "cuda/quantize_thread.hpp"

namespace pycodec::cuda {
namespace {

template <class Function>
void each_thread(const QuantizeArguments& a, const Function& f) {
  for (std::int64_t block = 0; block < quantize_blocks(a); ++block) {
    for (int thread = 0; thread < kQuantizeThreads; ++thread) f(block, thread);
  }
}

template <class Function>
void with_type(const QuantizeArguments& a, const Function& f) {
  if (a.bytes == 2) return f(std::int16_t{});
  if (a.is_signed) return f(std::int8_t{});
  f(std::uint8_t{});
}

}  // namespace

void quantize(const QuantizeArguments& a, void*) {
  with_type(a, [&](auto value) {
    each_thread(a, [&](std::int64_t block, int thread) {
      quantize_thread<decltype(value)>(a, block, thread);
    });
  });
}

void dequantize(const QuantizeArguments& a, void*) {
  with_type(a, [&](auto value) {
    each_thread(a, [&](std::int64_t block, int thread) {
      dequantize_thread<decltype(value)>(a, block, thread);
    });
  });
}

}  // namespace pycodec::cuda

PYBIND11_MODULE(quantize_emulation, m) { bind_cuda_quantize(m); }
