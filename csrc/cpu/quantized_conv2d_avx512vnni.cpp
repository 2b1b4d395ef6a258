// AVX-512 VNNI: vpdpbusd multiplies four uint8 inputs by four int8 weights and adds them up,
// exactly, into each of 16 int32 lanes.
#include <immintrin.h>

#include "cpu/quantized_conv2d_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kGroup = 4;
constexpr int kLanes = 16;
constexpr int kVectorBytes = 64;
constexpr int kMaxChunkVectors = 4;

// Of the 32 registers, 24 are accumulators at most; the rest hold weights and a broadcast input.
constexpr int positions_in_tile(int vectors) { return vectors == 4 ? 6 : 8; }

struct Requantizer {
  explicit Requantizer(const Requantization& r)
      : half(_mm512_set1_epi64(std::int64_t{1} << (r.shift - 1))),
        shift(_mm_cvtsi32_si128(r.shift)),
        lower(_mm512_set1_epi64(r.lower)),
        upper(_mm512_set1_epi64(r.upper)) {}

  // The even 32-bit lanes of a and b; results are 64 bits wide.
  __m512i even(__m512i a, __m512i b) const {
    const __m512i x = _mm512_add_epi64(_mm512_mul_epi32(a, b), half);
    return _mm512_min_epi64(_mm512_max_epi64(_mm512_sra_epi64(x, shift), lower), upper);
  }

  __m512i operator()(__m512i acc, __m512i multiplier) const {
    const __m512i evens = even(acc, multiplier);
    const __m512i odds = even(_mm512_srli_epi64(acc, 32), _mm512_srli_epi64(multiplier, 32));
    return _mm512_mask_blend_epi32(0xAAAA, evens, _mm512_slli_epi64(odds, 32));
  }

  __m512i half;
  __m128i shift;
  __m512i lower, upper;
};

inline void store(OutputType type, std::uint8_t* out, std::int64_t index, __mmask16 mask,
                  __m512i values) {
  switch (type) {
    case OutputType::kInt32:
      _mm512_mask_storeu_epi32(out + index * 4, mask, values);
      break;
    case OutputType::kInt16:
      _mm256_mask_storeu_epi16(out + index * 2, mask, _mm512_cvtepi32_epi16(values));
      break;
    default:
      _mm_mask_storeu_epi8(out + index, mask, _mm512_cvtepi32_epi8(values));
  }
}

inline std::int32_t load_group(const std::uint8_t* p) {
  std::int32_t group;
  __builtin_memcpy(&group, p, sizeof group);
  return group;
}

// The outputs of a tile's positions, from `position` on, in the Vectors vectors from `first`.
template <int Vectors>
void run_tile(const ConvLayer& layer, const ConvTile& tile, const Requantizer& requantize,
              int position, int first, const std::uint8_t* weights) {
  constexpr int kPositions = positions_in_tile(Vectors);
  const int left = tile.positions - position;
  const int positions = left < kPositions ? left : kPositions;
  __m512i acc[kPositions][Vectors];
  const std::uint8_t* x[kPositions];
  for (int p = 0; p < kPositions; ++p) {
    x[p] = tile.windows[position + (p < positions ? p : positions - 1)];
    for (int v = 0; v < Vectors; ++v) {
      acc[p][v] = _mm512_loadu_si512(layer.bias + (first + v) * kLanes);
    }
  }
  for (int row = 0; row < layer.window_rows; ++row) {
    for (std::int64_t i = 0; i < layer.row_groups * std::int64_t{kGroup}; i += kGroup) {
      __m512i w[Vectors];
      for (int v = 0; v < Vectors; ++v, weights += kVectorBytes) {
        w[v] = _mm512_load_si512(weights);
      }
#pragma GCC unroll 8
      for (int p = 0; p < kPositions; ++p) {
        const __m512i group = _mm512_set1_epi32(load_group(x[p] + i));
        for (int v = 0; v < Vectors; ++v) acc[p][v] = _mm512_dpbusd_epi32(acc[p][v], group, w[v]);
      }
    }
    for (int p = 0; p < kPositions; ++p) x[p] += tile.row_stride;
  }
  for (int v = 0; v < Vectors; ++v) {
    const int channel = (first + v) * kLanes;
    const int channels_left = layer.out_channels - channel;
    const auto mask =
        static_cast<__mmask16>(channels_left < kLanes ? (1 << channels_left) - 1 : 0xFFFF);
    const __m512i multiplier = _mm512_loadu_si512(layer.multiplier + channel);
#pragma GCC unroll 8
    for (int p = 0; p < kPositions; ++p) {
      if (p >= positions) break;
      store(layer.output_type, tile.out, std::int64_t{position + p} * layer.out_channels + channel,
            mask, requantize(acc[p][v], multiplier));
    }
  }
}

constexpr decltype(&run_tile<1>) kRunTile[kMaxChunkVectors] = {run_tile<1>, run_tile<2>,
                                                               run_tile<3>, run_tile<4>};

void run(const ConvLayer& layer, const ConvTile& tile) {
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

const ConvKernel kConvKernelAvx512Vnni = {"avx512vnni", 1, kGroup, kLanes, kMaxChunkVectors, run};

}  // namespace pycodec
