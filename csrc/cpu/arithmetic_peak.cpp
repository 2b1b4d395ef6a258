#include "cpu/arithmetic_peak.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <numeric>
#include <vector>

#include "cpu/arithmetic_peak_kernel.hpp"
#include "cpu/parallel.hpp"
#include "cpu/simd_level.hpp"

namespace pycodec {
namespace {

const PeakBurst* burst_of([[maybe_unused]] SimdLevel level,
                          [[maybe_unused]] Arithmetic arithmetic) {
#if defined(__x86_64__)
  const bool is_avx512 = level == SimdLevel::kAvx512Vnni || level == SimdLevel::kAmx;
  if (!is_avx512 && level != SimdLevel::kAvx2) return nullptr;
  switch (arithmetic) {
    case Arithmetic::kInt8:  // the kernels of AVX2 widen it to 16 bits
      return is_avx512 ? &kInt8PeakAvx512Vnni : &kInt16PeakAvx2;
    case Arithmetic::kInt16:
      return is_avx512 ? &kInt16PeakAvx512Vnni : &kInt16PeakAvx2;
    case Arithmetic::kInt8Tiles:
      return level == SimdLevel::kAmx ? &kInt8TilesPeakAmx : nullptr;
    case Arithmetic::kFloat32:
      return is_avx512 ? &kFloat32PeakAvx512Vnni : &kFloat32PeakAvx2;
    default:
      break;
  }
#endif
  return nullptr;
}

// Of the core that this runs on.
double measured(const PeakBurst& burst) {
  constexpr int kRounds = 20'000;
  constexpr int kBursts = 300;
  double best = 1;
  for (int i = 0; i < kBursts; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    burst.run(kRounds);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::min(best, seconds.count());
  }
  return burst.products * kRounds / best;
}

}  // namespace

double arithmetic_peak(Arithmetic arithmetic, int threads) {
  const PeakBurst* burst = burst_of(simd_level(), arithmetic);
  if (burst == nullptr) return 0;
  std::vector<double> of_thread(static_cast<std::size_t>(threads));
  parallel_for(threads, threads,
               [&](std::int64_t i) { of_thread[static_cast<std::size_t>(i)] = measured(*burst); });
  return std::accumulate(of_thread.begin(), of_thread.end(), 0.0);
}

}  // namespace pycodec
