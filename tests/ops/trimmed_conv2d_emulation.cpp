// The trimmed convolutions' kernels on the host: the very code that the GPU runs, by blocks of
// emulated threads. With csrc/bindings/cuda_trimmed_conv2d.cpp it makes a module with these
// functions of pycodec._cuda, which take addresses of host memory instead.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <stdexcept>

#include "bindings/cuda_module.hpp"
#include "cuda/trimmed_conv2d.hpp"
#include "cuda/trimmed_conv2d_tile.hpp"
#include "host_block.hpp"
#include "host_mma.hpp"

namespace pycodec::cuda {
namespace {

using HostBlock = EmulatedBlock<kTrimmedThreads>;

bool has_mma = false;

template <class Function>
void each_block(const TrimmedGrid& grid, const Function& f) {
  for (std::int64_t x = 0; x < grid.x; ++x) {
    for (int y = 0; y < grid.y; ++y) f(x, y);
  }
}

template <class Element>
void run(const TrimmedConv2dArguments& a) {
  with_trimmed_tile(a.shape, [&](auto tile) {
    using Tile = decltype(tile);
    auto shared = std::make_unique<TrimmedShared<Element, Tile>>();
    each_block(trimmed_grid<Tile>(a.shape, true), [&](std::int64_t x, int y) {
      trimmed_conv2d_block<HostBlock, Element, Element, Tile>(a, x, y, *shared);
    });
  });
}

}  // namespace

void trimmed_conv2d(const TrimmedConv2dArguments& a, void*) {
  if (a.type == FloatType::kFloat32) return run<float>(a);
  if (a.type == FloatType::kFloat64) return run<double>(a);
  throw std::invalid_argument("the host has no such type");
}

void quantized_trimmed_conv2d(const QuantizedTrimmedConv2dArguments& a, void*) {
  const QuantizedConv2dArguments all = untrimmed(a);
  if (has_mma && mma_can(all)) {
    return run_mma(all, MmaTile<128, 64, 64, 32, 3, true>(), MmaTypes<true, 1, 8>());
  }
  with_trimmed_tile(a.shape, [&](auto tile) {
    using Tile = decltype(tile);
    auto shared = std::make_unique<QuantizedTrimmedShared<Tile>>();
    each_block(trimmed_grid<Tile>(a.shape, false), [&](std::int64_t x, int y) {
      quantized_trimmed_conv2d_block<HostBlock, Tile>(a, x, y, *shared);
    });
  });
}

}  // namespace pycodec::cuda

PYBIND11_MODULE(trimmed_conv2d_emulation, m) {
  bind_cuda_trimmed_conv2d(m);
  m.def("set_backwards", [](bool value) { pycodec::cuda::backwards = value; });
  m.def("set_has_mma", [](bool value) { pycodec::cuda::has_mma = value; });
}
