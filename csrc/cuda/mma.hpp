// Tensor cores and asynchronous copies for kernels that are written for a Block (block.hpp). What a
// whole warp does together (a product of matrices, a load of them from shared memory) is called
// outside of each() and gets functions of the thread that name its registers: DeviceWarps calls
// them once, for its own thread, and the host's (tests/ops/host_warps.hpp) for all 32 lanes, which
// hold their parts of a matrix as the PTX ISA says.
//
//     A, 16 x 32 bytes, rows: register r of lane l is row l / 4 + r % 2 * 8 and columns
//         l % 4 * 4 + r / 2 * 16 to + 3
//     B, 32 x 8 bytes, columns: register r of lane l is column l / 4 and rows
//         l % 4 * 4 + r * 16 to + 3
//     C, 16 x 8 of int32: register r of lane l is row l / 4 + r / 2 * 8 and column
//         l % 4 * 2 + r % 2
//
// (PTX ISA, "Matrix Fragments for mma.m16n8k32" of integers, and ldmatrix.)
#pragma once

#include <cstdint>

#include "cuda/block.hpp"
#include "rans/device.hpp"  // PYCODEC_HOST_DEVICE

namespace pycodec::cuda {

constexpr int kWarpSize = 32;

struct alignas(16) Chunk {
  std::uint32_t words[4];
};

// The bytes of a (numbers 0 to 3) and b (4 to 7) that the digits of `selector` name, lowest first.
PYCODEC_HOST_DEVICE inline std::uint32_t pick_bytes(std::uint32_t a, std::uint32_t b,
                                                    std::uint32_t selector) {
#ifdef __CUDA_ARCH__
  return __byte_perm(a, b, selector);
#else
  const std::uint64_t both = std::uint64_t{b} << 32 | a;
  std::uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const auto byte = static_cast<std::uint32_t>(both >> (selector >> (4 * i) & 7) * 8 & 255);
    word |= byte << (8 * i);
  }
  return word;
#endif
}

#ifdef __CUDACC__
// Needs sm_80. On older chips nothing of it is compiled, and choose_kernel() keeps away from it.
struct DeviceWarps : DeviceBlock {
  // Copies 16 bytes, or writes zeros and reads nothing if not `exists`, some time before wait()
  // returns; does nothing if not `wanted`.
  __device__ static void copy_async(Chunk* target, const void* source, bool exists,
                                    bool wanted = true) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "{\n"
        "  .reg .pred wanted;\n"
        "  setp.ne.s32 wanted, %3, 0;\n"
        "  @wanted cp.async.ca.shared.global [%0], [%1], 16, %2;\n"
        "}" ::"r"(address_of(target)),
        "l"(source), "r"(exists ? 16 : 0), "r"(static_cast<int>(wanted))
        : "memory");
#endif
  }

  // Ends a group of copies.
  __device__ static void commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }

  // Waits until this thread's groups but the last kLeft are there; sync() makes them everyone's.
  template <int kLeft>
  __device__ static void wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
  }

  // Four matrices of 8 rows of 16 bytes. Lane l gives the address of row l % 8 of matrix l / 8, and
  // gets in target[m] bytes l % 4 * 4 to + 3 of row l / 4 of matrix m.
  template <class Address, class Target>
  __device__ static void load_matrices(const Address& address, const Target& target) {
#if __CUDA_ARCH__ >= 750
    const int thread = static_cast<int>(threadIdx.x);
    std::uint32_t (&t)[4] = target(thread);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(t[0]), "=r"(t[1]), "=r"(t[2]), "=r"(t[3])
                 : "r"(address_of(address(thread)))
                 : "memory");
#endif
  }

  // C += A * B, modulo 2^32; A's bytes are int8 if kSignedA, or uint8, and so are B's.
  template <bool kSignedA, bool kSignedB, class C, class A, class B>
  __device__ static void multiply(const C& acc, const A& left, const B& right) {
#if __CUDA_ARCH__ >= 800
    const int thread = static_cast<int>(threadIdx.x);
    std::int32_t (&c)[4] = acc(thread);
    const std::uint32_t (&a)[4] = left(thread);
    const std::uint32_t (&b)[2] = right(thread);
#define PYCODEC_MMA(types)                                                   \
  asm("mma.sync.aligned.m16n8k32.row.col.s32." types                         \
      ".s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
    if constexpr (kSignedA && kSignedB) {
      PYCODEC_MMA("s8.s8");
    } else if constexpr (kSignedA) {
      PYCODEC_MMA("s8.u8");
    } else if constexpr (kSignedB) {
      PYCODEC_MMA("u8.s8");
    } else {
      PYCODEC_MMA("u8.u8");
    }
#undef PYCODEC_MMA
#endif
  }

 private:
  __device__ static unsigned address_of(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
  }
};
#endif

}  // namespace pycodec::cuda
