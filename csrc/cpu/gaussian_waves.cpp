#include "cpu/gaussian_waves.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <limits>
#include <stdexcept>
#include <string>

#include "cpu/spans.hpp"
#include "cpu/team.hpp"

namespace pycodec {
namespace {

constexpr std::int64_t kMaxRowStep = 1 << 20;
constexpr std::int64_t kMaxLatent = std::int64_t{1} << 28;
constexpr std::int64_t kMaxSymbol = std::int64_t{1} << 20;

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument("gaussian waves: " + message);
}

}  // namespace

GaussianWaves::GaussianWaves(const GaussianWavesParameters& p)
    : context_(p.context),
      heads_(p.heads.begin(), p.heads.end()),
      side_channels_(p.side_channels),
      context_shift_(p.context_shift),
      context_limit_(p.context_limit),
      fraction_bits_(p.fraction_bits),
      thresholds_(p.thresholds),
      row_step_(p.row_step) {
  require(!heads_.empty(), "there are no heads");
  require(side_channels_ >= 0, "side_channels must not be negative");
  int width = side_channels_ + context_.out_channels();
  for (const Int16Conv2d& head : heads_) {
    require(head.kernel_height() == 1 && head.kernel_width() == 1, "a head is not pointwise");
    require(head.in_channels() == width, "a head expects another number of channels");
    width = head.out_channels();
    const bool is_last = &head == &heads_.back();
    require(is_last || head.limit() <= std::numeric_limits<std::int16_t>::max(),
            "only the last head's results may exceed int16");
  }
  require(width == 2 * channels(), "the last head must give a scale and a mean for each channel");
  require(context_.limit() <= std::numeric_limits<std::int16_t>::max(),
          "the context's results must not exceed int16");
  require(context_shift_ >= 0 && context_shift_ <= 24, "context_shift must be 0 to 24");
  require(context_limit_ >= 0 && context_limit_ <= std::numeric_limits<std::int16_t>::max(),
          "context_limit must be 0 to 32767");
  require(fraction_bits_ >= 1 && fraction_bits_ <= 16, "fraction_bits must be 1 to 16");
  require(row_step_ >= 1 && row_step_ <= kMaxRowStep, "row_step is out of range");
  for (const auto& [down, right] : context_.taps()) {
    require(row_step_ * down + right < 0, "the context sees what is not decoded yet");
  }
  require(thresholds_.size() <= 255, "there must be at most 255 thresholds");
  require(std::is_sorted(thresholds_.begin(), thresholds_.end()), "thresholds must increase");
  std::size_t size = 1;
  while (size - 1 < thresholds_.size()) size *= 2;
  thresholds_.resize(size - 1, std::numeric_limits<std::int32_t>::max());
}

std::uint8_t GaussianWaves::table_of(std::int32_t scale) const {
  std::size_t below = 0;
  for (std::size_t step = (thresholds_.size() + 1) / 2; step > 0; step /= 2) {
    below += thresholds_[below + step - 1] < scale ? step : 0;
  }
  return static_cast<std::uint8_t>(below);
}

