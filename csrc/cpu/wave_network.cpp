#include "cpu/wave_network.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/integer_division.hpp"
#include "cpu/parallel.hpp"
#include "cpu/spans.hpp"
#include "cpu/team.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pycodec {
namespace {

// Positions that go through the layers of a stage together: twice as many at most.
constexpr std::int64_t kBlockPositions = 48;

constexpr std::int64_t kMaxStep = 1 << 20;

// Shares of a pass that a thread takes one after the other, at most.
constexpr std::int64_t kShares = 8;

constexpr int kOneRow = -1;  // instead of the owner of a tensor's memory

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument("wave network: " + message);
}

std::uint8_t frame_value(std::int32_t symbol) {
  return static_cast<std::uint8_t>(std::clamp(symbol, -128, 127) + 128);
}

// A frame of rows is written all over once, and waves touch many of them: huge pages save most of
// the page faults and the misses of the address translation.
void advise_huge_pages([[maybe_unused]] std::uint8_t* data, [[maybe_unused]] std::size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = 4096;
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(data) + size) & ~(kPage - 1);
  // Not more than advice: pages of another size, or no huge ones, work as well.
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

struct WaveNetwork::Layer {
  int input, residual, output;  // tensors; residual and output may be -1
  TrimmedConv conv;
  std::vector<std::uint8_t> active;    // by residue; empty: everywhere
  std::vector<std::int64_t> products;  // of a position, by group
};

// Positions of a group in the order of coding, as far as they lie on a line.
struct WaveNetwork::Run {
  int group;
  std::int64_t row, column;  // of the first position
  std::int64_t row_step, column_step;
  std::int64_t count;
  std::size_t first, index_step;  // their places in the wave
};

// A layer as the kernels see it, whose input is in such a frame. Refers to the layer.
struct WaveNetwork::LayerView {
  LayerView(const Layer& layer, const WaveFrame& input) {
    const auto flip = static_cast<std::uint8_t>(layer.output < 0 ? 0 : 128);
    for (int g = 0; g < layer.conv.groups(); ++g) {
      places.push_back(layer.conv.places(g, input.row_pitch(), input.column_pitch()));
    }
    for (int g = 0; g < layer.conv.groups(); ++g) {
      groups.push_back(layer.conv.layer(g, places[static_cast<std::size_t>(g)], flip, 128));
      blind.push_back(layer.conv.blind_layer(g, flip, 128));
    }
  }

  std::vector<TrimmedConv::Places> places;
  std::vector<TrimmedLayer> groups;
  std::vector<TrimmedLayer> blind;  // where the layer sees nothing
};

// The activations of one picture, and what depends on its size.
struct WaveNetwork::Frames {
  // is_pass: the layers run one stage after the other, so that a tensor may take the memory of one
  // that no later stage reads. Else they run in waves, and what waves make is in lines where it
  // can be.
  Frames(const WaveNetwork& network, std::int64_t frame_height, std::int64_t frame_width,
         bool is_pass)
      : area{frame_height, frame_width, network.padding_}, kernel(trimmed_kernel(simd_level())) {
    const WaveOrder& order = network.order_;
    std::int64_t pitch = area.width + 2 * area.padding;
    if (order.row_step > 0 && order.column_step > 0) {
      // Positions of a wave are this many pixels apart. If that is even, they crowd in half of the
      // sets of the caches, or less.
      const std::int64_t divisor = std::gcd(order.row_step, order.column_step);
      const std::int64_t rows = order.column_step / divisor;
      const std::int64_t columns = order.row_step / divisor;
      if ((rows * pitch - columns) % 2 == 0 && rows % 2 == 1) ++pitch;
    }
    if (!is_pass) window = network.lines(area.height, area.width);
    const std::vector<int> owner = network.owners(is_pass);
    for (std::size_t t = 0; t < network.pixel_bytes_.size(); ++t) {
      const int bytes = network.pixel_bytes_[t];
      if (owner[t] == kOneRow) {
        tensors.push_back(WaveFrame::of_one_row(area, bytes));
        in_one_row.push_back(t);
        continue;
      }
      const bool is_in_lines = window && !network.known_[t];
      tensors.push_back(is_in_lines ? WaveFrame::of_lines(*window, bytes)
                                    : WaveFrame::of_rows(area, pitch, bytes));
      WaveFrame& frame = tensors.back();
      if (is_in_lines) in_lines.push_back(t);
      if (owner[t] != static_cast<int>(t)) {
        frame.use(tensors[static_cast<std::size_t>(owner[t])].memory());
        continue;
      }
      memory.emplace_back(frame.bytes() + kTrimmedSlack);
      advise_huge_pages(memory.back().data(), frame.bytes());
      frame.use(memory.back().data());
      frame.clear_border(area);  // what is inside is written before it is read
    }
    for (const Layer& layer : network.layers_) {
      views.push_back(std::make_unique<LayerView>(layer, of(layer.input)));
    }
  }

