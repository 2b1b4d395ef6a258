#include "cpu/requantize_kernel.hpp"

namespace pycodec {
namespace {

template <class Value>
void run(const RequantizeLayer& layer, const RequantizeRow& row) {
  const auto* x = static_cast<const Value*>(row.x);
  std::uint8_t* out = row.out;
  for (std::int64_t p = 0; p < row.pixels; ++p, out += row.pixel_bytes, x += layer.channels) {
    for (int c = 0; c < layer.channels; ++c) {
      const std::int64_t value =
          (std::int64_t{x[c]} * layer.multiplier[c] + layer.offset[c]) >> layer.shift;
      const std::int64_t clamped = value < layer.lower   ? layer.lower
                                   : value > layer.upper ? layer.upper
                                                         : value;
      store_requantized(row, out, c, static_cast<std::int32_t>(clamped));
    }
  }
}

}  // namespace

void requantize_scalar(const RequantizeLayer& layer, const RequantizeRow& row) {
  row.wide ? run<std::int32_t>(layer, row) : run<std::int16_t>(layer, row);
}

}  // namespace pycodec
