// Where the pixels of padded tiles are read, for the CPU and the GPU. The formulas are those of
// pycodec/ops/pseudocylindrical_pad.py; in integers, so that all backends read the same.
#pragma once

#include <cstdint>

#include "rans/device.hpp"  // PYCODEC_HOST_DEVICE

namespace pycodec::sphere {

struct SourceRow {
  std::int64_t row;
  bool turned;  // over a pole: half a turn away
};

// Of all tiles' `rows` rows the one that lies `row` rows south of the first, along a meridian and
// on over the poles.
PYCODEC_HOST_DEVICE inline SourceRow source_row(std::int64_t row, std::int64_t rows) {
  std::int64_t g = row % (2 * rows);
  if (g < 0) g += 2 * rows;
  if (g < rows) return {g, false};
  return {2 * rows - 1 - g, true};
}

// How far a row of `source` columns is turned against a row of `target` columns, in half columns of
// the source times `target`.
PYCODEC_HOST_DEVICE inline std::int64_t turn(std::int64_t source, std::int64_t target,
                                             bool turned) {
  return source - target + (turned ? source * target : 0);
}

// 2 * target times the position in a row of `source` columns that has the longitude of column w of
// `target` columns; from 0 to 2 * source * target - 1.
PYCODEC_HOST_DEVICE inline std::int64_t source_position(std::int64_t w, std::int64_t source,
                                                        std::int64_t target, bool turned) {
  const std::int64_t period = 2 * source * target;
  const std::int64_t position = (2 * w * source + turn(source, target, turned)) % period;
  return position < 0 ? position + period : position;
}

struct SourceColumns {
  std::int64_t left, right;
  std::int64_t rest;  // the weight of `right` is rest / (2 * target)
};

PYCODEC_HOST_DEVICE inline SourceColumns source_columns(std::int64_t w, std::int64_t source,
                                                        std::int64_t target, bool turned) {
  const std::int64_t position = source_position(w, source, target, turned);
  const std::int64_t left = position / (2 * target);
  return {left, left + 1 < source ? left + 1 : 0, position % (2 * target)};
}

// The column that has the longitude of column w; the right one of two on their border.
PYCODEC_HOST_DEVICE inline std::int64_t nearest_column(std::int64_t w, std::int64_t source,
                                                       std::int64_t target, bool turned) {
  const std::int64_t nearest = (source_position(w, source, target, turned) + target) / (2 * target);
  return nearest < source ? nearest : 0;
}

}  // namespace pycodec::sphere
