// Padding of pseudocylindrical tiles. pycodec/ops/pseudocylindrical_pad.py is its definition.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/elements.hpp"

namespace pycodec {

// Of tiles without padding.
struct PadShape {
  std::int64_t batch, channels, height, width;  // batch: a multiple of the number of tiles
  std::int64_t pad_rows, pad_columns;
  bool channels_last;
  ElementType type;
};

// x: [batch][channels][height][width], y: [batch][channels][height + 2 pad_rows][width + 2
// pad_columns], or with the channels last. Both throw std::invalid_argument for sizes that are not
// positive (but an empty batch), widths out of range, and the adjoint for integers.
void pseudocylindrical_pad(const PadShape& shape, const std::vector<std::int64_t>& widths,
                           const void* x, void* y, int threads);

// The transposed map, from y to x. A sum has the same order whatever the number of threads.
void pseudocylindrical_pad_adjoint(const PadShape& shape, const std::vector<std::int64_t>& widths,
                                   const void* y, void* x, int threads);

}  // namespace pycodec
