#include "cpu/trimmed_training.hpp"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "cpu/aligned_buffer.hpp"
#include "cpu/integer_division.hpp"
#include "cpu/parallel.hpp"
#include "cpu/simd_level.hpp"
#include "cpu/trimmed_training_kernel.hpp"

namespace pycodec {
namespace {

constexpr std::int64_t kBandRows = 16, kBandColumns = 128;  // what stays in the second-level cache
constexpr std::int64_t kHalf = kBlock / 2;
constexpr std::int64_t kTileSums = kHalf * kHalf;
constexpr std::int64_t kCorrelationPositions = 384;  // what stays in the first-level cache

struct Bfloat16Kernel {
  const Bfloat16Products* products;  // null where the SIMD level in force has none
  const Bfloat16Passes* passes;
};

Bfloat16Kernel find_kernel() {
#if defined(__x86_64__)
  const SimdLevel level = simd_level();
  if (level == SimdLevel::kAmx) return {&kBfloat16ProductsAmx, &kBfloat16PassesAvx512};
  if (level == SimdLevel::kAvx512Vnni && __builtin_cpu_supports("avx512bf16")) {
    return {&kBfloat16ProductsAvx512, &kBfloat16PassesAvx512};
  }
#endif
  return {};
}

Bfloat16Kernel kernel() {
  const Bfloat16Kernel found = find_kernel();
  if (found.products == nullptr) {
    throw std::invalid_argument("bfloat16 needs a processor with AVX-512 BF16 or AMX");
  }
  return found;
}

void check(const TrimmedShape& shape) {
  check_shape(shape);
  if (shape.in_channels % kBfloat16Channels != 0 || shape.out_channels % kBfloat16Channels != 0) {
    throw std::invalid_argument("in bfloat16, channels must be multiples of 32");
  }
}

// What the mask says of single channels and of half blocks.
class Mask {
 public:
  Mask(const TrimmedShape& shape, const bool* mask)
      : taps_(shape.kernel_height * shape.kernel_width),
        groups_in_(shape.groups_in),
        width_out_(shape.out_channels / shape.groups_out),
        width_in_(shape.in_channels / shape.groups_in),
        mask_(mask) {}

  bool sees(std::int64_t out, std::int64_t in, std::int64_t tap) const {
    return mask_[(out / width_out_ * groups_in_ + in / width_in_) * taps_ + tap];
  }

  // Whether any of outs channels from `out` sees any of ins channels from `in`.
  bool any(std::int64_t out, std::int64_t outs, std::int64_t in, std::int64_t ins,
           std::int64_t tap) const {
    for (std::int64_t o = out; o < out + outs; ++o) {
      for (std::int64_t i = in; i < in + ins; ++i) {
        if (sees(o, i, tap)) return true;
      }
    }
    return false;
  }

 private:
  const std::int64_t taps_, groups_in_, width_out_, width_in_;
  const bool* const mask_;
};

// The part of an image that is computed at once.
struct Band {
  std::int64_t image, top, rows, left, columns;
};

class Bands {
 public:
  explicit Bands(const TrimmedShape& s)
      : shape_(s),
        down_((s.height + kBandRows - 1) / kBandRows),
        across_((s.width + kBandColumns - 1) / kBandColumns) {}

  std::int64_t count() const { return shape_.batch * down_ * across_; }

  Band operator[](std::int64_t i) const {
    const std::int64_t top = i / across_ % down_ * kBandRows;
    const std::int64_t left = i % across_ * kBandColumns;
    return {i / across_ / down_, top, std::min(kBandRows, shape_.height - top), left,
            std::min(kBandColumns, shape_.width - left)};
  }

