#include "cpu/wave_network.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "cpu/parallel.hpp"
#include "cpu/simd_level.hpp"

namespace pycodec {
namespace {

// Positions in a unit of work: a multiple of every register tile.
constexpr int kTilePositions = 24;

TrimmedKernel kernel_for(SimdLevel level) {
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

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument("wave network: " + message);
}

// All threads of a team wait here for each other. They spin, since waves follow each other within
// microseconds, and give way where there are more threads than processors.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins >= kSpins) std::this_thread::yield();
    }
  }

 private:
  static constexpr int kSpins = 2000;

  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> round_{0};
};

// Calls body(number, team, barrier) in each thread of a team, of which the caller is number 0. The
// team is smaller than asked for where the system has no more threads.
template <class Body>
void run_team(int threads, const Body& body) {
  std::unique_ptr<Barrier> barrier;
  std::atomic<int> team{0};  // set once all threads are there
  std::vector<std::thread> others;
  others.reserve(static_cast<std::size_t>(std::max(threads - 1, 0)));
  try {
    for (int number = 1; number < threads; ++number) {
      others.emplace_back([&, number] {
        while (team.load(std::memory_order_acquire) == 0) std::this_thread::yield();
        body(number, team.load(std::memory_order_relaxed), *barrier);
      });
    }
  } catch (const std::system_error&) {
  }
  const int size = static_cast<int>(others.size()) + 1;
  barrier = std::make_unique<Barrier>(size);
  team.store(size, std::memory_order_release);
  body(0, size, *barrier);
  for (std::thread& other : others) other.join();
}

}  // namespace

struct WaveNetwork::Layer {
  struct Group {
    std::vector<TrimmedSegment> segments;  // offsets for the frames at hand are in Frames
    std::vector<int> tap_rows, tap_columns, first_bytes;
    std::shared_ptr<AlignedBuffer> weights;
    std::vector<std::int32_t> bias, multiplier, negative_multiplier;
  };

  int input, residual, output;
  int in_width, out_width, vectors;
  std::int32_t residual_multiplier;
  int shift;
  std::int32_t lower, upper;
  std::vector<Group> groups;
};

// The activations of one picture, and what depends on its width.
struct WaveNetwork::Frames {
  Frames(const WaveNetwork& network, std::int64_t height, std::int64_t width)
      : padding(network.padding_),
        pitch(width + 2 * network.padding_),
        kernel(kernel_for(simd_level())) {
    for (const int bytes : network.pixel_bytes_) {
      // A segment may reach up to kTrimmedGroup bytes beyond the last pixel.
      const auto size = static_cast<std::size_t>((height + 2 * padding) * pitch * bytes);
      tensors.emplace_back(size + kTrimmedGroup);
      std::memset(tensors.back().data(), 128, size + kTrimmedGroup);
      pixel_bytes.push_back(bytes);
    }
    for (const Layer& layer : network.layers_) {
      const std::int64_t bytes = network.pixel_bytes_[static_cast<std::size_t>(layer.input)];
      std::vector<std::vector<TrimmedSegment>> of_layer;
      for (const Layer::Group& group : layer.groups) {
        std::vector<TrimmedSegment> moved = group.segments;
        for (std::size_t s = 0; s < moved.size(); ++s) {
          moved[s].offset =
              (group.tap_rows[s] * pitch + group.tap_columns[s]) * bytes + group.first_bytes[s];
        }
        of_layer.push_back(std::move(moved));
      }
      segments.push_back(std::move(of_layer));
    }
  }

  std::uint8_t* at(int tensor, std::int64_t row, std::int64_t column) {
    const auto t = static_cast<std::size_t>(tensor);
    return tensors[t].data() + ((row + padding) * pitch + column + padding) * pixel_bytes[t];
  }

  std::int64_t padding, pitch;
  TrimmedKernel kernel;
  std::vector<AlignedBuffer> tensors;
  std::vector<int> pixel_bytes;
  std::vector<std::vector<std::vector<TrimmedSegment>>> segments;  // [layer][group]
};

