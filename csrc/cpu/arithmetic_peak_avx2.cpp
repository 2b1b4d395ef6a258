#include <immintrin.h>

#include "cpu/arithmetic_peak_kernel.hpp"

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

const PeakBurst kFloat32PeakAvx2 = {run_peak_burst<Float32, kSums>, Float32::kProducts * kSums};
const PeakBurst kInt16PeakAvx2 = {run_peak_burst<Int16, kSums>, Int16::kProducts * kSums};

}  // namespace pycodec
