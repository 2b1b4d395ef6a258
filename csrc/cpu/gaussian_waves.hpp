// Latents under Gaussians whose means and scales an autoregressive network predicts, coded wave by
// wave. pycodec/context/gaussian_waves.py is the definition.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/int16_conv2d.hpp"
#include "rans/decoder.hpp"

namespace pycodec {

struct GaussianWavesParameters {
  Int16ConvParameters context;             // of decoded latents
  std::vector<Int16ConvParameters> heads;  // pointwise; the last gives scales, then means
  int side_channels;                       // the first of what the first head sees
  int context_shift;                       // from latents to what `context` sees
  std::int32_t context_limit;
  int fraction_bits;                     // of latents and means
  std::vector<std::int32_t> thresholds;  // a scale's table is the number of those below it
  std::int64_t row_step;                 // position (h, w) is in wave row_step * h + w
};

class GaussianWaves {
 public:
  // Throws std::invalid_argument where layers do not fit together or see what is not decoded yet.
  explicit GaussianWaves(const GaussianWavesParameters& parameters);

  int channels() const { return context_.in_channels(); }
  int side_channels() const { return side_channels_; }

  // latents: int32 [height][width][channels]; side: int16 [height][width][side_channels]. Writes
  // symbols and table indexes in the order of coding, and the latents as they will be decoded.
  void encode(const std::int32_t* latents, const std::int16_t* side, std::int64_t height,
              std::int64_t width, std::int32_t* symbols, std::uint8_t* indexes,
              std::int32_t* decoded, int threads) const;

  // Throws what the decoder throws.
  void decode(rans::Decoder& decoder, const std::int16_t* side, std::int64_t height,
              std::int64_t width, std::int32_t* decoded, int threads) const;

 private:
  // Called for each wave: positions (row * width + column), table indexes, means, and where to put
  // the symbols; the first three of `count` positions, channels innermost.
  struct Wave {
    const std::int64_t* positions;
    std::int64_t count;
    const std::uint8_t* indexes;
    const std::int32_t* parameters;  // [count][2 * channels]: scales, means
    std::int32_t* symbols;
  };
  using Settle = std::function<void(const Wave&)>;

  void run(const Settle& settle, const std::int16_t* side, std::int64_t height, std::int64_t width,
           std::int32_t* decoded, int threads) const;
  void record_wave(std::int64_t number, std::int64_t count, std::int64_t began) const;
  std::uint8_t table_of(std::int32_t scale) const;

  Int16Conv2d context_;
  std::vector<Int16Conv2d> heads_;
  int side_channels_, context_shift_;
  std::int32_t context_limit_;
  int fraction_bits_;
  std::vector<std::int32_t> thresholds_;  // padded to a power of two, less one, by the largest int
  std::int64_t row_step_;
};

}  // namespace pycodec
