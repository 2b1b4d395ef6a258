#include "cpu/pseudocylindrical_pad.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <tuple>
#include <type_traits>

#include "cpu/aligned_buffer.hpp"
#include "cpu/parallel.hpp"
#include "cpu/pseudocylindrical_pad_kernel.hpp"
#include "cpu/simd_level.hpp"
#include "sphere/tiles.hpp"

namespace pycodec {
namespace {

constexpr std::int64_t kMaxWidth = 1 << 15;  // MAX_WIDTH in pycodec/ops/pseudocylindrical_tiles.py
constexpr std::int64_t kTaskBytes = 256 * 1024;
// Outputs larger than this will not be in the cache when they are read again, so they are written
// past it: lines need not be read before they are written.
constexpr std::int64_t kStreamBytes = 24 * 1024 * 1024;

const PadKernel& kernel_for(SimdLevel level) {
  switch (level) {
#if defined(__x86_64__)
    case SimdLevel::kAvx512Vnni:
      return kPadKernelAvx512Vnni;
    case SimdLevel::kAvx2:
      return kPadKernelAvx2;
#endif
    default:
      return kPadKernelScalar;
  }
}

void check(const PadShape& s, const std::vector<std::int64_t>& widths) {
  if (widths.empty() || s.batch % static_cast<std::int64_t>(widths.size()) != 0) {
    throw std::invalid_argument("the batch must be a multiple of the number of tiles");
  }
  if (s.batch < 0 || s.channels < 0 || s.height < 1 || s.width < 1 || s.width > kMaxWidth ||
      s.pad_rows < 0 || s.pad_columns < 0) {
    throw std::invalid_argument("tiles need pixels, and padding that is not negative");
  }
  for (const std::int64_t width : widths) {
    if (width < 1 || width > s.width) throw std::invalid_argument("a tile's width is out of range");
  }
}

// How some columns of a padded row are read from a row of a tile.
struct RowMap {
  std::int64_t source, target;  // widths
  std::int64_t columns;
  bool copied;  // columns `first`, first + 1 ... around the source, as they are
  std::int64_t first = 0;
  // Otherwise, for each column: see PadInterpolation, whose arrays these are. The nearest column is
  // the left one of integers.
  std::vector<std::int32_t> left, right, base, exceptions;
  std::vector<float> weight;
  std::vector<double> weight64;

  // Columns -padding ... target + padding - 1.
  RowMap(const PadShape& s, std::int64_t padding, std::int64_t source_, std::int64_t target_,
         bool turned)
      : source(source_), target(target_), columns(target + 2 * padding) {
    copied = source == target && (!turned || source % 2 == 0);
    if (copied) {
      first = sphere::source_columns(-padding, source, target, turned).left;
      return;
    }
    const auto size = static_cast<std::size_t>((columns + kPadBlock - 1) / kPadBlock * kPadBlock);
    left.resize(size);
    right.resize(size);
    weight.resize(size);
    weight64.resize(size);
    for (std::int64_t i = 0; i < columns; ++i) {
      const sphere::SourceColumns read =
          sphere::source_columns(i - padding, source, target, turned);
      left[i] = static_cast<std::int32_t>(
          is_float(s.type) ? read.left
                           : sphere::nearest_column(i - padding, source, target, turned));
      right[i] = static_cast<std::int32_t>(read.right);
      weight64[i] = static_cast<double>(read.rest) / static_cast<double>(2 * target);
      weight[i] = static_cast<float>(weight64[i]);
    }
    for (std::int64_t i = 0; i < columns; i += kPadBlock) add_block(s, i);
  }

  PadInterpolation interpolation(std::int64_t width) const {
    return {columns,           width,
            left.data(),       right.data(),
            weight.data(),     base.data(),
            exceptions.data(), static_cast<std::int64_t>(exceptions.size())};
  }