 private:
  const TrimmedShape shape_;
  const std::int64_t down_, across_;
};

// A band of x and what the kernel sees around it, zeros outside the image.
class Frame {
 public:
  explicit Frame(const TrimmedShape& s)
      : shape_(s),
        rows_(std::min(kBandRows, s.height) + s.kernel_height - 1),
        columns_(round_up(std::min(kBandColumns, s.width), kBlock) +
                 round_up(s.kernel_width - 1, kBlock)),
        values_(static_cast<std::size_t>(2 * rows_ * columns_ * s.in_channels)) {}

  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }
  const std::uint16_t* row(std::int64_t row) const {
    return reinterpret_cast<const std::uint16_t*>(values_.data()) +
           row * columns_ * shape_.in_channels;
  }

  void fill(const std::uint16_t* x, const Band& band) {
    const std::int64_t channels = shape_.in_channels;
    const std::int64_t first_row = band.top - shape_.kernel_height / 2;
    const std::int64_t first_column = band.left - shape_.kernel_width / 2;
    const std::int64_t begin = std::max<std::int64_t>(first_column, 0);
    const std::int64_t end = std::min(first_column + columns_, shape_.width);
    auto* to = reinterpret_cast<std::uint16_t*>(values_.data());
    for (std::int64_t row = first_row; row < first_row + rows_; ++row) {
      std::uint16_t* row_end = to + columns_ * channels;
      if (row >= 0 && row < shape_.height) {
        to = std::fill_n(to, (begin - first_column) * channels, std::uint16_t{0});
        const std::uint16_t* from =
            x + (band.image * shape_.height + row) * shape_.width * channels;
        to = std::copy(from + begin * channels, from + end * channels, to);
      }
      std::fill(to, row_end, std::uint16_t{0});
      to = row_end;
    }
  }

 private:
  const TrimmedShape shape_;
  const std::int64_t rows_, columns_;
  AlignedBuffer values_;
};

// The blocks of outputs, with the weights in the order of the kernel.
class Weights {
 public:
  Weights(const TrimmedShape& s, const Mask& mask, std::int64_t row_bytes, std::int64_t inputs,
          const std::uint16_t* weight, const float* bias)
      : packed_(static_cast<std::size_t>(2 * s.kernel_height * s.kernel_width * s.in_channels *
                                         s.out_channels)) {
    const std::int64_t taps = s.kernel_height * s.kernel_width;
    auto* to = reinterpret_cast<std::uint16_t*>(packed_.data());
    std::vector<std::int64_t> firsts;
    for (std::int64_t out = 0; out < s.out_channels; out += kBlock) {
      Bfloat16Block block = {nullptr, 0, 0, 0, bias + out};
      firsts.push_back(static_cast<std::int64_t>(entries_.size()));
      for (const int wanted : {3, 1, 2}) {
        for (std::int64_t tap = 0; tap < taps; ++tap) {
          for (std::int64_t in = 0; in < s.in_channels; in += inputs) {
            const int halves = mask.any(out, kHalf, in, inputs, tap) +
                               2 * mask.any(out + kHalf, kHalf, in, inputs, tap);
            if (halves != wanted) continue;
            const std::int64_t offset =
                tap / s.kernel_width * row_bytes + 2 * (tap % s.kernel_width * s.in_channels + in);
            entries_.push_back({offset, to});
            ++(wanted == 3 ? block.both : wanted == 1 ? block.first : block.second);
            for (std::int64_t i = in; i < in + inputs; i += 2) {
              for (std::int64_t o = out; o < out + kBlock; ++o) {
                for (std::int64_t j = i; j < i + 2; ++j) {
                  *to++ = mask.sees(o, j, tap) ? weight[(o * s.in_channels + j) * taps + tap] : 0;
                }
              }
            }
          }
        }
      }
      blocks_.push_back(block);
    }
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      blocks_[i].entries = entries_.data() + firsts[i];
    }
  }

  const std::vector<Bfloat16Block>& blocks() const { return blocks_; }

 private:
  AlignedBuffer packed_;
  std::vector<Bfloat16Entry> entries_;
  std::vector<Bfloat16Block> blocks_;
};

