#include <immintrin.h>

#include "cpu/arithmetic_peak.hpp"

namespace pycodec {
namespace {

constexpr int kSums = 12;  // independent ones: registers that are left by the operands

struct Float32 {
  using Vector = __m256;
  static constexpr int kProducts = 8;
  static Vector start() { return _mm256_set1_ps(0.5f); }
  static Vector run(Vector x, Vector w, Vector sum) { return _mm256_fmadd_ps(x, w, sum); }
};

// Of int8, too: the kernels of this level widen it to 16 bits.
struct Int16 {
  using Vector = __m256i;
  static constexpr int kProducts = 16;
  static Vector start() { return _mm256_set1_epi16(3); }
  static Vector run(Vector x, Vector w, Vector sum) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
  }
};

}  // namespace

double float32_peak_avx2() { return measured_peak<Float32, kSums>(); }
double int16_peak_avx2() { return measured_peak<Int16, kSums>(); }
double int8_peak_avx2() { return int16_peak_avx2(); }

}  // namespace pycodec
