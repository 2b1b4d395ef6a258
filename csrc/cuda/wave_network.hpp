// The wave engine on a GPU: decodes an integer context network wave by wave, with the rANS decoder
// on the device. docs/waves.md explains waves, pycodec/context/wave_network.py defines the network,
// pycodec/context/wave_network_cuda.py prepares the arguments.
#pragma once

#include <cstdint>

#include "cuda/int8.hpp"
#include "rans/device.hpp"

namespace pycodec::cuda {

// Output channels that a warp computes at once, and positions.
constexpr int kWaveChannels = 8;
constexpr int kWavePositions = 4;
// What a group sees comes in so many words of four channels: two for each of the threads that share
// a position.
constexpr int kWaveWords = 16;

// All pointers are to device memory. Python writes these structs as rows of int64, so every member
// has 8 bytes.
//
// A frame is a tensor, int8, channels last, a pixel of a multiple of four bytes, with a border of
// zeros as wide as the largest kernel asks for. Pointers are to the pixel at (0, 0) within it.
struct WaveCudaLayer {
  const std::int8_t* input;
  const std::int8_t* residual;  // or null
  std::int8_t* output;          // null for the last layer, which makes the table indexes
  std::int64_t input_bytes, residual_bytes, output_bytes;  // of a pixel
  // What output group g sees: words (four input channels at a tap) word_begin[g] to
  // word_begin[g + 1] - 1, and how many bytes from the position's own pixel each is. Words without
  // weights make their number a multiple of kWaveWords.
  const std::int64_t* word_begin;  // [groups + 1]
  const std::int32_t* offsets;
  // [group][chunk of kWaveChannels][word of the group / 8][half of the chunk][word %
  // 8][channel][4], so that what eight threads load at once is in one piece; 16-byte aligned
  const std::int8_t* weights;
  const std::int32_t* bias;  // [groups][out_width], and the next three likewise
  const std::int32_t* multiplier;
  const std::int32_t* negative_multiplier;
  const std::int32_t* residual_multiplier;  // or null, where there is no residual
  // [phase_height][phase_width]: 0 where (row, column), modulo these, sees nothing; or null.
  const std::uint8_t* active;
  std::int64_t out_width, shift, lower, upper;
};

struct alignas(16) WaveWeights {
  std::uint32_t words[4];
};

// What a WaveCudaLayer has for one group. The block's own memory holds these structs, then the
// stages' numbers, for each layer weights, offsets, bias and the multipliers, each from a
// multiple of 16 bytes on, and at the end the tables, if they are of two values each.
struct alignas(16) WaveGroupLayer {
  const std::int8_t* input;
  const std::int8_t* residual;  // this, the output and all below are those of the group's channels
  std::int8_t* output;
  const std::uint8_t* active;
  const std::int32_t* offsets;
  const WaveWeights* weights;
  const std::int32_t* bias;
  const std::int32_t* multiplier;
  const std::int32_t* negative_multiplier;
  const std::int32_t* residual_multiplier;
  std::int64_t input_bytes, residual_bytes, output_bytes;
  std::int32_t words, out_width;
  Requantization requantization;
};

static_assert(sizeof(WaveGroupLayer) == 128);  // pycodec/context/wave_network_cuda.py knows it

PYCODEC_HOST_DEVICE constexpr int wave_chunks(int out_width) {
  return (out_width + kWaveChannels - 1) / kWaveChannels;
}

PYCODEC_HOST_DEVICE constexpr std::int64_t wave_staged_bytes(std::int64_t bytes) {
  return (bytes + 15) / 16 * 16;
}

// The symbols lie in the order of coding: wave by wave (empty ones left out), in a wave group by
// group. A place is group << 54 | row << 27 | column.
constexpr int kWaveSideBits = 27;

// What a decoder is between two launches; zeros at the start.
struct WaveCudaState {
  std::uint64_t failure;  // rans::failure_report(), 0 so far
  std::int64_t wave;      // where it failed; the next one, for launches wave by wave
  std::uint64_t stopped;  // 1 after a failure
};

struct WaveDecodeArguments {
  rans::DeviceTables tables;
  const std::uint8_t* body;  // states and words of the stream, at an even address
  std::uint64_t body_size;
  int lanes;
  bool check_indexes;  // there may be indexes without a table
  bool stages_tables;  // where the weights are in the blocks' memory: the tables too, of two values
  const WaveCudaLayer* layers;
  // Stage s has layers stages[s] to stages[s + 1] - 1, which need of each other only what is at the
  // same place and in the same group; those of a stage of several are at most kWaveChannels wide.
  const std::int32_t* stages;  // [num_stages + 1]
  int num_stages;
  int groups;
  const std::uint64_t* places;    // [groups * height * width]
  const std::int64_t* begin;      // [num_waves * groups + 1]: the first place of group g of wave t
  std::int64_t pitch, num_waves;  // pitch: pixels of a row of a frame
  std::int64_t phase_height, phase_width;  // of WaveCudaLayer::active
  std::int8_t* symbol_frame;               // tensor 0, at its pixel (0, 0)
  std::int64_t symbol_bytes;
  std::int32_t* symbols;      // [groups * height * width], in the order of coding
  std::uint8_t* indexes;      // [longest wave], in the order of coding
  std::uint32_t* checkpoint;  // [lanes + 2], for launches wave by wave
  WaveCudaState* state;
};

// How many blocks of `threads` threads (a multiple of 32) with `staged_bytes` of memory can run at
// once on the current device, at most `blocks_per_multiprocessor` on each of its multiprocessors.
int wave_decode_blocks(int lanes, int threads, int blocks_per_multiprocessor, int staged_bytes);

// Each queues its work on `stream` (a cudaStream_t) of the current device. Throws
// std::runtime_error where a kernel cannot be launched.

// All waves in one kernel, for which it does not wait: a cooperative launch, its blocks meet after
// each stage and each draw. `staged_bytes` hold what WaveGroupLayer says for any one group, if
// there are as many blocks as groups; 0: it is read where it is.
void wave_decode(const WaveDecodeArguments& arguments, int blocks, int threads, int staged_bytes,
                 void* stream);

// The same by a launch a stage and one for the draw, captured once as a CUDA graph of one wave that
// is launched for every wave. Waits for its end.
void wave_decode_graph(const WaveDecodeArguments& arguments, int threads, void* stream);

// `count` meetings of all blocks, with nothing between them: for benchmarks.
void wave_barriers(std::int64_t count, int blocks, int threads, void* stream);

}  // namespace pycodec::cuda