  const WaveFrame& of(int tensor) const { return tensors[static_cast<std::size_t>(tensor)]; }

  // The tensors, with memory of its own for those of which a row is kept: of one thread.
  struct Share {
    explicit Share(const Frames& frames) : tensors(frames.tensors) {
      for (const std::size_t t : frames.in_one_row) {
        rows.emplace_back(tensors[t].bytes() + kTrimmedSlack);
        tensors[t].use(rows.back().data());
      }
    }

    std::vector<WaveFrame> tensors;

   private:
    std::vector<AlignedBuffer> rows;
  };

  FrameArea area;
  TrimmedKernel kernel;
  std::optional<LineWindow> window;  // at the first wave
  std::vector<WaveFrame> tensors;
  std::vector<std::size_t> in_lines, in_one_row;  // tensors
  std::vector<std::unique_ptr<LayerView>> views;  // by layer

 private:
  std::vector<AlignedBuffer> memory;
};

WaveNetwork::~WaveNetwork() = default;

// Whose memory each tensor takes: its own, or in a pass that of an earlier one of the same size, or
// kOneRow, if the stage that makes it alone reads it, and so pixel by pixel.
std::vector<int> WaveNetwork::owners(bool is_pass) const {
  std::vector<int> owner(pixel_bytes_.size());
  std::iota(owner.begin(), owner.end(), 0);
  if (!is_pass) return owner;
  // The stage that makes a tensor, and the last that reads it; counted from 1.
  std::vector<std::size_t> made(owner.size(), 0);
  std::vector<std::size_t> last_read(owner.size(), 0);
  for (std::size_t stage = 0; stage < full_stages_.size(); ++stage) {
    for (const std::size_t number : full_stages_[stage]) {
      const Layer& layer = layers_[number];
      if (layer.output >= 0) made[static_cast<std::size_t>(layer.output)] = stage + 1;
      for (const int read : {layer.input, layer.residual}) {
        if (read >= 0) last_read[static_cast<std::size_t>(read)] = stage + 1;
      }
    }
  }
  std::vector<std::size_t> free_after = last_read;  // of the memory of an owner
  for (std::size_t t = 1 + side_widths_.size(); t < owner.size(); ++t) {
    // The last layer may run in a stage of its own: see Pass.
    if (last_read[t] == made[t] && layers_.back().input != static_cast<int>(t)) {
      owner[t] = kOneRow;
      continue;
    }
    for (std::size_t earlier = 0; earlier < t; ++earlier) {
      const bool is_owner = owner[earlier] == static_cast<int>(earlier);
      if (!is_owner || pixel_bytes_[earlier] != pixel_bytes_[t]) continue;
      // What nothing reads is written all the same.
      if (std::max(free_after[earlier], made[earlier]) >= made[t]) continue;
      owner[t] = static_cast<int>(earlier);
      free_after[earlier] = std::max(last_read[t], made[t]);
      break;
    }
  }
  return owner;
}

WaveNetwork::WaveNetwork(int groups, const std::vector<int>& side_widths,
                         const std::vector<WaveLayer>& layers, const WaveOrder& order)
    : groups_(groups), side_widths_(side_widths), order_(order) {
  require(groups >= 1 && groups <= 1024, "there must be 1 to 1024 groups");
  for (const std::int64_t step : {order.group_step, order.row_step, order.column_step}) {
    require(step >= 0 && step <= kMaxStep,
            "an order's steps must be 0 to " + std::to_string(kMaxStep));
  }
  require(
      order.phase_rows >= 1 && order.phase_columns >= 1 && order.phase_rows <= 64 &&
          order.phase_columns <= 64 &&
          order.phase.size() == static_cast<std::size_t>(order.phase_rows * order.phase_columns),
      "an order's phase must have 1 to 64 rows and columns");
  for (const std::int64_t phase : order.phase) {
    require(phase >= 0 && phase <= kMaxStep, "an order's phase is out of range");
    last_phase_ = std::max(last_phase_, phase);
  }
  require(!layers.empty(), "there are no layers");
  pixel_bytes_ = {trimmed_pixel_bytes(groups)};
  std::vector<int> widths = {1};
  for (const int width : side_widths) {
    require(width >= 1 && width <= 4096, "a side tensor has a bad width");
    pixel_bytes_.push_back(trimmed_pixel_bytes(groups * width));
    widths.push_back(width);
    known_.push_back(true);
  }
  // In which stage a tensor is made; none for symbols and side tensors.
  std::vector<int> full_stage(widths.size(), -1), side_stage(widths.size(), -1),
      wave_stage(widths.size(), -1);
  const auto append = [](std::vector<Stage>& stages, std::size_t number, bool joins) {
    if (stages.empty() || !joins) stages.emplace_back();
    stages.back().push_back(number);
    return static_cast<int>(stages.size()) - 1;
  };
  const auto is_new = [](const std::vector<int>& made_in, int tensor,
                         const std::vector<Stage>& stages) {
    return !stages.empty() &&
           made_in[static_cast<std::size_t>(tensor)] == static_cast<int>(stages.size()) - 1;
  };
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const WaveLayer& layer = layers[l];
    const bool is_last = l + 1 == layers.size();
    const Added added = add_layer(layer, l, is_last, widths);
    const bool is_pointwise = layer.conv.kernel_rows == 1 && layer.conv.kernel_columns == 1;
    const bool is_side = !is_last && added.is_known;
    const int full =
        append(full_stages_, l, is_pointwise || !is_new(full_stage, layer.input, full_stages_));
    full_stage.push_back(full);
    side_stage.push_back(
        is_side ? append(side_stages_, l,
                         is_pointwise || !is_new(side_stage, layer.input, side_stages_))
                : -1);
    wave_stage.push_back(
        is_side ? -1
                : append(wave_stages_, l,
                         !added.sees_elsewhere || !is_new(wave_stage, layer.input, wave_stages_)));
  }
}

