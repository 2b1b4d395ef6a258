// AVX-512 with bfloat16: one vdpbf16ps adds to each of 16 sums the products of a pair of values,
// here of one pair of an input, broadcast, with those of 16 outputs.
#include <immintrin.h>

#include <cstring>

#include "cpu/trimmed_training_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kHalf = kBlock / 2;
constexpr int kRows = 8;  // of sums in registers: positions, or inputs of a correlation
constexpr int kBlockBytes = 4 * kBlock;  // of a pair of values of 32 channels

__m512 widen_low(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
__m512 widen_high(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(~0xffff)));
}
__m512 widen(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}
__m512 load_half(const std::uint16_t* values, int half) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values) + half));
}
__m512i narrow(__m512 low, __m512 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

__m512bh load_pairs(const void* pairs) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(pairs));
}
__m512bh broadcast_pair(const std::uint8_t* pair) {
  std::int32_t both;
  std::memcpy(&both, pair, sizeof both);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
}

// sums[row][h] += the products of `pairs` pairs of each row with those of the halves from kFirst
// on. rows: `row_bytes` between them; columns: [pair][channel 32][2].
template <int kFirst, int kHalves>
inline __attribute__((always_inline)) void multiply(const std::uint8_t* rows,
                                                    std::int64_t row_bytes,
                                                    const std::uint8_t* columns, int pairs,
                                                    __m512 (&sums)[kRows][2]) {
  for (int pair = 0; pair < pairs; ++pair, rows += 4, columns += kBlockBytes) {
    __m512bh column[kHalves];
    for (int h = 0; h < kHalves; ++h) column[h] = load_pairs(columns + (kFirst + h) * 64);
    for (int row = 0; row < kRows; ++row) {
      const __m512bh value = broadcast_pair(rows + row * row_bytes);
      for (int h = 0; h < kHalves; ++h) {
        sums[row][kFirst + h] = _mm512_dpbf16_ps(sums[row][kFirst + h], value, column[h]);
      }
    }
  }
}

void convolve(const Bfloat16Block& block, const std::uint8_t* x, std::int64_t stride, int columns,
              std::uint16_t* out, std::int64_t out_stride) {
  constexpr int kPairs = kQuarter / 2;
  const __m512 bias[2] = {_mm512_loadu_ps(block.bias), _mm512_loadu_ps(block.bias + kHalf)};
  for (int column = 0; column < columns; column += kRows, x += kRows * stride) {
    __m512 sums[kRows][2];
    for (auto& two : sums) {
      two[0] = bias[0];
      two[1] = bias[1];
    }
    const Bfloat16Entry* entry = block.entries;
    const auto weights = [&] { return reinterpret_cast<const std::uint8_t*>(entry->weights); };
    for (int i = 0; i < block.both; ++i, ++entry) {
      multiply<0, 2>(x + entry->offset, stride, weights(), kPairs, sums);
    }
    for (int i = 0; i < block.first; ++i, ++entry) {
      multiply<0, 1>(x + entry->offset, stride, weights(), kPairs, sums);
    }
    for (int i = 0; i < block.second; ++i, ++entry) {
      multiply<1, 1>(x + entry->offset, stride, weights(), kPairs, sums);
    }
    for (int i = 0; i < kRows && column + i < columns; ++i, out += out_stride) {
      _mm512_storeu_si512(out, narrow(sums[i][0], sums[i][1]));
    }
  }
}

// Of eight inputs and the halves from kFirst on.
template <int kFirst, int kHalves>
void correlate_rows(const std::uint8_t* x, std::int64_t x_row, std::int64_t x_channel,
                    const std::uint8_t* grad, std::int64_t grad_row, int rows, int steps,
                    float* first) {
  const auto at = [&](int row, int h) { return first + row * kHalf + h * kHalf * kHalf; };
  __m512 sums[kRows][2];
  for (int row = 0; row < kRows; ++row) {
    for (int h = kFirst; h < kFirst + kHalves; ++h) sums[row][h] = _mm512_loadu_ps(at(row, h));
  }
  for (int row = 0; row < rows; ++row, x += x_row, grad += grad_row) {
    multiply<kFirst, kHalves>(x, x_channel, grad, steps * kHalf, sums);
  }
  for (int row = 0; row < kRows; ++row) {
    for (int h = kFirst; h < kFirst + kHalves; ++h) _mm512_storeu_ps(at(row, h), sums[row][h]);
  }
}

