// Division of integers that rounds up; not for SIMD variants (see simd_level.hpp).
#pragma once

#include <type_traits>

namespace pycodec {

template <class T>
constexpr T ceil_div(T a, std::common_type_t<T> b) {  // a >= 0, b > 0
  return (a + b - 1) / b;
}

template <class T>
constexpr T round_up(T a, std::common_type_t<T> multiple) {
  return ceil_div(a, multiple) * multiple;
}

}  // namespace pycodec
