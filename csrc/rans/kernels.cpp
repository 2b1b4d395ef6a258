// The portable inner loops, and which variant runs.
#include "rans/kernels.hpp"

#include <algorithm>
#include <array>

#include "rans/rans.hpp"

namespace pycodec {
namespace rans {
namespace {

// Enough to keep a processor busy; a call that ends inside of a step costs little.
constexpr int kMaxStep = 16;

// Ranks and entries take a quarter of the packed tables' memory: one gather is better than two, but
// of scalar loads two from near memory are better than one from far.
template <int kStep, bool kCompact, class Index>
std::size_t pop_from(const TableView& tables, const Index* indexes, std::size_t count,
                     std::int32_t* symbols, Lanes& lanes, const std::uint8_t*& next,
                     const std::uint8_t* end) {
  const int precision = tables.precision;
  const std::uint32_t slot_mask = (1u << precision) - 1;
  const TableInfo* const infos = tables.infos;
  const DecodeEntry* const entries = tables.decode_entries;
  const std::uint16_t* const ranks = kCompact ? tables.bucket_ranks : tables.ranks;
  const bool keeps_lanes = lanes.count == kStep;
  const std::uint8_t* words = next;
  std::size_t done = 0;
  bool escaped = false;
  // A step reads at most a word a lane, so inside of a step nothing needs to be checked.
  const auto another_step = [&] {
    return count - done >= kStep && end - words >= std::ptrdiff_t{kWordBytes} * kStep && !escaped;
  };
  while (another_step()) {
    std::uint32_t* const states = lanes.states + lanes.next;
    unsigned lane = 0;
    do {
      for (lane = 0; lane < kStep; ++lane) {
        const std::uint32_t x = states[lane];
        const std::size_t index = indexes[done];
        const TableInfo& info = infos[index];
        const std::uint32_t slot = x & slot_mask;
        std::uint32_t rank = 0;
        if (kCompact) {
          const std::uint32_t first_bucket = info.buckets & ((1u << kBucketBits) - 1);
          rank = ranks[first_bucket + (slot >> (info.buckets >> kBucketBits))];
          const DecodeEntry* entry = entries + info.first_entry + rank;
          for (; slot - entry->start > entry->last_bias; ++entry) ++rank;
        } else {
          rank = ranks[(index << precision) + slot];
        }
        if (rank == info.num_values) {
          escaped = true;
          break;
        }
        symbols[done] =
            static_cast<std::int32_t>(static_cast<std::uint32_t>(info.first_value) + rank);
        ++done;
        const DecodeEntry entry = entries[info.first_entry + rank];
        const std::uint32_t popped =
            (entry.last_bias + 1u) * (x >> precision) + (slot - entry.start);
        // As in push_symbol(): always load, and move the pointer if the word was needed.
        const std::uint32_t empty = popped < kLowerBound ? 1 : 0;
        states[lane] = popped << (16 * empty) | (load_word(words) & (0u - empty));
        words += kWordBytes * empty;
      }
    } while (keeps_lanes && another_step());
    lanes.next = (lanes.next + lane) & (lanes.count - 1);
  }
  next = words;
  return done;
}

template <int kStep, class Index>
std::size_t pop(const TableView& tables, const Index* indexes, std::size_t count,
                std::int32_t* symbols, Lanes& lanes, const std::uint8_t*& next,
                const std::uint8_t* end) {
  const auto run = tables.ranks ? &pop_from<kStep, false, Index> : &pop_from<kStep, true, Index>;
  return run(tables, indexes, count, symbols, lanes, next, end);
}

template <int kStep, class Index>
std::size_t push(const TableView& tables, const std::int32_t* symbols, const Index* indexes,
                 std::size_t count, Lanes& lanes, std::uint8_t*& top) {
  const TableInfo* const infos = tables.infos;
  const EncodeEntry* const entries = tables.encode_entries;
  const bool keeps_lanes = lanes.count == kStep;
  std::uint8_t* words = top;
  std::size_t left = count;
  bool escaped = false;
  while (left >= kStep && !escaped) {
    const unsigned first = (lanes.next - kStep) & (lanes.count - 1);
    std::uint32_t* const states = lanes.states + first;
    unsigned lane = kStep;
    do {
      for (lane = kStep; lane > 0; --lane) {
        const TableInfo& info = infos[indexes[left - 1]];
        const std::uint32_t rank = static_cast<std::uint32_t>(symbols[left - 1]) -
                                   static_cast<std::uint32_t>(info.first_value);
        if (rank >= info.num_values) {
          escaped = true;
          break;
        }
        std::uint32_t& state = states[lane - 1];
        state = push_symbol(state, entries[info.first_entry + rank], words);
        --left;
      }
    } while (keeps_lanes && left >= kStep && !escaped);
    lanes.next = (first + lane) & (lanes.count - 1);
  }
  top = words;
  return count - left;
}

template <int kStep>
constexpr Kernels make_scalar_kernels() {
  return {kStep, &pop<kStep, std::uint8_t>, &pop<kStep, std::uint16_t>, &push<kStep, std::uint8_t>,
          &push<kStep, std::uint16_t>};
}

constexpr Kernels kScalarKernels[] = {make_scalar_kernels<1>(), make_scalar_kernels<2>(),
                                      make_scalar_kernels<4>(), make_scalar_kernels<8>(),
                                      make_scalar_kernels<kMaxStep>()};

const Kernels* simd_kernels(SimdLevel level) {
  switch (level) {
    case SimdLevel::kNeon:
      return kNeonKernels;
    case SimdLevel::kAvx2:
      return kAvx2Kernels;
    case SimdLevel::kAmx:
    case SimdLevel::kAvx512Vnni:
      return kAvx512Kernels;
    default:
      return nullptr;
  }
}

}  // namespace

const Kernels& kernels_for(SimdLevel level, int lanes) {
  // AVX-512 has a step of 16; eight lanes are for AVX2.
  const bool avx512 = level == SimdLevel::kAvx512Vnni || level == SimdLevel::kAmx;
  if (avx512 && lanes < 16) level = SimdLevel::kAvx2;
  const Kernels* const simd = simd_kernels(level);
  if (simd && simd->step <= static_cast<unsigned>(lanes)) return *simd;
  int log2_step = 0;
  while (1 << log2_step < std::min(lanes, kMaxStep)) ++log2_step;
  return kScalarKernels[log2_step];
}

// Of other processors' variants there is only this.
#if !defined(__x86_64__)
const Kernels* const kAvx2Kernels = nullptr;
const Kernels* const kAvx512Kernels = nullptr;
#endif
#if !defined(__aarch64__)
const Kernels* const kNeonKernels = nullptr;
#endif

}  // namespace rans
}  // namespace pycodec
