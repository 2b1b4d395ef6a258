// The roof over the float convolutions: fused multiply-adds on registers alone, on one core.
#include <immintrin.h>

#include <algorithm>
#include <chrono>

namespace {

#ifdef __AVX512F__
using Vector = __m512;
Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
constexpr int kLanes = 16;
constexpr int kSums = 24;  // independent ones, as many as in the kernel
#else
using Vector = __m256;
Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
constexpr int kLanes = 8;
constexpr int kSums = 12;
#endif
constexpr int kRounds = 20'000;

using Clock = std::chrono::steady_clock;

// Seconds for kRounds * kSums instructions: a fraction of a millisecond.
double burst() {
  Vector sums[kSums];
  Vector x = Vector{} + 1.5f, w = Vector{} + 0.25f;
  // Equal sums would be computed once for all: the compiler must not see that they are equal.
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) {
    sums[i] = Vector{};
    asm volatile("" : "+v"(sums[i]));
  }
  const auto start = Clock::now();
  for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) sums[i] = multiply_add(x, w, sums[i]);
    // Nor that each round adds the same.
    asm volatile("" : "+v"(x), "+v"(w));
  }
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) asm volatile("" : : "v"(sums[i]));
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

// Multiply-adds a second: the best of many bursts, so short that other processes miss some of them.
extern "C" double float32_peak() {
  double best = burst();
  for (int i = 0; i < 500; ++i) best = std::min(best, burst());
  return double{kLanes} * kSums * kRounds / best;
}
