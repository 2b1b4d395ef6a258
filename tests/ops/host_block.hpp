// A block of threads on the host, one thread after the other: see cuda/block.hpp.
#pragma once

namespace pycodec::cuda {

inline bool backwards = false;

// Threads take their turns forwards or backwards, so that the tests see if what one does within
// each() depends on what another one has done there.
template <int kThreads>
struct EmulatedBlock {
  template <class T>
  struct PerThread {
    // Like registers, never cleared.
    T values[kThreads];
    T& operator[](int thread) { return values[thread]; }
  };

  template <class Function>
  static void each(const Function& f) {
    for (int t = 0; t < kThreads; ++t) f(backwards ? kThreads - 1 - t : t);
  }

  static void sync() {}
};

}  // namespace pycodec::cuda