// Sums of the weights' gradients of a thread: [input block][output block][tap][input half]
// [output half][16][16].
class Correlation {
 public:
  Correlation(const TrimmedShape& s, const Mask& mask)
      : shape_(s),
        taps_(s.kernel_height * s.kernel_width),
        blocks_out_(s.out_channels / kBlock),
        frame_(s),
        grad_steps_(round_up(std::min(kBandColumns, s.width), kBlock) / kBlock),
        x_(static_cast<std::size_t>(2 * frame_.rows() * frame_.columns() * s.in_channels)),
        grad_(static_cast<std::size_t>(2 * kBandRows * grad_steps_ * kBlock * s.out_channels)),
        sums_(static_cast<std::size_t>(taps_ * s.in_channels * s.out_channels) * sizeof(float)),
        bias_(static_cast<std::size_t>(s.out_channels)) {
    std::memset(sums_.data(), 0,
                static_cast<std::size_t>(taps_ * s.in_channels * s.out_channels) * sizeof(float));
    for (std::int64_t in = 0; in < s.in_channels; in += kBlock) {
      for (std::int64_t out = 0; out < s.out_channels; out += kBlock) {
        for (std::int64_t tap = 0; tap < taps_; ++tap) {
          unsigned seen = 0;
          for (unsigned i = 0; i < 8; ++i) {
            const bool any =
                mask.any(out + i % 2 * kHalf, kHalf, in + i / 2 * kQuarter, kQuarter, tap);
            seen |= static_cast<unsigned>(any) << i;
          }
          seen_.push_back(seen);
        }
      }
    }
  }

  void add(const Bfloat16Kernel& kernels, const std::uint16_t* x, const std::uint16_t* grad,
           const Band& band) {
    const std::int64_t x_columns = frame_.columns(), in_channels = shape_.in_channels;
    frame_.fill(x, band);
    auto* turned = reinterpret_cast<std::uint16_t*>(x_.data());
    for (std::int64_t row = 0; row < band.rows + shape_.kernel_height - 1; ++row) {
      for (std::int64_t in = 0; in < in_channels; in += kBlock) {
        kernels.passes->transpose(frame_.row(row) + in, in_channels, static_cast<int>(x_columns),
                                  turned + (row * in_channels + in) * x_columns, x_columns);
      }
    }
    // [output block][row][position pair][channel][2]
    const std::int64_t grad_row = grad_steps_ * kBlock * kBlock;
    auto* paired = reinterpret_cast<std::uint16_t*>(grad_.data());
    for (std::int64_t row = 0; row < band.rows; ++row) {
      const std::int64_t position =
          (band.image * shape_.height + band.top + row) * shape_.width + band.left;
      for (std::int64_t out = 0; out < shape_.out_channels; out += kBlock) {
        kernels.passes->interleave(grad + position * shape_.out_channels + out, shape_.out_channels,
                                   static_cast<int>(band.columns),
                                   paired + (out / kBlock * kBandRows + row) * grad_row,
                                   &bias_[out]);
      }
    }
    const std::int64_t steps = round_up(band.columns, kBlock) / kBlock;
    const std::int64_t rows = std::max<std::int64_t>(1, kCorrelationPositions / (steps * kBlock));
    const auto* seen = seen_.data();
    auto* sums = reinterpret_cast<float*>(sums_.data());
    for (std::int64_t in = 0; in < in_channels; in += kBlock) {
      for (std::int64_t out = 0; out < shape_.out_channels; out += kBlock) {
        for (std::int64_t first = 0; first < band.rows; first += rows) {
          for (std::int64_t tap = 0; tap < taps_; ++tap) {
            if (seen[tap] == 0) continue;
            const std::int64_t row = first + tap / shape_.kernel_width;
            const std::uint16_t* window =
                turned + (row * in_channels + in) * x_columns + tap % shape_.kernel_width;
            kernels.products->correlate(
                reinterpret_cast<const std::uint8_t*>(window), 2 * in_channels * x_columns,
                2 * x_columns,
                reinterpret_cast<const std::uint8_t*>(paired + (out / kBlock * kBandRows + first) *
                                                                   grad_row),
                2 * grad_row, static_cast<int>(std::min(rows, band.rows - first)),
                static_cast<int>(steps), seen[tap], sums + tap * kBlock * kBlock);
          }
        }
        seen += taps_;
        sums += taps_ * kBlock * kBlock;
      }
    }
  }