 private:
  void add_block(const PadShape& s, std::int64_t block) {
    const std::int64_t end = std::min(block + kPadBlock, columns);
    std::int64_t start = s.width;
    for (std::int64_t i = block; i < end; ++i) {
      if (right[i] == left[i] + 1) start = std::min<std::int64_t>(start, left[i]);
    }
    start = std::max<std::int64_t>(std::min(start, s.width - kPadSpan), 0);
    std::vector<std::int32_t> around;
    bool fits = true;
    for (std::int64_t i = block; i < end; ++i) {
      if (right[i] != left[i] + 1) {
        around.push_back(static_cast<std::int32_t>(i));
      } else if (right[i] >= start + kPadSpan) {
        fits = false;
      }
    }
    base.push_back(fits ? static_cast<std::int32_t>(start) : -1);
    if (fits) exceptions.insert(exceptions.end(), around.begin(), around.end());
  }
};

// What is read by the rows of padded tiles, of one picture.
struct Plan {
  struct Row {
    std::int64_t tile, row;  // the source; the row within the tile
    const RowMap* map;
  };

  std::vector<Row> rows;  // [tiles][height + 2 pad_rows]
  std::map<std::tuple<std::int64_t, std::int64_t, bool>, RowMap> maps;

  // The maps are of columns -padding on.
  Plan(const PadShape& s, const std::vector<std::int64_t>& widths, std::int64_t padding) {
    const auto tiles = static_cast<std::int64_t>(widths.size());
    for (std::int64_t t = 0; t < tiles; ++t) {
      for (std::int64_t r = 0; r < s.height + 2 * s.pad_rows; ++r) {
        const auto read = sphere::source_row(t * s.height - s.pad_rows + r, tiles * s.height);
        const std::int64_t tile = read.row / s.height;
        const auto key = std::make_tuple(widths[tile], widths[t], read.turned);
        auto found = maps.find(key);
        if (found == maps.end()) {
          const RowMap map(s, padding, widths[tile], widths[t], read.turned);
          found = maps.emplace(key, map).first;
        }
        rows.push_back({tile, read.row % s.height, &found->second});
      }
    }
  }
};

// Writes bytes one after the other: straight to memory or, past the cache, through a small buffer
// that makes whole lines of them.
class Writer {
 public:
  static constexpr std::int64_t kFlushBytes = 16 * 1024;

  // `most` is what one call may write.
  Writer(std::uint8_t* to, bool streams, const PadKernel& kernel, std::int64_t most)
      : to_(to),
        streams_(streams),
        kernel_(kernel),
        buffer_(streams ? kFlushBytes + std::max(kFlushBytes, most) + 64 : 1) {
    if (streams) {
      begin_ = fill_ = reinterpret_cast<std::uintptr_t>(to) % 64;
      to_ -= begin_;
    }
  }

  // Where the next bytes go, which commit() counts.
  std::uint8_t* next() { return streams_ ? buffer_.data() + fill_ : to_; }

  void commit(std::int64_t bytes) {
    if (!streams_) {
      to_ += bytes;
      return;
    }
    fill_ += static_cast<std::size_t>(bytes);
    if (fill_ >= kFlushBytes) flush();
  }

  void copy(const std::uint8_t* from, std::int64_t bytes) {
    while (bytes > 0) {
      const std::int64_t piece = streams_ ? std::min(bytes, kFlushBytes) : bytes;
      std::memcpy(next(), from, static_cast<std::size_t>(piece));
      commit(piece);
      from += piece;
      bytes -= piece;
    }
  }

  void zeros(std::int64_t bytes) {
    while (bytes > 0) {
      const std::int64_t piece = streams_ ? std::min(bytes, kFlushBytes) : bytes;
      std::memset(next(), 0, static_cast<std::size_t>(piece));
      commit(piece);
      bytes -= piece;
    }
  }

  void finish() {
    if (streams_) std::memcpy(to_ + begin_, buffer_.data() + begin_, fill_ - begin_);
  }

