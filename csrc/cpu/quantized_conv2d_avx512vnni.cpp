// AVX-512 VNNI: vpdpbusd multiplies four uint8 inputs by four int8 weights and adds them up,
// exactly, into each of 16 int32 lanes; vpdpwssd two int16 by two int16, modulo 2^32.
#include <immintrin.h>

#include "cpu/quantized_conv2d_avx512.hpp"

namespace pycodec {
namespace {

constexpr int kGroupBytes = 4;
constexpr int kVectorBytes = 64;
constexpr int kMaxChunkVectors = 4;

// Of the 32 registers, 24 are accumulators at most; the rest hold weights and a broadcast input.
constexpr int positions_in_tile(int vectors) { return vectors == 4 ? 6 : 8; }

inline std::int32_t load_group(const std::uint8_t* p) {
  std::int32_t group;
  __builtin_memcpy(&group, p, sizeof group);
  return group;
}

template <bool kWide>
inline __m512i multiply_add(__m512i acc, __m512i group, __m512i w) {
  return kWide ? _mm512_dpwssd_epi32(acc, group, w) : _mm512_dpbusd_epi32(acc, group, w);
}

// The outputs of a tile's positions, from `position` on, in the Vectors vectors from `first`.
template <bool kWide, int Vectors>
void run_tile(const ConvLayer& layer, const ConvTile& tile, const Requantizer& requantize,
              int position, int first, const std::uint8_t* weights) {
  constexpr int kPositions = positions_in_tile(Vectors);
  const int left = tile.positions - position;
  const int positions = left < kPositions ? left : kPositions;
  const std::int64_t row_bytes = layer.row_groups * std::int64_t{kGroupBytes};
  __m512i acc[kPositions][Vectors];
  const std::uint8_t* x[kPositions];
  for (int p = 0; p < kPositions; ++p) {
    x[p] = tile.windows[position + (p < positions ? p : positions - 1)];
    for (int v = 0; v < Vectors; ++v) acc[p][v] = _mm512_setzero_si512();
  }
  for (int plane = 0; plane < tile.planes; ++plane) {
    const std::uint8_t* w_next = weights;
    if (plane > 0) {
      for (int p = 0; p < kPositions; ++p) {
        x[p] += tile.plane_stride - layer.window_rows * tile.row_stride;
        for (int v = 0; v < Vectors; ++v) acc[p][v] = _mm512_slli_epi32(acc[p][v], 8);
      }
    }
    for (int row = 0; row < layer.window_rows; ++row) {
      for (std::int64_t i = 0; i < row_bytes; i += kGroupBytes) {
        __m512i w[Vectors];
        for (int v = 0; v < Vectors; ++v, w_next += kVectorBytes) {
          w[v] = _mm512_load_si512(w_next);
        }
#pragma GCC unroll 8
        for (int p = 0; p < kPositions; ++p) {
          const __m512i group = _mm512_set1_epi32(load_group(x[p] + i));
          for (int v = 0; v < Vectors; ++v) {
            acc[p][v] = multiply_add<kWide>(acc[p][v], group, w[v]);
          }
        }
      }
      for (int p = 0; p < kPositions; ++p) x[p] += tile.row_stride;
    }
  }
  for (int v = 0; v < Vectors; ++v) {
    const Epilogue epilogue(layer, tile, first + v);
#pragma GCC unroll 8
    for (int p = 0; p < kPositions; ++p) {
      if (p >= positions) break;
      epilogue(requantize, acc[p][v], position + p);
    }
  }
}

template <bool kWide>
void run(const ConvLayer& layer, const ConvTile& tile) {
  constexpr decltype(&run_tile<kWide, 1>) kRunTile[kMaxChunkVectors] = {
      run_tile<kWide, 1>, run_tile<kWide, 2>, run_tile<kWide, 3>, run_tile<kWide, 4>};
  const Requantizer requantize(layer.requantization);
  const std::uint8_t* weights = layer.weights;
  for (int first = 0; first < layer.vectors;) {
    const int vectors = chunk_vectors(first, layer.vectors, kMaxChunkVectors);
    const int step = positions_in_tile(vectors);
    for (int position = 0; position < tile.positions; position += step) {
      kRunTile[vectors - 1](layer, tile, requantize, position, first, weights);
    }
    first += vectors;
    weights += std::int64_t{layer.window_rows} * layer.row_groups * vectors * kVectorBytes;
  }
}

}  // namespace

const ConvKernel kConvKernelAvx512Vnni = {"avx512vnni", 1,  4,     kLanes,    kMaxChunkVectors,
                                          kGroupBytes,  24, false, run<false>};
const ConvKernel kConvKernelAvx512VnniWide = {"avx512vnni", 2,  2,     kLanes,   kMaxChunkVectors,
                                              kGroupBytes,  24, false, run<true>};

}  // namespace pycodec
