// AVX-512: of the 32 registers about 24 are sums.
#include <immintrin.h>

#include "cpu/float_trimmed_conv2d_kernel.hpp"

namespace pycodec {
namespace {

struct Avx512 {
  using Vector = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kMaxChannels = 8;
  static constexpr int kVectors[kMaxChannels] = {12, 12, 8, 6, 5, 4, 3, 3};

  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static Vector broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
};

}  // namespace

const FloatTrimmedKernel kFloatTrimmedKernelAvx512Vnni = {
    "avx512vnni", Avx512::kLanes, Avx512::kMaxChannels, run_float_trimmed<Avx512>};

}  // namespace pycodec
