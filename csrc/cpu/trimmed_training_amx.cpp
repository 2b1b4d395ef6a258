// AMX: one tdpbf16ps multiplies 16 by 32 values with 32 by 16, in the second of which pairs of rows
// are interleaved.
#include <immintrin.h>

#include "cpu/tile_configuration.hpp"
#include "cpu/trimmed_training_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kPairBytes = 2 * kTileBytes;  // of both halves of 32 channels, in pairs
constexpr int kHalf = kTileRows;

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
      _mm512_storeu_si512(out, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    }
  }
  _tile_release();  // the state is large, and the next to use it, oneDNN too, brings its own
}

// Tiles 0 to 3 are sums, [input half][output half]; 4 and 5 inputs, 6 and 7 gradients. A tile has
// two of `seen`'s quarters.
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
      if (seen & 0x55) _tile_loadd(6, g, kPairBytes);
      if (seen & 0xaa) _tile_loadd(7, g + kTileBytes, kPairBytes);
      if (seen & 0x0f) _tile_loadd(4, x + step * kTileBytes, x_channel);
      if (seen & 0xf0) _tile_loadd(5, x + step * kTileBytes + kTileRows * x_channel, x_channel);
      if (seen & 0x05) _tile_dpbf16ps(0, 4, 6);
      if (seen & 0x0a) _tile_dpbf16ps(1, 4, 7);
      if (seen & 0x50) _tile_dpbf16ps(2, 5, 6);
      if (seen & 0xa0) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, kTileBytes);
  _tile_stored(1, sums + kTile, kTileBytes);
  _tile_stored(2, sums + 2 * kTile, kTileBytes);
  _tile_stored(3, sums + 3 * kTile, kTileBytes);
  _tile_release();
}

}  // namespace

const Bfloat16Products kBfloat16ProductsAmx = {convolve, correlate, 2 * kTileRows};

}  // namespace pycodec