 private:
  // Whole lines leave. fill_ is larger than a line.
  void flush() {
    const std::size_t lines = fill_ / 64 * 64;
    std::size_t done = 0;
    if (begin_ > 0) {  // the first line is not ours alone
      std::memcpy(to_ + begin_, buffer_.data() + begin_, 64 - begin_);
      done = 64;
    }
    kernel_.stream(to_ + done, buffer_.data() + done, lines - done);
    std::memcpy(buffer_.data(), buffer_.data() + lines, fill_ - lines);
    to_ += lines;
    fill_ -= lines;
    begin_ = 0;
  }

  std::uint8_t* to_;  // in the buffer's mode the line where it begins
  const bool streams_;
  const PadKernel& kernel_;
  AlignedBuffer buffer_;
  std::size_t begin_ = 0, fill_ = 0;
};

// A pixel is an element, or all channels where they are last; what is around it is a plane.
struct Layout {
  std::int64_t planes, elements;  // planes of a tile, elements of a pixel

  explicit Layout(const PadShape& s)
      : planes(s.channels_last ? 1 : s.channels), elements(s.channels_last ? s.channels : 1) {}
};

template <class Element>
void interpolate_pixel(const Element* left, const Element* right, Accumulator<Element> weight,
                       std::int64_t count, Element* out) {
  using Sum = Accumulator<Element>;
  for (std::int64_t i = 0; i < count; ++i) {
    const Sum a = static_cast<Sum>(left[i]), b = static_cast<Sum>(right[i]);
    out[i] = static_cast<Element>((1 - weight) * a + weight * b);
  }
}

template <class Element>
Accumulator<Element> weight_of(const RowMap& map, std::int64_t column) {
  if constexpr (std::is_same_v<Element, double>) return map.weight64[column];
  return map.weight[column];
}

// The columns of a map, one after the other.
template <class Element>
void fill_row(const RowMap& map, const PadShape& s, const PadKernel& kernel, const Element* in,
              Element* out) {
  if (map.copied) {
    const std::int64_t count = map.source - map.first;
    std::memcpy(out, in + map.first, static_cast<std::size_t>(count) * sizeof(Element));
    std::memcpy(out + count, in, static_cast<std::size_t>(map.first) * sizeof(Element));
  } else if constexpr (std::is_same_v<Element, std::uint8_t>) {
    for (std::int64_t i = 0; i < map.columns; ++i) out[i] = in[map.left[i]];
  } else if constexpr (std::is_same_v<Element, float>) {
    kernel.interpolate(map.interpolation(s.width), in, out);
  } else {
    for (std::int64_t i = 0; i < map.columns; ++i) {
      const Element *left = in + map.left[i], *right = in + map.right[i];
      interpolate_pixel(left, right, weight_of<Element>(map, i), 1, out + i);
    }
  }
}

// A padded row of single elements. It repeats itself after `target` columns.
template <class Element>
void pad_row(const RowMap& map, const PadShape& s, const PadKernel& kernel, const Element* in,
             Writer& writer) {
  const std::int64_t padding = s.pad_columns, target = map.target;
  auto* const row = reinterpret_cast<Element*>(writer.next()) + padding;
  fill_row(map, s, kernel, in, row);
  for (std::int64_t i = 0; i < padding; ++i) row[-1 - i] = row[target - 1 - i];
  for (std::int64_t i = 0; i < padding; ++i) row[target + i] = row[i];
  std::fill(row + target + padding, row + s.width + padding, Element{});
  writer.commit((s.width + 2 * padding) * static_cast<std::int64_t>(sizeof(Element)));
}

// A padded row of pixels with their channels.
template <class Element>
void pad_pixels(const RowMap& map, const PadShape& s, const Element* in, Writer& writer) {
  const std::int64_t channels = s.channels;
  const auto pixel_bytes = channels * static_cast<std::int64_t>(sizeof(Element));
  const auto* const bytes = reinterpret_cast<const std::uint8_t*>(in);
  if (map.copied) {
    std::int64_t left = map.columns;
    for (std::int64_t column = map.first; left > 0; column = 0) {
      const std::int64_t count = std::min(left, map.source - column);
      writer.copy(bytes + column * pixel_bytes, count * pixel_bytes);
      left -= count;
    }
  } else {
    for (std::int64_t i = 0; i < map.columns; ++i) {
      if constexpr (std::is_same_v<Element, std::uint8_t>) {
        writer.copy(bytes + map.left[i] * pixel_bytes, pixel_bytes);
      } else {
        interpolate_pixel(in + map.left[i] * channels, in + map.right[i] * channels,
                          weight_of<Element>(map, i), channels,
                          reinterpret_cast<Element*>(writer.next()));
        writer.commit(pixel_bytes);
      }
    }
  }
  writer.zeros((s.width - map.target) * pixel_bytes);
}

template <class Element>
void pad(const PadShape& s, const std::vector<std::int64_t>& widths, const Element* x, Element* y,
         int threads) {
  const Layout layout(s);
  const Plan plan(s, widths, s.channels_last ? s.pad_columns : 0);
  const PadKernel& kernel = kernel_for(simd_level());
  const auto tiles = static_cast<std::int64_t>(widths.size());
  const std::int64_t padded_rows = s.height + 2 * s.pad_rows;
  const std::int64_t row_elements = (s.width + 2 * s.pad_columns) * layout.elements;
  const std::int64_t row_bytes = row_elements * static_cast<std::int64_t>(sizeof(Element));
  const std::int64_t tile_elements = layout.planes * s.height * s.width * layout.elements;
  const std::int64_t rows = s.batch * layout.planes * padded_rows;
  const bool streams = rows * row_bytes >= kStreamBytes;
  const std::int64_t most =
      s.channels_last ? s.channels * static_cast<std::int64_t>(sizeof(Element)) : row_bytes;
  const std::int64_t rows_of_task = std::max<std::int64_t>(kTaskBytes / row_bytes, 1);
  parallel_for((rows + rows_of_task - 1) / rows_of_task, threads, [&](std::int64_t task) {
    const std::int64_t begin = task * rows_of_task, end = std::min(begin + rows_of_task, rows);
    Writer writer(reinterpret_cast<std::uint8_t*>(y + begin * row_elements), streams, kernel, most);
    for (std::int64_t i = begin; i < end;) {
      // The rows of a plane, or what the task has of them.
      const std::int64_t plane = i / padded_rows % layout.planes;
      const std::int64_t number = i / padded_rows / layout.planes;  // of the tile, in the batch
      const std::int64_t tile = number % tiles;
      const std::int64_t row = i % padded_rows;
      const std::int64_t row_end = std::min(padded_rows, row + end - i);
      const Element* planes =
          x + (number - tile) * tile_elements + plane * s.height * s.width * layout.elements;
      for (std::int64_t r = row; r < row_end; ++r) {
        const Plan::Row& read = plan.rows[tile * padded_rows + r];
        const Element* in =
            planes + read.tile * tile_elements + read.row * s.width * layout.elements;
        if (s.channels_last) {
          pad_pixels(*read.map, s, in, writer);
        } else {
          pad_row(*read.map, s, kernel, in, writer);
        }
      }
      i += row_end - row;
    }
    writer.finish();
  });
}

}  // namespace

void pseudocylindrical_pad(const PadShape& s, const std::vector<std::int64_t>& widths,
                           const void* x, void* y, int threads) {
  check(s, widths);
  if (s.batch == 0 || s.channels == 0) return;
  const auto run = [&](auto element) {
    using Element = decltype(element);
    pad(s, widths, static_cast<const Element*>(x), static_cast<Element*>(y), threads);
  };
  if (is_float(s.type)) {
    with_float(s.type, run);
  } else {
    run(std::uint8_t{});
  }
}

namespace {

// The sum of what the padded rows that read a row weigh it with.
template <class Element>
class AdjointRow {
 public:
  using Sum = Accumulator<Element>;

