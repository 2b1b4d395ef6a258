// Inputs of integer convolutions, in a frame of padding, as the kernels read them.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/aligned_buffer.hpp"

namespace pycodec {

// Of values. kInt8 and kInt16 are read from planes of uint8 by kernels of bytes: int8 x as x + 128,
// int16 x as the bytes of x + 2^15, high bytes in the first plane.
enum class InputType { kUint8, kInt8, kInt16 };

// Where values lie: [plane][batch][row][column][channel], rows and columns with their margins.
struct FrameShape {
  std::int64_t batch, height, width;  // without the margins
  int margin_y, margin_x;
  int channels, padded_channels;
  int value_bytes;  // 1, or 2: all types as int16
  InputType type;

  std::int64_t pixel_bytes() const { return std::int64_t{padded_channels} * value_bytes; }
  std::int64_t row_bytes() const { return (width + 2 * margin_x) * pixel_bytes(); }
  std::int64_t image_bytes() const { return (height + 2 * margin_y) * row_bytes(); }
  int planes() const { return value_bytes == 1 && type == InputType::kInt16 ? 2 : 1; }
  std::int64_t plane_bytes() const { return batch * image_bytes(); }
  // Of the window of an output at (y, x) with a stride of 1, which has its first value there.
  std::int64_t offset(std::int64_t image, std::int64_t y, std::int64_t x) const {
    return image * image_bytes() + y * row_bytes() + x * pixel_bytes();
  }
};

// Fills rows of frames. Values are those of the type, widened.
class FrameWriter {
 public:
  // zero: what padding holds, a value a channel; empty if 0.
  FrameWriter(const FrameShape& shape, const std::vector<std::int16_t>& zero);

  // A row of the frame, counted with margins over all images: its margins, and the values of its
  // pixels, [width][channels] of the type, or null for a row of padding.
  void write_row(std::uint8_t* frame, std::int64_t row, const void* values) const;

  // The margins alone of a row that lies in the picture, all of one that does not.
  void write_margins(std::uint8_t* frame, std::int64_t row) const;

  const FrameShape& shape() const { return shape_; }

 private:
  void pad(std::uint8_t* first, std::int64_t pixels, int plane) const;

  FrameShape shape_;
  std::vector<std::uint8_t> padding_[2];  // a pixel of it, for each plane
};

}  // namespace pycodec
