// AVX2 and FMA: of the 16 registers 12 are sums.
#include <immintrin.h>

#include "cpu/float_trimmed_conv2d_kernel.hpp"

namespace pycodec {
namespace {

struct Avx2 {
  using Vector = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kMaxChannels = 4;
  static constexpr int kVectors[kMaxChannels] = {8, 6, 4, 3};

  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static Vector broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
};

}  // namespace

const FloatTrimmedKernel kFloatTrimmedKernelAvx2 = {"avx2", Avx2::kLanes, Avx2::kMaxChannels,
                                                    run_float_trimmed<Avx2>};

}  // namespace pycodec