  AdjointRow(const PadShape& s, const Layout& layout)
      : elements_(layout.elements), sums_(static_cast<std::size_t>(s.width * layout.elements)) {}

  void clear() { std::fill(sums_.begin(), sums_.end(), Sum{0}); }

  void add(const RowMap& map, const Element* y) {
    if (map.copied) {
      std::int64_t left = map.columns;
      for (std::int64_t column = map.first; left > 0; column = 0) {
        const std::int64_t count = std::min(left, map.source - column);
        add_pixels(column, y, 1, count * elements_);
        y += count * elements_;
        left -= count;
      }
      return;
    }
    for (std::int64_t i = 0; i < map.columns; ++i, y += elements_) {
      const Sum weight = weight_of<Element>(map, i);
      add_pixels(map.left[i], y, 1 - weight, elements_);
      add_pixels(map.right[i], y, weight, elements_);
    }
  }

  void store(Element* x) const {
    for (const Sum sum : sums_) *x++ = static_cast<Element>(sum);
  }

 private:
  void add_pixels(std::int64_t column, const Element* y, Sum weight, std::int64_t count) {
    Sum* sums = sums_.data() + column * elements_;
    for (std::int64_t i = 0; i < count; ++i) sums[i] += weight * static_cast<Sum>(y[i]);
  }

