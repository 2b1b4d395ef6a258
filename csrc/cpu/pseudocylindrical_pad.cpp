#include "cpu/pseudocylindrical_pad.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <tuple>

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
constexpr std::int64_t kStreamBytes = 8 * 1024 * 1024;

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

// How the columns of a padded row, -pad_columns on, are read from a row of a tile.
struct RowMap {
  std::int64_t source, target;  // widths
  bool copied;                  // columns `first`, first + 1 ... around the source, as they are
  std::int64_t first = 0;
  // Otherwise, for each column: see PadInterpolation, whose arrays these are. The nearest column is
  // the left one of integers.
  std::vector<std::int32_t> left, right, base;
  std::vector<float> weight;
  std::vector<double> weight64;

  RowMap(const PadShape& s, std::int64_t source_, std::int64_t target_, bool turned)
      : source(source_), target(target_) {
    const std::int64_t columns = target + 2 * s.pad_columns;
    copied = source == target && (!turned || source % 2 == 0);
    if (copied) {
      first = sphere::source_columns(-s.pad_columns, source, target, turned).left;
      return;
    }
    const auto size = static_cast<std::size_t>((columns + kPadBlock - 1) / kPadBlock * kPadBlock);
    left.resize(size);
    right.resize(size);
    weight.resize(size);
    weight64.resize(size);
    for (std::int64_t i = 0; i < columns; ++i) {
      const std::int64_t w = i - s.pad_columns;
      const sphere::SourceColumns read = sphere::source_columns(w, source, target, turned);
      left[i] = static_cast<std::int32_t>(
          is_float(s.type) ? read.left : sphere::nearest_column(w, source, target, turned));
      right[i] = static_cast<std::int32_t>(read.right);
      weight64[i] = static_cast<double>(read.rest) / static_cast<double>(2 * target);
      weight[i] = static_cast<float>(weight64[i]);
    }
    for (std::size_t block = 0; block < size; block += kPadBlock) base.push_back(base_of(s, block));
  }

  PadInterpolation interpolation(std::int64_t columns) const {
    return {columns, left.data(), right.data(), weight.data(), base.data()};
  }