// The positions of a wave in the order of coding: group by group, row by row.
struct WaveNetwork::Wave {
  std::vector<std::int64_t> rows, columns;
  std::vector<std::size_t> group_begin;  // [groups + 1]
};

WaveNetwork::~WaveNetwork() = default;

WaveNetwork::WaveNetwork(int groups, const std::vector<WaveLayer>& layers, const WaveOrder& order)
    : groups_(groups), order_(order) {
  require(groups >= 1 && groups <= 1024, "there must be 1 to 1024 groups");
  require(order.group_step >= 0 && order.row_step >= 0 && order.column_step >= 0,
          "an order's steps must not be negative");
  require(order.group_step <= 1 << 20 && order.row_step <= 1 << 20 && order.column_step <= 1 << 20,
          "an order's steps are too large");
  require(order.column_step >= 1, "a wave must not hold two symbols of a row");
  require(!layers.empty() && layers.back().output == -1, "the last layer makes the table indexes");
  pixel_bytes_ = {round_up(groups, kTrimmedGroup)};
  std::vector<int> widths = {1};
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const WaveLayer& from = layers[l];
    const std::string name = "layer " + std::to_string(l);
    const bool is_last = l + 1 == layers.size();
    require(from.input >= 0 && from.input < num_tensors_, name + " has no such input");
    require(from.in_width == widths[static_cast<std::size_t>(from.input)],
            name + " expects an input of another width");
    require(from.output == (is_last ? -1 : num_tensors_), name + " has the wrong output");
    require(from.out_width >= 1 && from.out_width <= 4096, name + " has a bad width");
    require(!is_last || from.out_width == 1, "there is one table index a symbol");
    require(from.kernel >= 1 && from.kernel % 2 == 1 && from.kernel <= 63,
            name + " must have an odd kernel");
    require(from.shift >= 1 && from.shift <= 62, name + ": the shift must be in 1..62");
    require(from.residual >= -1 && from.residual < num_tensors_ && from.residual != 0,
            name + " has no such residual");
    require(from.residual < 0 ||
                (!is_last && widths[static_cast<std::size_t>(from.residual)] == from.out_width),
            name + " and its residual differ in width");
    require(from.lower <= from.upper && from.lower >= (is_last ? 0 : -128) &&
                from.upper <= (is_last ? 255 : 127),
            name + " has a bad range");
    const int radius = from.kernel / 2;
    padding_ = std::max(padding_, radius);
    Layer layer;
    layer.input = from.input;
    layer.residual = from.residual;
    layer.output = from.output;
    layer.in_width = from.in_width;
    layer.out_width = from.out_width;
    layer.vectors = round_up(from.out_width, kTrimmedLanes) / kTrimmedLanes;
    layer.residual_multiplier = from.residual_multiplier;
    layer.shift = from.shift;
    layer.lower = from.lower;
    layer.upper = from.upper;
    const int taps = from.kernel * from.kernel;
    const int in_channels = groups * from.in_width;
    for (int g = 0; g < groups; ++g) {
      Layer::Group group;
      std::vector<std::int8_t> packed;
      const std::int8_t* weight =
          from.weight + std::int64_t{g} * from.out_width * taps * in_channels;
      // Of output channel o of this group; what the mask cuts is zero.
      const auto weight_at = [&](int o, int tap, int channel) -> std::int8_t {
        if (o >= from.out_width || channel >= in_channels) return 0;
        if (!from.mask[(std::int64_t{g} * groups + channel / from.in_width) * taps + tap]) return 0;
        return weight[(std::int64_t{o} * taps + tap) * in_channels + channel];
      };
      for (int tap = 0; tap < taps; ++tap) {
        int first = groups;
        int last = -1;
        for (int in = 0; in < groups; ++in) {
          if (!from.mask[(std::int64_t{g} * groups + in) * taps + tap]) continue;
          const std::int64_t later = order.group_step * (in - g) +
                                     order.row_step * (tap / from.kernel - radius) +
                                     order.column_step * (tap % from.kernel - radius);
          // The symbols of its own wave (tensor 0) are not known yet, its activations are.
          require(later < 0 || (later == 0 && from.input != 0),
                  name + " sees what is not decoded yet");
          first = std::min(first, in);
          last = in;
        }
        if (last < 0) continue;
        const int begin = first * from.in_width / kTrimmedGroup * kTrimmedGroup;
        const int end = round_up((last + 1) * from.in_width, kTrimmedGroup);
        group.segments.push_back({0, (end - begin) / kTrimmedGroup});
        group.tap_rows.push_back(tap / from.kernel - radius);
        group.tap_columns.push_back(tap % from.kernel - radius);
        group.first_bytes.push_back(begin);
      }
      for (int v = 0; v < layer.vectors; v += kTrimmedMaxVectors) {
        const int lanes = std::min(layer.vectors - v, kTrimmedMaxVectors) * kTrimmedLanes;
        for (std::size_t s = 0; s < group.segments.size(); ++s) {
          const int tap =
              (group.tap_rows[s] + radius) * from.kernel + group.tap_columns[s] + radius;
          for (int i = 0; i < group.segments[s].groups; ++i) {
            for (int lane = 0; lane < lanes; ++lane) {
              for (int k = 0; k < kTrimmedGroup; ++k) {
                packed.push_back(weight_at(v * kTrimmedLanes + lane, tap,
                                           group.first_bytes[s] + i * kTrimmedGroup + k));
              }
            }
          }
        }
      }
      group.weights = std::make_shared<AlignedBuffer>(packed.size() + 1);
      std::copy(packed.begin(), packed.end(),
                reinterpret_cast<std::int8_t*>(group.weights->data()));
      for (int o = 0; o < from.out_width; ++o) {
        std::uint32_t sum = 0;
        for (int tap = 0; tap < taps; ++tap) {
          for (int channel = 0; channel < in_channels; ++channel) {
            sum += static_cast<std::uint32_t>(std::int32_t{weight_at(o, tap, channel)});
          }
        }
        const std::int64_t c = std::int64_t{g} * from.out_width + o;
        group.bias.push_back(
            static_cast<std::int32_t>(static_cast<std::uint32_t>(from.bias[c]) - 128 * sum));
        group.multiplier.push_back(from.multiplier[c]);
        group.negative_multiplier.push_back(from.negative_multiplier[c]);
      }
      const auto lanes = static_cast<std::size_t>(layer.vectors) * kTrimmedLanes;
      for (auto* values : {&group.bias, &group.multiplier, &group.negative_multiplier}) {
        values->resize(lanes, 0);
      }
      layer.groups.push_back(std::move(group));
    }
    layers_.push_back(std::move(layer));
    if (!is_last) {
      pixel_bytes_.push_back(round_up(groups * from.out_width, kTrimmedGroup));
      widths.push_back(from.out_width);
      ++num_tensors_;
    }
  }
}

