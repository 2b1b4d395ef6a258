#include <immintrin.h>

#include "cpu/pseudocylindrical_pad_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kLanes = 8;

__m256i load(const std::int32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

void interpolate(const PadInterpolation& row, const float* in, float* out, PadDistance) {
  for (std::int64_t i = 0; i < row.columns; i += kLanes) {
    const __m256 left = _mm256_i32gather_ps(in, load(row.left + i), 4);
    const __m256 right = _mm256_i32gather_ps(in, load(row.right + i), 4);
    const __m256 weight = _mm256_loadu_ps(row.weight + i);
    const __m256 rest = _mm256_sub_ps(_mm256_set1_ps(1), weight);
    const __m256 value = _mm256_fmadd_ps(weight, right, _mm256_mul_ps(rest, left));
    if (i + kLanes <= row.columns) {
      _mm256_storeu_ps(out + i, value);
    } else {
      const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      const int count = static_cast<int>(row.columns - i);
      _mm256_maskstore_ps(out + i, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane), value);
    }
  }
  for (std::int64_t i = row.columns; i < row.total; ++i) out[i] = 0;
}

void stream(std::uint8_t* to, const std::uint8_t* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) {
    const auto* line = reinterpret_cast<const __m256i*>(from + i);
    auto* target = reinterpret_cast<__m256i*>(to + i);
    _mm256_stream_si256(target, _mm256_load_si256(line));
    _mm256_stream_si256(target + 1, _mm256_load_si256(line + 1));
  }
  _mm_sfence();
}

}  // namespace

// Without conversions of its own: those of float16 are another extension, F16C.
const PadKernel kPadKernelAvx2 = {"avx2",      interpolate, nullptr, nullptr,
                                  copy_around, stream,      false};

}  // namespace pycodec
