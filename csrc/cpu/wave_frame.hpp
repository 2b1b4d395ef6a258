// The memory of a wave network's activations: channels last, as the kernels of
// quantized_trimmed_conv2d_kernel.hpp read them, in a border of zeros, which are 128 there.
//
// A pass over a whole picture goes by rows, and so does the memory; of tensors that the same rows
// of the next layers read at once, a row is enough. A wave cuts a group along a slanted line; there
// memory goes by *lines*: the positions of a wave are neighbours, which the processor fetches
// ahead, and no more lines are kept than waves still read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace pycodec {

// Of the pictures of a network: `padding` is the radius of its largest kernel.
struct FrameArea {
  std::int64_t height, width, padding;
};

// The lines in memory: line `slope * row + column` has the position (row, column), as its element
// `row`. Moves on with the waves.
class LineWindow {
 public:
  // For positions of waves t = group_step * group + row_step * row + column_step * column. Nothing
  // if such waves do not fit lines, or if rows take no more memory.
  static std::optional<LineWindow> fit(const FrameArea& area, int groups, std::int64_t group_step,
                                       std::int64_t row_step, std::int64_t column_step);

  const FrameArea& area() const { return area_; }
  std::int64_t slope() const { return slope_; }
  std::int64_t pitch() const { return pitch_; }  // pixels from line to line
  std::int64_t count() const { return count_; }
  std::int64_t first() const { return first_; }

  // Rows of a line's positions in the picture: the first, and the one after the last.
  std::int64_t begin(std::int64_t line) const;
  std::int64_t end(std::int64_t line) const;

  // Brings the line of wave t into memory. Returns by how many lines all others have to move.
  std::int64_t advance(std::int64_t t);

 private:
  FrameArea area_;
  std::int64_t slope_, wave_step_;
  std::int64_t live_;  // lines that a wave reads, up to its newest one
  std::int64_t count_, pitch_, first_;
};

// Where the pixels of one tensor are. Refers to the memory, which has bytes() bytes.
class WaveFrame {
 public:
  static WaveFrame of_rows(const FrameArea& area, std::int64_t pitch, std::int64_t pixel_bytes);
  static WaveFrame of_lines(const LineWindow& window, std::int64_t pixel_bytes);
  // All rows are in the same place.
  static WaveFrame of_one_row(const FrameArea& area, std::int64_t pixel_bytes);

  std::size_t bytes() const { return static_cast<std::size_t>(pixels_ * pixel_bytes_); }
  void use(std::uint8_t* memory) { memory_ = memory; }
  std::uint8_t* memory() const { return memory_; }

  std::int64_t pixel_bytes() const { return pixel_bytes_; }
  std::int64_t row_pitch() const { return row_pitch_; }  // in pixels
  std::int64_t column_pitch() const { return column_pitch_; }
  std::uint8_t* at(std::int64_t row, std::int64_t column) const {
    return memory_ + (origin_ + row * row_pitch_ + column * column_pitch_) * pixel_bytes_;
  }
  // Bytes between positions so far apart.
  std::int64_t step(std::int64_t rows, std::int64_t columns) const {
    return (rows * row_pitch_ + columns * column_pitch_) * pixel_bytes_;
  }

  // Writes the border: of rows, or of the first lines.
  void clear_border(const FrameArea& area) const;

  // Follows a window of lines that has advanced by so many, with the border of the new ones.
  void advance(const LineWindow& window, std::int64_t lines);

 private:
  std::uint8_t* memory_ = nullptr;
  std::int64_t pixels_, pixel_bytes_;
  std::int64_t origin_;  // pixels from the memory's first to (0, 0), which may lie outside
  std::int64_t row_pitch_, column_pitch_;
};

}  // namespace pycodec
