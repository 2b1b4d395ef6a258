// The integer convolution's kernel on the host: the very code that the GPU runs, by blocks of
// emulated threads. With csrc/bindings/cuda_quantized_conv2d.cpp it makes a module with this
// function of pycodec._cuda, which takes addresses of host memory instead.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>

#include "bindings/cuda_module.hpp"
#include "cuda/quantized_conv2d.hpp"
#include "cuda/quantized_conv2d_tile.hpp"
#include "host_block.hpp"

namespace pycodec::cuda {

void quantized_conv2d(const QuantizedConv2dArguments& a, void*) {
  using HostBlock = EmulatedBlock<kConvThreads>;
  const auto shared = std::make_unique<QuantizedConv2dShared>();
  const std::int64_t positions = a.batch * a.height * a.width;
  for (std::int64_t x = 0; x * kConvTile < positions; ++x) {
    for (int y = 0; y * kConvTile < a.out_channels; ++y) {
      if (a.x_is_signed) {
        quantized_conv2d_block<HostBlock, true>(a, x, y, *shared);
      } else {
        quantized_conv2d_block<HostBlock, false>(a, x, y, *shared);
      }
    }
  }
}

}  // namespace pycodec::cuda

PYBIND11_MODULE(quantized_conv2d_emulation, m) {
  bind_cuda_quantized_conv2d(m);
  m.def("set_backwards", [](bool value) { pycodec::cuda::backwards = value; });
}
