// What the SIMD variants of arithmetic_peak have in common. Only plain structs and functions with
// internal linkage: see simd_level.hpp.
#pragma once

namespace pycodec {

struct PeakBurst {
  void (*run)(int rounds);
  double products;  // multiply-adds of a round
};

extern const PeakBurst kFloat32PeakAvx2, kInt16PeakAvx2;
extern const PeakBurst kFloat32PeakAvx512Vnni, kInt16PeakAvx512Vnni, kInt8PeakAvx512Vnni;
extern const PeakBurst kInt8TilesPeakAmx;

// `Instruction` has Vector, kProducts (of an instruction), start() and run(x, w, sum).
template <class Instruction, int kSums>
static void run_peak_burst(int rounds) {
  typename Instruction::Vector sums[kSums];
  typename Instruction::Vector x = Instruction::start(), w = Instruction::start();
  // Equal sums would be computed once for all: the compiler must not see that they are equal.
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) {
    sums[i] = Instruction::start();
    asm volatile("" : "+v"(sums[i]));
  }
  for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) sums[i] = Instruction::run(x, w, sums[i]);
    // Nor that each round adds the same.
    asm volatile("" : "+v"(x), "+v"(w));
  }
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) asm volatile("" : : "v"(sums[i]));
}

}  // namespace pycodec
