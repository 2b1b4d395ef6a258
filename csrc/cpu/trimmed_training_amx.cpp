// AMX: one tdpbf16ps multiplies 16 by 32 values with 32 by 16, in the second of which pairs of rows
// are interleaved.
#include <immintrin.h>

#include "cpu/tile_configuration.hpp"
#include "cpu/trimmed_training_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kPairBytes = 2 * kTileBytes;  // of both halves of 32 channels, in pairs
constexpr int kHalf = kTileRows;

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

// Tiles 0 to 3 are sums, [first or second 16 positions][half]; 4 and 5 inputs, 6 and 7 weights.
void convolve(const Bfloat16Block& block, const std::uint8_t* x, std::int64_t stride, int columns,
              std::uint16_t* out, std::int64_t out_stride) {
  static const TileConfiguration configuration;
  _tile_loadconfig(&configuration);
  alignas(64) float sums[4][kTileRows][kHalf];
  const __m512 bias[2] = {_mm512_loadu_ps(block.bias), _mm512_loadu_ps(block.bias + kHalf)};
  for (int column = 0; column < columns; column += 2 * kTileRows, x += 2 * kTileRows * stride) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const Bfloat16Entry* entry = block.entries;
    for (int i = 0; i < block.both; ++i, ++entry) {
      const std::uint16_t* weights = entry->weights;
      // The next weights: they come from the second-level cache.
      for (int line = 0; line < 2 * kTileRows * kTileBytes; line += kTileBytes) {
        _mm_prefetch(reinterpret_cast<const char*>(weights) + 2 * kTileRows * kTileBytes + line,
                     _MM_HINT_T0);
      }
      _tile_loadd(6, weights, kPairBytes);
      _tile_loadd(4, x + entry->offset, stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, weights + kTileBytes / 2, kPairBytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, x + entry->offset + kTileRows * stride, stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    for (int i = 0; i < block.first; ++i, ++entry) {
      _tile_loadd(6, entry->weights, kPairBytes);
      _tile_loadd(4, x + entry->offset, stride);
      _tile_loadd(5, x + entry->offset + kTileRows * stride, stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(2, 5, 6);
    }
    for (int i = 0; i < block.second; ++i, ++entry) {
      _tile_loadd(7, entry->weights + kTileBytes / 2, kPairBytes);
      _tile_loadd(4, x + entry->offset, stride);
      _tile_loadd(5, x + entry->offset + kTileRows * stride, stride);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums[0], kTileBytes);
    _tile_stored(1, sums[1], kTileBytes);
    _tile_stored(2, sums[2], kTileBytes);
    _tile_stored(3, sums[3], kTileBytes);
    const int count = columns - column < 2 * kTileRows ? columns - column : 2 * kTileRows;
    for (int i = 0; i < count; ++i, out += out_stride) {
      const float (*two)[kTileRows][kHalf] = sums + i / kTileRows * 2;
      const __m512 low = _mm512_add_ps(_mm512_load_ps(two[0][i % kTileRows]), bias[0]);
      const __m512 high = _mm512_add_ps(_mm512_load_ps(two[1][i % kTileRows]), bias[1]);
      _mm512_storeu_si512(out, narrow(low, high));
    }
  }
  _tile_release();  // the state is large, and the next to use it, oneDNN too, brings its own
}

// Tiles 0 to 3 are sums, [input half][output half]; 4 and 5 inputs, 6 and 7 gradients.
void correlate(const std::uint8_t* x, std::int64_t x_row, std::int64_t x_channel,
               const std::uint8_t* grad, std::int64_t grad_row, int rows, int steps, unsigned seen,
               float* sums) {
  static const TileConfiguration configuration;
  _tile_loadconfig(&configuration);
  constexpr int kTile = kTileRows * kHalf;
  _tile_loadd(0, sums, kTileBytes);
  _tile_loadd(1, sums + kTile, kTileBytes);
  _tile_loadd(2, sums + 2 * kTile, kTileBytes);
  _tile_loadd(3, sums + 3 * kTile, kTileBytes);
  for (int row = 0; row < rows; ++row, x += x_row, grad += grad_row) {
    const std::uint8_t* g = grad;
    for (int step = 0; step < steps; ++step, g += kTileRows * kPairBytes) {
      if (seen & 5) _tile_loadd(6, g, kPairBytes);
      if (seen & 10) _tile_loadd(7, g + kTileBytes, kPairBytes);
      if (seen & 3) _tile_loadd(4, x + step * kTileBytes, x_channel);
      if (seen & 12) _tile_loadd(5, x + step * kTileBytes + kTileRows * x_channel, x_channel);
      if (seen & 1) _tile_dpbf16ps(0, 4, 6);
      if (seen & 2) _tile_dpbf16ps(1, 4, 7);
      if (seen & 4) _tile_dpbf16ps(2, 5, 6);
      if (seen & 8) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, kTileBytes);
  _tile_stored(1, sums + kTile, kTileBytes);
  _tile_stored(2, sums + 2 * kTile, kTileBytes);
  _tile_stored(3, sums + 3 * kTile, kTileBytes);
  _tile_release();
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
  for (int position = 0; position < positions; position += 2 * kTileRows) {
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
  for (; position % (2 * kTileRows) != 0; position += 2, to += 64) {
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

const Bfloat16Kernel kBfloat16KernelAmx = {convolve,
                                           correlate,
                                           transpose,
                                           interleave,
                                           prelu_gradients,
                                           fake_quantize,
                                           fake_quantize_gradients};

}  // namespace pycodec
