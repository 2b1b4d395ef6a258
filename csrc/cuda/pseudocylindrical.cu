// The kernels of pseudocylindrical.hpp; pseudocylindrical_thread.hpp has what they do.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/pseudocylindrical.hpp"
#include "cuda/pseudocylindrical_thread.hpp"

namespace pycodec::cuda {
namespace {

__device__ TileThread this_thread() {
  return {blockIdx.x, blockIdx.y, blockIdx.z, static_cast<int>(threadIdx.x)};
}

template <class Element>
__global__ void __launch_bounds__(kTileThreads) pad_kernel(PadArguments a) {
  pad_thread<Element>(a, this_thread());
}

template <class Element>
__global__ void __launch_bounds__(kTileThreads) pad_adjoint_kernel(PadArguments a) {
  pad_adjoint_thread<Element>(a, this_thread());
}

template <class Element>
__global__ void __launch_bounds__(kTileThreads) mask_kernel(MaskArguments a) {
  mask_thread<Element>(a, this_thread());
}

template <class Element>
__global__ void __launch_bounds__(kTileThreads) resample_kernel(ResampleArguments a) {
  resample_thread<Element>(a, this_thread());
}

template <class Arguments>
void launch(void (*kernel)(Arguments), const Arguments& a, const TileGrid& grid, void* stream,
            const char* name) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (grid.x > std::numeric_limits<int>::max() || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error(std::string(name) + ": too many rows, columns or channels");
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                    static_cast<unsigned>(grid.z));
  kernel<<<blocks, kTileThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(status));
  }
}

// Calls f with an element of a float type; returns whether it is one.
template <class Function>
bool with_float(TileType type, const Function& f) {
  switch (type) {
    case TileType::kFloat32:
      f(float{});
      return true;
    case TileType::kFloat64:
      f(double{});
      return true;
    case TileType::kFloat16:
      f(__half{});
      return true;
    case TileType::kBfloat16:
      f(__nv_bfloat16{});
      return true;
    default:
      return false;
  }
}

// The same for words of bytes.
template <class Function>
bool with_word(TileType type, const Function& f) {
  switch (type) {
    case TileType::kBytes1:
      f(std::uint8_t{});
      return true;
    case TileType::kBytes2:
      f(std::uint16_t{});
      return true;
    case TileType::kBytes4:
      f(std::uint32_t{});
      return true;
    case TileType::kBytes8:
      f(std::uint64_t{});
      return true;
    case TileType::kBytes16:
      f(Bytes16{});
      return true;
    default:
      return false;
  }
}

void require(bool has_kernel, const char* name) {
  if (!has_kernel) throw std::runtime_error(std::string(name) + ": no kernel for this type");
}

}  // namespace

void pseudocylindrical_pad(const PadArguments& a, void* stream) {
  constexpr const char* kName = "pseudocylindrical_pad";
  const auto run = [&](auto element) {
    launch(pad_kernel<decltype(element)>, a, pad_grid(a), stream, kName);
  };
  require(with_float(a.type, run) || with_word(a.type, run), kName);
}

void pseudocylindrical_pad_adjoint(const PadArguments& a, void* stream) {
  constexpr const char* kName = "pseudocylindrical_pad_adjoint";
  const auto run = [&](auto element) {
    launch(pad_adjoint_kernel<decltype(element)>, a, pad_adjoint_grid(a), stream, kName);
  };
  require(with_float(a.type, run), kName);
}

void pseudocylindrical_mask(const MaskArguments& a, void* stream) {
  constexpr const char* kName = "pseudocylindrical_mask";
  const auto run = [&](auto element) {
    launch(mask_kernel<decltype(element)>, a, mask_grid(a), stream, kName);
  };
  require(with_word(a.type, run), kName);
}

void pseudocylindrical_resample(const ResampleArguments& a, void* stream) {
  constexpr const char* kName = "pseudocylindrical_resample";
  const auto run = [&](auto element) {
    launch(resample_kernel<decltype(element)>, a, resample_grid(a), stream, kName);
  };
  require(with_float(a.type, run), kName);
}

}  // namespace pycodec::cuda
