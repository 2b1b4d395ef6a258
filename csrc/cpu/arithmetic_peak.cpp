#include "cpu/arithmetic_peak.hpp"

#include <cstddef>
#include <numeric>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/simd_level.hpp"

namespace pycodec {
namespace {

using Peak = double (*)();

Peak peak_of(SimdLevel level, [[maybe_unused]] bool is_int8) {
  switch (level) {
#if defined(__x86_64__)
    case SimdLevel::kAvx512Vnni:
      return is_int8 ? int8_peak_avx512vnni : float32_peak_avx512vnni;
    case SimdLevel::kAvx2:
      return is_int8 ? int8_peak_avx2 : float32_peak_avx2;
#endif
    default:
      return nullptr;
  }
}

}  // namespace

double arithmetic_peak(Arithmetic arithmetic, int threads) {
  const Peak peak = peak_of(simd_level(), arithmetic == Arithmetic::kInt8);
  if (peak == nullptr) return 0;
  std::vector<double> of_thread(static_cast<std::size_t>(threads));
  parallel_for(threads, threads,
               [&](std::int64_t i) { of_thread[static_cast<std::size_t>(i)] = peak(); });
  return std::accumulate(of_thread.begin(), of_thread.end(), 0.0);
}

}  // namespace pycodec
