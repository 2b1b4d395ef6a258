#include "cpu/float_trimmed_conv2d.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "cpu/aligned_buffer.hpp"
#include "cpu/float_trimmed_conv2d_kernel.hpp"
#include "cpu/integer_division.hpp"
#include "cpu/parallel.hpp"
#include "cpu/simd_level.hpp"

namespace pycodec {
namespace {

// A tile's input should stay in the second-level cache while all output channels are computed.
constexpr std::int64_t kTileFloats = 144 * 1024;
constexpr std::int64_t kMinTileColumns = 48;
constexpr std::int64_t kMaxTileColumns = 192;
constexpr std::int64_t kMaxTileRows = 16;

const FloatTrimmedKernel& kernel_for(SimdLevel level) {
  switch (level) {
#if defined(__x86_64__)
    case SimdLevel::kAmx:
    case SimdLevel::kAvx512Vnni:
      return kFloatTrimmedKernelAvx512Vnni;
    case SimdLevel::kAvx2:
      return kFloatTrimmedKernelAvx2;
#endif
    default:
      return kFloatTrimmedKernelScalar;
  }
}

// How a picture is cut: tiles of rows x columns outputs, whose inputs are copied into a buffer
// [in_channels][rows + kernel_height - 1][stride] with zeros around the picture.
struct Tiling {
  std::int64_t rows, columns;
  std::int64_t buffer_rows, stride;
  std::int64_t tiles_down, tiles_across;

  Tiling(const TrimmedShape& s, std::int64_t rows_, std::int64_t columns_)
      : rows(rows_),
        columns(columns_),
        buffer_rows(rows + s.kernel_height - 1),
        stride(columns + s.kernel_width - 1),
        tiles_down(ceil_div(s.height, rows)),
        tiles_across(ceil_div(s.width, columns)) {}
};

// The tiles that take least time, if a multiply-add takes 1 / lanes and a copied value 1 / 2. Sums
// do not depend on tiles, so these may depend on the number of threads.
Tiling choose_tiling(const TrimmedShape& s, std::int64_t macs, int lanes, int threads) {
  const auto width_of = [&](std::int64_t across) {
    return std::min(s.width, round_up(ceil_div(s.width, across), lanes));
  };
  Tiling best(s, 1, width_of(ceil_div(s.width, kMinTileColumns)));
  double best_cost = std::numeric_limits<double>::infinity();
  for (std::int64_t across = ceil_div(s.width, kMaxTileColumns);
       across <= ceil_div(s.width, kMinTileColumns); ++across) {
    for (std::int64_t rows = 1; rows <= std::min(s.height, kMaxTileRows); ++rows) {
      const Tiling tiling(s, rows, width_of(across));
      const std::int64_t values = s.in_channels * tiling.buffer_rows * tiling.stride;
      if (values > kTileFloats) break;
      const std::int64_t tiles = s.batch * tiling.tiles_down * tiling.tiles_across;
      const std::int64_t vectors = rows * ceil_div(tiling.columns, lanes);
      const double cost = static_cast<double>(ceil_div(tiles, threads)) *
                          (static_cast<double>(vectors * macs) + static_cast<double>(values) / 2);
      if (cost < best_cost) {
        best_cost = cost;
        best = tiling;
      }
    }
  }
  return best;
}

class Layer {
 public:
  Layer(const TrimmedShape& shape, const float* weight, const bool* mask, const float* bias,
        int threads)
      : shape_(shape),
        kernel_(kernel_for(simd_level())),
        group_out_(shape.out_channels / shape.groups_out),
        group_in_(shape.in_channels / shape.groups_in),
        taps_(shape.kernel_height * shape.kernel_width),
        mask_(mask),
        bias_(bias),
        macs_(std::count(mask, mask + shape.groups_out * shape.groups_in * taps_, true) *
              group_out_ * group_in_),
        tiling_(choose_tiling(shape, macs_, kernel_.lanes, threads)),
        weights_(static_cast<std::size_t>(macs_) * sizeof(float)) {
    if (buffer_floats() > std::numeric_limits<std::int32_t>::max()) {
      throw std::invalid_argument("the layer is too large for 32-bit offsets");
    }
    make_blocks();
    parallel_for(static_cast<std::int64_t>(blocks_.size()), threads, [&](std::int64_t i) {
      Block& block = blocks_[static_cast<std::size_t>(i)];
      const std::vector<char> nothing(static_cast<std::size_t>(shape_.groups_in * taps_));
      float* packed = block.weights;
      add_passes(block, block.first_group, block.end_group, nothing, weight, packed);
    });
  }

