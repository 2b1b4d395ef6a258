#include "cpu/quadtree_stage.hpp"

#include <algorithm>
#include <cstdlib>

#include "cpu/parallel.hpp"

namespace pycodec {
namespace {

// Latents are kept inside +-2^24, so that no later product or sum can overflow, whatever a damaged
// stream or an untrained network brings.
constexpr std::int64_t kLatentLimit = std::int64_t{1} << 24;
constexpr int kScaleUnitsLog2 = 4;  // one scale level is 16 units of the network's log2 scale
constexpr int kRoundingOne = 256;

// Calls body(position, first channel of the stage's group there) for every position.
template <class Body>
void for_each_position(const QuadtreeStage& stage, int threads, const Body& body) {
  parallel_for(stage.height, threads, [&](std::int64_t row) {
    const int h = static_cast<int>(row);
    for (int w = 0; w < stage.width; ++w) {
      body(row * stage.width + w, stage.first_channel(h, w));
    }
  });
}

}  // namespace

void stage_parameters(const QuadtreeStage& stage, const std::int32_t* head,
                      const std::int32_t* log2_step, int log2_scale_min, int levels,
                      std::int32_t* mean, std::uint8_t* index, int threads) {
  const int group = stage.group_channels();
  const std::int64_t bias = -std::int64_t{log2_scale_min} + (1 << (kScaleUnitsLog2 - 1));
  for_each_position(stage, threads, [&](std::int64_t position, int first) {
    const std::int32_t* means = head + position * 2 * stage.channels + first;
    const std::int32_t* scales = means + stage.channels;
    std::int32_t* mean_out = mean + position * group;
    std::uint8_t* index_out = index + position * group;
    for (int c = 0; c < group; ++c) {
      const std::int64_t relative = std::int64_t{scales[c]} - log2_step[first + c];
      const std::int64_t level = (relative + bias) >> kScaleUnitsLog2;
      mean_out[c] = static_cast<std::int32_t>(
          std::clamp<std::int64_t>(means[c], -kLatentLimit, kLatentLimit));
      index_out[c] =
          static_cast<std::uint8_t>(std::clamp<std::int64_t>(level, 0, std::int64_t{levels} - 1));
    }
  });
}

void quantize_residuals(const QuadtreeStage& stage, const std::int32_t* latents,
                        const std::int32_t* mean, const std::uint8_t* index,
                        const std::int32_t* step, const std::int32_t* rounding,
                        std::int32_t* symbols, int threads) {
  const int group = stage.group_channels();
  for_each_position(stage, threads, [&](std::int64_t position, int first) {
    const std::int32_t* latent = latents + position * stage.channels + first;
    for (int c = 0; c < group; ++c) {
      const std::int64_t i = position * group + c;
      const std::int64_t difference = std::int64_t{latent[c]} - mean[i];
      const std::int64_t size = std::int64_t{step[first + c]};
      const std::int64_t numerator =
          kRoundingOne * std::abs(difference) + rounding[index[i]] * size;
      const auto magnitude =
          static_cast<std::int32_t>(rounding[index[i]] < 0 ? 0 : numerator / (kRoundingOne * size));
      symbols[i] = difference < 0 ? -magnitude : magnitude;
    }
  });
}

void reconstruct_stage(const QuadtreeStage& stage, const std::int32_t* symbols,
                       const std::int32_t* mean, const std::int32_t* step,
                       const std::int32_t* multiplier, int shift, std::int32_t* latents,
                       std::int8_t* context, int threads) {
  const int group = stage.group_channels();
  const std::int64_t half = std::int64_t{1} << (shift - 1);
  for_each_position(stage, threads, [&](std::int64_t position, int first) {
    std::int32_t* latent = latents + position * stage.channels + first;
    std::int8_t* seen = context + position * stage.channels + first;
    for (int c = 0; c < group; ++c) {
      const std::int64_t i = position * group + c;
      const std::int64_t value = std::clamp(mean[i] + std::int64_t{symbols[i]} * step[first + c],
                                            -kLatentLimit, kLatentLimit);
      latent[c] = static_cast<std::int32_t>(value);
      const std::int64_t scaled = (value * multiplier[first + c] + half) >> shift;
      seen[c] = static_cast<std::int8_t>(std::clamp<std::int64_t>(scaled, -127, 127));
    }
  });
}

}  // namespace pycodec
