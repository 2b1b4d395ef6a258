// Resampling between equirectangular pictures and pseudocylindrical tiles.
// pycodec/ops/pseudocylindrical_slice.py is its definition, and makes the tables.
#pragma once

#include <cstdint>

#include "cpu/elements.hpp"

namespace pycodec {

struct ResampleShape {
  std::int64_t pictures, channels, tiles, height, width;  // height: of a tile
  bool to_tiles;                                          // or back
  ElementType type;                                       // a float
};

// out[w] = the sum over k < taps of weights[k][w] * in[(first[w] + k) mod source], for w < target,
// and 0 for others. Which of the `maps` maps is a tile's, `table` says; `sizes` has source, target
// and taps of each; weights are double for double and float for the other types.
struct ResampleTables {
  std::int64_t maps, most_taps;
  const std::int32_t* table;  // [tiles]
  const std::int32_t* sizes;  // [maps][3]
  const std::int32_t* first;  // [maps][width]
  const void* weights;        // [maps][most_taps][width]
};

// x: [pictures][channels][tiles * height][width] and out: [pictures * tiles][channels][height]
// [width], or the opposite. Throws std::invalid_argument for sizes that are not positive (but
// pictures and channels may be 0), integers, and tables out of range.
void pseudocylindrical_resample(const ResampleShape& shape, const ResampleTables& tables,
                                const void* x, void* out, int threads);

}  // namespace pycodec
