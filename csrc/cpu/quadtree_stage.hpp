// The integer steps between a stage's network and the entropy coder, for the quadtree order.
// The definition, with shapes and units, is pycodec/ops/quadtree_stage.py.
#pragma once

#include <cstdint>

namespace pycodec {

// A stage of the quadtree order over a grid of latents [height, width, channels]: at every position
// it holds one of four equal groups of channels, chosen by the position's parity.
struct QuadtreeStage {
  int height, width, channels;
  int parity_xor;  // group = (2 (h mod 2) + (w mod 2)) ^ parity_xor

  int group_channels() const { return channels / 4; }
  int first_channel(int h, int w) const {
    return ((2 * (h & 1) + (w & 1)) ^ parity_xor) * group_channels();
  }
};

void stage_parameters(const QuadtreeStage& stage, const std::int32_t* head,
                      const std::int32_t* log2_step, int log2_scale_min, int levels,
                      std::int32_t* mean, std::uint8_t* index, int threads);

void quantize_residuals(const QuadtreeStage& stage, const std::int32_t* latents,
                        const std::int32_t* mean, const std::uint8_t* index,
                        const std::int32_t* step, const std::int32_t* rounding,
                        std::int32_t* symbols, int threads);

void reconstruct_stage(const QuadtreeStage& stage, const std::int32_t* symbols,
                       const std::int32_t* mean, const std::int32_t* step,
                       const std::int32_t* multiplier, int shift, std::int32_t* latents,
                       std::int8_t* context, int threads);

}  // namespace pycodec