std::int64_t WaveNetwork::num_waves(std::int64_t height, std::int64_t width) const {
  if (height == 0 || width == 0) return 0;
  return order_.group_step * (groups_ - 1) + order_.row_step * (height - 1) +
         order_.column_step * (width - 1) + 1;
}

WaveNetwork::Wave WaveNetwork::wave_at(std::int64_t t, std::int64_t height,
                                       std::int64_t width) const {
  Wave wave;
  wave.group_begin.push_back(0);
  for (int g = 0; g < groups_; ++g) {
    const std::int64_t rest = t - order_.group_step * g;
    // Rows whose column lies in the picture: 0 <= (rest - row_step * row) / column_step < width.
    std::int64_t first = 0;
    std::int64_t last = height - 1;
    if (order_.row_step > 0) {
      const std::int64_t beyond = rest - order_.column_step * (width - 1);
      if (beyond > 0) first = (beyond + order_.row_step - 1) / order_.row_step;
      last = rest < 0 ? -1 : std::min(last, rest / order_.row_step);
    }
    for (std::int64_t row = first; row <= last; ++row) {
      const std::int64_t column_part = rest - order_.row_step * row;
      if (column_part < 0 || column_part % order_.column_step != 0) continue;
      const std::int64_t column = column_part / order_.column_step;
      if (column >= width) continue;
      wave.rows.push_back(row);
      wave.columns.push_back(column);
    }
    wave.group_begin.push_back(wave.rows.size());
  }
  return wave;
}

