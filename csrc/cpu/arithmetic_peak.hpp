// The roof over the kernels: multiply-adds on registers alone.
#pragma once

#include <algorithm>
#include <chrono>

#include "cpu/spans.hpp"

namespace pycodec {

// Multiply-adds a second of so many threads at the SIMD level in force, as the kernels of that
// level do them; 0 where there are none.
double arithmetic_peak(Arithmetic arithmetic, int threads);

double float32_peak_avx2();
double float32_peak_avx512vnni();
double int16_peak_avx2();
double int16_peak_avx512vnni();
double int8_peak_avx2();
double int8_peak_avx512vnni();

// Of one core: the best of many bursts, so short that other processes miss some of them.
// `Instruction` has Vector, kProducts (of an instruction), start() and run(x, w, sum).
template <class Instruction, int kSums>
double measured_peak() {
  using Vector = typename Instruction::Vector;
  constexpr int kRounds = 20'000;
  constexpr int kBursts = 300;
  const auto burst = [] {
    Vector sums[kSums];
    Vector x = Instruction::start(), w = Instruction::start();
    // Equal sums would be computed once for all: the compiler must not see that they are equal.
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) {
      sums[i] = Instruction::start();
      asm volatile("" : "+v"(sums[i]));
    }
    const auto begin = std::chrono::steady_clock::now();
    for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 24
      for (int i = 0; i < kSums; ++i) sums[i] = Instruction::run(x, w, sums[i]);
      // Nor that each round adds the same.
      asm volatile("" : "+v"(x), "+v"(w));
    }
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) asm volatile("" : : "v"(sums[i]));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  double best = burst();
  for (int i = 1; i < kBursts; ++i) best = std::min(best, burst());
  return double{Instruction::kProducts} * kSums * kRounds / best;
}

}  // namespace pycodec