WaveNetwork::Added WaveNetwork::add_layer(const WaveLayer& from, std::size_t number, bool is_last,
                                          std::vector<int>& widths) {
  const std::string name = "layer " + std::to_string(number);
  const int num_tensors = static_cast<int>(widths.size());
  require(from.input >= 0 && from.input < num_tensors, name + " has no such input");
  require(from.conv.groups == groups_, name + " has other groups");
  require(from.conv.in_width == widths[static_cast<std::size_t>(from.input)],
          name + " expects an input of another width");
  require(!is_last || from.conv.out_width == 1, "there is one table index a symbol");
  require(from.residual >= -1 && from.residual < num_tensors && from.residual != 0,
          name + " has no such residual");
  require(from.residual < 0 ||
              (!is_last && widths[static_cast<std::size_t>(from.residual)] == from.conv.out_width),
          name + " and its residual differ in width");
  require(from.conv.lower >= (is_last ? 0 : -128) && from.conv.upper <= (is_last ? 255 : 127),
          name + " has a bad range");
  Layer layer = {from.input, from.residual, is_last ? -1 : num_tensors, TrimmedConv(from.conv), {},
                 {}};
  if (from.active != nullptr) {
    layer.active.assign(from.active, from.active + order_.phase.size());
  }
  const std::int64_t seen_by =
      std::int64_t{groups_} * from.conv.kernel_rows * from.conv.kernel_columns;
  for (int g = 0; g < groups_; ++g) {
    const std::uint8_t* mask = from.conv.mask + g * seen_by;
    const std::int64_t seen = seen_by - std::count(mask, mask + seen_by, 0);
    layer.products.push_back(seen * from.conv.in_width * from.conv.out_width);
  }
  layers_.push_back(std::move(layer));
  padding_ =
      std::max<std::int64_t>({padding_, from.conv.kernel_rows / 2, from.conv.kernel_columns / 2});
  const bool is_known = known_[static_cast<std::size_t>(from.input)] &&
                        (from.residual < 0 || known_[static_cast<std::size_t>(from.residual)]);

  bool sees_elsewhere = false;
  // Causality, for every place in the period of the phase.
  const int columns = from.conv.kernel_columns;
  const int taps = from.conv.kernel_rows * columns;
  for (std::size_t place = 0;
       !known_[static_cast<std::size_t>(from.input)] && place < order_.phase.size(); ++place) {
    if (from.active != nullptr && !from.active[place]) continue;
    for (int tap = 0; tap < taps; ++tap) {
      const std::int64_t down = tap / columns - from.conv.kernel_rows / 2;
      const std::int64_t right = tap % columns - columns / 2;
      const auto row = static_cast<std::int64_t>(place) / order_.phase_columns;
      const auto column = static_cast<std::int64_t>(place) % order_.phase_columns;
      // Radii are at most 31 and periods at least 1: enough periods to stay positive.
      const std::size_t seen =
          residue(row + down + 64 * order_.phase_rows, column + right + 64 * order_.phase_columns);
      const std::int64_t later_place = order_.row_step * down + order_.column_step * right +
                                       order_.phase[seen] - order_.phase[place];
      for (int pair = 0; pair < groups_ * groups_; ++pair) {
        if (!from.conv.mask[std::int64_t{pair} * taps + tap]) continue;
        const std::int64_t later =
            later_place + order_.group_step * (pair % groups_ - pair / groups_);
        // The symbols of its own wave are not known yet, its activations are.
        require(later < 0 || (later == 0 && from.input != 0),
                name + " sees what is not decoded yet");
        sees_elsewhere |=
            later == 0 && (down != 0 || right != 0 || pair % groups_ != pair / groups_);
      }
    }
  }
  if (!is_last) {
    pixel_bytes_.push_back(trimmed_pixel_bytes(groups_ * from.conv.out_width));
    widths.push_back(from.conv.out_width);
    known_.push_back(is_known);
  }
  return {is_known, sees_elsewhere};
}