  // Adds to the gradients [out][in][tap] and [out].
  void collect(const Mask& mask, float* weight_gradient, float* bias_gradient) const {
    const auto* sums = reinterpret_cast<const float*>(sums_.data());
    for (std::int64_t out = 0; out < shape_.out_channels; ++out) {
      bias_gradient[out] += bias_[static_cast<std::size_t>(out)];
      for (std::int64_t in = 0; in < shape_.in_channels; ++in) {
        const std::int64_t block = in / kBlock * blocks_out_ + out / kBlock;
        const std::int64_t tile = in / kHalf % 2 * 2 + out / kHalf % 2;
        const std::int64_t at = tile * kTileSums + in % kHalf * kHalf + out % kHalf;
        for (std::int64_t tap = 0; tap < taps_; ++tap) {
          if (!mask.sees(out, in, tap)) continue;
          weight_gradient[(out * shape_.in_channels + in) * taps_ + tap] +=
              sums[(block * taps_ + tap) * kBlock * kBlock + at];
        }
      }
    }
  }

 private:
  const TrimmedShape shape_;
  const std::int64_t taps_, blocks_out_;
  Frame frame_;
  const std::int64_t grad_steps_;
  AlignedBuffer x_, grad_, sums_;
  std::vector<float> bias_;
  std::vector<unsigned> seen_;
};

bool is_empty(const TrimmedShape& s) { return s.batch == 0 || s.height == 0 || s.width == 0; }

// Calls body(begin, end) with a share of the bands for each thread.
template <class Body>
void share(std::int64_t count, int threads, const Body& body) {
  const std::int64_t parts = std::min<std::int64_t>(std::max(threads, 1), count);
  parallel_for(parts, threads,
               [&](std::int64_t i) { body(count * i / parts, count * (i + 1) / parts); });
}

// Calls body(count, at, channel, sums) for all of [positions][channels], 32 channels at a time:
// `count` positions, the first element of which is number `at`. What it adds to `sums`, 32 values,
// ends up in `totals`, [channels].
template <class Body>
void add_over_positions(std::int64_t positions, std::int64_t channels, int threads, float* totals,
                        const Body& body) {
  if (positions < 0 || channels < 1 || channels % kBfloat16Channels != 0) {
    throw std::invalid_argument("in bfloat16, channels must be multiples of 32");
  }
  constexpr std::int64_t kPositions = 1024;
  std::fill(totals, totals + channels, 0.0f);
  std::mutex mutex;
  const std::int64_t count = (positions + kPositions - 1) / kPositions;
  share(count, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> sums(static_cast<std::size_t>(channels));
    for (std::int64_t first = begin * kPositions; first < std::min(end * kPositions, positions);
         first += kPositions) {
      for (std::int64_t channel = 0; channel < channels; channel += kBlock) {
        body(std::min(kPositions, positions - first), first * channels + channel, channel,
             &sums[static_cast<std::size_t>(channel)]);
      }
    }
    const std::lock_guard<std::mutex> lock(mutex);
    for (std::int64_t c = 0; c < channels; ++c) totals[c] += sums[static_cast<std::size_t>(c)];
  });
}

}  // namespace

bool runs_bfloat16() { return find_kernel().products != nullptr; }