void GaussianWaves::run(const Settle& settle, const std::int16_t* side, std::int64_t height,
                        std::int64_t width, std::int32_t* decoded, int threads) const {
  if (height == 0 || width == 0) return;
  const int channels = context_.in_channels();
  const std::int64_t top = context_.kernel_height() / 2;
  const std::int64_t left = context_.kernel_width() / 2;
  const std::int64_t pixel = context_.padded_in_channels();
  const std::int64_t pitch = (width + 2 * left) * pixel;
  std::vector<std::int16_t> frame(static_cast<std::size_t>((height + 2 * top) * pitch), 0);
  const auto frame_at = [&](std::int64_t row, std::int64_t column) {
    return frame.data() + (row + top) * pitch + (column + left) * pixel;
  };
  const auto context_taps = context_.tap_offsets(pitch);
  const std::vector<std::int64_t> here = {0};
  const std::int64_t largest = std::min(height, (width + row_step_ - 1) / row_step_);
  const auto largest_size = static_cast<std::size_t>(largest);

  // What each head sees, position by position; zeros where channels were filled up to pairs.
  std::vector<std::vector<std::int16_t>> inputs;
  std::vector<std::vector<const std::int16_t*>> input_rows;
  for (const Int16Conv2d& head : heads_) {
    const auto step = static_cast<std::size_t>(head.padded_in_channels());
    inputs.emplace_back(largest_size * step, std::int16_t{0});
    input_rows.emplace_back();
    for (std::size_t i = 0; i < largest_size; ++i) {
      input_rows.back().push_back(inputs.back().data() + i * step);
    }
  }
  std::vector<std::int32_t> parameters(largest_size * 2 * static_cast<std::size_t>(channels));
  std::vector<std::uint8_t> indexes(largest_size * static_cast<std::size_t>(channels));
  std::vector<std::int32_t> symbols(indexes.size());

  const std::int64_t waves = row_step_ * (height - 1) + width;
  std::exception_ptr error;
  std::atomic<bool> stopped{false};

  // Chunks of output channels are shared among the threads: each keeps its weights in its cache.
  run_team(threads, [&](int thread, int team, Barrier& barrier) {
    const auto share = [&](int chunks, int number) { return chunks * number / team; };
    std::vector<std::int64_t> positions(largest_size);
    std::vector<const std::int16_t*> windows(largest_size);
    for (std::int64_t t = 0; t < waves; ++t) {
      const std::int64_t beyond = t - (width - 1);
      const std::int64_t first_row = beyond > 0 ? (beyond + row_step_ - 1) / row_step_ : 0;
      const std::int64_t count = std::min(height - 1, t / row_step_) - first_row + 1;
      if (count <= 0) continue;
      const bool is_recorded = thread == 0 && SpanRecorder::is_on();
      const std::int64_t began = is_recorded ? SpanRecorder::now() : 0;
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t row = first_row + i;
        const std::int64_t column = t - row_step_ * row;
        positions[static_cast<std::size_t>(i)] = row * width + column;
        windows[static_cast<std::size_t>(i)] = frame_at(row, column);
      }
      const std::int64_t first_step = heads_[0].padded_in_channels();
      for (std::int64_t i = count * thread / team; i < count * (thread + 1) / team; ++i) {
        std::memcpy(inputs[0].data() + i * first_step,
                    side + positions[static_cast<std::size_t>(i)] * side_channels_,
                    static_cast<std::size_t>(side_channels_) * 2);
      }
      for (int c = share(context_.num_chunks(), thread);
           c < share(context_.num_chunks(), thread + 1); ++c) {
        context_.run_chunk(c, context_taps[static_cast<std::size_t>(c)], windows.data(), count,
                           inputs[0].data() + side_channels_, first_step, false);
      }
      barrier.wait();
      for (std::size_t h = 0; h < heads_.size(); ++h) {
        const Int16Conv2d& head = heads_[h];
        const bool is_last = h + 1 == heads_.size();
        const int begin = share(head.num_chunks(), thread);
        const int end = share(head.num_chunks(), thread + 1);
        void* out = is_last ? static_cast<void*>(parameters.data()) : inputs[h + 1].data();
        const std::int64_t out_step = is_last ? 2 * channels : heads_[h + 1].padded_in_channels();
        for (int c = begin; c < end; ++c) {
          head.run_chunk(c, here, input_rows[h].data(), count, out, out_step, is_last);
        }
        if (is_last && begin < end) {
          const int first = head.first_channel(begin);
          const int last = end < head.num_chunks() ? head.first_channel(end) : 2 * channels;
          for (std::int64_t i = 0; i < count; ++i) {
            for (int c = first; c < std::min(last, channels); ++c) {
              indexes[static_cast<std::size_t>(i * channels + c)] =
                  table_of(parameters[static_cast<std::size_t>(i * 2 * channels + c)]);
            }
          }
        }
        barrier.wait();
      }
      if (thread == 0) {
        try {
          settle({positions.data(), count, indexes.data(), parameters.data(), symbols.data()});
        } catch (...) {
          error = std::current_exception();
          stopped.store(true, std::memory_order_relaxed);
        }
        const std::int64_t half = (std::int64_t{1} << context_shift_) >> 1;
        for (std::int64_t i = 0; i < count && !error; ++i) {
          const std::int32_t* mean = parameters.data() + (2 * i + 1) * channels;
          const std::int32_t* symbol = symbols.data() + i * channels;
          std::int32_t* to = decoded + positions[static_cast<std::size_t>(i)] * channels;
          std::int16_t* seen = frame.data() + (windows[static_cast<std::size_t>(i)] - frame.data());
          for (int c = 0; c < channels; ++c) {
            const std::int64_t value = std::clamp(
                symbol[c] * (std::int64_t{1} << fraction_bits_) + mean[c], -kMaxLatent, kMaxLatent);
            to[c] = static_cast<std::int32_t>(value);
            seen[c] = static_cast<std::int16_t>(std::clamp((value + half) >> context_shift_,
                                                           -std::int64_t{context_limit_},
                                                           std::int64_t{context_limit_}));
          }
        }
      }
      barrier.wait();
      if (stopped.load(std::memory_order_relaxed)) return;
      if (is_recorded) record_wave(t, count, began);
    }
  });
  if (error) std::rethrow_exception(error);
}

