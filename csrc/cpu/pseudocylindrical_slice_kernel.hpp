// The part of the resampling that depends on the SIMD level: several rows at once, a lane a row, so
// that all lanes read the same columns with the same weights.
#pragma once

#include <cstdint>

namespace pycodec {

constexpr int kResampleBytes = 64;  // of the lanes of a column

template <class Sum>
struct ResampleRows {
  std::int64_t source, target, taps;
  std::int64_t stride;        // of the weights of a tap
  const std::int32_t* first;  // [target], 0 to source - 1
  const Sum* weights;         // [taps][stride]
};

// in: [source][lanes], out: [target][lanes], both on cache lines.
struct ResampleKernel {
  const char* name;
  void (*run_float)(const ResampleRows<float>& rows, const float* in, float* out);
  void (*run_double)(const ResampleRows<double>& rows, const double* in, double* out);
};

extern const ResampleKernel kResampleKernelScalar;
extern const ResampleKernel kResampleKernelAvx2;
extern const ResampleKernel kResampleKernelAvx512Vnni;

namespace {

template <class Sum>
void resample_rows(const ResampleRows<Sum>& rows, const Sum* in, Sum* out) {
  typedef Sum Vector __attribute__((vector_size(kResampleBytes)));
  const auto* columns = reinterpret_cast<const Vector*>(in);
  auto* results = reinterpret_cast<Vector*>(out);
  for (std::int64_t w = 0; w < rows.target; ++w) {
    Vector sum = {};
    std::int64_t column = rows.first[w];
    for (std::int64_t k = 0; k < rows.taps; ++k) {
      sum += rows.weights[k * rows.stride + w] * columns[column];
      if (++column == rows.source) column = 0;
    }
    results[w] = sum;
  }
}

}  // namespace
}  // namespace pycodec
