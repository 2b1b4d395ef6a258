#include <immintrin.h>

#include "cpu/arithmetic_peak_kernel.hpp"

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

const PeakBurst kFloat32PeakAvx512Vnni = {run_peak_burst<Float32, kSums>,
                                          Float32::kProducts * kSums};
const PeakBurst kInt16PeakAvx512Vnni = {run_peak_burst<Int16, kSums>, Int16::kProducts * kSums};
const PeakBurst kInt8PeakAvx512Vnni = {run_peak_burst<Int8, kSums>, Int8::kProducts * kSums};

}  // namespace pycodec
