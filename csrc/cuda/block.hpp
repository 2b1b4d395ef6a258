// A block of threads. As in rans/warp.hpp a kernel's code is written for all threads at once: a
// Block is what runs it, DeviceBlock on the GPU, one for the host in the tests. Variables of type
// PerThread differ from thread to thread and are used inside each(); all others are the same in all
// threads.
#pragma once

namespace pycodec::cuda {

#ifdef __CUDACC__
#define PYCODEC_UNROLL _Pragma("unroll")
#define PYCODEC_KEEP_LOOP _Pragma("unroll 1")

struct DeviceBlock {
  template <class T>
  struct PerThread {
    T value;
    __device__ T& operator[](int) { return value; }
  };

  template <class Function>
  __device__ static void each(const Function& f) {
    f(static_cast<int>(threadIdx.x));
  }

  __device__ static void sync() { __syncthreads(); }
};
#else
#define PYCODEC_UNROLL
#define PYCODEC_KEEP_LOOP
#endif

}  // namespace pycodec::cuda