  void run(const float* x, float* out, int threads) const {
    const std::int64_t tiles = shape_.batch * tiling_.tiles_down * tiling_.tiles_across;
    std::atomic<std::int64_t> next{0};
    parallel_for(std::min<std::int64_t>(threads, tiles), threads, [&](std::int64_t) {
      std::vector<float> in(static_cast<std::size_t>(buffer_floats()));
      std::vector<float> sums(static_cast<std::size_t>(
          kernel_.max_channels * round_up(tiling_.rows * tiling_.stride, kernel_.lanes)));
      for (std::int64_t tile; (tile = next.fetch_add(1)) < tiles;) {
        run_tile(tile, x, out, in.data(), sums.data());
      }
    });
  }

 private:
  struct Pass {
    std::int64_t first_channel;
    std::vector<std::int32_t> offsets;
    FloatTrimmedPass kernel;
  };

  // Output channels that are computed together. What all of them see comes first, then what half of
  // them sees besides, and so on: each group sees nearly all that the one before it sees, so groups
  // of few channels are computed in larger blocks for the most part.
  struct Block {
    std::int64_t first_group, end_group;
    std::int64_t first_channel, channels;
    float* weights;  // of all passes
    std::vector<Pass> passes;
  };

  // A vector may reach past the last row, so there are some values more.
  std::int64_t buffer_floats() const {
    return shape_.in_channels * tiling_.buffer_rows * tiling_.stride + kernel_.lanes;
  }

  void make_blocks() {
    const std::int64_t in_block = std::max<std::int64_t>(kernel_.max_channels / group_out_, 1);
    auto* weights = reinterpret_cast<float*>(weights_.data());
    for (std::int64_t group = 0; group < shape_.groups_out; group += in_block) {
      const std::int64_t end = std::min(group + in_block, shape_.groups_out);
      const bool* seen = mask_ + group * shape_.groups_in * taps_;
      const bool* seen_end = mask_ + end * shape_.groups_in * taps_;
      const std::int64_t macs = std::count(seen, seen_end, true) * group_in_ * group_out_;
      const std::int64_t channels = (end - group) * group_out_;
      // A group that is too wide for a block is cut evenly.
      for (std::int64_t left = channels; left > 0;) {
        const std::int64_t width = ceil_div(left, ceil_div(left, kernel_.max_channels));
        blocks_.push_back({group, end, group * group_out_ + channels - left, width, weights, {}});
        weights += macs * width / channels;
        left -= width;
      }
    }
  }

  // The passes for the groups begin ... end - 1 of a block, of which `done` was in earlier passes.
  // Their weights go to `packed`, which moves on.
  void add_passes(Block& block, std::int64_t begin, std::int64_t end, std::vector<char> done,
                  const float* weight, float*& packed) const {
    const std::int64_t group_taps = shape_.groups_in * taps_;
    std::vector<char> common(done.size());
    for (std::int64_t i = 0; i < group_taps; ++i) {
      bool seen = !done[i];
      for (std::int64_t group = begin; group < end; ++group) seen &= mask_[group * group_taps + i];
      common[i] = seen;
      done[i] |= seen;
    }
    const bool is_first = block.passes.empty();
    const std::int64_t channels = std::min((end - begin) * group_out_, block.channels);
    Pass pass;
    pass.first_channel = is_first ? block.first_channel : begin * group_out_;
    const float* weights = packed;
    const std::int64_t window = shape_.in_channels * taps_;
    const float* from = weight + pass.first_channel * window;
    for (std::int64_t channel = 0; channel < shape_.in_channels; ++channel) {
      for (std::int64_t tap = 0; tap < taps_; ++tap, ++from) {
        if (!common[channel / group_in_ * taps_ + tap]) continue;
        const std::int64_t row = channel * tiling_.buffer_rows + tap / shape_.kernel_width;
        const std::int64_t offset = row * tiling_.stride + tap % shape_.kernel_width;
        pass.offsets.push_back(static_cast<std::int32_t>(offset));
        for (std::int64_t c = 0; c < channels; ++c) *packed++ = from[c * window];
      }
    }
    if (is_first || !pass.offsets.empty()) {
      pass.kernel = {static_cast<int>(channels), static_cast<std::int64_t>(pass.offsets.size()),
                     pass.offsets.data(), weights,
                     is_first ? bias_ + block.first_channel : nullptr};
      block.passes.push_back(std::move(pass));
    }
    if (end - begin == 1) return;
    const std::int64_t middle = (begin + end) / 2;
    add_passes(block, begin, middle, done, weight, packed);
    add_passes(block, middle, end, std::move(done), weight, packed);
  }