void correlate(const std::uint8_t* x, std::int64_t x_row, std::int64_t x_channel,
               const std::uint8_t* grad, std::int64_t grad_row, int rows, int steps, unsigned seen,
               float* sums) {
  for (int quarter = 0; quarter < 4; ++quarter, seen >>= 2) {
    const std::uint8_t* inputs = x + quarter * kRows * x_channel;
    float* first = sums + quarter / 2 * 2 * kHalf * kHalf + quarter % 2 * kRows * kHalf;
    if ((seen & 3) == 3) {
      correlate_rows<0, 2>(inputs, x_row, x_channel, grad, grad_row, rows, steps, first);
    } else if (seen & 1) {
      correlate_rows<0, 1>(inputs, x_row, x_channel, grad, grad_row, rows, steps, first);
    } else if (seen & 2) {
      correlate_rows<1, 1>(inputs, x_row, x_channel, grad, grad_row, rows, steps, first);
    }
  }
}

// Channels 0 to 15 and 16 to 31 of two positions, in pairs.
void interleave_two(__m512i first, __m512i second, __m512i* low, __m512i* high) {
  const __m512i zero_to_15 = _mm512_cvtepu8_epi16(
      _mm256_setr_epi8(0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42,
                       11, 43, 12, 44, 13, 45, 14, 46, 15, 47));
  const __m512i sixteen = _mm512_set1_epi16(16);
  *low = _mm512_permutex2var_epi16(first, zero_to_15, second);
  *high = _mm512_permutex2var_epi16(first, _mm512_add_epi16(zero_to_15, sixteen), second);
}