std::size_t WaveNetwork::residue(std::int64_t row, std::int64_t column) const {
  return static_cast<std::size_t>(row % order_.phase_rows * order_.phase_columns +
                                  column % order_.phase_columns);
}

std::int64_t WaveNetwork::num_waves(std::int64_t height, std::int64_t width) const {
  if (height == 0 || width == 0) return 0;
  return order_.group_step * (groups_ - 1) + order_.row_step * (height - 1) +
         order_.column_step * (width - 1) + last_phase_ + 1;
}

std::optional<LineWindow> WaveNetwork::lines(std::int64_t height, std::int64_t width) const {
  if (order_.phase.size() > 1) return std::nullopt;
  return LineWindow::fit({height, width, padding_}, groups_, order_.group_step, order_.row_step,
                         order_.column_step);
}

std::int64_t WaveNetwork::lines_in_memory(std::int64_t height, std::int64_t width) const {
  const std::optional<LineWindow> window = lines(height, width);
  return window ? window->count() : 0;
}

// Replaces `runs` by those of wave t, in the order of coding: groups, then rows, then columns.
// Returns the number of its symbols.
std::size_t WaveNetwork::runs_of_wave(std::int64_t t, std::int64_t height, std::int64_t width,
                                      std::vector<Run>& runs) const {
  const std::int64_t group_step = order_.group_step;
  const std::int64_t row_step = order_.row_step;
  const std::int64_t column_step = order_.column_step;
  const std::int64_t last_in_group =
      row_step * (height - 1) + column_step * (width - 1) + last_phase_;
  runs.clear();
  std::size_t size = 0;
  const auto add = [&](int group, std::int64_t row, std::int64_t column, std::int64_t rows,
                       std::int64_t columns, std::int64_t count) {
    runs.push_back({group, row, column, rows, columns, count, size, 1});
    size += static_cast<std::size_t>(count);
  };
  int first_group = 0;
  int last_group = groups_ - 1;
  if (group_step > 0) {
    if (t > last_in_group) first_group = static_cast<int>(ceil_div(t - last_in_group, group_step));
    last_group = static_cast<int>(std::min<std::int64_t>(last_group, t / group_step));
  }
  for (int g = first_group; g <= last_group; ++g) {
    const std::int64_t rest = t - group_step * g;
    if (order_.phase.size() > 1) {
      for (std::int64_t row = 0; row < height; ++row) {
        add_periodic_runs(rest - row_step * row, g, row, width, runs, size);
      }
    } else if (row_step > 0 && column_step > 0) {
      // A line: from one position to the next some rows down and some columns to the left.
      const std::int64_t divisor = std::gcd(row_step, column_step);
      if (rest % divisor != 0) continue;
      const std::int64_t beyond = rest - column_step * (width - 1);
      std::int64_t row = beyond > 0 ? ceil_div(beyond, row_step) : 0;
      const std::int64_t last = std::min(height - 1, rest / row_step);
      while (row <= last && (rest - row_step * row) % column_step != 0) ++row;
      if (row > last) continue;
      add(g, row, (rest - row_step * row) / column_step, column_step / divisor, -row_step / divisor,
          (last - row) / (column_step / divisor) + 1);
    } else if (column_step > 0) {
      const std::int64_t column = rest / column_step;
      if (rest % column_step == 0 && column < width) add(g, 0, column, 1, 0, height);
    } else if (row_step > 0) {
      const std::int64_t row = rest / row_step;
      if (rest % row_step == 0 && row < height) add(g, row, 0, 0, 1, width);
    } else if (rest == 0) {
      for (std::int64_t row = 0; row < height; ++row) add(g, row, 0, 0, 1, width);
    }
  }
  return size;
}

