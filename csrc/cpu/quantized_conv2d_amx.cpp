// AMX: one tdpbusd multiplies 16 positions by 64 uint8 inputs each with 64 by 16 int8 weights. A
// register tile is two tiles of positions by two of output channels.
#include "cpu/quantized_conv2d_avx512.hpp"
#include "cpu/tile_configuration.hpp"

namespace pycodec {
namespace {

constexpr int kGroup = 4;
constexpr int kMaxChunkVectors = 2;
constexpr int kBlockPositions = 2 * kTileRows;
constexpr int kTilePositions = 256;  // enough for a block of weights to be used while it is near

// Tiles 0 to 3 are sums, [first or second 16 positions][vector]; 4 and 5 inputs, 6 and 7 weights.
template <bool kBoth, bool kPair>
void store_sums(std::int32_t* sums) {
  _tile_stored(0, sums, kTileBytes);
  if (kPair) _tile_stored(1, sums + 256, kTileBytes);
  if (kBoth) _tile_stored(2, sums + 512, kTileBytes);
  if (kBoth && kPair) _tile_stored(3, sums + 768, kTileBytes);
}

template <bool kBoth, bool kPair>
void multiply_by_256(std::int32_t* sums) {
  store_sums<kBoth, kPair>(sums);
  for (int i = 0; i < 1024; i += kLanes) {
    _mm512_store_si512(sums + i, _mm512_slli_epi32(_mm512_load_si512(sums + i), 8));
  }
  _tile_loadd(0, sums, kTileBytes);
  if (kPair) _tile_loadd(1, sums + 256, kTileBytes);
  if (kBoth) _tile_loadd(2, sums + 512, kTileBytes);
  if (kBoth && kPair) _tile_loadd(3, sums + 768, kTileBytes);
}

// Adds the products of one plane of inputs with one of weights, which are signed or not.
template <bool kBoth, bool kPair, bool kSigned>
void add_products(const ConvLayer& layer, std::int64_t row_stride, const std::uint8_t* window,
                  std::int64_t stride, const std::uint8_t* w) {
  constexpr int kGroupBytes = (kPair ? 2 : 1) * kTileBytes;
  const std::int64_t row_bytes = layer.row_groups * std::int64_t{kGroup};
  for (int row = 0; row < layer.window_rows; ++row) {
    const std::uint8_t* x = window + row * row_stride;
    for (std::int64_t i = 0; i < row_bytes; i += kTileBytes, w += kTileRows * kGroupBytes) {
      _tile_loadd(6, w, kGroupBytes);
      _tile_loadd(4, x + i, stride);
      if (kPair) _tile_loadd(7, w + kTileBytes, kGroupBytes);
      if (kBoth) _tile_loadd(5, x + kTileRows * stride + i, stride);
      if constexpr (kSigned) {
        _tile_dpbusd(0, 4, 6);
        if (kPair) _tile_dpbusd(1, 4, 7);
        if (kBoth) _tile_dpbusd(2, 5, 6);
        if (kBoth && kPair) _tile_dpbusd(3, 5, 7);
      } else {
        _tile_dpbuud(0, 4, 6);
        if (kPair) _tile_dpbuud(1, 4, 7);
        if (kBoth) _tile_dpbuud(2, 5, 6);
        if (kBoth && kPair) _tile_dpbuud(3, 5, 7);
      }
    }
  }
}

// Sums of products of up to 32 positions and one or two vectors: [position / 16][vector][position
// % 16][lane].
template <bool kBoth, bool kPair>
void run_block(const ConvLayer& layer, const ConvTile& tile, const std::uint8_t* window,
               std::int64_t stride, const std::uint8_t* weights, std::int32_t* sums) {
  _tile_zero(0);
  if (kPair) _tile_zero(1);
  if (kBoth) _tile_zero(2);
  if (kBoth && kPair) _tile_zero(3);
  // Products of high bytes first; what is i-th and j-th counts 256^(planes - i - j).
  for (int order = 0; order <= tile.planes + layer.weight_planes - 2; ++order) {
    if (order > 0) multiply_by_256<kBoth, kPair>(sums);
    for (int plane = 0; plane < tile.planes; ++plane) {
      const int weight_plane = order - plane;
      if (weight_plane < 0 || weight_plane >= layer.weight_planes) continue;
      const std::uint8_t* x = window + plane * tile.plane_stride;
      const std::uint8_t* w = weights + weight_plane * layer.weight_plane_stride;
      weight_plane == 0 ? add_products<kBoth, kPair, true>(layer, tile.row_stride, x, stride, w)
                        : add_products<kBoth, kPair, false>(layer, tile.row_stride, x, stride, w);
    }
  }
  store_sums<kBoth, kPair>(sums);
}

void run(const ConvLayer& layer, const ConvTile& tile) {
  static const TileConfiguration configuration;
  _tile_loadconfig(&configuration);
  alignas(64) std::int32_t sums[1024] = {};
  const Requantizer requantize(layer.requantization);
  const std::int64_t stride =
      tile.positions > 1 ? tile.windows[1] - tile.windows[0] : std::int64_t{0};
  const std::uint8_t* weights = layer.weights;
  for (int first = 0; first < layer.vectors;) {
    const int vectors = chunk_vectors(first, layer.vectors, kMaxChunkVectors);
    const Epilogue epilogues[2] = {{layer, tile, first}, {layer, tile, first + vectors - 1}};
    for (int position = 0; position < tile.positions; position += kBlockPositions) {
      const int left = tile.positions - position;
      const int positions = left < kBlockPositions ? left : kBlockPositions;
      const bool both = positions > kTileRows;
      const auto block = both ? vectors == 2 ? run_block<true, true> : run_block<true, false>
                         : vectors == 2 ? run_block<false, true>
                                        : run_block<false, false>;
      block(layer, tile, tile.windows[position], stride, weights, sums);
      for (int v = 0; v < vectors; ++v) {
        for (int p = 0; p < positions; ++p) {
          const std::int32_t* products =
              sums + ((p / kTileRows * 2 + v) * kTileRows + p % kTileRows) * kLanes;
          epilogues[v](requantize, _mm512_load_si512(products), position + p);
        }
      }
    }
    first += vectors;
    weights += std::int64_t{layer.window_rows} * layer.row_groups * vectors * kTileBytes;
  }
  _tile_release();  // the state is large, and the next to use it, oneDNN too, brings its own
}

}  // namespace

const ConvKernel kConvKernelAmx = {
    "amx", 1, kGroup, kLanes, kMaxChunkVectors, kTileBytes, kTilePositions, true, run};

}  // namespace pycodec
