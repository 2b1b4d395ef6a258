// Portable: vectors of the compiler's own kind, which become SSE2 on x86-64 and NEON on aarch64.
#include "cpu/float_trimmed_conv2d_kernel.hpp"

namespace pycodec {
namespace {

struct Portable {
  typedef float Vector __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kMaxChannels = 4;
  static constexpr int kVectors[kMaxChannels] = {6, 4, 3, 2};

  static Vector load(const float* p) {
    Vector v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static Vector broadcast(const float* p) { return Vector{*p, *p, *p, *p}; }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
  static void store(float* p, Vector v) { __builtin_memcpy(p, &v, sizeof v); }
};

}  // namespace

const FloatTrimmedKernel kFloatTrimmedKernelScalar = {
    "scalar", Portable::kLanes, Portable::kMaxChannels, run_float_trimmed<Portable>};

}  // namespace pycodec
