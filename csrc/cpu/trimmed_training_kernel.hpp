// What the variants of the bfloat16 convolution compute; see simd_level.hpp about such files.
#pragma once

#include <cstdint>

namespace pycodec {

// Blocks of 32 channels: two halves of 16, each a tile or a register of sums wide.
constexpr int kBlock = 32;
constexpr int kQuarter = kBlock / 4;

// What a window's position and Bfloat16Products::inputs channels of it add to a block of outputs.
struct Bfloat16Entry {
  std::int64_t offset;           // bytes from the window's first position to the inputs
  const std::uint16_t* weights;  // [input pair][outputs 32][2]
};

// A block of outputs. Entries that both halves need come first, then those of the first half only,
// then those of the second.
struct Bfloat16Block {
  const Bfloat16Entry* entries;
  int both, first, second;
  const float* bias;
};

struct Bfloat16Products {
  // Sums of a row: `columns` positions, those past a multiple of 32 being read but not written.
  // x: bytes of the first window; `stride`: bytes between positions; out: [columns][out_stride].
  void (*convolve)(const Bfloat16Block& block, const std::uint8_t* x, std::int64_t stride,
                   int columns, std::uint16_t* out, std::int64_t out_stride);

  // Adds products over rows x steps x 32 positions to sums, [input half][output half][16][16].
  // `seen` has a bit for each [input quarter][output half] that is wanted; what else is added is
  // anything. x: [row][..][channel 32][position], with x_row bytes between rows and x_channel bytes
  // between channels; grad: [row][..][position pair][output 32][2], with grad_row bytes between
  // rows.
  void (*correlate)(const std::uint8_t* x, std::int64_t x_row, std::int64_t x_channel,
                    const std::uint8_t* grad, std::int64_t grad_row, int rows, int steps,
                    unsigned seen, float* sums);

  int inputs;  // channels of an entry: the steps in which convolve can leave out what is trimmed
};

// What takes one pass over the memory.
struct Bfloat16Passes {
  // [positions][stride] to [channel 32][to_stride], where positions is a multiple of 32.
  void (*transpose)(const std::uint16_t* from, std::int64_t stride, int positions,
                    std::uint16_t* to, std::int64_t to_stride);

  // [positions][stride] to [position pair][channel 32][2], adding each channel's sum to `sums`.
  // `positions` may be anything; what is missing of a multiple of 32 becomes zeros.
  void (*interleave)(const std::uint16_t* from, std::int64_t stride, int positions,
                     std::uint16_t* to, float* sums);

  // bfloat16_prelu_gradients of 32 channels, adding to slope_gradient.
  void (*prelu_gradients)(std::int64_t positions, std::int64_t stride, const std::uint16_t* x,
                          const float* slope, const std::uint16_t* grad, std::uint16_t* x_gradient,
                          float* slope_gradient);

  // bfloat16_fake_quantize of 32 channels.
  void (*fake_quantize)(std::int64_t positions, std::int64_t stride, const std::uint16_t* x,
                        const std::uint16_t* residual, const float* scale, std::uint16_t* out);

  // bfloat16_fake_quantize_gradients of 32 channels, adding to scale_gradient.
  void (*fake_quantize_gradients)(std::int64_t positions, std::int64_t stride,
                                  const std::uint16_t* x, const std::uint16_t* residual,
                                  const float* scale, const std::uint16_t* grad,
                                  std::uint16_t* x_gradient, float* scale_gradient);
};

#if defined(__x86_64__)
extern const Bfloat16Products kBfloat16ProductsAvx512, kBfloat16ProductsAmx;
extern const Bfloat16Passes kBfloat16PassesAvx512;
#endif

}  // namespace pycodec