void GaussianWaves::record_wave(std::int64_t number, std::int64_t count, std::int64_t began) const {
  std::int64_t products = context_.products();
  for (const Int16Conv2d& head : heads_) products += head.products();
  // Latents, what the first head sees of the side, and of each latent a scale and a mean.
  const std::int64_t bytes = 2 * side_channels_ + 12 * std::int64_t{context_.in_channels()};
  SpanRecorder::add(
      {"wave",
       began,
       SpanRecorder::now(),
       {count * bytes, 2 * count * products, Arithmetic::kInt16, number, SpanKind::kWave}});
}

void GaussianWaves::encode(const std::int32_t* latents, const std::int16_t* side,
                           std::int64_t height, std::int64_t width, std::int32_t* symbols,
                           std::uint8_t* indexes, std::int32_t* decoded, int threads) const {
  const int channels = context_.in_channels();
  const std::int64_t half = std::int64_t{1} << (fraction_bits_ - 1);
  std::int64_t done = 0;
  const Settle quantize = [&](const Wave& wave) {
    for (std::int64_t i = 0; i < wave.count; ++i) {
      const std::int32_t* from = latents + wave.positions[i] * channels;
      const std::int32_t* mean = wave.parameters + (2 * i + 1) * channels;
      for (int c = 0; c < channels; ++c) {
        const std::int64_t symbol = (std::int64_t{from[c]} - mean[c] + half) >> fraction_bits_;
        wave.symbols[i * channels + c] =
            static_cast<std::int32_t>(std::clamp(symbol, -kMaxSymbol, kMaxSymbol));
      }
    }
    const std::int64_t size = wave.count * channels;
    std::copy(wave.symbols, wave.symbols + size, symbols + done);
    std::copy(wave.indexes, wave.indexes + size, indexes + done);
    done += size;
  };
  run(quantize, side, height, width, decoded, threads);
}

void GaussianWaves::decode(rans::Decoder& decoder, const std::int16_t* side, std::int64_t height,
                           std::int64_t width, std::int32_t* decoded, int threads) const {
  const int channels = context_.in_channels();
  const Settle draw = [&](const Wave& wave) {
    decoder.decode(wave.indexes, static_cast<std::size_t>(wave.count * channels), wave.symbols);
  };
  run(draw, side, height, width, decoded, threads);
}

}  // namespace pycodec