// The runs of a row where order_.column_step * column + phase is `rest`.
void WaveNetwork::add_periodic_runs(std::int64_t rest, int group, std::int64_t row,
                                    std::int64_t width, std::vector<Run>& runs,
                                    std::size_t& size) const {
  const std::int64_t period = order_.phase_columns;
  const std::size_t begin = runs.size();
  for (std::int64_t column = 0; column < std::min(period, width); ++column) {
    const std::int64_t left = rest - order_.phase[residue(row, column)];
    if (order_.column_step == 0) {
      if (left == 0) {
        runs.push_back({group, row, column, 0, period, ceil_div(width - column, period), 0, 1});
      }
    } else if (left >= 0 && left % order_.column_step == 0) {
      const std::int64_t place = left / order_.column_step;
      if (place % period == column && place < width) {
        runs.push_back({group, row, place, 0, 0, 1, 0, 1});
      }
    }
  }
  // Columns in order: one of each run in turn.
  const auto of_row = [](const Run& a, const Run& b) { return a.column < b.column; };
  std::sort(runs.begin() + static_cast<std::ptrdiff_t>(begin), runs.end(), of_row);
  const std::size_t number = runs.size() - begin;
  std::size_t count = 0;
  for (std::size_t i = begin; i < runs.size(); ++i) {
    runs[i].first = size + (i - begin);
    runs[i].index_step = number;
    count += static_cast<std::size_t>(runs[i].count);
  }
  size += count;
}

// Of one wave, at most.
std::size_t WaveNetwork::max_runs(std::int64_t height, std::int64_t width) const {
  std::int64_t in_group = 1;
  if (order_.phase.size() > 1) {
    in_group = height * std::min(order_.phase_columns, width);
  } else if (order_.row_step == 0 && order_.column_step == 0) {
    in_group = height;
  }
  return static_cast<std::size_t>(groups_ * in_group);
}

// Symbols of one wave, at most.
std::size_t WaveNetwork::max_wave(std::int64_t height, std::int64_t width) const {
  std::int64_t in_group = height * width;
  if (order_.phase.size() == 1 && order_.row_step > 0 && order_.column_step > 0) {
    in_group = std::min(height, width);
  } else if (order_.phase.size() == 1 && order_.column_step > 0) {
    in_group = height;
  } else if (order_.phase.size() == 1 && order_.row_step > 0) {
    in_group = width;
  }
  return static_cast<std::size_t>(groups_ * in_group);
}

// Computes positions [begin, begin + count) of a run. Where the layer has an active array, they
// are all at the same place in the period. The last layer writes to `indexes`.
void WaveNetwork::run_layer(std::size_t number, const Frames& frames,
                            const std::vector<WaveFrame>& tensors, const Run& run,
                            std::int64_t begin, std::int64_t count, std::uint8_t* indexes,
                            std::int64_t index_step) const {
  const Layer& layer = layers_[number];
  const auto of = [&](int tensor) -> const WaveFrame& {
    return tensors[static_cast<std::size_t>(tensor)];
  };
  const std::int64_t row = run.row + begin * run.row_step;
  const std::int64_t column = run.column + begin * run.column_step;
  const int channel = run.group * layer.conv.out_width();
  const WaveFrame& input = of(layer.input);
  TrimmedTile tile = {count,
                      input.at(row, column),
                      input.step(run.row_step, run.column_step),
                      nullptr,
                      0,
                      indexes,
                      index_step};
  if (layer.residual >= 0) {
    const WaveFrame& residual = of(layer.residual);
    tile.residual = residual.at(row, column) + channel;
    tile.residual_step = residual.step(run.row_step, run.column_step);
  }
  if (layer.output >= 0) {
    const WaveFrame& output = of(layer.output);
    tile.out = output.at(row, column) + channel;
    tile.out_step = output.step(run.row_step, run.column_step);
  }
  const bool sees = layer.active.empty() || layer.active[residue(row, column)];
  const LayerView& view = *frames.views[number];
  frames.kernel((sees ? view.groups : view.blind)[static_cast<std::size_t>(run.group)], tile);
}

// Whole rows, for layers whose inputs are known everywhere. indexes: [groups][height][width].
void WaveNetwork::run_stages(const std::vector<Stage>& stages, const Frames& frames,
                             std::uint8_t* indexes, int threads) const {
  const std::int64_t height = frames.area.height;
  const std::int64_t width = frames.area.width;
  const auto run_row = [&](const std::vector<WaveFrame>& tensors, std::size_t number, int group,
                           std::int64_t row) {
    const std::int64_t period = layers_[number].active.empty() ? 1 : order_.phase_columns;
    for (std::int64_t first = 0; first < std::min(period, width); ++first) {
      const Run run = {group, row, first, 0, period, ceil_div(width - first, period), 0, 1};
      std::uint8_t* out =
          layers_[number].output < 0 ? indexes + (group * height + row) * width + first : nullptr;
      run_layer(number, frames, tensors, run, 0, run.count, out, period);
    }
  };
  for (const Stage& stage : stages) {
    const SpanScope span("wave_network_layers", [&] {
      SpanWork work = {};
      for (int g = 0; g < groups_; ++g) add_work(work, stage, g, height * width);
      work.number = static_cast<std::int64_t>(stage.front());
      return work;
    });
    if (stage.size() == 1) {
      parallel_for(height * groups_, threads, [&](std::int64_t item) {
        run_row(frames.tensors, stage[0], static_cast<int>(item / height), item % height);
      });
      continue;
    }
    const std::int64_t shares = std::min<std::int64_t>(height, kShares * std::max(threads, 1));
    parallel_for(shares, threads, [&](std::int64_t item) {
      const Frames::Share share(frames);
      for (std::int64_t row = height * item / shares; row < height * (item + 1) / shares; ++row) {
        for (const std::size_t number : stage) {
          for (int g = 0; g < groups_; ++g) run_row(share.tensors, number, g, row);
        }
      }
    });
  }
}

