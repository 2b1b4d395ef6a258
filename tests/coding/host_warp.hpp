// A warp on the host, for the tests of what warps do.
#pragma once

#include <cstdint>

#include "rans/warp.hpp"

namespace pycodec {

// See DeviceWarp. Threads take their turns forwards or backwards, so that the tests see if what one
// does within each() depends on what another one has done there.
struct HostWarp {
  static inline bool backwards = false;
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

  static void sync() {}

  template <class T>
  static T broadcast(const PerThread<T>& value, unsigned source) {
    return value[source % kThreads];
  }
};

}  // namespace pycodec
