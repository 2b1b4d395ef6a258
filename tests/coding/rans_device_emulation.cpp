// The rANS kernels on the host: the very code that the GPU runs, by warps of 32 emulated threads.
// With csrc/bindings/cuda_rans.cpp it makes a module with the rANS functions of pycodec._cuda,
// which take addresses of host memory instead.
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>

#include "bindings/cuda_module.hpp"
#include "cuda/rans.hpp"
#include "cuda/rans_substreams.hpp"
#include "rans/warp.hpp"

namespace pycodec::cuda {
namespace {

bool backwards = false;

// See DeviceWarp. Threads take their turns forwards or backwards, so that the tests see if what one
// does within each() depends on what another one has done there.
struct HostWarp {
  static constexpr unsigned kThreads = rans::kWarpThreads;

  template <class T>
  struct PerThread {
    // Like registers, never cleared.
    T values[kThreads];
    T& operator[](unsigned thread) { return values[thread]; }
    const T& operator[](unsigned thread) const { return values[thread]; }
  };

  template <class Function>
  static void each(const Function& f) {
    for (unsigned t = 0; t < kThreads; ++t) f(backwards ? kThreads - 1 - t : t);
  }

  static std::uint32_t ballot(const PerThread<bool>& flag) {
    std::uint32_t mask = 0;
    for (unsigned t = 0; t < kThreads; ++t) mask |= std::uint32_t{flag[t]} << t;
    return mask;
  }

  // The source is taken modulo the number of threads, as the instruction does.
  template <class T>
  static PerThread<T> shuffle(const PerThread<T>& value, const PerThread<unsigned>& source) {
    PerThread<T> result;
    for (unsigned t = 0; t < kThreads; ++t) result[t] = value[source[t] % kThreads];
    return result;
  }

  template <class T>
  static T broadcast(const PerThread<T>& value, unsigned source) {
    return value[source % kThreads];
  }
};

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
    if (rans::lanes_per_thread(a.lanes) == 2) {
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
  m.def("set_backwards", [](bool value) { pycodec::cuda::backwards = value; });
}
