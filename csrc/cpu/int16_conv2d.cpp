#include "cpu/int16_conv2d.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "cpu/parallel.hpp"
#include "cpu/simd_level.hpp"

namespace pycodec {
namespace {

// Positions in a unit of work: few enough for their windows to stay in the second-level cache while
// all chunks look at them, many enough for a chunk's weights to be worth fetching.
constexpr std::int64_t kTilePositions = 48;

Int16Kernel kernel_for(SimdLevel level) {
  switch (level) {
#if defined(__x86_64__)
    case SimdLevel::kAmx:
    case SimdLevel::kAvx512Vnni:
      return run_int16_avx512vnni;
    case SimdLevel::kAvx2:
      return run_int16_avx2;
#endif
    default:
      return run_int16_scalar;
  }
}

const Int16ConvParameters& checked(const Int16ConvParameters& p) {
  if (p.out_channels < 1 || p.in_channels < 1) {
    throw std::invalid_argument("a convolution needs at least one input and one output channel");
  }
  if (p.kernel_height % 2 != 1 || p.kernel_width % 2 != 1) {
    throw std::invalid_argument("the kernel's height and width must be odd");
  }
  if (p.shift < 1 || p.shift > 62) throw std::invalid_argument("the shift must be in 1..62");
  if (p.limit < 0) throw std::invalid_argument("the limit must not be negative");
  return p;
}

}  // namespace

Int16Conv2d::Int16Conv2d(const Int16ConvParameters& p)
    : out_channels_(checked(p).out_channels),
      kernel_height_(p.kernel_height),
      kernel_width_(p.kernel_width),
      in_channels_(p.in_channels),
      pairs_((p.in_channels + 1) / 2),
      shift_(p.shift),
      limit_(p.limit),
      bias_(p.bias, p.bias + p.out_channels),
      multiplier_(p.multiplier, p.multiplier + p.out_channels),
      negative_multiplier_(p.negative_multiplier, p.negative_multiplier + p.out_channels) {
  const int vectors = (out_channels_ + kInt16Lanes - 1) / kInt16Lanes;
  const int taps = kernel_height_ * kernel_width_;
  for (auto* values : {&bias_, &multiplier_, &negative_multiplier_}) {
    values->resize(static_cast<std::size_t>(vectors) * kInt16Lanes, 0);
  }
  const auto weight = [&](int out, int tap, int in) {
    const bool inside = out < out_channels_ && in < in_channels_;
    return inside ? p.weight[(std::int64_t{out} * taps + tap) * in_channels_ + in]
                  : std::int16_t{0};
  };
  const int num_chunks = (vectors + kInt16MaxVectors - 1) / kInt16MaxVectors;
  for (int number = 0; number < num_chunks; ++number) {
    Chunk chunk = {vectors * number / num_chunks, 0, {}, weights_.size()};
    chunk.vectors = vectors * (number + 1) / num_chunks - chunk.first_vector;
    const int first_out = chunk.first_vector * kInt16Lanes;
    const int end_out = first_out + chunk.vectors * kInt16Lanes;
    for (int tap = 0; tap < taps; ++tap) {
      bool seen = false;
      for (int out = first_out; out < std::min(end_out, out_channels_) && !seen; ++out) {
        const std::int16_t* begin = p.weight + (std::int64_t{out} * taps + tap) * in_channels_;
        seen = std::any_of(begin, begin + in_channels_, [](std::int16_t w) { return w != 0; });
      }
      if (!seen) continue;
      chunk.taps.push_back(tap);
      for (int pair = 0; pair < pairs_; ++pair) {
        for (int out = first_out; out < end_out; ++out) {
          weights_.push_back(weight(out, tap, 2 * pair));
          weights_.push_back(weight(out, tap, 2 * pair + 1));
        }
      }
    }
    chunks_.push_back(std::move(chunk));
  }
}

std::vector<std::pair<int, int>> Int16Conv2d::taps() const {
  std::vector<bool> seen(static_cast<std::size_t>(kernel_height_ * kernel_width_), false);
  for (const Chunk& chunk : chunks_) {
    for (const int tap : chunk.taps) seen[static_cast<std::size_t>(tap)] = true;
  }
  std::vector<std::pair<int, int>> result;
  for (int tap = 0; tap < kernel_height_ * kernel_width_; ++tap) {
    if (!seen[static_cast<std::size_t>(tap)]) continue;
    result.emplace_back(tap / kernel_width_ - kernel_height_ / 2,
                        tap % kernel_width_ - kernel_width_ / 2);
  }
  return result;
}

std::vector<std::vector<std::int64_t>> Int16Conv2d::tap_offsets(std::int64_t pitch) const {
  std::vector<std::vector<std::int64_t>> result;
  for (const Chunk& chunk : chunks_) {
    std::vector<std::int64_t> offsets;
    for (const int tap : chunk.taps) {
      const std::int64_t down = tap / kernel_width_ - kernel_height_ / 2;
      const std::int64_t right = tap % kernel_width_ - kernel_width_ / 2;
      offsets.push_back(down * pitch + right * padded_in_channels());
    }
    result.push_back(std::move(offsets));
  }
  return result;
}

void Int16Conv2d::run_chunk(int number, const std::vector<std::int64_t>& tap_offsets,
                            const std::int16_t* const* x, std::int64_t positions, void* out,
                            std::int64_t out_step, bool out_is_int32) const {
  const Chunk& chunk = chunks_[static_cast<std::size_t>(number)];
  const int first = chunk.first_vector * kInt16Lanes;
  const Int16Chunk of_kernel = {chunk.vectors,
                                std::min(out_channels_ - first, chunk.vectors * kInt16Lanes),
                                weights_.data() + chunk.first_weight,
                                tap_offsets.data(),
                                static_cast<int>(tap_offsets.size()),
                                pairs_,
                                bias_.data() + first,
                                multiplier_.data() + first,
                                negative_multiplier_.data() + first,
                                shift_,
                                limit_};
  const Int16Kernel kernel = kernel_for(simd_level());
  const std::int64_t value_bytes = out_is_int32 ? 4 : 2;
  // Tiles of even size: what is cut short costs nearly as much as a full one.
  const std::int64_t tiles = (positions + kInt16MaxPositions - 1) / kInt16MaxPositions;
  for (std::int64_t t = 0; t < tiles; ++t) {
    const std::int64_t begin = positions * t / tiles;
    const std::int64_t end = positions * (t + 1) / tiles;
    auto* tile_out = static_cast<std::uint8_t*>(out) + (begin * out_step + first) * value_bytes;
    kernel(of_kernel, {x + begin, static_cast<int>(end - begin), tile_out, out_step, out_is_int32});
  }
}

void Int16Conv2d::run(const std::int16_t* x, std::int64_t batch, std::int64_t height,
                      std::int64_t width, void* out, bool out_is_int32, int threads) const {
  const std::int64_t top = kernel_height_ / 2;
  const std::int64_t left = kernel_width_ / 2;
  const std::int64_t channels = padded_in_channels();
  const std::int64_t pitch = (width + 2 * left) * channels;
  const std::int64_t frame_height = height + 2 * top;
  AlignedBuffer buffer(static_cast<std::size_t>(batch * frame_height * pitch) * 2);
  auto* frame = reinterpret_cast<std::int16_t*>(buffer.data());
  parallel_for(batch * frame_height, threads, [&](std::int64_t r) {
    const std::int64_t row = r % frame_height - top;
    std::int16_t* to = frame + r * pitch;
    std::fill(to, to + pitch, std::int16_t{0});
    if (row < 0 || row >= height) return;
    const std::int16_t* from = x + (r / frame_height * height + row) * width * in_channels_;
    to += left * channels;
    for (std::int64_t column = 0; column < width; ++column) {
      std::memcpy(to + column * channels, from + column * in_channels_,
                  static_cast<std::size_t>(in_channels_) * 2);
    }
  });
  const std::vector<std::vector<std::int64_t>> offsets = tap_offsets(pitch);
  const std::int64_t positions = batch * height * width;
  const std::int64_t value_bytes = out_is_int32 ? 4 : 2;
  parallel_for((positions + kTilePositions - 1) / kTilePositions, threads, [&](std::int64_t t) {
    const std::int64_t first = t * kTilePositions;
    const std::int64_t count = std::min(kTilePositions, positions - first);
    const std::int16_t* at[kTilePositions];
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t p = first + i;
      const std::int64_t row = p / (width * height) * frame_height + p / width % height + top;
      at[i] = frame + row * pitch + (p % width + left) * channels;
    }
    auto* tile_out = static_cast<std::uint8_t*>(out) + first * out_channels_ * value_bytes;
    for (int number = 0; number < num_chunks(); ++number) {
      run_chunk(number, offsets[static_cast<std::size_t>(number)], at, count, tile_out,
                out_channels_, out_is_int32);
    }
  });
}

}  // namespace pycodec