// Adds what the layers of a stage do for so many positions of a group: they read and write each
// activation once.
void WaveNetwork::add_work(SpanWork& work, const Stage& stage, int group,
                           std::int64_t positions) const {
  work.arithmetic = Arithmetic::kInt8;
  for (const std::size_t number : stage) {
    const Layer& layer = layers_[number];
    work.operations += 2 * positions * layer.products[static_cast<std::size_t>(group)];
    work.bytes += positions * (layer.conv.in_width() + layer.conv.out_width() +
                               (layer.residual < 0 ? 0 : layer.conv.out_width()));
  }
}

// One thread's share of a wave: a part of every run, so that it keeps to its rows from wave to
// wave. Blocks of all groups take turns, as groups look at the same pixels.
void WaveNetwork::run_share(const Stage& stage, const Frames& frames, const std::vector<Run>& runs,
                            int thread, int team, std::uint8_t* indexes) const {
  std::int64_t blocks = 1;
  for (std::int64_t block = 0; block < blocks; ++block) {
    for (std::size_t r = 0; r < runs.size(); ++r) {
      const Run& run = runs[r];
      const auto turn = static_cast<std::int64_t>(r) % team;
      const std::int64_t first = (run.count * thread + turn) / team;
      const std::int64_t last = (run.count * (thread + 1) + turn) / team;
      const std::int64_t own_blocks = std::max<std::int64_t>((last - first) / kBlockPositions, 1);
      blocks = std::max(blocks, own_blocks);
      if (block >= own_blocks) continue;
      const std::int64_t begin = first + block * kBlockPositions;
      const std::int64_t end = block + 1 == own_blocks ? last : begin + kBlockPositions;
      if (begin == end) continue;
      std::uint8_t* out = indexes + run.first + static_cast<std::size_t>(begin) * run.index_step;
      for (const std::size_t layer : stage) {
        run_layer(layer, frames, frames.tensors, run, begin, end - begin, out,
                  static_cast<std::int64_t>(run.index_step));
      }
    }
  }
}

void WaveNetwork::fill_side(const std::vector<const std::int8_t*>& side, const Frames& frames,
                            int threads) const {
  const auto [height, width, padding] = frames.area;
  for (std::size_t s = 0; s < side.size(); ++s) {
    const WaveFrame& frame = frames.tensors[s + 1];
    const std::int64_t channels = std::int64_t{groups_} * side_widths_[s];
    parallel_for(height, threads, [&, s, height = height, width = width](std::int64_t row) {
      for (std::int64_t c = 0; c < channels; ++c) {
        const std::int8_t* from = side[s] + (c * height + row) * width;
        std::uint8_t* to = frame.at(row, 0) + c;
        for (std::int64_t column = 0; column < width; ++column, to += frame.pixel_bytes()) {
          *to = static_cast<std::uint8_t>(from[column] ^ -128);
        }
      }
    });
  }
}

void WaveNetwork::encode(const std::int32_t* symbols, const std::vector<const std::int8_t*>& side,
                         std::int64_t height, std::int64_t width, std::int32_t* ordered_symbols,
                         std::uint8_t* indexes, int threads) const {
  const std::int64_t area = height * width;
  if (area == 0) return;
  const Frames frames(*this, height, width, true);
  fill_side(side, frames, threads);
  fill_symbols(symbols, frames, threads);
  AlignedBuffer raster_indexes(static_cast<std::size_t>(area * groups_));
  run_stages(full_stages_, frames, raster_indexes.data(), threads);
  put_in_order(symbols, raster_indexes.data(), height, width, ordered_symbols, indexes, threads);
}

std::unique_ptr<WaveNetwork::Pass> WaveNetwork::begin_pass(
    const std::int32_t* symbols, const std::vector<const std::int8_t*>& side, std::int64_t height,
    std::int64_t width, int threads) const {
  auto frames = std::make_unique<Frames>(*this, height, width, true);
  fill_side(side, *frames, threads);
  fill_symbols(symbols, *frames, threads);
  std::vector<Stage> stages = full_stages_;
  stages.back().pop_back();
  if (stages.back().empty()) stages.pop_back();
  run_stages(stages, *frames, nullptr, threads);
  return std::make_unique<Pass>(*this, std::move(frames));
}

WaveNetwork::Pass::Pass(const WaveNetwork& network, std::unique_ptr<Frames> frames)
    : network_(network), frames_(std::move(frames)) {}

