// The pseudocylindrical operations' CUDA kernels on the host: the very code that the GPU runs, a
// thread after the other. With csrc/bindings/cuda_pseudocylindrical.cpp it makes a module with
// these functions of pycodec._cuda, which take addresses of host memory instead.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "bindings/cuda_module.hpp"
#include "cpu/elements.hpp"
#include "cuda/pseudocylindrical.hpp"
#include "cuda/pseudocylindrical_thread.hpp"

namespace pycodec::cuda {
namespace {

template <class Function>
void each_thread(const TileGrid& grid, const Function& f) {
  for (std::int64_t x = 0; x < grid.x; ++x) {
    for (std::int64_t y = 0; y < grid.y; ++y) {
      for (std::int64_t z = 0; z < grid.z; ++z) {
        for (int thread = 0; thread < kTileThreads; ++thread) f(TileThread{x, y, z, thread});
      }
    }
  }
}

template <class Function>
void with_type(TileType type, const Function& f) {
  switch (type) {
    case TileType::kFloat32:
      return f(float{});
    case TileType::kFloat64:
      return f(double{});
    case TileType::kFloat16:
      return f(Float16{});
    case TileType::kBfloat16:
      return f(Bfloat16{});
    case TileType::kBytes1:
      return f(std::uint8_t{});
    case TileType::kBytes2:
      return f(std::uint16_t{});
    case TileType::kBytes4:
      return f(std::uint32_t{});
    case TileType::kBytes8:
      return f(std::uint64_t{});
    case TileType::kBytes16:
      return f(Bytes16{});
  }
}

template <class Function>
void with_float(TileType type, const Function& f) {
  with_type(type, [&](auto element) {
    if constexpr (!kIsWord<decltype(element)>) return f(element);
    throw std::invalid_argument("not a float");
  });
}

}  // namespace

void pseudocylindrical_pad(const PadArguments& a, void*) {
  with_type(a.type, [&](auto element) {
    each_thread(pad_grid(a), [&](const TileThread& t) { pad_thread<decltype(element)>(a, t); });
  });
}

void pseudocylindrical_pad_adjoint(const PadArguments& a, void*) {
  with_float(a.type, [&](auto element) {
    each_thread(pad_adjoint_grid(a),
                [&](const TileThread& t) { pad_adjoint_thread<decltype(element)>(a, t); });
  });
}

void pseudocylindrical_mask(const MaskArguments& a, void*) {
  with_type(a.type, [&](auto element) {
    if constexpr (kIsWord<decltype(element)>) {
      each_thread(mask_grid(a), [&](const TileThread& t) { mask_thread<decltype(element)>(a, t); });
    }
  });
}

void pseudocylindrical_resample(const ResampleArguments& a, void*) {
  with_float(a.type, [&](auto element) {
    each_thread(resample_grid(a),
                [&](const TileThread& t) { resample_thread<decltype(element)>(a, t); });
  });
}

}  // namespace pycodec::cuda

PYBIND11_MODULE(pseudocylindrical_emulation, m) { bind_cuda_pseudocylindrical(m); }
