// Floats to integers of a grid and back on a GPU. pycodec/ops/quantize.py is the definition.
#pragma once

#include <cstdint>

namespace pycodec::cuda {

// All pointers are to device memory; integers are uint8, int8 or int16.
struct QuantizeArguments {
  float* real;  // [values]: what is read, or on the way back what is written
  void* integers;
  const float* scale;  // [channels]; values of a channel are `channels` apart
  const std::int32_t* zero_point;
  std::int64_t values;
  int channels;
  int bytes;  // of an integer
  bool is_signed;
  std::int32_t lower, upper;
};

// Each queues a kernel on `stream` (a cudaStream_t) of the current device and does not wait for it.
// Throws std::runtime_error where the kernel cannot be launched.
void quantize(const QuantizeArguments& arguments, void* stream);
void dequantize(const QuantizeArguments& arguments, void* stream);

}  // namespace pycodec::cuda