WaveNetwork::Pass::~Pass() = default;

std::int64_t WaveNetwork::Pass::radius() const {
  return network_.layers_.back().conv.kernel_rows() / 2;
}

std::int64_t WaveNetwork::Pass::channels() const {
  return std::int64_t{network_.groups_} * network_.layers_.back().conv.in_width();
}

void WaveNetwork::Pass::copy_head_input(std::int64_t row, std::int8_t* out) const {
  const WaveFrame& input = frames_->of(network_.layers_.back().input);
  for (std::int64_t r = row - radius(); r <= row + radius(); ++r) {
    const std::uint8_t* from = input.at(r, -radius());
    for (std::int64_t i = 0; i < frames_->area.width + 2 * radius();
         ++i, from += input.pixel_bytes()) {
      for (std::int64_t c = 0; c < channels(); ++c) {
        *out++ = static_cast<std::int8_t>(from[c] ^ -128);
      }
    }
  }
}

void WaveNetwork::Pass::finish(const WaveNetwork& head, const std::int32_t* symbols,
                               std::int32_t* ordered_symbols, std::uint8_t* indexes,
                               int threads) const {
  const Layer& layer = head.layers_.back();
  const Layer& before = network_.layers_.back();
  require(head.layers_.size() == network_.layers_.size() && layer.input == before.input &&
              layer.residual == before.residual && layer.conv.groups() == before.conv.groups() &&
              layer.conv.in_width() == before.conv.in_width() &&
              layer.conv.kernel_rows() == before.conv.kernel_rows() &&
              layer.conv.kernel_columns() == before.conv.kernel_columns(),
          "the head is one of another network");
  frames_->views.back() = std::make_unique<LayerView>(layer, frames_->of(layer.input));
  const std::int64_t height = frames_->area.height;
  const std::int64_t width = frames_->area.width;
  AlignedBuffer raster_indexes(static_cast<std::size_t>(height * width * head.groups_));
  head.run_stages({{head.layers_.size() - 1}}, *frames_, raster_indexes.data(), threads);
  head.put_in_order(symbols, raster_indexes.data(), height, width, ordered_symbols, indexes,
                    threads);
}

void WaveNetwork::fill_symbols(const std::int32_t* symbols, const Frames& frames,
                               int threads) const {
  const std::int64_t height = frames.area.height;
  const std::int64_t width = frames.area.width;
  const WaveFrame& frame = frames.of(0);
  parallel_for(height, threads, [&](std::int64_t row) {
    for (int g = 0; g < groups_; ++g) {
      const std::int32_t* from = symbols + (g * height + row) * width;
      std::uint8_t* to = frame.at(row, 0) + g;
      for (std::int64_t column = 0; column < width; ++column, to += frame.pixel_bytes()) {
        *to = frame_value(from[column]);
      }
    }
  });
}

// Some waves to a thread, or some runs where there are few waves.
void WaveNetwork::put_in_order(const std::int32_t* symbols, const std::uint8_t* raster_indexes,
                               std::int64_t height, std::int64_t width,
                               std::int32_t* ordered_symbols, std::uint8_t* indexes,
                               int threads) const {
  const std::int64_t area = height * width;
  const std::int64_t waves = num_waves(height, width);
  const std::int64_t parts = waves < 8 * threads ? threads : 1;
  const std::int64_t chunks = std::min<std::int64_t>(waves, kShares * std::int64_t{threads});
  std::vector<std::size_t> begins;  // of chunks
  std::vector<Run> counted;
  std::size_t total = 0;
  for (std::int64_t t = 0, chunk = 0; t < waves; ++t) {
    if (t == chunk * waves / chunks) {
      begins.push_back(total);
      ++chunk;
    }
    total += runs_of_wave(t, height, width, counted);
  }
  parallel_for(chunks * parts, threads, [&](std::int64_t item) {
    const std::int64_t chunk = item / parts;
    const auto part = static_cast<std::size_t>(item % parts);
    std::size_t begin = begins[static_cast<std::size_t>(chunk)];
    std::vector<Run> runs;
    for (std::int64_t t = chunk * waves / chunks; t < (chunk + 1) * waves / chunks; ++t) {
      const std::size_t size = runs_of_wave(t, height, width, runs);
      for (std::size_t r = part; r < runs.size(); r += static_cast<std::size_t>(parts)) {
        const Run& run = runs[r];
        std::int64_t from = run.group * area + run.row * width + run.column;
        const std::int64_t step = run.row_step * width + run.column_step;
        std::size_t to = begin + run.first;
        for (std::int64_t i = 0; i < run.count; ++i, from += step, to += run.index_step) {
          ordered_symbols[to] = symbols[from];
          indexes[to] = raster_indexes[from];
        }
      }
      begin += size;
    }
  });
}