// Rows become columns, of 32-bit values.
void transpose_16(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // r[4 a + b] has, in its lane c, the rows 4 a to 4 a + 3 of column 4 c + b.
  for (int b = 0; b < 4; ++b) {
    const __m512i even_low = _mm512_shuffle_i32x4(r[b], r[4 + b], 0x88);  // lanes 0 and 2
    const __m512i odd_low = _mm512_shuffle_i32x4(r[b], r[4 + b], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(r[8 + b], r[12 + b], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(r[8 + b], r[12 + b], 0xdd);
    t[b] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    t[8 + b] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    t[4 + b] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    t[12 + b] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

void transpose(const std::uint16_t* from, std::int64_t stride, int positions, std::uint16_t* to,
               std::int64_t to_stride) {
  for (int position = 0; position < positions; position += kBlock) {
    __m512i low[16], high[16];
    for (int pair = 0; pair < 16; ++pair, from += 2 * stride) {
      interleave_two(_mm512_loadu_si512(from), _mm512_loadu_si512(from + stride), low + pair,
                     high + pair);
    }
    transpose_16(low);
    transpose_16(high);
    for (int channel = 0; channel < 16; ++channel) {
      _mm512_storeu_si512(to + channel * to_stride + position, low[channel]);
      _mm512_storeu_si512(to + (16 + channel) * to_stride + position, high[channel]);
    }
  }
}

void interleave(const std::uint16_t* from, std::int64_t stride, int positions, std::uint16_t* to,
                float* sums) {
  __m512 low_sum = _mm512_loadu_ps(sums), high_sum = _mm512_loadu_ps(sums + 16);
  int position = 0;
  for (; position < positions; position += 2, from += 2 * stride, to += 64) {
    const __m512i first = _mm512_loadu_si512(from);
    const bool both = position + 1 < positions;
    const __m512i second = both ? _mm512_loadu_si512(from + stride) : _mm512_setzero_si512();
    __m512i low, high;
    interleave_two(first, second, &low, &high);
    low_sum = _mm512_add_ps(low_sum, _mm512_add_ps(widen_low(low), widen_high(low)));
    high_sum = _mm512_add_ps(high_sum, _mm512_add_ps(widen_low(high), widen_high(high)));
    _mm512_storeu_si512(to, low);
    _mm512_storeu_si512(to + 32, high);
  }
  for (; position % (kBlock) != 0; position += 2, to += 64) {
    _mm512_storeu_si512(to, _mm512_setzero_si512());
    _mm512_storeu_si512(to + 32, _mm512_setzero_si512());
  }
  _mm512_storeu_ps(sums, low_sum);
  _mm512_storeu_ps(sums + 16, high_sum);
}

void prelu_gradients(std::int64_t positions, std::int64_t stride, const std::uint16_t* x,
                     const float* slope, const std::uint16_t* grad, std::uint16_t* x_gradient,
                     float* slope_gradient) {
  const __m512 slopes[2] = {_mm512_loadu_ps(slope), _mm512_loadu_ps(slope + 16)};
  __m512 sums[2] = {_mm512_loadu_ps(slope_gradient), _mm512_loadu_ps(slope_gradient + 16)};
  for (std::int64_t i = 0; i < positions; ++i, x += stride, grad += stride, x_gradient += stride) {
    __m512 results[2];
    for (int half = 0; half < 2; ++half) {
      const __m512 value = load_half(x, half), g = load_half(grad, half);
      const __mmask16 positive = _mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_GT_OQ);
      results[half] = _mm512_mask_blend_ps(positive, _mm512_mul_ps(g, slopes[half]), g);
      const auto negative = static_cast<__mmask16>(~positive);
      sums[half] = _mm512_mask3_fmadd_ps(g, value, sums[half], negative);
    }
    _mm512_storeu_si512(x_gradient, narrow(results[0], results[1]));
  }
  _mm512_storeu_ps(slope_gradient, sums[0]);
  _mm512_storeu_ps(slope_gradient + 16, sums[1]);
}

// In units of the scale.
__m512 scaled_sum(const std::uint16_t* x, const std::uint16_t* residual, int half, __m512 scale) {
  __m512 sum = load_half(x, half);
  if (residual != nullptr) sum = _mm512_add_ps(sum, load_half(residual, half));
  return _mm512_div_ps(sum, scale);
}

const float kLargest = 127;

__m512 round_to_grid(__m512 value) {
  const __m512 largest = _mm512_set1_ps(kLargest), least = _mm512_set1_ps(-kLargest);
  const __m512 inside = _mm512_max_ps(_mm512_min_ps(value, largest), least);
  return _mm512_roundscale_ps(inside, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

void fake_quantize(std::int64_t positions, std::int64_t stride, const std::uint16_t* x,
                   const std::uint16_t* residual, const float* scale, std::uint16_t* out) {
  const __m512 scales[2] = {_mm512_loadu_ps(scale), _mm512_loadu_ps(scale + kHalf)};
  for (std::int64_t i = 0; i < positions; ++i, x += stride, out += stride) {
    __m512 results[2];
    for (int half = 0; half < 2; ++half) {
      const __m512 value = scaled_sum(x, residual, half, scales[half]);
      results[half] = _mm512_mul_ps(round_to_grid(value), scales[half]);
    }
    _mm512_storeu_si512(out, narrow(results[0], results[1]));
    if (residual != nullptr) residual += stride;
  }
}

void fake_quantize_gradients(std::int64_t positions, std::int64_t stride, const std::uint16_t* x,
                             const std::uint16_t* residual, const float* scale,
                             const std::uint16_t* grad, std::uint16_t* x_gradient,
                             float* scale_gradient) {
  const __m512 scales[2] = {_mm512_loadu_ps(scale), _mm512_loadu_ps(scale + kHalf)};
  __m512 sums[2] = {_mm512_loadu_ps(scale_gradient), _mm512_loadu_ps(scale_gradient + kHalf)};
  for (std::int64_t i = 0; i < positions; ++i, x += stride, grad += stride, x_gradient += stride) {
    __m512 results[2];
    for (int half = 0; half < 2; ++half) {
      const __m512 value = scaled_sum(x, residual, half, scales[half]);
      const __m512 g = load_half(grad, half);
      const __mmask16 inside =
          _mm512_cmp_ps_mask(_mm512_abs_ps(value), _mm512_set1_ps(kLargest), _CMP_LE_OQ);
      results[half] = _mm512_maskz_mov_ps(inside, g);
      const __m512 rounded = round_to_grid(value);
      const __m512 error = _mm512_mask_sub_ps(rounded, inside, rounded, value);
      sums[half] = _mm512_fmadd_ps(g, error, sums[half]);
    }
    _mm512_storeu_si512(x_gradient, narrow(results[0], results[1]));
    if (residual != nullptr) residual += stride;
  }
  _mm512_storeu_ps(scale_gradient, sums[0]);
  _mm512_storeu_ps(scale_gradient + kHalf, sums[1]);
}

}  // namespace

const Bfloat16Products kBfloat16ProductsAvx512 = {convolve, correlate, kQuarter};
const Bfloat16Passes kBfloat16PassesAvx512 = {transpose, interleave, prelu_gradients, fake_quantize,
                                              fake_quantize_gradients};

}  // namespace pycodec