  void run_tile(std::int64_t tile, const float* x, float* out, float* in, float* sums) const {
    const std::int64_t image = tile / (tiling_.tiles_down * tiling_.tiles_across);
    const std::int64_t top = tile / tiling_.tiles_across % tiling_.tiles_down * tiling_.rows;
    const std::int64_t left = tile % tiling_.tiles_across * tiling_.columns;
    const std::int64_t rows = std::min(tiling_.rows, shape_.height - top);
    const std::int64_t columns = std::min(tiling_.columns, shape_.width - left);
    const std::int64_t plane = shape_.height * shape_.width;
    copy_input(x + image * shape_.in_channels * plane, top, left, rows, in);

    // Rows are computed as one, and what comes out between them thrown away, where that takes fewer
    // vectors.
    const std::int64_t joined = (rows - 1) * tiling_.stride + columns;
    const bool join = ceil_div(joined, kernel_.lanes) < rows * ceil_div(columns, kernel_.lanes);
    const bool in_place = !join && columns % kernel_.lanes == 0;
    const std::int64_t positions = join ? joined : columns;
    const std::int64_t stride = in_place ? plane : round_up(positions, kernel_.lanes);
    for (const Block& block : blocks_) {
      float* to = out + (image * shape_.out_channels + block.first_channel) * plane +
                  top * shape_.width + left;
      for (std::int64_t row = 0; row < rows; row += join ? rows : 1, to += shape_.width) {
        float* target = in_place ? to : sums;
        for (const Pass& pass : block.passes) {
          kernel_.run(pass.kernel, in + row * tiling_.stride, positions,
                      target + (pass.first_channel - block.first_channel) * stride, stride);
        }
        if (in_place) continue;
        for (std::int64_t c = 0; c < block.channels; ++c) {
          for (std::int64_t r = 0; r < (join ? rows : 1); ++r) {
            const float* from = sums + c * stride + r * tiling_.stride;
            std::copy(from, from + columns, to + c * plane + r * shape_.width);
          }
        }
      }
    }
  }

  void copy_input(const float* x, std::int64_t top, std::int64_t left, std::int64_t rows,
                  float* in) const {
    const std::int64_t first_row = top - shape_.kernel_height / 2;
    const std::int64_t first_column = left - shape_.kernel_width / 2;
    const std::int64_t begin = std::max<std::int64_t>(first_column, 0);
    const std::int64_t end = std::min(first_column + tiling_.stride, shape_.width);
    const std::int64_t buffer_rows = rows + shape_.kernel_height - 1;
    for (std::int64_t c = 0; c < shape_.in_channels; ++c, x += shape_.height * shape_.width) {
      float* to = in + c * tiling_.buffer_rows * tiling_.stride;
      for (std::int64_t row = first_row; row < first_row + buffer_rows; ++row) {
        const bool inside = row >= 0 && row < shape_.height;
        float* row_end = to + tiling_.stride;
        if (inside) {
          to = std::fill_n(to, begin - first_column, 0.0f);
          to = std::copy(x + row * shape_.width + begin, x + row * shape_.width + end, to);
        }
        std::fill(to, row_end, 0.0f);
        to = row_end;
      }
    }
  }

  const TrimmedShape shape_;
  const FloatTrimmedKernel kernel_;
  const std::int64_t group_out_, group_in_;  // channels
  const std::int64_t taps_;
  const bool* const mask_;
  const float* const bias_;
  const std::int64_t macs_;  // to a position
  const Tiling tiling_;
  AlignedBuffer weights_;
  std::vector<Block> blocks_;
};

}  // namespace

void float_trimmed_conv2d(const TrimmedShape& shape, const float* x, const float* weight,
                          const bool* mask, const float* bias, float* out, int threads) {
  check_shape(shape);
  if (shape.batch == 0 || shape.height == 0 || shape.width == 0) return;
  Layer(shape, weight, mask, bias, threads).run(x, out, threads);
}

}  // namespace pycodec