void WaveNetwork::record_wave(const std::vector<Run>& runs, std::int64_t number,
                              std::int64_t began) const {
  SpanWork work = {};
  for (const Run& run : runs) {
    for (const Stage& stage : wave_stages_) add_work(work, stage, run.group, run.count);
  }
  work.number = number;
  work.kind = SpanKind::kWave;
  SpanRecorder::add({"wave", began, SpanRecorder::now(), work});
}

void WaveNetwork::decode(rans::Decoder& decoder, const std::vector<const std::int8_t*>& side,
                         std::int64_t height, std::int64_t width, std::int32_t* symbols,
                         int threads) const {
  const std::int64_t area = height * width;
  if (area == 0) return;
  Frames frames(*this, height, width, false);
  fill_side(side, frames, threads);
  run_stages(side_stages_, frames, nullptr, threads);

  // The first thread draws the symbols; meanwhile the last one writes those of the wave before to
  // the picture. All other steps are shared. Runs are cheap, so each thread makes its own.
  const std::int64_t waves = num_waves(height, width);
  const std::size_t size = max_wave(height, width);
  AlignedBuffer indexes(size);
  AlignedBuffer drawn_bytes(2 * size * sizeof(std::int32_t));
  const auto drawn = [&](unsigned number) {
    return reinterpret_cast<std::int32_t*>(drawn_bytes.data()) + (number % 2) * size;
  };
  struct Plan {
    std::vector<Run> runs, before;
  };
  std::vector<Plan> plans(static_cast<std::size_t>(threads));
  for (Plan& plan : plans) {
    plan.runs.reserve(max_runs(height, width));
    plan.before.reserve(max_runs(height, width));
  }
  const auto write_symbols = [&](const std::vector<Run>& runs, const std::int32_t* values) {
    for (const Run& run : runs) {
      std::int32_t* to = symbols + run.group * area + run.row * width + run.column;
      const std::int64_t step = run.row_step * width + run.column_step;
      const std::int32_t* from = values + run.first;
      for (std::int64_t i = 0; i < run.count; ++i, to += step, from += run.index_step) *to = *from;
    }
  };
  const auto write_frame = [&](const std::vector<Run>& runs, const std::int32_t* values) {
    for (const Run& run : runs) {
      const WaveFrame& frame = frames.of(0);
      std::uint8_t* to = frame.at(run.row, run.column) + run.group;
      const std::int64_t step = frame.step(run.row_step, run.column_step);
      const std::int32_t* from = values + run.first;
      for (std::int64_t i = 0; i < run.count; ++i, to += step, from += run.index_step) {
        *to = frame_value(*from);
      }
    }
  };

  std::exception_ptr error;
  std::atomic<bool> stopped{false};
  run_team(threads, [&](int thread, int team, Barrier& barrier) {
    Plan& plan = plans[static_cast<std::size_t>(thread)];
    std::optional<LineWindow> window = frames.window;
    unsigned number = 0;  // of waves that have symbols
    for (std::int64_t t = 0; t < waves; ++t) {
      const std::size_t count = runs_of_wave(t, height, width, plan.runs);
      if (count == 0) continue;
      if (const std::int64_t lines = window ? window->advance(t) : 0; lines > 0) {
        for (std::size_t i = static_cast<std::size_t>(thread); i < frames.in_lines.size();
             i += static_cast<std::size_t>(team)) {
          frames.tensors[frames.in_lines[i]].advance(*window, lines);
        }
        barrier.wait();
      }
      const bool is_recorded = thread == 0 && SpanRecorder::is_on();
      const std::int64_t wave_began = is_recorded ? SpanRecorder::now() : 0;
      for (const Stage& stage : wave_stages_) {
        const SpanScope span("wave_layers", [&] {
          return SpanWork{0, 0, Arithmetic::kNone, static_cast<std::int64_t>(stage.front())};
        });
        run_share(stage, frames, plan.runs, thread, team, indexes.data());
        barrier.wait();
      }
      if (thread == 0) {
        try {
          const SpanScope span("wave_symbols",
                               [&] { return SpanWork{static_cast<std::int64_t>(5 * count)}; });
          decoder.decode(indexes.data(), count, drawn(number));
          write_frame(plan.runs, drawn(number));
        } catch (...) {
          error = std::current_exception();
          stopped.store(true, std::memory_order_relaxed);
        }
      }
      if (thread == team - 1) write_symbols(plan.before, drawn(number + 1));
      barrier.wait();
      if (stopped.load(std::memory_order_relaxed)) return;
      if (is_recorded) record_wave(plan.runs, t, wave_began);
      std::swap(plan.runs, plan.before);
      ++number;
    }
    if (thread == team - 1) write_symbols(plan.before, drawn(number + 1));
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace pycodec
