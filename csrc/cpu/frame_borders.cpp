#include "cpu/frame_borders.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cpu/parallel.hpp"

namespace pycodec {
namespace {

constexpr std::int64_t kTaskPixels = 64;

// Bytes stand for values plus a constant, which passes through: their sums fit uint16.
void mix_bytes(const std::uint8_t* left, const std::uint8_t* right, int weight, std::int64_t count,
               std::uint8_t* out) {
  const auto b = static_cast<std::uint16_t>(weight);
  const auto a = static_cast<std::uint16_t>(256 - weight);
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<std::uint8_t>(
        static_cast<std::uint16_t>(left[i] * a + right[i] * b + 128) >> 8);
  }
}

void mix_int16(const std::int16_t* left, const std::int16_t* right, int weight, std::int64_t count,
               std::int16_t* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<std::int16_t>((left[i] * (256 - weight) + right[i] * weight + 128) >> 8);
  }
}

// Two bytes of a value plus 2^15 in planes, the high one first.
void mix_planes(const std::uint8_t* left, const std::uint8_t* right, int weight, std::int64_t count,
                std::int64_t plane, std::uint8_t* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    const int l = left[i] << 8 | left[i + plane], r = right[i] << 8 | right[i + plane];
    const int value = (l * (256 - weight) + r * weight + 128) >> 8;
    out[i] = static_cast<std::uint8_t>(value >> 8);
    out[i + plane] = static_cast<std::uint8_t>(value);
  }
}

void fill(const BorderPixel& pixel, const FrameShape& shape, std::uint8_t* frame) {
  const std::int64_t bytes = shape.pixel_bytes();
  std::uint8_t* out = frame + pixel.target * bytes;
  const std::uint8_t* left = frame + pixel.left * bytes;
  const std::uint8_t* right = frame + pixel.right * bytes;
  const auto weight = static_cast<int>(pixel.weight);
  if (weight == 0) {  // where tiles are of one width
    for (int plane = 0; plane < shape.planes(); ++plane) {
      std::memcpy(out + plane * shape.plane_bytes(), left + plane * shape.plane_bytes(), bytes);
    }
  } else if (shape.value_bytes == 2) {
    mix_int16(reinterpret_cast<const std::int16_t*>(left),
              reinterpret_cast<const std::int16_t*>(right), weight, shape.padded_channels,
              reinterpret_cast<std::int16_t*>(out));
  } else if (shape.planes() == 2) {
    mix_planes(left, right, weight, bytes, shape.plane_bytes(), out);
  } else {
    mix_bytes(left, right, weight, bytes, out);
  }
}

}  // namespace

void fill_borders(const FrameBorders& borders, const FrameShape& shape, std::uint8_t* frame,
                  int threads) {
  const std::int64_t pixels =
      shape.batch * (shape.height + 2 * shape.margin_y) * (shape.width + 2 * shape.margin_x);
  const auto inside = [&](std::int64_t number) { return number >= 0 && number < pixels; };
  const BorderPixel* end = borders.pixels + borders.count;
  if (!std::all_of(borders.pixels, end, [&](const BorderPixel& p) {
        return inside(p.target) && inside(p.left) && inside(p.right) && p.weight >= 0 &&
               p.weight <= 256;
      })) {
    throw std::invalid_argument("borders are outside their frame");
  }
  parallel_for((borders.count + kTaskPixels - 1) / kTaskPixels, threads, [&](std::int64_t task) {
    const std::int64_t last = std::min(borders.count, (task + 1) * kTaskPixels);
    for (std::int64_t i = task * kTaskPixels; i < last; ++i) fill(borders.pixels[i], shape, frame);
  });
}

}  // namespace pycodec
