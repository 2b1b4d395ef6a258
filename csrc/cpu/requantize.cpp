#include "cpu/requantize.hpp"

#include <algorithm>
#include <stdexcept>

#include "cpu/parallel.hpp"
#include "cpu/simd_level.hpp"

namespace pycodec {
namespace {

constexpr std::int64_t kTaskPixels = 256;

std::int64_t input_bytes(bool wide) { return wide ? 4 : 2; }

}  // namespace

RequantizeKernel requantize_kernel() {
  switch (simd_level()) {
#if defined(__x86_64__)
    case SimdLevel::kAmx:
    case SimdLevel::kAvx512Vnni:
      return requantize_avx512vnni;
#endif
    default:
      return requantize_scalar;
  }
}

void RequantizeParameters::check(std::int64_t images) const {
  if (shift < 1 || shift > 62) throw std::invalid_argument("the shift must be in 1..62");
  const auto count = static_cast<std::int64_t>(multiplier.size());
  if (channels < 1 || multiplier.size() != offset.size() ||
      (count != channels && count != images * channels)) {
    throw std::invalid_argument(
        "multiplier and offset need one value for each channel, perhaps of each image");
  }
}

RequantizeLayer RequantizeParameters::layer(std::int64_t image) const {
  const bool shared = multiplier.size() == static_cast<std::size_t>(channels);
  const std::int64_t first = shared ? 0 : image * channels;
  return {channels, multiplier.data() + first, offset.data() + first, shift, lower, upper};
}

void requantize(const RequantizeParameters& parameters, const void* x, bool wide,
                std::int64_t images, std::int64_t pixels, OutputType type, void* out, int threads) {
  parameters.check(images);
  const RequantizeKernel kernel = requantize_kernel();
  const std::int64_t channels = parameters.channels;
  const std::int64_t pixel_bytes = channels * output_bytes(type);
  const auto store = type == OutputType::kInt16 ? RequantizeStore::kInt16 : RequantizeStore::kBytes;
  const std::int64_t tasks = (pixels + kTaskPixels - 1) / kTaskPixels;  // of an image
  parallel_for(images * tasks, threads, [&](std::int64_t task) {
    const std::int64_t image = task / tasks, begin = task % tasks * kTaskPixels;
    const std::int64_t first = image * pixels + begin;
    kernel(parameters.layer(image),
           {static_cast<const std::uint8_t*>(x) + first * channels * input_bytes(wide), wide,
            std::min(kTaskPixels, pixels - begin),
            static_cast<std::uint8_t*>(out) + first * pixel_bytes, pixel_bytes, 0, store, 0});
  });
}

void requantize_to_frame(RequantizeKernel kernel, const RequantizeParameters& parameters,
                         const void* x, bool wide, const FrameWriter& writer, std::uint8_t* frame,
                         int threads) {
  const FrameShape& shape = writer.shape();
  const std::int64_t padded_height = shape.height + 2 * shape.margin_y;
  const bool planes = shape.planes() == 2;
  const auto store = shape.value_bytes == 2 ? RequantizeStore::kInt16
                     : planes               ? RequantizeStore::kPlanes
                                            : RequantizeStore::kBytes;
  const std::uint8_t flip = shape.type == InputType::kInt8 ? 0x80 : 0;
  const std::int64_t row_values = shape.width * shape.channels;
  parallel_for(shape.batch * padded_height, threads, [&](std::int64_t r) {
    writer.write_margins(frame, r);
    const std::int64_t image = r / padded_height, y = r % padded_height - shape.margin_y;
    if (y < 0 || y >= shape.height) return;
    const std::int64_t source = (image * shape.height + y) * row_values;
    std::uint8_t* out = frame + r * shape.row_bytes() + shape.margin_x * shape.pixel_bytes();
    kernel(parameters.layer(image),
           {static_cast<const std::uint8_t*>(x) + source * input_bytes(wide), wide, shape.width,
            out, shape.pixel_bytes(), shape.plane_bytes(), store, flip});
  });
}

}  // namespace pycodec
