#include "cpu/activation_frame.hpp"

#include <algorithm>
#include <cstring>

namespace pycodec {
namespace {

// One value of the frame's type as the bytes that stand for it.
template <class Value>
void put_values(const FrameShape& shape, const Value* values, std::int64_t count,
                std::uint8_t* out) {
  if (shape.value_bytes == 2) {
    std::copy(values, values + count, reinterpret_cast<std::int16_t*>(out));
  } else if (shape.type == InputType::kInt16) {
    std::uint8_t* low = out + shape.plane_bytes();
    for (std::int64_t i = 0; i < count; ++i) {
      const auto v = static_cast<std::uint16_t>(values[i] ^ 0x8000);
      out[i] = static_cast<std::uint8_t>(v >> 8);
      low[i] = static_cast<std::uint8_t>(v);
    }
  } else {
    const std::uint8_t flip = shape.type == InputType::kInt8 ? 0x80 : 0;
    for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<std::uint8_t>(values[i] ^ flip);
  }
}

template <class Value>
void put_pixels(const FrameShape& shape, const void* source, std::uint8_t* out) {
  const auto* values = static_cast<const Value*>(source);
  if (shape.channels == shape.padded_channels) {
    put_values(shape, values, shape.width * shape.channels, out);
    return;
  }
  const std::int64_t used = std::int64_t{shape.channels} * shape.value_bytes;
  for (std::int64_t x = 0; x < shape.width; ++x, values += shape.channels) {
    put_values(shape, values, shape.channels, out);
    for (int plane = 0; plane < shape.planes(); ++plane) {
      std::fill(out + plane * shape.plane_bytes() + used,
                out + plane * shape.plane_bytes() + shape.pixel_bytes(), std::uint8_t{0});
    }
    out += shape.pixel_bytes();
  }
}

}  // namespace

FrameWriter::FrameWriter(const FrameShape& shape, const std::vector<std::int16_t>& zero)
    : shape_(shape) {
  FrameShape pixel = shape;  // of one pixel alone, whose planes follow each other
  pixel.batch = pixel.height = pixel.width = 1;
  pixel.margin_x = pixel.margin_y = 0;
  std::vector<std::int16_t> values(shape.padded_channels, 0);
  std::copy(zero.begin(), zero.end(), values.begin());
  std::vector<std::uint8_t> bytes(pixel.planes() * pixel.pixel_bytes());
  put_values(pixel, values.data(), shape.padded_channels, bytes.data());
  for (int plane = 0; plane < pixel.planes(); ++plane) {
    const auto first = bytes.begin() + plane * pixel.pixel_bytes();
    padding_[plane].assign(first, first + pixel.pixel_bytes());
  }
}

void FrameWriter::pad(std::uint8_t* first, std::int64_t pixels, int plane) const {
  const std::vector<std::uint8_t>& pixel = padding_[plane];
  for (std::int64_t i = 0; i < pixels; ++i, first += pixel.size()) {
    std::memcpy(first, pixel.data(), pixel.size());
  }
}

void FrameWriter::write_margins(std::uint8_t* frame, std::int64_t row) const {
  const std::int64_t y = row % (shape_.height + 2 * shape_.margin_y) - shape_.margin_y;
  for (int plane = 0; plane < shape_.planes(); ++plane) {
    std::uint8_t* first = frame + plane * shape_.plane_bytes() + row * shape_.row_bytes();
    if (y < 0 || y >= shape_.height) {
      pad(first, shape_.width + 2 * shape_.margin_x, plane);
    } else {
      pad(first, shape_.margin_x, plane);
      pad(first + (shape_.margin_x + shape_.width) * shape_.pixel_bytes(), shape_.margin_x, plane);
    }
  }
}

void FrameWriter::write_row(std::uint8_t* frame, std::int64_t row, const void* values) const {
  write_margins(frame, row);
  if (values == nullptr) return;
  std::uint8_t* first = frame + row * shape_.row_bytes() + shape_.margin_x * shape_.pixel_bytes();
  switch (shape_.type) {
    case InputType::kUint8:
      return put_pixels<std::uint8_t>(shape_, values, first);
    case InputType::kInt8:
      return put_pixels<std::int8_t>(shape_, values, first);
    case InputType::kInt16:
      return put_pixels<std::int16_t>(shape_, values, first);
  }
}

}  // namespace pycodec
