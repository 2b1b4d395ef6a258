#include "cpu/float_trimmed_conv2d.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "cpu/aligned_buffer.hpp"
#include "cpu/float_trimmed_conv2d_kernel.hpp"
#include "cpu/parallel.hpp"
#include "cpu/simd_level.hpp"

namespace pycodec {
namespace {

// A tile's input should stay in the second-level cache while all output channels are computed.
constexpr std::int64_t kTileFloats = 96 * 1024;
constexpr std::int64_t kTileColumns = 192;  // a multiple of nearly every block
constexpr std::int64_t kMinTileColumns = 48;
constexpr std::int64_t kTileRows = 16;

const FloatTrimmedKernel& kernel_for(SimdLevel level) {
  switch (level) {
#if defined(__x86_64__)
    case SimdLevel::kAvx512Vnni:
      return kFloatTrimmedKernelAvx512Vnni;
    case SimdLevel::kAvx2:
      return kFloatTrimmedKernelAvx2;
#endif
    default:
      return kFloatTrimmedKernelScalar;
  }
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t round_up(std::int64_t a, std::int64_t multiple) {
  return ceil_div(a, multiple) * multiple;
}

void check(const FloatTrimmedShape& s) {
  if (s.batch < 0 || s.height < 0 || s.width < 0 || s.in_channels < 1 || s.out_channels < 1) {
    throw std::invalid_argument("a convolution needs channels, and no size below 0");
  }
  if (s.kernel_height % 2 != 1 || s.kernel_width % 2 != 1) {
    throw std::invalid_argument("the kernel's height and width must be odd");
  }
  if (s.groups_in < 1 || s.groups_out < 1 || s.in_channels % s.groups_in != 0 ||
      s.out_channels % s.groups_out != 0) {
    throw std::invalid_argument("channels cannot be split into that many equal groups");
  }
}

// How a picture is cut: tiles of rows x columns outputs, whose inputs are copied into a buffer
// [in_channels][rows + kernel_height - 1][stride] with zeros around the picture.
struct Tiling {
  std::int64_t rows, columns;
  std::int64_t stride;
  std::int64_t tiles_down, tiles_across;

  std::int64_t buffer_rows(const FloatTrimmedShape& s) const { return rows + s.kernel_height - 1; }
  std::int64_t buffer_floats(const FloatTrimmedShape& s) const {
    return s.in_channels * buffer_rows(s) * stride;
  }
};

// The tiles that take least time, if a multiply-add takes 1 / lanes and a copied value 1 / 2. Sums
// do not depend on tiles, so these may depend on the number of threads.
Tiling choose_tiling(const FloatTrimmedShape& s, std::int64_t macs, int lanes, int threads) {
  Tiling tiling{};
  std::int64_t across = ceil_div(s.width, kTileColumns);
  for (;; ++across) {
    tiling.columns = std::min(s.width, round_up(ceil_div(s.width, across), lanes));
    tiling.stride = tiling.columns + s.kernel_width - 1;
    tiling.tiles_across = ceil_div(s.width, tiling.columns);
    tiling.rows = 1;
    if (tiling.columns <= kMinTileColumns || tiling.buffer_floats(s) <= kTileFloats) break;
  }
  double best = std::numeric_limits<double>::infinity();
  Tiling chosen = tiling;
  for (; tiling.rows <= std::min(s.height, kTileRows); ++tiling.rows) {
    if (tiling.rows > 1 && tiling.buffer_floats(s) > kTileFloats) break;
    tiling.tiles_down = ceil_div(s.height, tiling.rows);
    const std::int64_t tiles = s.batch * tiling.tiles_down * tiling.tiles_across;
    const double seconds = static_cast<double>(ceil_div(tiles, threads)) *
                           (static_cast<double>(tiling.rows * macs) / lanes +
                            static_cast<double>(tiling.buffer_rows(s) * s.in_channels) / 2);
    if (seconds < best) {
      best = seconds;
      chosen = tiling;
    }
  }
  return chosen;
}

// Neighbouring output channels that see the same taps.
struct Run {
  std::int64_t first_channel, channels;
  std::vector<std::int64_t> taps;  // indexes into a channel's weights
  std::vector<std::int32_t> offsets;
};

std::vector<Run> find_runs(const FloatTrimmedShape& s, const bool* mask) {
  const std::int64_t taps = s.kernel_height * s.kernel_width;
  const std::int64_t group_mask = s.groups_in * taps;
  const std::int64_t width_out = s.out_channels / s.groups_out;
  const std::int64_t width_in = s.in_channels / s.groups_in;
  std::vector<Run> runs;
  for (std::int64_t group = 0; group < s.groups_out; ++group, mask += group_mask) {
    if (group > 0 && std::equal(mask, mask + group_mask, mask - group_mask)) {
      runs.back().channels += width_out;
      continue;
    }
    runs.push_back({group * width_out, width_out, {}, {}});
    for (std::int64_t c = 0; c < s.in_channels; ++c) {
      for (std::int64_t tap = 0; tap < taps; ++tap) {
        if (mask[c / width_in * taps + tap]) runs.back().taps.push_back(c * taps + tap);
      }
    }
  }
  return runs;
}

class Layer {
 public:
  Layer(const FloatTrimmedShape& shape, const float* weight, const bool* mask, const float* bias,
        int threads)
      : shape_(shape),
        kernel_(kernel_for(simd_level())),
        runs_(find_runs(shape, mask)),
        tiling_(choose_tiling(shape, macs(), kernel_.lanes, threads)),
        weights_(static_cast<std::size_t>(macs()) * sizeof(float)),
        bias_(bias, bias + shape.out_channels) {
    if (tiling_.buffer_floats(shape) > std::numeric_limits<std::int32_t>::max()) {
      throw std::invalid_argument("the layer is too large for 32-bit offsets");
    }
    make_offsets();
    make_chunks();
    pack_weights(weight, threads);
  }

  void run(const float* x, float* out, int threads) const {
    const std::int64_t tiles = shape_.batch * tiling_.tiles_down * tiling_.tiles_across;
    std::atomic<std::int64_t> next{0};
    const auto workers = std::min<std::int64_t>(threads, tiles);
    parallel_for(workers, threads, [&](std::int64_t) {
      // Uninitialized lanes would do no harm, but a vector may reach past the last row.
      Buffers buffers(tiling_.buffer_floats(shape_) + kernel_.lanes, out_floats());
      for (std::int64_t tile; (tile = next.fetch_add(1)) < tiles;) run_tile(tile, x, out, buffers);
    });
  }

 private:
  struct Buffers {
    Buffers(std::int64_t in_floats, std::int64_t out_floats)
        : in(static_cast<std::size_t>(in_floats)), out(static_cast<std::size_t>(out_floats)) {}
    std::vector<float> in, out;
  };

  // Multiply-adds to a position.
  std::int64_t macs() const {
    std::int64_t sum = 0;
    for (const Run& run : runs_) {
      sum += run.channels * static_cast<std::int64_t>(run.taps.size());
    }
    return sum;
  }

  std::int64_t out_floats() const {
    return kernel_.max_channels * tiling_.rows * round_up(tiling_.stride, kernel_.lanes);
  }

  void make_offsets() {
    const std::int64_t taps = shape_.kernel_height * shape_.kernel_width;
    for (Run& run : runs_) {
      run.offsets.reserve(run.taps.size());
      for (const std::int64_t tap : run.taps) {
        const std::int64_t row =
            tap / taps * tiling_.buffer_rows(shape_) + tap % taps / shape_.kernel_width;
        run.offsets.push_back(
            static_cast<std::int32_t>(row * tiling_.stride + tap % shape_.kernel_width));
      }
    }
  }

  void make_chunks() {
    const auto* weights = reinterpret_cast<const float*>(weights_.data());
    for (const Run& run : runs_) {
      std::int64_t left = run.channels;
      const auto num_taps = static_cast<std::int64_t>(run.taps.size());
      for (std::int64_t chunks = ceil_div(left, kernel_.max_channels); chunks > 0; --chunks) {
        const auto channels = static_cast<int>(ceil_div(left, chunks));
        const std::int64_t first = run.first_channel + run.channels - left;
        chunks_.push_back({{channels, num_taps, run.offsets.data(), weights, &bias_[first]},
                           first,
                           run.taps.data()});
        weights += channels * num_taps;
        left -= channels;
      }
    }
  }

  void pack_weights(const float* weight, int threads) {
    const std::int64_t window = shape_.in_channels * shape_.kernel_height * shape_.kernel_width;
    parallel_for(static_cast<std::int64_t>(chunks_.size()), threads, [&](std::int64_t i) {
      const Chunk& chunk = chunks_[i];
      const float* from = weight + chunk.first_channel * window;
      auto* to = reinterpret_cast<float*>(weights_.data()) +
                 (chunk.packed.weights - reinterpret_cast<const float*>(weights_.data()));
      for (std::int64_t tap = 0; tap < chunk.packed.num_taps; ++tap) {
        for (int c = 0; c < chunk.packed.channels; ++c) *to++ = from[c * window + chunk.taps[tap]];
      }
    });
  }

  void run_tile(std::int64_t tile, const float* x, float* out, Buffers& buffers) const {
    const std::int64_t image = tile / (tiling_.tiles_down * tiling_.tiles_across);
    const std::int64_t top = tile / tiling_.tiles_across % tiling_.tiles_down * tiling_.rows;
    const std::int64_t left = tile % tiling_.tiles_across * tiling_.columns;
    const std::int64_t rows = std::min(tiling_.rows, shape_.height - top);
    const std::int64_t columns = std::min(tiling_.columns, shape_.width - left);
    const std::int64_t plane = shape_.height * shape_.width;
    copy_input(x + image * shape_.in_channels * plane, top, left, rows, buffers.in.data());

    // Rows may be computed as one, with what is between them thrown away, where that takes fewer
    // vectors.
    const std::int64_t one = (rows - 1) * tiling_.stride + columns;
    const bool as_one = ceil_div(one, kernel_.lanes) < rows * ceil_div(columns, kernel_.lanes);
    const std::int64_t pitch = as_one ? tiling_.stride : round_up(columns, kernel_.lanes);
    const std::int64_t channel_stride = round_up(rows * pitch, kernel_.lanes);
    float* image_out = out + image * shape_.out_channels * plane + top * shape_.width + left;
    for (const Chunk& chunk : chunks_) {
      for (std::int64_t row = 0; row < (as_one ? 1 : rows); ++row) {
        kernel_.run(chunk.packed, buffers.in.data() + row * tiling_.stride, as_one ? one : columns,
                    buffers.out.data() + row * pitch, channel_stride);
      }
      for (int c = 0; c < chunk.packed.channels; ++c) {
        for (std::int64_t row = 0; row < rows; ++row) {
          std::memcpy(image_out + (chunk.first_channel + c) * plane + row * shape_.width,
                      buffers.out.data() + c * channel_stride + row * pitch,
                      static_cast<std::size_t>(columns) * sizeof(float));
        }
      }
    }
  }

  void copy_input(const float* x, std::int64_t top, std::int64_t left, std::int64_t rows,
                  float* to) const {
    const std::int64_t first_row = top - shape_.kernel_height / 2;
    const std::int64_t first_column = left - shape_.kernel_width / 2;
    const std::int64_t begin = std::max<std::int64_t>(first_column, 0);
    const std::int64_t end = std::min(first_column + tiling_.stride, shape_.width);
    for (std::int64_t c = 0; c < shape_.in_channels; ++c, x += shape_.height * shape_.width) {
      float* row_to = to + c * tiling_.buffer_rows(shape_) * tiling_.stride;
      for (std::int64_t row = first_row; row < first_row + rows + shape_.kernel_height - 1;
           ++row, row_to += tiling_.stride) {
        if (row < 0 || row >= shape_.height) {
          std::fill(row_to, row_to + tiling_.stride, 0.0f);
          continue;
        }
        const float* from = x + row * shape_.width;
        float* p = std::fill_n(row_to, begin - first_column, 0.0f);
        p = std::copy(from + begin, from + end, p);
        std::fill(p, row_to + tiling_.stride, 0.0f);
      }
    }
  }

  struct Chunk {
    FloatTrimmedChunk packed;
    std::int64_t first_channel;
    const std::int64_t* taps;
  };

  FloatTrimmedShape shape_;
  FloatTrimmedKernel kernel_;
  std::vector<Run> runs_;
  Tiling tiling_;
  AlignedBuffer weights_;
  std::vector<float> bias_;
  std::vector<Chunk> chunks_;
};

}  // namespace

void float_trimmed_conv2d(const FloatTrimmedShape& shape, const float* x, const float* weight,
                          const bool* mask, const float* bias, float* out, int threads) {
  check(shape);
  if (shape.batch == 0 || shape.height == 0 || shape.width == 0) return;
  Layer(shape, weight, mask, bias, threads).run(x, out, threads);
}

}  // namespace pycodec