 private:
  std::int32_t base_of(const PadShape& s, std::size_t block) const {
    const std::int32_t start = std::min(left[block], static_cast<std::int32_t>(s.width) - kPadSpan);
    if (start < 0) return -1;
    for (std::size_t i = block; i < block + kPadBlock; ++i) {
      const bool inside = left[i] >= start && left[i] + 1 < start + kPadSpan;
      if (!inside || right[i] != left[i] + 1) return -1;
    }
    return start;
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

  Plan(const PadShape& s, const std::vector<std::int64_t>& widths) {
    const auto tiles = static_cast<std::int64_t>(widths.size());
    for (std::int64_t t = 0; t < tiles; ++t) {
      for (std::int64_t r = 0; r < s.height + 2 * s.pad_rows; ++r) {
        const auto read = sphere::source_row(t * s.height - s.pad_rows + r, tiles * s.height);
        const std::int64_t tile = read.row / s.height;
        const auto key = std::make_tuple(widths[tile], widths[t], read.turned);
        auto found = maps.find(key);
        if (found == maps.end()) {
          found = maps.emplace(key, RowMap(s, widths[tile], widths[t], read.turned)).first;
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
        buffer_(streams ? kFlushBytes + most + 64 : 1) {
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
  std::int64_t pixel_bytes;

  explicit Layout(const PadShape& s)
      : planes(s.channels_last ? 1 : s.channels),
        elements(s.channels_last ? s.channels : 1),
        pixel_bytes(elements * element_bytes(s.type)) {}
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

template <class Element>
void interpolate_row(const RowMap& map, const Element* in, std::int64_t columns,
                     std::int64_t elements, const PadKernel& kernel, Writer& writer) {
  if (elements == 1) {
    auto* out = reinterpret_cast<Element*>(writer.next());
    if constexpr (std::is_same_v<Element, float>) {
      kernel.interpolate(map.interpolation(columns), in, out);
    } else {
      for (std::int64_t i = 0; i < columns; ++i) {
        interpolate_pixel(in + map.left[i], in + map.right[i], weight_of<Element>(map, i), 1,
                          out + i);
      }
    }
    writer.commit(columns * static_cast<std::int64_t>(sizeof(Element)));
    return;
  }
  for (std::int64_t i = 0; i < columns; ++i) {
    interpolate_pixel(in + map.left[i] * elements, in + map.right[i] * elements,
                      weight_of<Element>(map, i), elements,
                      reinterpret_cast<Element*>(writer.next()));
    writer.commit(elements * static_cast<std::int64_t>(sizeof(Element)));
  }
}

void copy_nearest(const RowMap& map, const std::uint8_t* in, std::int64_t columns,
                  std::int64_t bytes, Writer& writer) {
  if (bytes == 1) {
    std::uint8_t* out = writer.next();
    for (std::int64_t i = 0; i < columns; ++i) out[i] = in[map.left[i]];
    writer.commit(columns);
    return;
  }
  for (std::int64_t i = 0; i < columns; ++i) writer.copy(in + map.left[i] * bytes, bytes);
}

void copy_around(const RowMap& map, const std::uint8_t* in, std::int64_t columns,
                 std::int64_t bytes, Writer& writer) {
  for (std::int64_t column = map.first; columns > 0; column = 0) {
    const std::int64_t count = std::min(columns, map.source - column);
    writer.copy(in + column * bytes, count * bytes);
    columns -= count;
  }
}

}  // namespace

void pseudocylindrical_pad(const PadShape& s, const std::vector<std::int64_t>& widths,
                           const void* x, void* y, int threads) {
  check(s, widths);
  if (s.batch == 0 || s.channels == 0) return;
  const Plan plan(s, widths);
  const Layout layout(s);
  const PadKernel& kernel = kernel_for(simd_level());
  const auto tiles = static_cast<std::int64_t>(widths.size());
  const std::int64_t padded_rows = s.height + 2 * s.pad_rows;
  const std::int64_t row_bytes = (s.width + 2 * s.pad_columns) * layout.pixel_bytes;
  const std::int64_t rows = s.batch * layout.planes * padded_rows;
  const bool streams = rows * row_bytes >= kStreamBytes;
  const std::int64_t most =
      std::max(Writer::kFlushBytes, layout.elements == 1 ? row_bytes : layout.pixel_bytes);
  const std::int64_t rows_of_task = std::max<std::int64_t>(kTaskBytes / row_bytes, 1);
  parallel_for((rows + rows_of_task - 1) / rows_of_task, threads, [&](std::int64_t task) {
    const std::int64_t begin = task * rows_of_task, end = std::min(begin + rows_of_task, rows);
    Writer writer(static_cast<std::uint8_t*>(y) + begin * row_bytes, streams, kernel, most);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t plane = i / padded_rows % layout.planes;
      const std::int64_t number = i / padded_rows / layout.planes;  // in the batch
      const std::int64_t tile = number % tiles;
      const Plan::Row& row = plan.rows[tile * padded_rows + i % padded_rows];
      const std::int64_t from =
          ((number - tile + row.tile) * layout.planes + plane) * s.height + row.row;
      const std::uint8_t* in =
          static_cast<const std::uint8_t*>(x) + from * s.width * layout.pixel_bytes;
      const std::int64_t columns = row.map->target + 2 * s.pad_columns;
      if (row.map->copied) {
        copy_around(*row.map, in, columns, layout.pixel_bytes, writer);
      } else if (!is_float(s.type)) {
        copy_nearest(*row.map, in, columns, layout.pixel_bytes, writer);
      } else {
        with_float(s.type, [&](auto element) {
          using Element = decltype(element);
          interpolate_row(*row.map, reinterpret_cast<const Element*>(in), columns, layout.elements,
                          kernel, writer);
        });
      }
      writer.zeros((s.width - row.map->target) * layout.pixel_bytes);
    }
    writer.finish();
  });
}

namespace {

// The sum of what the padded rows that read a row weigh it with.
template <class Element>
class AdjointRow {
 public:
  using Sum = Accumulator<Element>;

  AdjointRow(const PadShape& s, const Layout& layout)
      : columns_padding_(s.pad_columns),
        elements_(layout.elements),
        sums_(static_cast<std::size_t>(s.width * layout.elements)) {}

  void clear() { std::fill(sums_.begin(), sums_.end(), Sum{0}); }

  void add(const RowMap& map, const Element* y) {
    const std::int64_t columns = map.target + 2 * columns_padding_;
    if (map.copied) {
      std::int64_t left = columns;
      for (std::int64_t column = map.first; left > 0; column = 0) {
        const std::int64_t count = std::min(left, map.source - column);
        add_pixels(column, y, 1, count * elements_);
        y += count * elements_;
        left -= count;
      }
      return;
    }
    for (std::int64_t i = 0; i < columns; ++i, y += elements_) {
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

  const std::int64_t columns_padding_, elements_;
  std::vector<Sum> sums_;
};

}  // namespace

void pseudocylindrical_pad_adjoint(const PadShape& s, const std::vector<std::int64_t>& widths,
                                   const void* y, void* x, int threads) {
  check(s, widths);
  if (!is_float(s.type)) throw std::invalid_argument("integers have no adjoint");
  if (s.batch == 0 || s.channels == 0) return;
  const Plan plan(s, widths);
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
