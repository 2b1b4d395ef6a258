// The inner loops in steps of 4 lanes (NEON). There is no gather: tables are looked up one lane at
// a time, the arithmetic is done for all. The comments in rans.hpp and kernels.hpp explain what is
// computed.
#include <arm_neon.h>

#include "rans/kernels.hpp"

namespace pycodec {
namespace rans {
namespace {

constexpr unsigned kStep = 4;
constexpr std::ptrdiff_t kStepBytes = 2 * kStep;  // of words that a step may read

// By the mask of lanes that need a word (pop) or give one (push): the bytes of a vector of words.
struct Permutations {
  std::uint8_t expand[16][16];   // the next words to the lanes that need one, zero to the others
  std::uint8_t compress[16][8];  // the given words, at the end
  std::uint8_t count[16];
};

constexpr Permutations make_permutations() {
  Permutations p{};
  for (int mask = 0; mask < 16; ++mask) {
    for (int i = 0; i < 16; ++i) p.expand[mask][i] = 0xff;
    for (int i = 0; i < 8; ++i) p.compress[mask][i] = 0xff;
    int taken = 0;
    for (int lane = 0; lane < 4; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      p.expand[mask][4 * lane] = static_cast<std::uint8_t>(2 * taken);
      p.expand[mask][4 * lane + 1] = static_cast<std::uint8_t>(2 * taken + 1);
      ++taken;
    }
    p.count[mask] = static_cast<std::uint8_t>(taken);
    int word = 4 - taken;
    for (int lane = 0; lane < 4; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      p.compress[mask][2 * word] = static_cast<std::uint8_t>(2 * lane);
      p.compress[mask][2 * word + 1] = static_cast<std::uint8_t>(2 * lane + 1);
      ++word;
    }
  }
  return p;
}

constexpr Permutations kPermutations = make_permutations();

inline unsigned mask_of(uint32x4_t lanes) {
  const uint32x4_t bits = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(lanes, bits));
}

template <class Index>
std::size_t pop(const TableView& tables, const Index* indexes, std::size_t count,
                std::int32_t* symbols, Lanes& lanes, const std::uint8_t*& next,
                const std::uint8_t* end) {
  const int precision = tables.precision;
  const std::uint32_t slot_mask = (1u << precision) - 1;
  const int32x4_t minus_precision = vdupq_n_s32(-precision);
  const std::uint8_t* words = next;
  unsigned lane = lanes.next;
  std::size_t done = 0;
  while (count - done >= kStep && end - words >= kStepBytes) {
    std::uint32_t* const states = lanes.states + lane;
    std::uint32_t frequency[kStep];
    std::uint32_t bias[kStep];
    bool escaped = false;
    for (unsigned i = 0; i < kStep; ++i) {
      const std::size_t index = indexes[done + i];
      const TableInfo& info = tables.infos[index];
      const std::uint32_t slot = states[i] & slot_mask;
      std::uint32_t rank = 0;
      if (tables.ranks) {
        rank = tables.ranks[(index << precision) + slot];
      } else {  // compact tables
        const std::uint32_t first_bucket = info.buckets & ((1u << kBucketBits) - 1);
        rank = tables.bucket_ranks[first_bucket + (slot >> (info.buckets >> kBucketBits))];
        const DecodeEntry* entry = tables.decode_entries + info.first_entry + rank;
        for (; slot - entry->start > entry->last_bias; ++entry) ++rank;
      }
      escaped |= rank == info.num_values;
      const DecodeEntry& entry = tables.decode_entries[info.first_entry + rank];
      frequency[i] = entry.last_bias + 1u;
      bias[i] = slot - entry.start;
      symbols[done + i] =
          static_cast<std::int32_t>(static_cast<std::uint32_t>(info.first_value) + rank);
    }
    if (escaped) break;
    const uint32x4_t x = vshlq_u32(vld1q_u32(states), minus_precision);
    const uint32x4_t popped = vmlaq_u32(vld1q_u32(bias), vld1q_u32(frequency), x);
    const uint32x4_t empty = vcltq_u32(popped, vdupq_n_u32(1u << 16));
    const unsigned mask = mask_of(empty);
    // The lanes that ran empty take the next words in their order.
    const uint8x16_t bytes = vcombine_u8(vld1_u8(words), vdup_n_u8(0));
    const uint32x4_t word =
        vreinterpretq_u32_u8(vqtbl1q_u8(bytes, vld1q_u8(kPermutations.expand[mask])));
    const uint32x4_t filled = vorrq_u32(vshlq_n_u32(popped, 16), word);
    vst1q_u32(states, vbslq_u32(empty, filled, popped));
    words += 2 * kPermutations.count[mask];
    lane = (lane + kStep) & (lanes.count - 1);
    done += kStep;
  }
  lanes.next = lane;
  next = words;
  return done;
}

template <class Index>
std::size_t push(const TableView& tables, const std::int32_t* symbols, const Index* indexes,
                 std::size_t count, Lanes& lanes, std::uint8_t*& top) {
  const std::uint32_t total = 1u << tables.precision;
  const int32x4_t limit_shift = vdupq_n_s32(16 - tables.precision);
  std::uint8_t* words = top;
  unsigned lane = lanes.next;
  std::size_t left = count;
  while (left >= kStep) {
    std::uint32_t frequencies[kStep];
    std::uint32_t starts[kStep];
    bool escaped = false;
    for (unsigned i = 0; i < kStep; ++i) {
      const std::size_t n = left - kStep + i;
      const TableInfo& info = tables.infos[indexes[n]];
      const std::uint32_t rank =
          static_cast<std::uint32_t>(symbols[n]) - static_cast<std::uint32_t>(info.first_value);
      if (rank >= info.num_values) {
        escaped = true;
        break;
      }
      const DecodeEntry& entry = tables.decode_entries[info.first_entry + rank];
      frequencies[i] = entry.last_bias + 1u;
      starts[i] = entry.start;
    }
    if (escaped) break;
    lane = (lane - kStep) & (lanes.count - 1);
    uint32x4_t x = vld1q_u32(lanes.states + lane);
    const uint32x4_t frequency = vld1q_u32(frequencies);
    const uint32x4_t upper = vshrq_n_u32(x, 16);
    const uint32x4_t full = vcgeq_u32(upper, vshlq_u32(frequency, limit_shift));
    const unsigned mask = mask_of(full);
    vst1_u8(words - kStepBytes,
            vtbl1_u8(vreinterpret_u8_u16(vmovn_u32(x)), vld1_u8(kPermutations.compress[mask])));
    words -= 2 * kPermutations.count[mask];
    x = vbslq_u32(full, upper, x);
    // x div f: see kMinSimdPushPrecision.
    uint32x4_t quotient = vcvtq_u32_f32(vdivq_f32(vcvtq_f32_u32(x), vcvtq_f32_u32(frequency)));
    const int32x4_t remainder = vreinterpretq_s32_u32(vmlsq_u32(x, quotient, frequency));
    // A comparison gives -1 where it holds.
    quotient = vsubq_u32(quotient, vcgeq_s32(remainder, vreinterpretq_s32_u32(frequency)));
    quotient = vaddq_u32(quotient, vcltzq_s32(remainder));
    x = vaddq_u32(x, vld1q_u32(starts));
    x = vmlaq_u32(x, quotient, vsubq_u32(vdupq_n_u32(total), frequency));
    vst1q_u32(lanes.states + lane, x);
    left -= kStep;
  }
  lanes.next = lane;
  top = words;
  return count - left;
}

constexpr Kernels kKernels = {kStep, &pop<std::uint8_t>, &pop<std::uint16_t>, &push<std::uint8_t>,
                              &push<std::uint16_t>};

}  // namespace

const Kernels* const kNeonKernels = &kKernels;

}  // namespace rans
}  // namespace pycodec
