// Zeros beyond the widths of tiles. pycodec/ops/pseudocylindrical_mask.py is its definition.
#pragma once

#include <cstdint>
#include <vector>

namespace pycodec {

// x and out: [batch][rows][columns] pixels of so many bytes, batch being a multiple of the number
// of tiles. Throws std::invalid_argument where it is none, and for widths out of range.
void pseudocylindrical_mask(std::int64_t batch, std::int64_t rows, std::int64_t columns,
                            std::int64_t pixel_bytes, const std::vector<std::int64_t>& widths,
                            const std::uint8_t* x, std::uint8_t* out, int threads);

}  // namespace pycodec
