#include "cpu/wave_frame.hpp"

#include <algorithm>
#include <cstring>

#include "cpu/integer_division.hpp"

namespace pycodec {
namespace {

constexpr int kZero = 128;

// Moving the live lines to the front costs less the rarer it is, and memory that is gone over
// again and again should stay in the caches.
constexpr std::int64_t kLinesPerLive = 3;

// Lines whose pitch is a multiple of a page share the sets of the first-level cache.
std::int64_t line_pitch(std::int64_t pixels) { return ceil_div(pixels, 16) * 16 + 8; }

}  // namespace

std::optional<LineWindow> LineWindow::fit(const FrameArea& area, int groups,
                                          std::int64_t group_step, std::int64_t row_step,
                                          std::int64_t column_step) {
  if (row_step < 1 || column_step < 1 || row_step % column_step != 0) return std::nullopt;
  LineWindow window;
  window.area_ = area;
  window.slope_ = row_step / column_step;
  window.wave_step_ = column_step;
  // The last group is so far behind the first, and looks back by a kernel's radius.
  window.live_ =
      ceil_div(group_step * (groups - 1), column_step) + (window.slope_ + 1) * area.padding + 1;
  const std::int64_t all = window.slope_ * (area.height - 1) + area.width + window.live_;
  window.count_ = std::min(kLinesPerLive * window.live_, all);
  window.pitch_ = line_pitch(area.height + 2 * area.padding);
  window.first_ = 1 - window.live_;
  const std::int64_t rows = (area.height + 2 * area.padding) * (area.width + 2 * area.padding);
  if (window.count_ * window.pitch_ >= rows) return std::nullopt;
  return window;
}

std::int64_t LineWindow::advance(std::int64_t t) {
  const std::int64_t newest = t / wave_step_;
  if (newest < first_ + count_) return 0;
  const std::int64_t lines = newest - live_ + 1 - first_;
  first_ += lines;
  return lines;
}

std::int64_t LineWindow::begin(std::int64_t line) const {
  return ceil_div(std::max<std::int64_t>(line - area_.width + 1, 0), slope_);
}

std::int64_t LineWindow::end(std::int64_t line) const {
  return line < 0 ? 0 : std::min(line / slope_ + 1, area_.height);
}

WaveFrame WaveFrame::of_rows(const FrameArea& area, std::int64_t pitch, std::int64_t pixel_bytes) {
  WaveFrame frame;
  frame.pixels_ = (area.height + 2 * area.padding) * pitch;
  frame.pixel_bytes_ = pixel_bytes;
  frame.origin_ = area.padding * pitch + area.padding;
  frame.row_pitch_ = pitch;
  frame.column_pitch_ = 1;
  return frame;
}

WaveFrame WaveFrame::of_lines(const LineWindow& window, std::int64_t pixel_bytes) {
  WaveFrame frame;
  frame.pixels_ = window.count() * window.pitch();
  frame.pixel_bytes_ = pixel_bytes;
  frame.origin_ = -window.first() * window.pitch() + window.area().padding;
  frame.row_pitch_ = window.slope() * window.pitch() + 1;
  frame.column_pitch_ = window.pitch();
  return frame;
}

WaveFrame WaveFrame::of_one_row(const FrameArea& area, std::int64_t pixel_bytes) {
  WaveFrame frame;
  frame.pixels_ = area.width;
  frame.pixel_bytes_ = pixel_bytes;
  frame.origin_ = 0;
  frame.row_pitch_ = 0;
  frame.column_pitch_ = 1;
  return frame;
}

void WaveFrame::clear_border(const FrameArea& area) const {
  if (column_pitch_ != 1) {
    std::memset(memory_, kZero, bytes());
    return;
  }
  const std::int64_t pitch = row_pitch_ * pixel_bytes_;
  const std::int64_t side = area.padding * pixel_bytes_;
  const std::int64_t inside = area.width * pixel_bytes_;
  std::uint8_t* row = memory_;
  std::memset(row, kZero, static_cast<std::size_t>(area.padding * pitch));
  row += area.padding * pitch;
  for (std::int64_t i = 0; i < area.height; ++i, row += pitch) {
    std::memset(row, kZero, static_cast<std::size_t>(side));
    std::memset(row + side + inside, kZero, static_cast<std::size_t>(pitch - side - inside));
  }
  std::memset(row, kZero, static_cast<std::size_t>(area.padding * pitch));
}

void WaveFrame::advance(const LineWindow& window, std::int64_t lines) {
  const std::int64_t pitch = window.pitch();
  const std::int64_t padding = window.area().padding;
  const std::int64_t below = window.area().height + padding;
  const std::int64_t kept = std::max<std::int64_t>(window.count() - lines, 0);
  origin_ -= lines * pitch;
  const auto at = [&](std::int64_t line_in_memory, std::int64_t row) {
    return memory_ + (line_in_memory * pitch + padding + row) * pixel_bytes_;
  };
  const auto size = [&](std::int64_t first_row, std::int64_t end_row) {
    return static_cast<std::size_t>(std::max<std::int64_t>(end_row - first_row, 0) * pixel_bytes_);
  };
  // Later lines begin and end at later rows. Beyond its end a line still is as cleared at first;
  // before it begins, a kernel sees as far as its radius.
  const std::int64_t last = window.first() + kept - 1;
  const std::int64_t top = window.begin(window.first()) - padding;
  const std::int64_t bottom = std::max(window.end(last), std::min(window.begin(last), below));
  for (std::int64_t i = 0; i < kept && top < bottom; ++i) {
    std::memmove(at(i, top), at(i + lines, top), size(top, bottom));
  }
  for (std::int64_t i = kept; i < window.count(); ++i) {
    const std::int64_t begin = window.begin(window.first() + i);
    const std::size_t cleared = size(begin - padding, std::min(begin, below));
    if (cleared > 0) std::memset(at(i, begin - padding), kZero, cleared);
  }
}

}  // namespace pycodec
