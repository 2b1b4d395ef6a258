// The integer convolution's kernels on the host: the very code that the GPU runs, by blocks of
// emulated threads and warps. With csrc/bindings/cuda_quantized_conv2d.cpp it makes a module with
// this function of pycodec._cuda, which takes addresses of host memory instead.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "bindings/cuda_module.hpp"
#include "cuda/quantized_conv2d.hpp"
#include "cuda/quantized_conv2d_mma.hpp"
#include "cuda/quantized_conv2d_tile.hpp"
#include "host_block.hpp"
#include "host_warps.hpp"

namespace pycodec::cuda {
namespace {

constexpr int kProcessors = 132;  // of the GPU that the tests choose kernels for

void run_dp4a(const QuantizedConv2dArguments& a) {
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

void run_mma(const QuantizedConv2dArguments& a, ConvKernel kernel) {
  dispatch_mma(a, kernel, [&](auto tile, auto types) {
    using Tile = decltype(tile);
    const auto shared = std::make_unique<MmaShared<Tile>>();
    for (std::int64_t block = 0; block < mma_blocks<Tile>(a); ++block) {
      std::memset(shared.get(), 0x5A, sizeof(MmaShared<Tile>));
      quantized_conv2d_mma_block<EmulatedWarps<Tile::kThreads>, decltype(types), Tile>(
          a, static_cast<std::uint32_t>(block), *shared);
    }
  });
}

}  // namespace

void quantized_conv2d(const QuantizedConv2dArguments& a, const std::string& kernel, void*) {
  const ConvKernel chosen = choose_kernel(a, kernel, true, kProcessors);
  if (chosen == ConvKernel::kDp4a) {
    run_dp4a(a);
  } else {
    run_mma(a, chosen);
  }
}

}  // namespace pycodec::cuda

namespace {

std::string choose_kernel(std::int64_t height, std::int64_t width, int in_channels,
                          int out_channels, int stride, int x_bytes, int weight_bits, bool has_mma,
                          int window, int processors, const std::string& name) {
  pycodec::cuda::QuantizedConv2dArguments a = {};
  a.batch = 1;
  a.height = height;
  a.width = width;
  a.in_channels = in_channels;
  a.out_channels = out_channels;
  a.kernel_height = a.kernel_width = window;
  a.stride = stride;
  a.x_bytes = x_bytes;
  a.weight_bits = weight_bits;
  const pycodec::cuda::ConvKernel kernel =
      pycodec::cuda::choose_kernel(a, name, has_mma, processors);
  for (const auto& tile : pycodec::cuda::kConvMmaTiles) {
    if (tile.kernel == kernel) {
      return "mma" + std::to_string(tile.positions) + "x" + std::to_string(tile.outputs);
    }
  }
  return "dp4a";
}

}  // namespace

PYBIND11_MODULE(quantized_conv2d_emulation, m) {
  namespace py = pybind11;
  m.def("choose_kernel", &choose_kernel, py::kw_only(), py::arg("height"), py::arg("width"),
        py::arg("in_channels"), py::arg("out_channels"), py::arg("stride"), py::arg("x_bytes"),
        py::arg("weight_bits"), py::arg("has_mma"), py::arg("window"), py::arg("processors"),
        py::arg("name"));
  bind_cuda_quantized_conv2d(m);
  m.def("set_backwards", [](bool value) { pycodec::cuda::backwards = value; });
}
