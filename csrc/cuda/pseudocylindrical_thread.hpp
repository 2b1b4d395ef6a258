// What a thread does in the kernels of pseudocylindrical.cu, and how many there are. Threads do not
// talk to each other, so the tests run them one by one on the host.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/pseudocylindrical.hpp"
#include "sphere/tiles.hpp"

namespace pycodec::cuda {

constexpr int kTileThreads = 128;
constexpr int kTileItems = 8;  // what a thread does one after the other, with the same row

struct alignas(16) Bytes16 {
  std::uint64_t low, high;
};

// A type to be copied, not computed with.
template <class Element>
constexpr bool kIsWord = std::is_integral_v<Element> || std::is_same_v<Element, Bytes16>;

template <class Element>
using TileSum = std::conditional_t<std::is_same_v<Element, double>, double, float>;

// Blocks of threads: x is a row of the result, y and z parts of it.
struct TileGrid {
  std::int64_t x, y, z;
};

struct TileThread {
  std::int64_t x, y, z;  // of its block
  int thread;
};

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Where channels are last, items are elements side by side, otherwise channels of a column.
inline TileGrid row_grid(const PadArguments& a, std::int64_t rows, std::int64_t columns) {
  if (a.channels_last) {
    return {rows, ceil_div(columns * a.channels, kTileThreads * kTileItems), 1};
  }
  return {rows, ceil_div(columns, kTileThreads), ceil_div(a.channels, kTileItems)};
}

inline TileGrid pad_grid(const PadArguments& a) {
  return row_grid(a, a.batch * (a.height + 2 * a.pad_rows), a.width + 2 * a.pad_columns);
}

inline TileGrid pad_adjoint_grid(const PadArguments& a) {
  return row_grid(a, a.batch * a.height, a.width);
}

// Calls f(column, channel) for the items of a thread in a row of so many columns.
template <class Function>
PYCODEC_HOST_DEVICE void each_item(const PadArguments& a, const TileThread& t, std::int64_t columns,
                                   const Function& f) {
  if (a.channels_last) {
    const std::int64_t first = t.y * kTileThreads * kTileItems + t.thread;
    for (int i = 0; i < kTileItems; ++i) {
      const std::int64_t element = first + i * kTileThreads;
      if (element < columns * a.channels) f(element / a.channels, element % a.channels);
    }
  } else {
    const std::int64_t column = t.y * kTileThreads + t.thread;
    if (column >= columns) return;
    for (int i = 0; i < kTileItems; ++i) {
      const std::int64_t channel = t.z * kTileItems + i;
      if (channel < a.channels) f(column, channel);
    }
  }
}

// The index of an element of tiles of so many rows and columns.
PYCODEC_HOST_DEVICE inline std::int64_t tile_index(const PadArguments& a, std::int64_t number,
                                                   std::int64_t rows, std::int64_t columns,
                                                   std::int64_t row, std::int64_t column,
                                                   std::int64_t channel) {
  if (a.channels_last) return ((number * rows + row) * columns + column) * a.channels + channel;
  return ((number * a.channels + channel) * rows + row) * columns + column;
}

template <class Element>
PYCODEC_HOST_DEVICE void pad_thread(const PadArguments& a, const TileThread& t) {
  const auto* const x = static_cast<const Element*>(a.x);
  auto* const y = static_cast<Element*>(a.y);
  const std::int64_t rows = a.height + 2 * a.pad_rows, columns = a.width + 2 * a.pad_columns;
  const std::int64_t number = t.x / rows, r = t.x % rows, tile = number % a.tiles;
  const sphere::SourceRow read =
      sphere::source_row(tile * a.height - a.pad_rows + r, a.tiles * a.height);
  const std::int64_t source_tile = read.row / a.height, source_row = read.row % a.height;
  const std::int64_t source = a.widths[source_tile], target = a.widths[tile];
  const std::int64_t from = number - tile + source_tile;
  std::int64_t column = -1;  // that of `at` and `weight`
  sphere::SourceColumns at = {};
  TileSum<Element> weight = 0;
  each_item(a, t, columns, [&](std::int64_t c, std::int64_t channel) {
    const std::int64_t to = tile_index(a, number, rows, columns, r, c, channel);
    if (c >= target + 2 * a.pad_columns) {
      y[to] = Element{};
      return;
    }
    if (c != column) {
      column = c;
      at = sphere::source_columns(c - a.pad_columns, source, target, read.turned);
      if constexpr (kIsWord<Element>) {
        if (at.rest >= target) at.left = at.right;
      } else {
        weight = static_cast<TileSum<Element>>(at.rest) / static_cast<TileSum<Element>>(2 * target);
      }
    }
    const Element left = x[tile_index(a, from, a.height, a.width, source_row, at.left, channel)];
    if constexpr (kIsWord<Element>) {
      y[to] = left;
    } else if (at.rest == 0) {
      y[to] = left;
    } else {
      const Element right =
          x[tile_index(a, from, a.height, a.width, source_row, at.right, channel)];
      y[to] = static_cast<Element>((1 - weight) * static_cast<TileSum<Element>>(left) +
                                   weight * static_cast<TileSum<Element>>(right));
    }
  });
}

PYCODEC_HOST_DEVICE inline std::int64_t floor_div(std::int64_t a, std::int64_t b) {
  return a / b - (a % b < 0);
}

// Calls f(w, distance) for every column w of a padded row that reads column j of a row, also for
// those around the sphere: its weight is 1 - distance / (2 * target). A padded row of `target`
// columns has `padding` ones more at each side.
template <class Function>
PYCODEC_HOST_DEVICE void each_reader(std::int64_t j, std::int64_t source, std::int64_t target,
                                     bool turned, std::int64_t padding, const Function& f) {
  // Of the columns, also beyond the padding, those whose position is less than 1 away.
  const std::int64_t offset = sphere::turn(source, target, turned) - 2 * target * j;
  const std::int64_t first = floor_div(-2 * target - offset, 2 * source) + 1;
  for (std::int64_t w = first; 2 * source * w + offset < 2 * target; ++w) {
    const std::int64_t distance = 2 * source * w + offset;
    std::int64_t around = w - floor_div(w + padding, target) * target;
    for (; around < target + padding; around += target) {
      f(around, distance < 0 ? -distance : distance);
    }
  }
}

template <class Element>
PYCODEC_HOST_DEVICE void pad_adjoint_thread(const PadArguments& a, const TileThread& t) {
  using Sum = TileSum<Element>;
  auto* const x = static_cast<Element*>(a.x);
  const auto* const y = static_cast<const Element*>(a.y);
  const std::int64_t rows = a.height + 2 * a.pad_rows, columns = a.width + 2 * a.pad_columns;
  const std::int64_t number = t.x / a.height, r = t.x % a.height, tile = number % a.tiles;
  const std::int64_t source = a.widths[tile], row = tile * a.height + r;
  each_item(a, t, a.width, [&](std::int64_t j, std::int64_t channel) {
    Sum sum = 0;
    if (j < source) {
      for (std::int32_t n = a.begins[row]; n < a.begins[row + 1]; ++n) {
        const std::int64_t padded = a.readers[n] / 2;
        const std::int64_t target = a.widths[padded / rows];
        each_reader(j, source, target, a.readers[n] % 2 != 0, a.pad_columns,
                    [&](std::int64_t w, std::int64_t distance) {
                      const Sum weight =
                          static_cast<Sum>(2 * target - distance) / static_cast<Sum>(2 * target);
                      const std::int64_t from =
                          tile_index(a, number - tile + padded / rows, rows, columns, padded % rows,
                                     w + a.pad_columns, channel);
                      sum += weight * static_cast<Sum>(y[from]);
                    });
      }
    }
    x[tile_index(a, number, a.height, a.width, r, j, channel)] = static_cast<Element>(sum);
  });
}

inline TileGrid mask_grid(const MaskArguments& a) {
  return {a.batch * a.rows, ceil_div(a.columns * a.elements, kTileThreads * kTileItems), 1};
}

template <class Element>
PYCODEC_HOST_DEVICE void mask_thread(const MaskArguments& a, const TileThread& t) {
  const std::int64_t row = a.columns * a.elements;
  const std::int64_t kept = a.widths[t.x / a.rows % a.tiles] * a.elements;
  const auto* const x = static_cast<const Element*>(a.x) + t.x * row;
  auto* const out = static_cast<Element*>(a.out) + t.x * row;
  const std::int64_t first = t.y * kTileThreads * kTileItems + t.thread;
  for (int i = 0; i < kTileItems; ++i) {
    const std::int64_t element = first + i * kTileThreads;
    if (element < row) out[element] = element < kept ? x[element] : Element{};
  }
}

inline TileGrid resample_grid(const ResampleArguments& a) {
  return {a.pictures * a.tiles * a.channels * a.height, ceil_div(a.width, kTileThreads), 1};
}

template <class Element>
PYCODEC_HOST_DEVICE void resample_thread(const ResampleArguments& a, const TileThread& t) {
  using Sum = TileSum<Element>;
  const std::int64_t w = t.y * kTileThreads + t.thread;
  if (w >= a.width) return;
  // Rows in the order of the tiles.
  const std::int64_t r = t.x % a.height, channel = t.x / a.height % a.channels;
  const std::int64_t number = t.x / a.height / a.channels;
  const std::int64_t picture = number / a.tiles, tile = number % a.tiles;
  const std::int64_t in_picture =
      ((picture * a.channels + channel) * a.tiles + tile) * a.height + r;
  const auto* const x =
      static_cast<const Element*>(a.x) + (a.to_tiles ? in_picture : t.x) * a.width;
  auto* const out = static_cast<Element*>(a.out) + (a.to_tiles ? t.x : in_picture) * a.width;
  const std::int64_t map = a.table[tile];
  const std::int32_t source = a.sizes[3 * map], target = a.sizes[3 * map + 1];
  const std::int32_t taps = a.sizes[3 * map + 2];
  Sum sum = 0;
  if (w < target) {
    std::int32_t column = a.first[map * a.width + w];
    const auto* weight = static_cast<const Sum*>(a.weights) + map * a.most_taps * a.width + w;
    for (std::int32_t k = 0; k < taps; ++k, weight += a.width) {
      sum += *weight * static_cast<Sum>(x[column]);
      if (++column == source) column = 0;
    }
  }
  out[w] = static_cast<Element>(sum);
}

}  // namespace pycodec::cuda
