#include "cpu/arithmetic_peak.hpp"

#include <cstddef>
#include <numeric>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/simd_level.hpp"

namespace pycodec {
namespace {

using Peak = double (*)();

Peak peak_of([[maybe_unused]] SimdLevel level, [[maybe_unused]] Arithmetic arithmetic) {
#if defined(__x86_64__)
  const bool is_avx512 = level == SimdLevel::kAvx512Vnni;
  if (!is_avx512 && level != SimdLevel::kAvx2) return nullptr;
  switch (arithmetic) {
    case Arithmetic::kInt8:
      return is_avx512 ? int8_peak_avx512vnni : int8_peak_avx2;
    case Arithmetic::kInt16:
      return is_avx512 ? int16_peak_avx512vnni : int16_peak_avx2;
    case Arithmetic::kFloat32:
      return is_avx512 ? float32_peak_avx512vnni : float32_peak_avx2;
    default:
      break;
  }
#endif
  return nullptr;
}

}  // namespace

double arithmetic_peak(Arithmetic arithmetic, int threads) {
  const Peak peak = peak_of(simd_level(), arithmetic);
  if (peak == nullptr) return 0;
  std::vector<double> of_thread(static_cast<std::size_t>(threads));
  parallel_for(threads, threads,
               [&](std::int64_t i) { of_thread[static_cast<std::size_t>(i)] = peak(); });
  return std::accumulate(of_thread.begin(), of_thread.end(), 0.0);
}

}  // namespace pycodec
