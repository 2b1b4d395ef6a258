// The roof over the kernels: multiply-adds on registers alone.
#pragma once

#include "cpu/spans.hpp"

namespace pycodec {

// Multiply-adds a second of so many threads at the SIMD level in force, as the kernels of that
// level do them; 0 where there are none. Of a core: the best of many bursts, so short that other
// processes miss some of them.
double arithmetic_peak(Arithmetic arithmetic, int threads);

}  // namespace pycodec