  const std::int64_t elements_;
  std::vector<Sum> sums_;
};

}  // namespace

void pseudocylindrical_pad_adjoint(const PadShape& s, const std::vector<std::int64_t>& widths,
                                   const void* y, void* x, int threads) {
  check(s, widths);
  if (!is_float(s.type)) throw std::invalid_argument("integers have no adjoint");
  if (s.batch == 0 || s.channels == 0) return;
  const Plan plan(s, widths, s.pad_columns);
  const Layout layout(s);
  const auto tiles = static_cast<std::int64_t>(widths.size());
  const std::int64_t padded_rows = s.height + 2 * s.pad_rows;
  std::vector<std::vector<std::int64_t>> readers(static_cast<std::size_t>(tiles * s.height));
  for (std::size_t i = 0; i < plan.rows.size(); ++i) {
    readers[plan.rows[i].tile * s.height + plan.rows[i].row].push_back(
        static_cast<std::int64_t>(i));
  }
  const std::int64_t row_elements = s.width * layout.elements;
  const std::int64_t padded_elements = (s.width + 2 * s.pad_columns) * layout.elements;
  const std::int64_t rows = s.batch * layout.planes * s.height;
  const std::int64_t rows_of_task = std::max<std::int64_t>(kTaskBytes / (4 * row_elements), 1);
  with_float(s.type, [&](auto element) {
    using Element = decltype(element);
    parallel_for((rows + rows_of_task - 1) / rows_of_task, threads, [&](std::int64_t task) {
      const std::int64_t begin = task * rows_of_task, end = std::min(begin + rows_of_task, rows);
      AdjointRow<Element> sum(s, layout);
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t plane = i / s.height % layout.planes;
        const std::int64_t number = i / s.height / layout.planes;
        const std::int64_t tile = number % tiles;
        sum.clear();
        for (const std::int64_t reader : readers[tile * s.height + i % s.height]) {
          const std::int64_t other = number - tile + reader / padded_rows;
          const std::int64_t row =
              (other * layout.planes + plane) * padded_rows + reader % padded_rows;
          sum.add(*plan.rows[reader].map, static_cast<const Element*>(y) + row * padded_elements);
        }
        sum.store(static_cast<Element*>(x) + i * row_elements);
      }
    });
  });
}

}  // namespace pycodec
