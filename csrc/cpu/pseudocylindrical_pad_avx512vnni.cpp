// Two loads and a permutation of both take the place of a gather, where what a block of columns
// reads lies in two windows: where widths differ by less than a factor of two.
#include <immintrin.h>

#include "cpu/pseudocylindrical_pad_kernel.hpp"

namespace pycodec {
namespace {

__m512i load(const std::int32_t* p) { return _mm512_loadu_si512(p); }

__mmask16 first_lanes(std::int64_t count) {
  return static_cast<__mmask16>(count >= kPadBlock ? 0xFFFF : count > 0 ? (1u << count) - 1 : 0);
}

// kPadBlock elements as float32: those of the lanes, else zeros.
struct Float32 {
  using Word = float;
  static __m512 load(const float* in, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, in); }
  static void store(float* out, __mmask16 lanes, __m512 value) {
    _mm512_mask_storeu_ps(out, lanes, value);
  }
};

struct Float16 {
  using Word = std::uint16_t;
  static __m512 load(const std::uint16_t* in, __mmask16 lanes) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, in));
  }
  static void store(std::uint16_t* out, __mmask16 lanes, __m512 value) {
    constexpr int kToNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm256_mask_storeu_epi16(out, lanes, _mm512_cvtps_ph(value, kToNearest));
  }
};

struct Bfloat16 {
  using Word = std::uint16_t;
  static __m512 load(const std::uint16_t* in, __mmask16 lanes) {
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, in));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  }
  static void store(std::uint16_t* out, __mmask16 lanes, __m512 value) {
    const __m512i bits = _mm512_castps_si512(value), high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i words = _mm512_mask_mov_epi32(rounded, is_nan, quiet);
    _mm256_mask_storeu_epi16(out, lanes, _mm512_cvtepi32_epi16(words));
  }
};

void prefetch(const void* p, std::ptrdiff_t distance) {
  __builtin_prefetch(static_cast<const char*>(p) + distance);
}

// `wide` is the row in float32, where not all blocks have windows.
template <class Element>
void interpolate(const PadInterpolation& row, const typename Element::Word* in, const float* wide,
                 typename Element::Word* out, PadDistance next) {
  const __mmask16 stored = first_lanes(row.width);
  for (std::int64_t i = 0; i < row.columns; i += kPadBlock) {
    const std::int32_t* const windows = row.windows + 2 * (i / kPadBlock);
    __m512 left, right;
    if (windows[0] >= 0) {
      const __m512 first = Element::load(in + windows[0], stored);
      const __m512 second = Element::load(in + windows[1], stored);
      left = _mm512_permutex2var_ps(first, load(row.left_places + i), second);
      right = _mm512_permutex2var_ps(first, load(row.right_places + i), second);
      prefetch(in + windows[0], next);
      prefetch(in + windows[1], next);
    } else {
      left = _mm512_i32gather_ps(load(row.left + i), wide, 4);
      right = _mm512_i32gather_ps(load(row.right + i), wide, 4);
    }
    const __m512 weight = _mm512_loadu_ps(row.weight + i);
    const __m512 rest = _mm512_sub_ps(_mm512_set1_ps(1), weight);
    const __m512 value = _mm512_fmadd_ps(weight, right, _mm512_mul_ps(rest, left));
    prefetch(out + i, kPadPrefetch);
    Element::store(out + i, first_lanes(row.columns - i), value);
  }
  for (std::int64_t i = row.columns; i < row.total; i += kPadBlock) {
    Element::store(out + i, first_lanes(row.total - i), _mm512_setzero_ps());
  }
}

void interpolate_float32(const PadInterpolation& row, const float* in, float* out,
                         PadDistance next) {
  interpolate<Float32>(row, in, in, out, next);
}

template <class Half>
void interpolate_halves(const PadInterpolation& row, const std::uint16_t* in, std::uint16_t* out,
                        PadDistance next, float* scratch) {
  for (std::int64_t i = 0; !row.has_all_windows && i < row.source; i += kPadBlock) {
    const __mmask16 lanes = first_lanes(row.source - i);
    Float32::store(scratch + i, lanes, Half::load(in + i, lanes));
  }
  interpolate<Half>(row, in, scratch, out, next);
}

__mmask64 first_bytes(std::int64_t count) {
  return count >= kPadCopyBlock ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
}

// Rows are short: a call of memcpy for each piece would take as long as the piece.
void copy(const PadCopy& row, const std::uint8_t* in, std::uint8_t* out, PadDistance next) {
  if (row.blocks == nullptr) return copy_around(row, in, out, next);
  const auto block = [&](std::int64_t b) {
    const PadCopyBlock& from = row.blocks[b];
    prefetch(in + from.first, next);
    const __m512i first = _mm512_maskz_loadu_epi8(from.first_bytes, in + from.first);
    return _mm512_mask_loadu_epi8(first, from.second_bytes, in + from.second);
  };
  const auto store = [&](std::int64_t b, __m512i bytes) {
    prefetch(out + b * kPadCopyBlock, kPadPrefetch);
    _mm512_storeu_si512(out + b * kPadCopyBlock, bytes);
  };
  const std::int64_t full = row.total / kPadCopyBlock;
  std::int64_t b = 0;
  for (; b < row.whole_begin; ++b) store(b, block(b));
  const std::int64_t whole = row.whole_begin < row.whole_end ? row.blocks[b].first : 0;
  for (; b < row.whole_end; ++b) {
    const std::int64_t column = whole + (b - row.whole_begin) * kPadCopyBlock;
    prefetch(in + column, next);
    store(b, _mm512_loadu_si512(in + column));
  }
  for (; b < full; ++b) store(b, block(b));
  const __mmask64 rest = first_bytes(row.total - full * kPadCopyBlock);
  if (rest != 0) _mm512_mask_storeu_epi8(out + full * kPadCopyBlock, rest, block(full));
}

void stream(std::uint8_t* to, const std::uint8_t* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_load_si512(from + i));
  }
  _mm_sfence();
}

}  // namespace

const PadKernel kPadKernelAvx512Vnni = {"avx512vnni",
                                        interpolate_float32,
                                        interpolate_halves<Float16>,
                                        interpolate_halves<Bfloat16>,
                                        copy,
                                        stream,
                                        true};

}  // namespace pycodec
