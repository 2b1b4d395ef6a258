#include <immintrin.h>

#include "cpu/arithmetic_peak.hpp"

namespace pycodec {
namespace {

constexpr int kSums = 24;  // independent ones, as many as in the kernels

struct Float32 {
  using Vector = __m512;
  static constexpr int kProducts = 16;
  static Vector start() { return _mm512_set1_ps(0.5f); }
  static Vector run(Vector x, Vector w, Vector sum) { return _mm512_fmadd_ps(x, w, sum); }
};

struct Int16 {
  using Vector = __m512i;
  static constexpr int kProducts = 32;
  static Vector start() { return _mm512_set1_epi16(3); }
  static Vector run(Vector x, Vector w, Vector sum) { return _mm512_dpwssd_epi32(sum, x, w); }
};

struct Int8 {
  using Vector = __m512i;
  static constexpr int kProducts = 64;
  static Vector start() { return _mm512_set1_epi8(3); }
  static Vector run(Vector x, Vector w, Vector sum) { return _mm512_dpbusd_epi32(sum, x, w); }
};

}  // namespace

double float32_peak_avx512vnni() { return measured_peak<Float32, kSums>(); }
double int16_peak_avx512vnni() { return measured_peak<Int16, kSums>(); }
double int8_peak_avx512vnni() { return measured_peak<Int8, kSums>(); }

}  // namespace pycodec