void WaveNetwork::run_layer(const Layer& layer, Frames& frames, int group, const std::int64_t* rows,
                            const std::int64_t* columns, int count,
                            std::uint8_t* const* indexes) const {
  const auto g = static_cast<std::size_t>(group);
  const auto l = static_cast<std::size_t>(&layer - layers_.data());
  const Layer::Group& of_group = layer.groups[g];
  const auto& segments = frames.segments[l][g];
  const TrimmedLayer kernel_layer = {layer.out_width,
                                     layer.vectors,
                                     static_cast<int>(segments.size()),
                                     segments.data(),
                                     reinterpret_cast<const std::int8_t*>(of_group.weights->data()),
                                     of_group.bias.data(),
                                     of_group.multiplier.data(),
                                     of_group.negative_multiplier.data(),
                                     layer.residual_multiplier,
                                     layer.shift,
                                     layer.lower,
                                     layer.upper,
                                     static_cast<std::uint8_t>(layer.output < 0 ? 0 : 128)};
  const std::uint8_t* windows[kTilePositions];
  const std::uint8_t* residuals[kTilePositions];
  std::uint8_t* outs[kTilePositions];
  const int first_channel = group * layer.out_width;
  for (int i = 0; i < count; ++i) {
    windows[i] = frames.at(layer.input, rows[i], columns[i]);
    if (layer.residual >= 0) {
      residuals[i] = frames.at(layer.residual, rows[i], columns[i]) + first_channel;
    }
    outs[i] = layer.output < 0 ? indexes[i]
                               : frames.at(layer.output, rows[i], columns[i]) + first_channel;
  }
  frames.kernel(kernel_layer, {count, windows, layer.residual >= 0 ? residuals : nullptr, outs});
}

namespace {

std::uint8_t frame_value(std::int32_t symbol) {
  return static_cast<std::uint8_t>(std::clamp(symbol, -128, 127) + 128);
}

}  // namespace

void WaveNetwork::encode(const std::int32_t* symbols, std::int64_t height, std::int64_t width,
                         std::int32_t* ordered_symbols, std::uint8_t* indexes, int threads) const {
  const std::int64_t area = height * width;
  if (area == 0) return;
  Frames frames(*this, height, width);
  parallel_for(height, threads, [&](std::int64_t row) {
    for (std::int64_t column = 0; column < width; ++column) {
      std::uint8_t* pixel = frames.at(0, row, column);
      for (int g = 0; g < groups_; ++g) {
        pixel[g] = frame_value(symbols[g * area + row * width + column]);
      }
    }
  });
  std::vector<std::uint8_t> raster_indexes(static_cast<std::size_t>(area * groups_));
  for (const Layer& layer : layers_) {
    parallel_for(height * groups_, threads, [&](std::int64_t item) {
      const std::int64_t row = item % height;
      const int group = static_cast<int>(item / height);
      std::int64_t rows[kTilePositions];
      std::int64_t columns[kTilePositions];
      std::uint8_t* outs[kTilePositions];
      for (std::int64_t first = 0; first < width; first += kTilePositions) {
        const int count = static_cast<int>(std::min<std::int64_t>(kTilePositions, width - first));
        for (int i = 0; i < count; ++i) {
          rows[i] = row;
          columns[i] = first + i;
          outs[i] = raster_indexes.data() + group * area + row * width + first + i;
        }
        run_layer(layer, frames, group, rows, columns, count, outs);
      }
    });
  }
  const std::int64_t waves = num_waves(height, width);
  std::size_t done = 0;
  for (std::int64_t t = 0; t < waves; ++t) {
    const Wave wave = wave_at(t, height, width);
    for (int g = 0; g < groups_; ++g) {
      const auto group = static_cast<std::size_t>(g);
      for (std::size_t i = wave.group_begin[group]; i < wave.group_begin[group + 1]; ++i, ++done) {
        const std::int64_t from = g * area + wave.rows[i] * width + wave.columns[i];
        ordered_symbols[done] = symbols[from];
        indexes[done] = raster_indexes[static_cast<std::size_t>(from)];
      }
    }
  }
}

