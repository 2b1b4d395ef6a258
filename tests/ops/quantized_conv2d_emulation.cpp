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
  const std::int64_t positions = a.batch * a.out_height() * a.out_width();
  dispatch_types(a, [&](auto is_signed, auto x_planes, auto weight_bits) {
    const auto shared = std::make_unique<QuantizedConv2dShared<x_planes(), weight_bits()>>();
    for (std::int64_t x = 0; x * kConvTile < positions; ++x) {
      for (int y = 0; y * kConvTile < a.out_channels; ++y) {
        quantized_conv2d_block<HostBlock, is_signed(), x_planes(), weight_bits()>(a, x, y, *shared);
      }
    }
  });
}

}  // namespace pycodec::cuda

PYBIND11_MODULE(quantized_conv2d_emulation, m) {
  bind_cuda_quantized_conv2d(m);
  m.def("set_backwards", [](bool value) { pycodec::cuda::backwards = value; });
}
