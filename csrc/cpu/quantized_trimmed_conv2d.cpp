#include "cpu/quantized_trimmed_conv2d.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/integer_division.hpp"
#include "cpu/parallel.hpp"

namespace pycodec {
namespace {

// Of a frame's part that stays in the second level cache.
constexpr std::int64_t kBandBytes = 512 << 10;

// Of summing up and requantizing an output, in multiply-add instructions; measured.
constexpr std::size_t kOutputCost = 4;

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
    case SimdLevel::kAmx:
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
  const auto sees = [&](int out, int in_group, int tap) {
    const std::int64_t pair = std::int64_t{out / out_width_} * from.groups + in_group;
    return from.mask[pair * taps + tap] != 0;
  };
  // What the mask cuts is zero.
  const auto weight_at = [&](int out, int tap, int channel) -> std::int8_t {
    if (channel >= in_channels || !sees(out, channel / in_width_, tap)) return 0;
    return from.weight[(std::int64_t{out} * taps + tap) * in_channels + channel];
  };
  const auto pack = [&](int first_out, int width) {
    Group group;
    std::vector<int> input_taps;
    std::vector<std::int8_t> packed, packed_blocks, packed_pairs;
    for (int tap = 0; tap < taps; ++tap) {
      const Input place = {tap / from.kernel_columns - from.kernel_rows / 2,
                           tap % from.kernel_columns - from.kernel_columns / 2, 0};
      int block_end = 0;
      int pair_end = 0;
      for (int first = 0; first < in_channels; first += kTrimmedGroup) {
        const int last_group = std::min(first + kTrimmedGroup, in_channels) - 1;
        bool seen = false;
        for (int in = first / in_width_; in <= last_group / in_width_; ++in) {
          for (int out = first_out; out < first_out + width; out += out_width_) {
            seen |= sees(out, in, tap);
          }
        }
        if (!seen) continue;
        group.inputs.push_back({place.row, place.column, first});
        input_taps.push_back(tap);
        if (width == 1 && first >= block_end) {
          group.blocks.push_back({place.row, place.column, first});
          block_end = first + kTrimmedBlock;
          for (int c = first; c < block_end; ++c) {
            packed_blocks.push_back(weight_at(first_out, tap, c));
          }
        }
        if (width > 1 && width <= kTrimmedLanes && first >= pair_end) {
          group.pairs.push_back({place.row, place.column, first});
          pair_end = first + kTrimmedPair;
          for (int out = 0; out < kTrimmedLanes; ++out) {
            for (int c = first; c < pair_end; ++c) {
              packed_pairs.push_back(out < width ? weight_at(first_out + out, tap, c) : 0);
            }
          }
        }
      }
    }
    group.width = width;
    group.vectors = round_up(width, kTrimmedLanes) / kTrimmedLanes;
    for (int v = 0; v < group.vectors; v += kTrimmedMaxVectors) {
      const int lanes = std::min(group.vectors - v, kTrimmedMaxVectors) * kTrimmedLanes;
      for (std::size_t i = 0; i < group.inputs.size(); ++i) {
        for (int lane = 0; lane < lanes; ++lane) {
          for (int k = 0; k < kTrimmedGroup; ++k) {
            const int out = v * kTrimmedLanes + lane;
            packed.push_back(
                out < width ? weight_at(first_out + out, input_taps[i], group.inputs[i].byte + k)
                            : 0);
          }
        }
      }
    }
    group.weights = aligned_copy(packed);
    group.block_weights = aligned_copy(packed_blocks);
    group.pair_weights = aligned_copy(packed_pairs);
    for (int c = first_out; c < first_out + width; ++c) {
      std::uint32_t sum = 0;
      for (int tap = 0; tap < taps; ++tap) {
        for (int channel = 0; channel < in_channels; ++channel) {
          sum += static_cast<std::uint32_t>(std::int32_t{weight_at(c, tap, channel)});
        }
      }
      group.own_bias.push_back(from.bias[c]);
      group.bias.push_back(
          static_cast<std::int32_t>(static_cast<std::uint32_t>(from.bias[c]) - 128 * sum));
      group.multiplier.push_back(from.multiplier[c]);
      group.negative_multiplier.push_back(from.negative_multiplier[c]);
      group.residual_multiplier.push_back(from.residual_multiplier ? from.residual_multiplier[c]
                                                                   : 0);
    }
    const auto lanes = static_cast<std::size_t>(group.vectors) * kTrimmedLanes;
    for (auto* values : {&group.bias, &group.own_bias, &group.multiplier,
                         &group.negative_multiplier, &group.residual_multiplier}) {
      values->resize(lanes, 0);
    }
    return group;
  };
  for (int g = 0; g < from.groups; ++g) groups_.push_back(pack(g * out_width_, out_width_));
  // As many groups as fill a vector.
  const int together = std::min(from.groups, kTrimmedLanes / out_width_);
  if (together < 2) return;
  for (int g = 0; g < from.groups; g += together) {
    merged_.push_back(pack(g * out_width_, std::min(together, from.groups - g) * out_width_));
  }
  // By what AVX-512 does: other kernels take inputs, twice as many as pairs.
  const auto cost = [](const std::vector<Group>& groups) {
    std::size_t sum = 0;
    for (const Group& group : groups) {
      sum += (group.width > 1 ? group.pairs : group.blocks).size() + kOutputCost;
    }
    return sum;
  };
  if (cost(merged_) >= cost(groups_)) merged_.clear();
}

TrimmedConv::Places TrimmedConv::places(const Group& group, std::int64_t row_pitch,
                                        std::int64_t column_pitch) const {
  const std::int64_t bytes = trimmed_pixel_bytes(groups() * in_width_);
  const auto offsets = [&](const std::vector<Input>& inputs) {
    std::vector<std::int64_t> result;
    for (const Input& in : inputs) {
      result.push_back((in.row * row_pitch + in.column * column_pitch) * bytes + in.byte);
    }
    return result;
  };
  return {offsets(group.inputs), offsets(group.blocks), offsets(group.pairs)};
}

TrimmedConv::Places TrimmedConv::places(int group, std::int64_t row_pitch,
                                        std::int64_t column_pitch) const {
  return places(groups_[static_cast<std::size_t>(group)], row_pitch, column_pitch);
}

TrimmedLayer TrimmedConv::layer(int group, const Places& places, std::uint8_t flip,
                                std::uint8_t residual_flip) const {
  return layer(groups_[static_cast<std::size_t>(group)], places, flip, residual_flip);
}

TrimmedLayer TrimmedConv::layer(const Group& group, const Places& places, std::uint8_t flip,
                                std::uint8_t residual_flip) const {
  return {group.width,
          group.vectors,
          static_cast<int>(places.inputs.size()),
          places.inputs.data(),
          reinterpret_cast<const std::int8_t*>(group.weights.data()),
          static_cast<int>(places.blocks.size()),
          places.blocks.data(),
          reinterpret_cast<const std::int8_t*>(group.block_weights.data()),
          static_cast<int>(places.pairs.size()),
          places.pairs.data(),
          reinterpret_cast<const std::int8_t*>(group.pair_weights.data()),
          group.bias.data(),
          group.multiplier.data(),
          group.negative_multiplier.data(),
          group.residual_multiplier.data(),
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
  const auto to_frame = [](std::int8_t value) { return static_cast<std::uint8_t>(value ^ -128); };
  // Row `row` of picture `picture` in a frame.
  const auto copy_row = [&](std::int64_t picture, std::int64_t row, std::uint8_t* to) {
    if (row < 0 || row >= height) {
      std::memset(to, 128, static_cast<std::size_t>(pitch * pixel));
      return;
    }
    std::memset(to, 128, static_cast<std::size_t>(pad_columns * pixel));
    to += pad_columns * pixel;
    const std::int8_t* from = x + (picture * height + row) * width * in_channels;
    if (pixel == in_channels) {
      std::transform(from, from + width * pixel, to, to_frame);
      to += width * pixel;
    } else {
      for (std::int64_t column = 0; column < width; ++column, to += pixel, from += in_channels) {
        std::transform(from, from + in_channels, to, to_frame);
      }
    }
    std::memset(to, 128, static_cast<std::size_t>(pad_columns * pixel));
  };

  // Bands of rows whose frame stays in the cache, at least two for each thread.
  const std::int64_t cached = kBandBytes / (pitch * pixel) - 2 * pad_rows;
  const std::int64_t shared = (batch * height + 2 * threads - 1) / (2 * threads);
  const std::int64_t band = std::clamp<std::int64_t>(std::min(cached, shared), 1, height);
  const std::int64_t bands = (height + band - 1) / band;

  const TrimmedKernel kernel = trimmed_kernel(simd_level());
  const std::vector<Group>& parts = merged_.empty() ? groups_ : merged_;
  std::vector<Places> of_part;
  for (const Group& part : parts) of_part.push_back(places(part, pitch, 1));
  parallel_for(batch * bands, threads, [&](std::int64_t item) {
    const std::int64_t picture = item / bands;
    const std::int64_t first_row = item % bands * band;
    const std::int64_t rows = std::min(band, height - first_row);
    AlignedBuffer frame(
        static_cast<std::size_t>((rows + 2 * pad_rows) * pitch * pixel + kTrimmedSlack));
    for (std::int64_t row = 0; row < rows + 2 * pad_rows; ++row) {
      copy_row(picture, first_row + row - pad_rows, frame.data() + row * pitch * pixel);
    }
    std::int64_t channel = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {  // whose weights stay in the cache too
      const TrimmedLayer part = layer(parts[i], of_part[i], 0, 0);
      for (std::int64_t row = 0; row < rows; ++row) {
        const std::uint8_t* window =
            frame.data() + ((row + pad_rows) * pitch + pad_columns) * pixel;
        const std::int64_t first =
            (picture * height + first_row + row) * width * out_channels + channel;
        const auto* residuals =
            residual ? reinterpret_cast<const std::uint8_t*>(residual) + first : nullptr;
        kernel(part, {width, window, pixel, residuals, out_channels, out + first, out_channels});
      }
      channel += part.width;
    }
  });
}

}  // namespace pycodec
