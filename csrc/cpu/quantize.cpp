#include "cpu/quantize.hpp"

#include <algorithm>
#include <stdexcept>

#include "cpu/parallel.hpp"
#include "cpu/simd_level.hpp"

namespace pycodec {
namespace {

constexpr std::int64_t kTaskValues = 64 * 1024;
constexpr std::size_t kLeastChannels = 64;

QuantizeKernels kernels() {
  switch (simd_level()) {
#if defined(__x86_64__)
    case SimdLevel::kAmx:
    case SimdLevel::kAvx512Vnni:
      return quantize_avx512vnni();
    case SimdLevel::kAvx2:
      return quantize_avx2();
#endif
    default:
      return quantize_scalar();
  }
}

void check(const std::vector<float>& scale, const std::vector<std::int32_t>& zero_point) {
  if (scale.empty() || scale.size() != zero_point.size()) {
    throw std::invalid_argument("scale and zero_point need one value for each channel");
  }
  for (const std::int32_t zero : zero_point) {
    if (zero < -32768 || zero > 32767) throw std::invalid_argument("a zero point exceeds 16 bits");
  }
}

// Pixels of few channels are taken several at a time, so that vectors are full: `group` of them
// have the parameters of one, again and again.
std::int64_t group_of(std::size_t channels) {
  return static_cast<std::int64_t>((kLeastChannels + channels - 1) / channels);
}

template <class T>
std::vector<T> repeated(const std::vector<T>& values) {
  std::vector<T> result;
  for (std::int64_t i = 0; i < group_of(values.size()); ++i) {
    result.insert(result.end(), values.begin(), values.end());
  }
  return result;
}

// Calls f(first pixel, pixels, channels): with groups as pixels, and the last pixels alone.
template <class Function>
void each_part(std::size_t channels, std::int64_t pixels, int threads, const Function& f) {
  const std::int64_t group = group_of(channels), wide = group * static_cast<std::int64_t>(channels);
  const std::int64_t groups = pixels / group;
  const std::int64_t task_groups = std::max<std::int64_t>(kTaskValues / wide, 1);
  parallel_for((groups + task_groups - 1) / task_groups, threads, [&](std::int64_t task) {
    const std::int64_t first = task * task_groups, last = std::min(first + task_groups, groups);
    f(first * group, last - first, static_cast<int>(wide));
  });
  f(groups * group, pixels - groups * group, static_cast<int>(channels));
}

std::int64_t bytes_of(QuantizedType type) { return type == QuantizedType::kInt16 ? 2 : 1; }

}  // namespace

void quantize(const std::vector<float>& scale, const std::vector<std::int32_t>& zero_point,
              std::int32_t lower, std::int32_t upper, const float* x, std::int64_t pixels,
              QuantizedType type, void* out, int threads) {
  check(scale, zero_point);
  if (lower > upper) throw std::invalid_argument("the range is empty");
  const std::size_t channels = scale.size();
  std::vector<float> inverse(channels), low(channels), high(channels);
  for (std::size_t c = 0; c < channels; ++c) {
    inverse[c] = 1.0F / scale[c];
    low[c] = static_cast<float>(lower - zero_point[c]);
    high[c] = static_cast<float>(upper - zero_point[c]);
  }
  inverse = repeated(inverse);
  low = repeated(low);
  high = repeated(high);
  const std::vector<std::int32_t> zero = repeated(zero_point);
  const QuantizeChannels parameters = {inverse.data(), low.data(), high.data(), zero.data()};
  const QuantizeKernels kernel = kernels();
  each_part(channels, pixels, threads, [&](std::int64_t first, std::int64_t count, int wide) {
    const std::int64_t start = first * static_cast<std::int64_t>(channels);
    kernel.quantize(parameters, wide, x + start, count, type,
                    static_cast<std::uint8_t*>(out) + start * bytes_of(type));
  });
}

void dequantize(const std::vector<float>& scale, const std::vector<std::int32_t>& zero_point,
                const void* q, QuantizedType type, std::int64_t pixels, float* out, int threads) {
  check(scale, zero_point);
  const std::size_t channels = scale.size();
  const std::vector<float> scales = repeated(scale);
  const std::vector<std::int32_t> zero = repeated(zero_point);
  const DequantizeChannels parameters = {scales.data(), zero.data()};
  const QuantizeKernels kernel = kernels();
  each_part(channels, pixels, threads, [&](std::int64_t first, std::int64_t count, int wide) {
    const std::int64_t start = first * static_cast<std::int64_t>(channels);
    kernel.dequantize(parameters, wide,
                      static_cast<const std::uint8_t*>(q) + start * bytes_of(type), type, count,
                      out + start);
  });
}

}  // namespace pycodec
