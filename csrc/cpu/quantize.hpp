// Floats to integers of a grid and back, channel by channel. pycodec/ops/quantize.py is the
// definition.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/quantize_kernel.hpp"

namespace pycodec {

// x: [pixels][channels]; out: the same of `type`. Results are from `lower` to `upper`, which the
// type can hold. Throws std::invalid_argument where vectors have different lengths or none, for
// zero points beyond 16 bits and for an empty range.
void quantize(const std::vector<float>& scale, const std::vector<std::int32_t>& zero_point,
              std::int32_t lower, std::int32_t upper, const float* x, std::int64_t pixels,
              QuantizedType type, void* out, int threads);

// The same on the way back.
void dequantize(const std::vector<float>& scale, const std::vector<std::int32_t>& zero_point,
                const void* q, QuantizedType type, std::int64_t pixels, float* out, int threads);

}  // namespace pycodec
