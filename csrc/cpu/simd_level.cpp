#include "cpu/simd_level.hpp"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace pycodec {
namespace {

constexpr SimdLevel kLevels[] = {SimdLevel::kScalar, SimdLevel::kNeon, SimdLevel::kAvx2,
                                 SimdLevel::kAvx512Vnni, SimdLevel::kAmx};

#if defined(__x86_64__)
bool is_supported(SimdLevel level);

// The processor has tiles, and Linux gives this process room for their state.
bool has_amx() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  constexpr unsigned kTiles = 1u << 22 | 3u << 24;             // of bfloat16, tiles at all, of int8
  unsigned a, b, c, d = 0;
  if (!is_supported(SimdLevel::kAvx512Vnni) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    return false;
  }
  return (d & kTiles) == kTiles && __builtin_cpu_supports("avx512bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

bool is_supported(SimdLevel level) {
  switch (level) {
    case SimdLevel::kScalar:
      return true;
#if defined(__aarch64__)
    case SimdLevel::kNeon:
      return true;  // a part of every aarch64
#endif
#if defined(__x86_64__)
    case SimdLevel::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case SimdLevel::kAvx512Vnni:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    case SimdLevel::kAmx: {
      static const bool has = has_amx();
      return has;
    }
#endif
    default:
      return false;
  }
}

std::atomic<SimdLevel>& current() {
  static std::atomic<SimdLevel> level{supported_simd_levels().back()};
  return level;
}

}  // namespace

std::vector<SimdLevel> supported_simd_levels() {
  std::vector<SimdLevel> levels;
  std::copy_if(std::begin(kLevels), std::end(kLevels), std::back_inserter(levels), is_supported);
  return levels;
}

SimdLevel simd_level() { return current(); }

void set_simd_level(SimdLevel level) {
  if (!is_supported(level)) {
    throw std::invalid_argument(std::string("this processor cannot run the SIMD level ") +
                                simd_level_name(level));
  }
  current() = level;
}

const char* simd_level_name(SimdLevel level) {
  switch (level) {
    case SimdLevel::kNeon:
      return "neon";
    case SimdLevel::kAvx2:
      return "avx2";
    case SimdLevel::kAvx512Vnni:
      return "avx512vnni";
    case SimdLevel::kAmx:
      return "amx";
    default:
      return "scalar";
  }
}

SimdLevel parse_simd_level(const std::string& name) {
  for (const SimdLevel level : kLevels) {
    if (name == simd_level_name(level)) return level;
  }
  throw std::invalid_argument("unknown SIMD level '" + name +
                              "'; known are scalar, neon, avx2, avx512vnni and amx");
}

}  // namespace pycodec
