#include "cpu/quantized_trimmed_conv2d.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/parallel.hpp"

namespace pycodec {
namespace {

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("trimmed convolution: ") + message);
}

AlignedBuffer aligned_copy(const std::vector<std::int8_t>& values) {
  AlignedBuffer buffer(values.size() + 1);
  std::copy(values.begin(), values.end(), reinterpret_cast<std::int8_t*>(buffer.data()));
  return buffer;
}

}  // namespace

TrimmedKernel trimmed_kernel(SimdLevel level) {
  switch (level) {
#if defined(__x86_64__)
    case SimdLevel::kAvx512Vnni:
      return run_trimmed_avx512vnni;
    case SimdLevel::kAvx2:
      return run_trimmed_avx2;
#endif
    default:
      return run_trimmed_scalar;
  }
}

TrimmedConv::TrimmedConv(const TrimmedConvParameters& from)
    : in_width_(from.in_width),
      out_width_(from.out_width),
      kernel_rows_(from.kernel_rows),
      kernel_columns_(from.kernel_columns),
      vectors_(round_up(from.out_width, kTrimmedLanes) / kTrimmedLanes),
      residual_multiplier_(from.residual_multiplier),
      shift_(from.shift),
      lower_(from.lower),
      upper_(from.upper) {
  require(from.groups >= 1 && from.groups <= 1024, "there must be 1 to 1024 groups");
  require(
      from.in_width >= 1 && from.in_width <= 4096 && from.out_width >= 1 && from.out_width <= 4096,
      "a group must have 1 to 4096 channels");
  require(from.kernel_rows >= 1 && from.kernel_rows % 2 == 1 && from.kernel_rows <= 63 &&
              from.kernel_columns >= 1 && from.kernel_columns % 2 == 1 && from.kernel_columns <= 63,
          "kernels must be odd and no larger than 63");
  require(from.shift >= 1 && from.shift <= 62, "the shift must be in 1..62");
  require(
      from.lower <= from.upper && from.lower >= (from.upper > 127 ? 0 : -128) && from.upper <= 255,
      "the range must be one of int8 or of uint8");
  const int taps = from.kernel_rows * from.kernel_columns;
  const int in_channels = from.groups * from.in_width;
  for (int g = 0; g < from.groups; ++g) {
    const std::int8_t* weight = from.weight + std::int64_t{g} * out_width_ * taps * in_channels;
    const auto sees = [&](int in_group, int tap) {
      return from.mask[(std::int64_t{g} * from.groups + in_group) * taps + tap] != 0;
    };
    // Of output channel o of this group; what the mask cuts is zero.
    const auto weight_at = [&](int o, int tap, int channel) -> std::int8_t {
      if (o >= out_width_ || channel >= in_channels || !sees(channel / in_width_, tap)) return 0;
      return weight[(std::int64_t{o} * taps + tap) * in_channels + channel];
    };
    Group group;
    std::vector<int> input_taps;
    std::vector<std::int8_t> packed, packed_blocks;
    for (int tap = 0; tap < taps; ++tap) {
      const Input place = {tap / from.kernel_columns - from.kernel_rows / 2,
                           tap % from.kernel_columns - from.kernel_columns / 2, 0};
      int block_end = 0;
      for (int first = 0; first < in_channels; first += kTrimmedGroup) {
        const int last_group = std::min(first + kTrimmedGroup, in_channels) - 1;
        bool seen = false;
        for (int in = first / in_width_; in <= last_group / in_width_; ++in) seen |= sees(in, tap);
        if (!seen) continue;
        group.inputs.push_back({place.row, place.column, first});
        input_taps.push_back(tap);
        if (out_width_ > 1 || first < block_end) continue;
        group.blocks.push_back({place.row, place.column, first});
        block_end = first + kTrimmedBlock;
        for (int c = first; c < block_end; ++c) packed_blocks.push_back(weight_at(0, tap, c));
      }
    }
    for (int v = 0; v < vectors_; v += kTrimmedMaxVectors) {
      const int lanes = std::min(vectors_ - v, kTrimmedMaxVectors) * kTrimmedLanes;
      for (std::size_t i = 0; i < group.inputs.size(); ++i) {
        for (int lane = 0; lane < lanes; ++lane) {
          for (int k = 0; k < kTrimmedGroup; ++k) {
            packed.push_back(
                weight_at(v * kTrimmedLanes + lane, input_taps[i], group.inputs[i].byte + k));
          }
        }
      }
    }
    group.weights = aligned_copy(packed);
    group.block_weights = aligned_copy(packed_blocks);
    for (int o = 0; o < out_width_; ++o) {
      std::uint32_t sum = 0;
      for (int tap = 0; tap < taps; ++tap) {
        for (int channel = 0; channel < in_channels; ++channel) {
          sum += static_cast<std::uint32_t>(std::int32_t{weight_at(o, tap, channel)});
        }
      }
      const std::int64_t c = std::int64_t{g} * out_width_ + o;
      group.own_bias.push_back(from.bias[c]);
      group.bias.push_back(
          static_cast<std::int32_t>(static_cast<std::uint32_t>(from.bias[c]) - 128 * sum));
      group.multiplier.push_back(from.multiplier[c]);
      group.negative_multiplier.push_back(from.negative_multiplier[c]);
    }
    const auto lanes = static_cast<std::size_t>(vectors_) * kTrimmedLanes;
    for (auto* values :
         {&group.bias, &group.own_bias, &group.multiplier, &group.negative_multiplier}) {
      values->resize(lanes, 0);
    }
    groups_.push_back(std::move(group));
  }
}

