// The wave engine: runs an integer context network over all symbols at once to encode, and wave by
// wave to decode. docs/waves.md explains it; pycodec/context/wave_network.py defines the network.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/quantized_trimmed_conv2d.hpp"
#include "cpu/spans.hpp"
#include "cpu/wave_frame.hpp"
#include "rans/decoder.hpp"

namespace pycodec {

// A layer as the caller describes it. Tensor 0 holds the symbols, each as the int8 value that it is
// clamped to; then come the side tensors, then the output of each layer but the last, which makes
// the table indexes.
struct WaveLayer {
  int input, residual;  // tensors; residual -1: none
  TrimmedConvParameters conv;
  const std::uint8_t* active;  // as WaveOrder's phase, 0 where the layer sees nothing; or null
};

// Symbols of equal t = group_step * group + row_step * row + column_step * column +
// phase[row % phase_rows][column % phase_columns] are one wave.
struct WaveOrder {
  std::int64_t group_step, row_step, column_step;
  std::int64_t phase_rows, phase_columns;
  std::vector<std::int64_t> phase;
};

class WaveNetwork {
 public:
  using Stage = std::vector<std::size_t>;  // layers

  // side_widths: channels in a group of each side tensor. Throws std::invalid_argument for a
  // network that is none, or that sees what is not decoded yet.
  WaveNetwork(int groups, const std::vector<int>& side_widths, const std::vector<WaveLayer>& layers,
              const WaveOrder& order);
  ~WaveNetwork();

  int groups() const { return groups_; }
  const std::vector<int>& side_widths() const { return side_widths_; }
  // What a wave computes. A stage needs of what it makes itself only what is at the same place and
  // of the same group.
  const std::vector<Stage>& wave_stages() const { return wave_stages_; }
  std::int64_t num_waves(std::int64_t height, std::int64_t width) const;
  // In which `decode` keeps activations; 0 if in whole rows. See wave_frame.hpp.
  std::int64_t lines_in_memory(std::int64_t height, std::int64_t width) const;

  // symbols: int32 [groups][height][width]; side: int8 [groups * side width][height][width] each.
  // Writes the symbols in the order of coding, with the index of the table of each.
  void encode(const std::int32_t* symbols, const std::vector<const std::int8_t*>& side,
              std::int64_t height, std::int64_t width, std::int32_t* ordered_symbols,
              std::uint8_t* indexes, int threads) const;

  // The same in two steps, so that the last layer may be chosen by what it will see.
  class Pass;
  std::unique_ptr<Pass> begin_pass(const std::int32_t* symbols,
                                   const std::vector<const std::int8_t*>& side, std::int64_t height,
                                   std::int64_t width, int threads) const;

  // The opposite. Throws what the decoder throws.
  void decode(rans::Decoder& decoder, const std::vector<const std::int8_t*>& side,
              std::int64_t height, std::int64_t width, std::int32_t* symbols, int threads) const;

 private:
  struct Layer;
  struct LayerView;
  struct Frames;
  struct Run;

  int groups_;
  std::vector<int> side_widths_;
  std::vector<int> pixel_bytes_;       // by tensor
  std::vector<bool> known_ = {false};  // before decoding; by tensor
  std::int64_t padding_ = 0;           // of every frame: the largest radius
  std::vector<Layer> layers_;
  WaveOrder order_;
  std::int64_t last_phase_ = 0;
  // All layers, for a pass over whole rows; the layers known before decoding; and the others. In a
  // pass a stage needs of what it makes itself only what is at the same row and column.
  std::vector<Stage> full_stages_, side_stages_, wave_stages_;

  std::optional<LineWindow> lines(std::int64_t height, std::int64_t width) const;
  std::size_t residue(std::int64_t row, std::int64_t column) const;
  struct Added {
    bool is_known;        // before decoding
    bool sees_elsewhere;  // an activation of its own wave at another place
  };
  Added add_layer(const WaveLayer& from, std::size_t number, bool is_last,
                  std::vector<int>& widths);
  std::vector<int> owners(bool is_pass) const;
  std::size_t runs_of_wave(std::int64_t t, std::int64_t height, std::int64_t width,
                           std::vector<Run>& runs) const;
  void add_periodic_runs(std::int64_t rest, int group, std::int64_t row, std::int64_t width,
                         std::vector<Run>& runs, std::size_t& size) const;
  std::size_t max_runs(std::int64_t height, std::int64_t width) const;
  std::size_t max_wave(std::int64_t height, std::int64_t width) const;
  void run_layer(std::size_t number, const Frames& frames, const std::vector<WaveFrame>& tensors,
                 const Run& run, std::int64_t begin, std::int64_t count, std::uint8_t* indexes,
                 std::int64_t index_step) const;
  void run_stages(const std::vector<Stage>& stages, const Frames& frames, std::uint8_t* indexes,
                  int threads) const;
  void run_share(const Stage& stage, const Frames& frames, const std::vector<Run>& runs, int thread,
                 int team, std::uint8_t* indexes) const;
  void add_work(SpanWork& work, const Stage& stage, int group, std::int64_t positions) const;
  void record_wave(const std::vector<Run>& runs, std::int64_t number, std::int64_t began) const;
  void fill_side(const std::vector<const std::int8_t*>& side, const Frames& frames,
                 int threads) const;
  void fill_symbols(const std::int32_t* symbols, const Frames& frames, int threads) const;
  void put_in_order(const std::int32_t* symbols, const std::uint8_t* raster_indexes,
                    std::int64_t height, std::int64_t width, std::int32_t* ordered_symbols,
                    std::uint8_t* indexes, int threads) const;
};

// All layers but the last have run. Refers to the network.
class WaveNetwork::Pass {
 public:
  Pass(const WaveNetwork& network, std::unique_ptr<Frames> frames);
  ~Pass();

  // Radius of the last layer, and channels of its input.
  std::int64_t radius() const;
  std::int64_t channels() const;

  // What the last layer sees for row `row`, 0 beyond the border:
  // int8 [2 * radius + 1][width + 2 * radius][channels].
  void copy_head_input(std::int64_t row, std::int8_t* out) const;

  // Runs the last layer, that of `head`, a network that differs in its weights alone. Arguments as
  // of WaveNetwork::encode.
  void finish(const WaveNetwork& head, const std::int32_t* symbols, std::int32_t* ordered_symbols,
              std::uint8_t* indexes, int threads) const;

 private:
  const WaveNetwork& network_;
  std::unique_ptr<Frames> frames_;
};

}  // namespace pycodec
