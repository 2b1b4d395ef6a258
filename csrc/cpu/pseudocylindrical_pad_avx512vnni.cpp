// Neighbouring columns are read from neighbouring ones: where the widths differ by less than a
// factor of two, two loads and a permutation of both take the place of a gather.
#include <immintrin.h>

#include "cpu/pseudocylindrical_pad_kernel.hpp"

namespace pycodec {
namespace {

__m512i load(const std::int32_t* p) { return _mm512_loadu_si512(p); }

__mmask16 first_lanes(std::int64_t count) {
  return static_cast<__mmask16>(count >= kPadBlock ? 0xFFFF : count > 0 ? (1u << count) - 1 : 0);
}

void interpolate(const PadInterpolation& row, const float* in, float* out) {
  const __m512 one = _mm512_set1_ps(1);
  const __mmask16 low_lanes = first_lanes(row.width);
  const __mmask16 high_lanes = first_lanes(row.width - kPadBlock);
  for (std::int64_t i = 0; i < row.columns; i += kPadBlock) {
    const __m512i left_index = load(row.left + i), right_index = load(row.right + i);
    const std::int32_t base = row.base[i / kPadBlock];
    __m512 left, right;
    if (base >= 0) {
      const __m512 low = _mm512_maskz_loadu_ps(low_lanes, in + base);
      const __m512 high = _mm512_maskz_loadu_ps(high_lanes, in + base + kPadBlock);
      const __m512i start = _mm512_set1_epi32(base);
      left = _mm512_permutex2var_ps(low, _mm512_sub_epi32(left_index, start), high);
      right = _mm512_permutex2var_ps(low, _mm512_sub_epi32(right_index, start), high);
    } else {
      left = _mm512_i32gather_ps(left_index, in, 4);
      right = _mm512_i32gather_ps(right_index, in, 4);
    }
    const __m512 weight = _mm512_loadu_ps(row.weight + i);
    const __m512 value =
        _mm512_fmadd_ps(weight, right, _mm512_mul_ps(_mm512_sub_ps(one, weight), left));
    if (i + kPadBlock <= row.columns) {
      _mm512_storeu_ps(out + i, value);
    } else {
      _mm512_mask_storeu_ps(out + i, first_lanes(row.columns - i), value);
    }
  }
  for (std::int64_t e = 0; e < row.exception_count; ++e) {
    const std::int32_t i = row.exceptions[e];
    out[i] = (1 - row.weight[i]) * in[row.left[i]] + row.weight[i] * in[row.right[i]];
  }
}

__mmask64 first_bytes(std::int64_t count) { return (std::uint64_t{1} << count) - 1; }

// Rows are short: a call of memcpy for each piece would take as long as the piece.
void copy_around_avx512(const PadCopy& row, const std::uint8_t* in, std::uint8_t* out) {
  std::int64_t done = 0;
  for (std::int64_t column = row.first; done < row.columns; column = 0) {
    const std::int64_t left = row.columns - done, ahead = row.source - column;
    const std::int64_t count = left < ahead ? left : ahead;
    std::int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
      _mm512_storeu_si512(out + done + i, _mm512_loadu_si512(in + column + i));
    }
    if (i < count) {
      const __mmask64 bytes = first_bytes(count - i);
      const __m512i piece = _mm512_maskz_loadu_epi8(bytes, in + column + i);
      _mm512_mask_storeu_epi8(out + done + i, bytes, piece);
    }
    done += count;
  }
  for (; done + 64 <= row.total; done += 64) {
    _mm512_storeu_si512(out + done, _mm512_setzero_si512());
  }
  if (done < row.total) {
    _mm512_mask_storeu_epi8(out + done, first_bytes(row.total - done), _mm512_setzero_si512());
  }
}

// Calls f(i, lanes) for every vector of so many elements.
template <class Function>
void each_vector(std::int64_t count, const Function& f) {
  for (std::int64_t i = 0; i < count; i += kPadBlock) f(i, first_lanes(count - i));
}

void widen_float16_avx512(const std::uint16_t* in, std::int64_t count, float* out) {
  each_vector(count, [&](std::int64_t i, __mmask16 lanes) {
    _mm512_mask_storeu_ps(out + i, lanes, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, in + i)));
  });
}

void narrow_float16_avx512(const float* in, std::int64_t count, std::uint16_t* out) {
  each_vector(count, [&](std::int64_t i, __mmask16 lanes) {
    const __m512 value = _mm512_maskz_loadu_ps(lanes, in + i);
    constexpr int kToNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm256_mask_storeu_epi16(out + i, lanes, _mm512_cvtps_ph(value, kToNearest));
  });
}

void widen_bfloat16_avx512(const std::uint16_t* in, std::int64_t count, float* out) {
  each_vector(count, [&](std::int64_t i, __mmask16 lanes) {
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, in + i));
    _mm512_mask_storeu_ps(out + i, lanes, _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)));
  });
}

void narrow_bfloat16_avx512(const float* in, std::int64_t count, std::uint16_t* out) {
  each_vector(count, [&](std::int64_t i, __mmask16 lanes) {
    const __m512 value = _mm512_maskz_loadu_ps(lanes, in + i);
    const __m512i bits = _mm512_castps_si512(value), high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i words = _mm512_mask_mov_epi32(rounded, is_nan, quiet);
    _mm256_mask_storeu_epi16(out + i, lanes, _mm512_cvtepi32_epi16(words));
  });
}

void stream(std::uint8_t* to, const std::uint8_t* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_load_si512(from + i));
  }
  _mm_sfence();
}

}  // namespace

const PadKernel kPadKernelAvx512Vnni = {
    "avx512vnni",          interpolate,           copy_around_avx512,     widen_float16_avx512,
    narrow_float16_avx512, widen_bfloat16_avx512, narrow_bfloat16_avx512, stream};

}  // namespace pycodec