void bfloat16_trimmed_conv2d(const TrimmedShape& shape, const std::uint16_t* x,
                             const std::uint16_t* weight, const bool* mask, const float* bias,
                             std::uint16_t* out, int threads) {
  check(shape);
  const Bfloat16Kernel kernels = kernel();
  if (is_empty(shape)) return;
  const std::int64_t stride = 2 * shape.in_channels;
  const std::int64_t row_bytes = Frame(shape).columns() * stride;
  const Weights weights(shape, Mask(shape, mask), row_bytes, kernels.products->inputs, weight,
                        bias);
  const Bands bands(shape);
  share(bands.count(), threads, [&](std::int64_t begin, std::int64_t end) {
    Frame frame(shape);
    for (std::int64_t i = begin; i < end; ++i) {
      const Band band = bands[i];
      frame.fill(x, band);
      for (std::int64_t row = 0; row < band.rows; ++row) {
        const std::int64_t position =
            (band.image * shape.height + band.top + row) * shape.width + band.left;
        std::uint16_t* to = out + position * shape.out_channels;
        for (const Bfloat16Block& block : weights.blocks()) {
          kernels.products->convolve(block, reinterpret_cast<const std::uint8_t*>(frame.row(row)),
                                     stride, static_cast<int>(band.columns), to,
                                     shape.out_channels);
          to += kBlock;
        }
      }
    }
  });
}

void bfloat16_trimmed_conv2d_gradients(const TrimmedShape& shape, const std::uint16_t* x,
                                       const std::uint16_t* grad, const bool* mask,
                                       float* weight_gradient, float* bias_gradient, int threads) {
  check(shape);
  const Bfloat16Kernel kernels = kernel();
  const std::int64_t weights =
      shape.out_channels * shape.in_channels * shape.kernel_height * shape.kernel_width;
  std::fill(weight_gradient, weight_gradient + weights, 0.0f);
  std::fill(bias_gradient, bias_gradient + shape.out_channels, 0.0f);
  if (is_empty(shape)) return;
  const Mask seen(shape, mask);
  const Bands bands(shape);
  std::mutex mutex;
  share(bands.count(), threads, [&](std::int64_t begin, std::int64_t end) {
    Correlation correlation(shape, seen);
    for (std::int64_t i = begin; i < end; ++i) correlation.add(kernels, x, grad, bands[i]);
    const std::lock_guard<std::mutex> lock(mutex);
    correlation.collect(seen, weight_gradient, bias_gradient);
  });
}

void bfloat16_prelu_gradients(std::int64_t positions, std::int64_t channels, const std::uint16_t* x,
                              const float* slope, const std::uint16_t* grad,
                              std::uint16_t* x_gradient, float* slope_gradient, int threads) {
  const Bfloat16Kernel kernels = kernel();
  add_over_positions(positions, channels, threads, slope_gradient,
                     [&](std::int64_t count, std::int64_t at, std::int64_t channel, float* sums) {
                       kernels.passes->prelu_gradients(count, channels, x + at, slope + channel,
                                                       grad + at, x_gradient + at, sums);
                     });
}

void bfloat16_fake_quantize(std::int64_t positions, std::int64_t channels, const std::uint16_t* x,
                            const std::uint16_t* residual, const float* scale, std::uint16_t* out,
                            int threads) {
  const Bfloat16Kernel kernels = kernel();
  std::vector<float> none(static_cast<std::size_t>(std::max<std::int64_t>(channels, 0)));
  add_over_positions(positions, channels, threads, none.data(),
                     [&](std::int64_t count, std::int64_t at, std::int64_t channel, float*) {
                       kernels.passes->fake_quantize(count, channels, x + at,
                                                     residual ? residual + at : nullptr,
                                                     scale + channel, out + at);
                     });
}

void bfloat16_fake_quantize_gradients(std::int64_t positions, std::int64_t channels,
                                      const std::uint16_t* x, const std::uint16_t* residual,
                                      const float* scale, const std::uint16_t* grad,
                                      std::uint16_t* x_gradient, float* scale_gradient,
                                      int threads) {
  const Bfloat16Kernel kernels = kernel();
  add_over_positions(positions, channels, threads, scale_gradient,
                     [&](std::int64_t count, std::int64_t at, std::int64_t channel, float* sums) {
                       kernels.passes->fake_quantize_gradients(
                           count, channels, x + at, residual ? residual + at : nullptr,
                           scale + channel, grad + at, x_gradient + at, sums);
                     });
}

}  // namespace pycodec
