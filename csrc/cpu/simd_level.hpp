// Which SIMD variant of the kernels to run. Each variant is a translation unit of its own, built
// with its own flags (see setup.py). Such a file must not instantiate inline functions or templates
// with external linkage, the standard library's included: the linker keeps one copy of each for the
// whole module, and might keep the one with instructions that an older processor lacks.
#pragma once

#include <string>
#include <vector>

namespace pycodec {

enum class SimdLevel { kScalar, kNeon, kAvx2, kAvx512Vnni, kAmx };

// The levels that this processor can run, lowest first.
std::vector<SimdLevel> supported_simd_levels();

// The level that objects made from now on will use: the highest supported one unless it was set.
SimdLevel simd_level();

// Throws std::invalid_argument where this processor cannot run `level`.
void set_simd_level(SimdLevel level);

// "scalar", "neon", "avx2", "avx512vnni", "amx" (that and tiles of int8 and bfloat16). AVX-512 BF16
// is no level: only kernels for training ask whether it is there.
const char* simd_level_name(SimdLevel level);

// The opposite; throws std::invalid_argument for any other name.
SimdLevel parse_simd_level(const std::string& name);

}  // namespace pycodec
