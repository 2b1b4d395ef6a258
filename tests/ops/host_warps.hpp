// The warps of cuda/mma.hpp on the host. Products take each lane's bytes to where the PTX ISA says
// that they are in the matrices, so that a kernel that is wrong about it is wrong here too.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/mma.hpp"
#include "host_block.hpp"

namespace pycodec::cuda {

// Copies that have not been waited for. They take place at once or, where threads take their turns
// backwards, when somebody waits; until then their targets hold neither old nor new data.
struct HostCopies {
  struct Copy {
    Chunk* target;
    Chunk value;
  };
  static inline std::vector<Copy> open;
  static inline std::deque<std::vector<Copy>> groups;

  static void finish(const std::vector<Copy>& copies) {
    for (const Copy& copy : copies) *copy.target = copy.value;
  }
};

template <int kThreads>
struct EmulatedWarps : EmulatedBlock<kThreads> {
  static_assert(kThreads % kWarpSize == 0);

  static void copy_async(Chunk* target, const void* source, bool exists, bool wanted = true) {
    if (!wanted) return;
    require_aligned(target);
    require_aligned(source);
    HostCopies::Copy copy = {target, {}};
    if (exists) std::memcpy(&copy.value, source, sizeof(Chunk));
    if (backwards) {
      HostCopies::open.push_back(copy);
      std::memset(target, 0xA5, sizeof(Chunk));
    } else {
      *target = copy.value;
    }
  }

  // All threads of a kernel commit and wait together.
  static void commit() {
    HostCopies::groups.push_back(std::move(HostCopies::open));
    HostCopies::open.clear();
  }

  template <int kLeft>
  static void wait() {
    while (HostCopies::groups.size() > kLeft) {
      HostCopies::finish(HostCopies::groups.front());
      HostCopies::groups.pop_front();
    }
  }

  template <class Address, class Target>
  static void load_matrices(const Address& address, const Target& target) {
    for (int first = 0; first < kThreads; first += kWarpSize) {
      const Chunk* rows[kWarpSize];
      for (int lane = 0; lane < kWarpSize; ++lane) rows[lane] = address(first + lane);
      for (int m = 0; m < 4; ++m) {
        unsigned banks = 0;  // of 16 bytes
        for (int row = 0; row < 8; ++row) {
          require_aligned(rows[8 * m + row]);
          banks |= 1u << reinterpret_cast<std::uintptr_t>(rows[8 * m + row]) / 16 % 8;
        }
        if (banks != 255) throw std::logic_error("rows of a matrix share banks");
        for (int lane = 0; lane < kWarpSize; ++lane) {
          target(first + lane)[m] = rows[8 * m + lane / 4]->words[lane % 4];
        }
      }
    }
  }

  template <bool kSignedA, bool kSignedB, class C, class A, class B>
  static void multiply(const C& acc, const A& left, const B& right) {
    for (int first = 0; first < kThreads; first += kWarpSize) {
      int a[16][32], b[32][8];
      for (int lane = 0; lane < kWarpSize; ++lane) {
        const int group = lane / 4, in_group = lane % 4;
        for (int i = 0; i < 16; ++i) {  // byte number i of the lane
          const int row = i < 4 || (i >= 8 && i < 12) ? group : group + 8;
          const int column = in_group * 4 + i % 4 + (i >= 8 ? 16 : 0);
          a[row][column] = value<kSignedA>(left(first + lane)[i / 4], i % 4);
        }
        for (int i = 0; i < 8; ++i) {
          const int row = in_group * 4 + i % 4 + (i >= 4 ? 16 : 0);
          b[row][group] = value<kSignedB>(right(first + lane)[i / 4], i % 4);
        }
      }
      for (int lane = 0; lane < kWarpSize; ++lane) {
        for (int i = 0; i < 4; ++i) {
          const int row = i < 2 ? lane / 4 : lane / 4 + 8;
          const int column = lane % 4 * 2 + i % 2;
          std::int32_t& sum = acc(first + lane)[i];
          auto total = static_cast<std::uint32_t>(sum);
          for (int k = 0; k < 32; ++k)
            total += static_cast<std::uint32_t>(a[row][k] * b[k][column]);
          sum = static_cast<std::int32_t>(total);
        }
      }
    }
  }

 private:
  template <bool kSigned>
  static int value(std::uint32_t word, int byte) {
    const auto bits = static_cast<std::uint8_t>(word >> (8 * byte));
    return kSigned ? int{static_cast<std::int8_t>(bits)} : int{bits};
  }

  static void require_aligned(const void* pointer) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) {
      throw std::logic_error("not aligned to 16 bytes");
    }
  }
};

}  // namespace pycodec::cuda
