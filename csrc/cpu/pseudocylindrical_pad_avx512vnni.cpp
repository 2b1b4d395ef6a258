// Neighbouring columns are read from neighbouring ones: two loads and a permutation of both take
// the place of 16 where the widths differ by less than a factor of two.
#include <immintrin.h>

#include "cpu/pseudocylindrical_pad_kernel.hpp"

namespace pycodec {
namespace {

__m512i load(const std::int32_t* p) { return _mm512_loadu_si512(p); }

void interpolate(const PadInterpolation& row, const float* in, float* out) {
  const __m512 one = _mm512_set1_ps(1);
  for (std::int64_t i = 0; i < row.columns; i += kPadBlock) {
    const __m512i index = load(row.left + i);
    const std::int32_t base = row.base[i / kPadBlock];
    __m512 left, right;
    if (base >= 0) {
      const __m512 low = _mm512_loadu_ps(in + base);
      const __m512 high = _mm512_loadu_ps(in + base + kPadBlock);
      const __m512i lane = _mm512_sub_epi32(index, _mm512_set1_epi32(base));
      left = _mm512_permutex2var_ps(low, lane, high);
      right = _mm512_permutex2var_ps(low, _mm512_add_epi32(lane, _mm512_set1_epi32(1)), high);
    } else {
      left = _mm512_i32gather_ps(index, in, 4);
      right = _mm512_i32gather_ps(load(row.right + i), in, 4);
    }
    const __m512 weight = _mm512_loadu_ps(row.weight + i);
    const __m512 value =
        _mm512_fmadd_ps(weight, right, _mm512_mul_ps(_mm512_sub_ps(one, weight), left));
    const std::int64_t count = row.columns - i;
    if (count >= kPadBlock) {
      _mm512_storeu_ps(out + i, value);
    } else {
      _mm512_mask_storeu_ps(out + i, static_cast<__mmask16>((1u << count) - 1), value);
    }
  }
}

void stream(std::uint8_t* to, const std::uint8_t* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_load_si512(from + i));
  }
  _mm_sfence();
}

}  // namespace

const PadKernel kPadKernelAvx512Vnni = {"avx512vnni", interpolate, stream};

}  // namespace pycodec