void WaveNetwork::decode(rans::Decoder& decoder, std::int64_t height, std::int64_t width,
                         std::int32_t* symbols, int threads) const {
  const std::int64_t area = height * width;
  if (area == 0) return;
  Frames frames(*this, height, width);
  const std::int64_t waves = num_waves(height, width);

  struct Tile {
    int group;
    std::size_t first;
    int count;
  };
  struct Work {
    Wave wave;
    std::vector<Tile> tiles;
  };
  const auto prepare = [&](std::int64_t t) {
    Work work = {wave_at(t, height, width), {}};
    for (int g = 0; g < groups_; ++g) {
      const std::size_t end = work.wave.group_begin[static_cast<std::size_t>(g) + 1];
      for (std::size_t i = work.wave.group_begin[static_cast<std::size_t>(g)]; i < end;
           i += kTilePositions) {
        work.tiles.push_back(
            {g, i, static_cast<int>(std::min<std::size_t>(kTilePositions, end - i))});
      }
    }
    return work;
  };

  // Thread 0 draws the symbols while the others wait; each of the other steps is shared.
  Work current = prepare(0);
  std::vector<std::uint8_t> indexes;
  std::vector<std::int32_t> drawn;
  std::exception_ptr error;
  std::atomic<bool> stopped{false};
  indexes.resize(current.wave.rows.size());
  run_team(threads, [&](int thread, int team, Barrier& barrier) {
    for (std::int64_t t = 0; t < waves; ++t) {
      for (const Layer& layer : layers_) {
        for (std::size_t i = static_cast<std::size_t>(thread); i < current.tiles.size();
             i += static_cast<std::size_t>(team)) {
          const Tile& tile = current.tiles[i];
          std::uint8_t* outs[kTilePositions];
          for (int k = 0; k < tile.count; ++k) outs[k] = indexes.data() + tile.first + k;
          run_layer(layer, frames, tile.group, current.wave.rows.data() + tile.first,
                    current.wave.columns.data() + tile.first, tile.count, outs);
        }
        barrier.wait();
      }
      if (thread == 0) {
        try {
          const Wave& wave = current.wave;
          drawn.resize(indexes.size());
          decoder.decode(indexes.data(), indexes.size(), drawn.data());
          for (int g = 0; g < groups_; ++g) {
            const auto group = static_cast<std::size_t>(g);
            for (std::size_t i = wave.group_begin[group]; i < wave.group_begin[group + 1]; ++i) {
              symbols[g * area + wave.rows[i] * width + wave.columns[i]] = drawn[i];
              frames.at(0, wave.rows[i], wave.columns[i])[g] = frame_value(drawn[i]);
            }
          }
          if (t + 1 < waves) current = prepare(t + 1);
          indexes.resize(current.wave.rows.size());
        } catch (...) {
          error = std::current_exception();
          stopped.store(true, std::memory_order_relaxed);
        }
      }
      barrier.wait();
      if (stopped.load(std::memory_order_relaxed)) return;
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace pycodec