TrimmedConv::Places TrimmedConv::places(int group, std::int64_t pitch) const {
  const std::int64_t bytes = trimmed_pixel_bytes(groups() * in_width_);
  const auto offsets = [&](const std::vector<Input>& inputs) {
    std::vector<std::int64_t> result;
    for (const Input& in : inputs) {
      result.push_back((in.row * pitch + in.column) * bytes + in.byte);
    }
    return result;
  };
  const Group& of_group = groups_[static_cast<std::size_t>(group)];
  return {offsets(of_group.inputs), offsets(of_group.blocks)};
}

TrimmedLayer TrimmedConv::layer(int group, const Places& places, std::uint8_t flip,
                                std::uint8_t residual_flip) const {
  const Group& of_group = groups_[static_cast<std::size_t>(group)];
  return {out_width_,
          vectors_,
          static_cast<int>(places.inputs.size()),
          places.inputs.data(),
          reinterpret_cast<const std::int8_t*>(of_group.weights.data()),
          static_cast<int>(places.blocks.size()),
          places.blocks.data(),
          reinterpret_cast<const std::int8_t*>(of_group.block_weights.data()),
          of_group.bias.data(),
          of_group.multiplier.data(),
          of_group.negative_multiplier.data(),
          residual_multiplier_,
          shift_,
          lower_,
          upper_,
          flip,
          residual_flip};
}

TrimmedLayer TrimmedConv::blind_layer(int group, std::uint8_t flip,
                                      std::uint8_t residual_flip) const {
  TrimmedLayer blind = layer(group, {}, flip, residual_flip);
  blind.bias = groups_[static_cast<std::size_t>(group)].own_bias.data();
  return blind;
}

void TrimmedConv::run(const std::int8_t* x, const std::int8_t* residual, std::int64_t batch,
                      std::int64_t height, std::int64_t width, std::uint8_t* out,
                      int threads) const {
  if (batch * height * width == 0) return;
  const std::int64_t in_channels = std::int64_t{groups()} * in_width_;
  const std::int64_t out_channels = std::int64_t{groups()} * out_width_;
  const std::int64_t pixel = trimmed_pixel_bytes(static_cast<int>(in_channels));
  const std::int64_t pad_rows = kernel_rows_ / 2;
  const std::int64_t pad_columns = kernel_columns_ / 2;
  const std::int64_t pitch = width + 2 * pad_columns;
  const std::int64_t frame_rows = height + 2 * pad_rows;
  AlignedBuffer frame(static_cast<std::size_t>(batch * frame_rows * pitch * pixel + kTrimmedSlack));
  parallel_for(batch * frame_rows, threads, [&](std::int64_t item) {
    std::uint8_t* to = frame.data() + item * pitch * pixel;
    const std::int64_t row = item % frame_rows - pad_rows;
    if (row < 0 || row >= height) {
      std::memset(to, 128, static_cast<std::size_t>(pitch * pixel));
      return;
    }
    std::memset(to, 128, static_cast<std::size_t>(pad_columns * pixel));
    to += pad_columns * pixel;
    const std::int8_t* from = x + (item / frame_rows * height + row) * width * in_channels;
    if (pixel == in_channels) {
      for (std::int64_t i = 0; i < width * pixel; ++i) {
        to[i] = static_cast<std::uint8_t>(from[i] ^ -128);
      }
      to += width * pixel;
    } else {
      for (std::int64_t column = 0; column < width; ++column, to += pixel, from += in_channels) {
        for (std::int64_t c = 0; c < in_channels; ++c) {
          to[c] = static_cast<std::uint8_t>(from[c] ^ -128);
        }
      }
    }
    std::memset(to, 128, static_cast<std::size_t>(pad_columns * pixel));
  });

  const TrimmedKernel kernel = trimmed_kernel(simd_level());
  std::vector<Places> of_group;
  for (int g = 0; g < groups(); ++g) of_group.push_back(places(g, pitch));
  parallel_for(groups() * batch * height, threads, [&](std::int64_t item) {
    const auto g = static_cast<int>(item / (batch * height));  // its weights stay in the cache
    const std::int64_t row = item % (batch * height);
    const std::int64_t frame_row = row / height * frame_rows + row % height + pad_rows;
    const std::int64_t first = row * width * out_channels + std::int64_t{g} * out_width_;
    kernel(layer(g, of_group[static_cast<std::size_t>(g)], 0, 0),
           {width, frame.data() + (frame_row * pitch + pad_columns) * pixel, pixel,
            residual ? reinterpret_cast<const std::uint8_t*>(residual) + first : nullptr,
            out_channels, out + first, out_channels});
  });
}

}  // namespace pycodec
