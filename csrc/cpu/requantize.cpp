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

void RequantizeParameters::check() const {
  if (shift < 1 || shift > 62) throw std::invalid_argument("the shift must be in 1..62");
  if (multiplier.empty() || multiplier.size() != offset.size()) {
    throw std::invalid_argument("multiplier and offset need one value for each channel");
  }
}

RequantizeLayer RequantizeParameters::layer() const {
  return {
      static_cast<int>(multiplier.size()), multiplier.data(), offset.data(), shift, lower, upper};
}

void requantize(const RequantizeParameters& parameters, const void* x, bool wide,
                std::int64_t pixels, OutputType type, void* out, int threads) {
  parameters.check();
  const RequantizeLayer layer = parameters.layer();
  const RequantizeKernel kernel = requantize_kernel();
  const std::int64_t pixel_bytes = std::int64_t{layer.channels} * output_bytes(type);
  const auto store = type == OutputType::kInt16 ? RequantizeStore::kInt16 : RequantizeStore::kBytes;
  parallel_for((pixels + kTaskPixels - 1) / kTaskPixels, threads, [&](std::int64_t task) {
    const std::int64_t first = task * kTaskPixels;
    kernel(layer,
           {static_cast<const std::uint8_t*>(x) + first * layer.channels * input_bytes(wide), wide,
            std::min(kTaskPixels, pixels - first),
            static_cast<std::uint8_t*>(out) + first * pixel_bytes, pixel_bytes, 0, store, 0});
  });
}

void requantize_to_frame(RequantizeKernel kernel, const RequantizeParameters& parameters,
                         const void* x, bool wide, const FrameWriter& writer, std::uint8_t* frame,
                         int threads) {
  const FrameShape& shape = writer.shape();
  const RequantizeLayer layer = parameters.layer();
  const std::int64_t padded_height = shape.height + 2 * shape.margin_y;
  const bool planes = shape.planes() == 2;
  const auto store = shape.value_bytes == 2 ? RequantizeStore::kInt16
                     : planes               ? RequantizeStore::kPlanes
                                            : RequantizeStore::kBytes;
  const std::uint8_t flip = shape.type == InputType::kInt8 ? 0x80 : 0;
  const std::int64_t row_values = shape.width * shape.channels;
  parallel_for(shape.batch * padded_height, threads, [&](std::int64_t r) {
    writer.write_margins(frame, r);
    const std::int64_t y = r % padded_height - shape.margin_y;
    if (y < 0 || y >= shape.height) return;
    const std::int64_t source = (r / padded_height * shape.height + y) * row_values;
    std::uint8_t* out = frame + r * shape.row_bytes() + shape.margin_x * shape.pixel_bytes();
    kernel(layer, {static_cast<const std::uint8_t*>(x) + source * input_bytes(wide), wide,
                   shape.width, out, shape.pixel_bytes(), shape.plane_bytes(), store, flip});
  });
}

}  // namespace pycodec
