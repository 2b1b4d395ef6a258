// The rANS kernels on the host: the very code that the GPU runs, by warps of 32 emulated threads.
// With csrc/bindings/cuda_rans.cpp it makes a module with the rANS functions of pycodec._cuda,
// which take addresses of host memory instead.
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>

#include "bindings/cuda_module.hpp"
#include "cuda/rans.hpp"
#include "cuda/rans_substreams.hpp"
#include "host_warp.hpp"
#include "rans/warp.hpp"

namespace pycodec::cuda {
namespace {

template <class Index>
void decode(const RansDecodeArguments& a) {
  for (std::int64_t i = 0; i < a.num_substreams; ++i) {
    if (rans::lanes_per_thread(a.lanes) == 2) {
      decode_substream<HostWarp, 2, Index>(a, i);
    } else {
      decode_substream<HostWarp, 1, Index>(a, i);
    }
  }
}

template <class Index>
void encode(const RansEncodeArguments& a) {
  for (std::int64_t i = 0; i < a.num_substreams; ++i) {
    if (rans::lanes_per_thread(a.most_lanes) == 2) {
      encode_substream<HostWarp, 2, Index>(a, i);
    } else {
      encode_substream<HostWarp, 1, Index>(a, i);
    }
  }
}

}  // namespace

void rans_decode(const RansDecodeArguments& a, void*) {
  a.index_bytes == 2 ? decode<std::uint16_t>(a) : decode<std::uint8_t>(a);
}

void rans_encode(const RansEncodeArguments& a, void*) {
  a.index_bytes == 2 ? encode<std::uint16_t>(a) : encode<std::uint8_t>(a);
}

void rans_copy(const RansCopyArguments& a, void*) {
  for (std::int64_t i = 0; i < a.num_substreams; ++i) copy_substream<HostWarp>(a, i);
}

}  // namespace pycodec::cuda

PYBIND11_MODULE(rans_device_emulation, m) {
  bind_cuda_rans(m);
  m.def("set_backwards", [](bool value) { pycodec::HostWarp::backwards = value; });
}
