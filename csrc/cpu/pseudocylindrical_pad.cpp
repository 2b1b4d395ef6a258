#include "cpu/pseudocylindrical_pad.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <tuple>
#include <type_traits>

#include "cpu/aligned_buffer.hpp"
#include "cpu/integer_division.hpp"
#include "cpu/parallel.hpp"
#include "cpu/pseudocylindrical_pad_kernel.hpp"
#include "cpu/simd_level.hpp"
#include "sphere/tiles.hpp"

namespace pycodec {
namespace {

constexpr std::int64_t kMaxWidth = 1 << 15;  // MAX_WIDTH in pycodec/ops/pseudocylindrical_tiles.py
constexpr std::int64_t kTaskBytes = 128 * 1024;
constexpr std::int64_t kStreamTaskBytes = 256 * 1024;
// Outputs larger than this will not be in the cache when they are read again, so they are written
// past it: lines need not be read before they are written.
constexpr std::int64_t kStreamBytes = 24 * 1024 * 1024;

const PadKernel& kernel_for(SimdLevel level) {
  switch (level) {
#if defined(__x86_64__)
    case SimdLevel::kAmx:
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

// How the columns of a padded row are read from a row of a tile, -pad_columns first.
struct RowMap {
  std::int64_t source, target;  // widths
  std::int64_t columns;
  bool copied;  // columns `first`, first + 1 ... around the source, as they are
  std::int64_t first = 0;
  std::vector<PadCopyBlock> copy_blocks;
  PadCopy copy = {};  // the same, of single elements
  // Otherwise, for each column: see PadInterpolation, whose arrays these are. The nearest column is
  // the left one of integers.
  std::vector<std::int32_t> left, right, windows, left_places, right_places;
  std::vector<float> weight;
  std::vector<double> weight64;
  PadInterpolation interpolation = {};

  RowMap(const PadShape& s, std::int64_t source_, std::int64_t target_, bool turned)
      : source(source_), target(target_), columns(target + 2 * s.pad_columns) {
    sphere::SourceColumns read = sphere::source_columns(-s.pad_columns, source, target, turned);
    const std::int64_t total = s.width + 2 * s.pad_columns;
    copied = source == target && read.rest == 0;
    if (copied) {
      first = read.left;
      const std::int64_t bytes = element_bytes(s.type);
      copy = {source * bytes, first * bytes, columns * bytes, total * bytes, nullptr, 0, 0};
      add_copy_blocks();
      return;
    }
    const auto size = static_cast<std::size_t>(ceil_div(columns, kPadBlock) * kPadBlock);
    left.resize(size);
    right.resize(size);
    weight.resize(size);
    weight64.resize(size);
    // Column by column the position grows by source / target.
    const std::int64_t step = source / target, step_rest = 2 * (source % target);
    for (std::int64_t i = 0; i < columns; ++i) {
      right[i] = static_cast<std::int32_t>(read.left + 1 < source ? read.left + 1 : 0);
      const bool is_nearest_right = !is_float(s.type) && read.rest >= target;
      left[i] = is_nearest_right ? right[i] : static_cast<std::int32_t>(read.left);
      weight64[i] = static_cast<double>(read.rest) / static_cast<double>(2 * target);
      weight[i] = static_cast<float>(weight64[i]);
      read.left += step;
      read.rest += step_rest;
      if (read.rest >= 2 * target) {
        read.rest -= 2 * target;
        ++read.left;
      }
      while (read.left >= source) read.left -= source;
    }
    left_places.resize(size);
    right_places.resize(size);
    bool has_all_windows = true;
    for (std::int64_t i = 0; i < columns; i += kPadBlock) {
      has_all_windows &= add_windows(s.width, i, std::min(i + kPadBlock, columns));
    }
    interpolation = {source,
                     s.width,
                     columns,
                     total,
                     left.data(),
                     right.data(),
                     weight.data(),
                     windows.data(),
                     left_places.data(),
                     right_places.data(),
                     has_all_windows};
  }

  RowMap(const RowMap&) = delete;  // `interpolation` and `copy` have its addresses

 private:
  void add_copy_blocks() {
    for (std::int64_t begin = 0; begin < copy.total; begin += kPadCopyBlock) {
      PadCopyBlock block = {};
      int pieces = 0;
      const std::int64_t end = std::min(begin + kPadCopyBlock, copy.columns);
      for (std::int64_t i = begin; i < end;) {
        const std::int64_t from = (copy.first + i) % copy.source;
        const std::int64_t count = std::min(end - i, copy.source - from);
        const std::uint64_t bytes = ~std::uint64_t{0} >> (64 - count) << (i - begin);
        (pieces == 0 ? block.first : block.second) = from - (i - begin);
        (pieces == 0 ? block.first_bytes : block.second_bytes) = bytes;
        if (++pieces > 2) return;
        i += count;
      }
      copy_blocks.push_back(block);
    }
    copy.blocks = copy_blocks.data();
    // The longest run of whole blocks: of rows that are turned there are two.
    const auto is_whole = [&](std::int64_t b) { return ~copy_blocks[b].first_bytes == 0; };
    const auto follows = [&](std::int64_t b) {
      return is_whole(b) && copy_blocks[b].first == copy_blocks[b - 1].first + kPadCopyBlock;
    };
    const auto count = static_cast<std::int64_t>(copy_blocks.size());
    for (std::int64_t begin = 0, end; begin < count; begin = end) {
      for (end = begin + 1; end < count && is_whole(begin) && follows(end);) ++end;
      if (is_whole(begin) && end - begin > copy.whole_end - copy.whole_begin) {
        copy.whole_begin = begin;
        copy.whole_end = end;
      }
    }
  }

  // Returns whether the block's columns are read in two windows.
  bool add_windows(std::int64_t width, std::int64_t begin, std::int64_t end) {
    constexpr std::int32_t kNone = std::numeric_limits<std::int32_t>::max();
    const auto first_read = [&](std::int64_t from) {
      std::int32_t least = kNone;
      for (std::int64_t i = begin; i < end; ++i) {
        for (const std::int32_t column : {left[i], right[i]}) {
          if (column >= from) least = std::min(least, column);
        }
      }
      return least;
    };
    const std::int32_t first = first_read(0);
    std::int32_t second = first_read(first + kPadBlock);
    if (second == kNone) second = first;
    const bool fits = first_read(std::int64_t{second} + kPadBlock) == kNone;
    // Neither goes on behind what is stored.
    const auto last = static_cast<std::int32_t>(std::max<std::int64_t>(width - kPadBlock, 0));
    windows.push_back(fits ? std::min(first, last) : -1);
    windows.push_back(fits ? std::min(second, last) : -1);
    for (std::int64_t i = begin; fits && i < end; ++i) {
      left_places[i] = place(left[i]);
      right_places[i] = place(right[i]);
    }
    return fits;
  }

  // Of a column in the last two windows.
  std::int32_t place(std::int32_t column) const {
    const std::int32_t* const last = windows.data() + windows.size() - 2;
    return column < last[0] + kPadBlock ? column - last[0] : column - last[1] + kPadBlock;
  }
};

// What is read by the rows of padded tiles, of one picture.
struct Plan {
  struct Row {
    std::int64_t tile, row;  // the source; the row within the tile
    const RowMap* map;
  };

  std::vector<Row> rows;  // [tiles][height + 2 pad_rows]
  std::map<std::tuple<std::int64_t, std::int64_t, bool>, std::unique_ptr<RowMap>> maps;

  Plan(const PadShape& s, const std::vector<std::int64_t>& widths) {
    const auto tiles = static_cast<std::int64_t>(widths.size());
    for (std::int64_t t = 0; t < tiles; ++t) {
      for (std::int64_t r = 0; r < s.height + 2 * s.pad_rows; ++r) {
        const auto read = sphere::source_row(t * s.height - s.pad_rows + r, tiles * s.height);
        const std::int64_t tile = read.row / s.height;
        const auto key = std::make_tuple(widths[tile], widths[t], read.turned);
        std::unique_ptr<RowMap>& map = maps[key];
        if (!map) map = std::make_unique<RowMap>(s, widths[tile], widths[t], read.turned);
        rows.push_back({tile, read.row % s.height, map.get()});
      }
    }
  }
};

// Plans are kept: the layers of a network ask for the same few again and again.
std::shared_ptr<const Plan> plan_of(const PadShape& s, const std::vector<std::int64_t>& widths) {
  using Key = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                         std::vector<std::int64_t>>;
  constexpr std::size_t kMostPlans = 32;
  static std::mutex mutex;
  static std::list<std::pair<Key, std::shared_ptr<const Plan>>> plans;  // the last used first
  const Key key(s.height, s.width, s.pad_rows, s.pad_columns, element_bytes(s.type), widths);
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = std::find_if(plans.begin(), plans.end(),
                                    [&](const auto& entry) { return entry.first == key; });
    if (found != plans.end()) {
      plans.splice(plans.begin(), plans, found);
      return found->second;
    }
  }
  auto plan = std::make_shared<const Plan>(s, widths);
  std::lock_guard<std::mutex> lock(mutex);
  plans.emplace_front(key, plan);
  if (plans.size() > kMostPlans) plans.pop_back();
  return plan;
}

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

void prefetch(const void* start, std::ptrdiff_t distance, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(static_cast<const std::uint8_t*>(start) + distance + i);
  }
}

// The padded row of single elements. `scratch` is for a row of the tiles and a padded one.
template <class Element>
void pad_row(const RowMap& map, const PadShape& s, const PadKernel& kernel, const Element* in,
             Element* out, PadDistance next, float* scratch) {
  if (map.copied) {
    kernel.copy(map.copy, reinterpret_cast<const std::uint8_t*>(in),
                reinterpret_cast<std::uint8_t*>(out), next);
    return;
  }
  const std::int64_t total = s.width + 2 * s.pad_columns;
  if constexpr (std::is_same_v<Element, float>) {
    kernel.interpolate(map.interpolation, in, out, next);
  } else if constexpr (sizeof(Element) == 2) {
    constexpr bool kIsFloat16 = std::is_same_v<Element, Float16>;
    const auto own = kIsFloat16 ? kernel.interpolate_float16 : kernel.interpolate_bfloat16;
    if (own != nullptr) {
      own(map.interpolation, reinterpret_cast<const std::uint16_t*>(in),
          reinterpret_cast<std::uint16_t*>(out), next, scratch);
      return;
    }
    float *const wide = scratch, *const padded = scratch + s.width;
    for (std::int64_t i = 0; i < map.source; ++i) wide[i] = static_cast<float>(in[i]);
    kernel.interpolate(map.interpolation, wide, padded, 0);
    for (std::int64_t i = 0; i < total; ++i) out[i] = Element(padded[i]);
  } else {
    for (std::int64_t i = 0; i < map.columns; ++i) {
      const Element *left = in + map.left[i], *right = in + map.right[i];
      if constexpr (std::is_same_v<Element, std::uint8_t>) {
        out[i] = *left;
      } else {
        interpolate_pixel(left, right, weight_of<Element>(map, i), 1, out + i);
      }
    }
    std::fill(out + map.columns, out + total, Element{});
  }
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
  const std::shared_ptr<const Plan> kept = plan_of(s, widths);
  const Plan& plan = *kept;
  const PadKernel& kernel = kernel_for(simd_level());
  const auto tiles = static_cast<std::int64_t>(widths.size());
  const std::int64_t row = s.width * layout.elements;
  const std::int64_t padded_row = (s.width + 2 * s.pad_columns) * layout.elements;
  const std::int64_t padded_rows = s.height + 2 * s.pad_rows;
  const std::int64_t row_bytes = padded_row * static_cast<std::int64_t>(sizeof(Element));
  const bool streams = s.batch * layout.planes * padded_rows * row_bytes >= kStreamBytes;
  const std::int64_t most =
      s.channels_last ? s.channels * static_cast<std::int64_t>(sizeof(Element)) : row_bytes;
  // A task is some planes of a tile, or some rows of one.
  const std::int64_t bytes = streams ? kStreamTaskBytes : kTaskBytes;
  const auto at_least_1 = [](std::int64_t n) { return std::max<std::int64_t>(n, 1); };
  const std::int64_t rows_of_task = std::min(at_least_1(bytes / row_bytes), padded_rows);
  const std::int64_t planes_of_task =
      std::min(at_least_1(bytes / (padded_rows * row_bytes)), layout.planes);
  const std::int64_t tasks_of_plane = ceil_div(padded_rows, rows_of_task);
  const std::int64_t tasks_of_tile = ceil_div(layout.planes, planes_of_task) * tasks_of_plane;
  parallel_for(s.batch * tasks_of_tile, threads, [&](std::int64_t task) {
    const std::int64_t number = task / tasks_of_tile;  // of the tile, in the batch
    const std::int64_t tile = number % tiles;
    const std::int64_t plane = task % tasks_of_tile / tasks_of_plane * planes_of_task;
    const std::int64_t planes = std::min(planes_of_task, layout.planes - plane);
    const std::int64_t begin = task % tasks_of_plane * rows_of_task;
    const std::int64_t end = std::min(begin + rows_of_task, padded_rows);
    Element* const out = y + ((number * layout.planes + plane) * padded_rows + begin) * padded_row;
    Writer writer(reinterpret_cast<std::uint8_t*>(out), streams, kernel, most);
    std::vector<float> scratch(
        static_cast<std::size_t>(sizeof(Element) == 2 ? 2 * (s.width + s.pad_columns) : 0));
    // What the task's rows are made of, in its first plane.
    struct Source {
      const RowMap* map;
      const Element* row;
    };
    std::vector<Source> sources(static_cast<std::size_t>(end - begin));
    for (std::int64_t r = begin; r < end; ++r) {
      const Plan::Row& read = plan.rows[tile * padded_rows + r];
      const std::int64_t from = (number - tile + read.tile) * layout.planes + plane;
      sources[r - begin] = {read.map, x + (from * s.height + read.row) * row};
    }
    const std::int64_t plane_bytes = s.height * row * static_cast<std::int64_t>(sizeof(Element));
    for (std::int64_t p = 0; p < planes; ++p) {
      const PadDistance next = p + 1 < planes ? plane_bytes : 0;
      for (const Source& source : sources) {
        const Element* const in = source.row + p * s.height * row;
        if (s.channels_last) {
          pad_pixels(*source.map, s, in, writer);
        } else {
          auto* const to = reinterpret_cast<Element*>(writer.next());
          if (!kernel.prefetches) {
            if (!streams) prefetch(to, kPadPrefetch, row_bytes);
            if (next != 0) prefetch(in, next, plane_bytes / s.height);
          }
          pad_row(*source.map, s, kernel, in, to, next, scratch.data());
          writer.commit(row_bytes);
        }
      }
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
  const std::shared_ptr<const Plan> kept = plan_of(s, widths);
  const Plan& plan = *kept;
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
