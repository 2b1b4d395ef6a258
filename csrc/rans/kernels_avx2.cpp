// The inner loops in steps of 8 lanes (AVX2). The comments in rans.hpp and kernels.hpp explain what
// is computed.
#include <immintrin.h>

#include "rans/kernels.hpp"

namespace pycodec {
namespace rans {
namespace {

constexpr unsigned kStep = 8;
constexpr std::ptrdiff_t kStepBytes = 2 * kStep;  // of words that a step may read

// By the mask of lanes that need a word (pop) or give one (push).
struct Permutations {
  std::uint8_t expand[256][8];     // which of the next words each lane takes
  std::uint8_t compress[256][16];  // the bytes of the given words, at the end of a vector
};

constexpr Permutations make_permutations() {
  Permutations p{};
  for (int mask = 0; mask < 256; ++mask) {
    int taken = 0;
    for (int lane = 0; lane < 8; ++lane) {
      p.expand[mask][lane] = static_cast<std::uint8_t>(taken);
      taken += mask >> lane & 1;
    }
    for (int i = 0; i < 16; ++i) p.compress[mask][i] = 0x80;
    int word = 8 - taken;
    for (int lane = 0; lane < 8; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      p.compress[mask][2 * word] = static_cast<std::uint8_t>(2 * lane);
      p.compress[mask][2 * word + 1] = static_cast<std::uint8_t>(2 * lane + 1);
      ++word;
    }
  }
  return p;
}

constexpr Permutations kPermutations = make_permutations();

inline __m128i load_8_bytes(const void* p) {
  return _mm_loadl_epi64(static_cast<const __m128i*>(p));
}

inline __m128i load_16_bytes(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}

inline __m256i load_indexes(const std::uint8_t* p) { return _mm256_cvtepu8_epi32(load_8_bytes(p)); }

inline __m256i load_indexes(const std::uint16_t* p) {
  return _mm256_cvtepu16_epi32(load_16_bytes(p));
}

inline __m256i load_states(const std::uint32_t* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}

inline void store_states(std::uint32_t* p, __m256i states) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), states);
}

inline int mask_of(__m256i lanes) { return _mm256_movemask_ps(_mm256_castsi256_ps(lanes)); }

// 32-bit items at base + scale * offset of the chosen lanes; zero in the others.
template <int kScale>
__m256i gather(__m256i lanes, const void* base, __m256i offsets) {
  return _mm256_mask_i32gather_epi32(_mm256_setzero_si256(), static_cast<const int*>(base), offsets,
                                     lanes, kScale);
}

// Member `offset` bytes into the TableInfo of each index.
inline __m256i gather_info(__m256i lanes, __m256i indexes, const TableInfo* infos,
                           std::size_t offset) {
  static_assert(sizeof(TableInfo) == 16, "an index counts 16 bytes");
  return gather<1>(lanes, reinterpret_cast<const char*>(infos) + offset,
                   _mm256_slli_epi32(indexes, 4));
}

struct Popped {
  __m256i frequency;
  __m256i bias;  // slot - start
  __m256i value;
};

inline Popped unpack(__m256i packed, __m256i packed_base) {
  const __m256i mask = _mm256_set1_epi32((1 << kPackedBits) - 1);
  return {_mm256_add_epi32(_mm256_and_si256(packed, mask), _mm256_set1_epi32(1)),
          _mm256_and_si256(_mm256_srli_epi32(packed, kPackedBits), mask),
          _mm256_add_epi32(_mm256_srli_epi32(packed, 2 * kPackedBits), packed_base)};
}

// Of the lanes with kUnpacked or more.
inline __m256i is_unpacked(__m256i packed) {
  return _mm256_cmpeq_epi32(_mm256_srli_epi32(packed, 2 * kPackedBits),
                            _mm256_set1_epi32(static_cast<int>(kUnpacked >> (2 * kPackedBits))));
}

// What the packed tables lack, for the lanes in `wide`; false if one of them is an escape.
inline bool look_up(const TableView& tables, __m256i wide, __m256i index, __m256i slot,
                    __m256i slot_number, Popped& popped) {
  const __m256i low_half = _mm256_set1_epi32(0xffff);
  const __m256i first_entry =
      gather_info(wide, index, tables.infos, offsetof(TableInfo, first_entry));
  const auto entry_of = [&](__m256i rank) {
    return gather<4>(wide, tables.decode_entries, _mm256_add_epi32(first_entry, rank));
  };
  const std::uint16_t* ranks = tables.ranks;
  if (!ranks) {  // compact tables
    ranks = tables.bucket_ranks;
    const __m256i buckets = gather_info(wide, index, tables.infos, offsetof(TableInfo, buckets));
    slot_number =
        _mm256_add_epi32(_mm256_and_si256(buckets, _mm256_set1_epi32((1 << kBucketBits) - 1)),
                         _mm256_srlv_epi32(slot, _mm256_srli_epi32(buckets, kBucketBits)));
  }
  __m256i rank = _mm256_and_si256(gather<2>(wide, ranks, slot_number), low_half);
  __m256i entry = entry_of(rank);
  const auto is_behind = [&] {  // both sides are below 2^16
    return _mm256_and_si256(
        wide, _mm256_cmpgt_epi32(_mm256_sub_epi32(slot, _mm256_and_si256(entry, low_half)),
                                 _mm256_srli_epi32(entry, 16)));
  };
  for (__m256i behind = is_behind(); mask_of(behind) != 0; behind = is_behind()) {
    rank = _mm256_sub_epi32(rank, behind);  // where it holds, a comparison gives -1
    entry = entry_of(rank);
  }
  const __m256i num_values =
      gather_info(wide, index, tables.infos, offsetof(TableInfo, num_values));
  const __m256i escape = _mm256_and_si256(wide, _mm256_cmpeq_epi32(rank, num_values));
  if (mask_of(escape) != 0) return false;
  const __m256i first_value =
      gather_info(wide, index, tables.infos, offsetof(TableInfo, first_value));
  const __m256i start = _mm256_and_si256(entry, low_half);
  const __m256i frequency = _mm256_add_epi32(_mm256_srli_epi32(entry, 16), _mm256_set1_epi32(1));
  popped.frequency = _mm256_blendv_epi8(popped.frequency, frequency, wide);
  popped.bias = _mm256_blendv_epi8(popped.bias, _mm256_sub_epi32(slot, start), wide);
  popped.value = _mm256_blendv_epi8(popped.value, _mm256_add_epi32(first_value, rank), wide);
  return true;
}

// The states after a pop; the lanes that ran empty take the next words in their order.
inline __m256i advance(__m256i x, __m128i precision, const Popped& popped,
                       const std::uint8_t*& words) {
  x = _mm256_add_epi32(_mm256_mullo_epi32(popped.frequency, _mm256_srl_epi32(x, precision)),
                       popped.bias);
  const __m256i empty = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
  const int mask = mask_of(empty);
  const __m256i order = _mm256_cvtepu8_epi32(load_8_bytes(kPermutations.expand[mask]));
  const __m256i word =
      _mm256_permutevar8x32_epi32(_mm256_cvtepu16_epi32(load_16_bytes(words)), order);
  words += 2 * __builtin_popcount(static_cast<unsigned>(mask));
  return _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), word), empty);
}

inline void store_symbols(std::int32_t* p, __m256i values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), values);
}

// All lanes in turn, kVectors of 8 at once, as long as every symbol is packed. Gathering for all of
// them before any of them goes on keeps as many loads as possible under way.
template <int kVectors, class Index>
std::size_t pop_packed(const TableView& tables, const Index* indexes, std::size_t count,
                       std::int32_t* symbols, Lanes& lanes, const std::uint8_t*& next,
                       const std::uint8_t* end) {
  const __m128i precision = _mm_cvtsi32_si128(tables.precision);
  const __m256i slot_mask = _mm256_set1_epi32((1 << tables.precision) - 1);
  const __m256i packed_base = _mm256_set1_epi32(tables.packed_base);
  const auto* const packed_slots = reinterpret_cast<const int*>(tables.packed_slots);
  const std::uint8_t* words = next;
  unsigned lane = lanes.next;
  std::size_t done = 0;
  while (count - done >= kStep * kVectors && end - words >= kStepBytes * kVectors) {
    __m256i x[kVectors];
    __m256i packed[kVectors];
    __m256i wide = _mm256_setzero_si256();
    for (int v = 0; v < kVectors; ++v) {
      x[v] = load_states(lanes.states + lane + kStep * v);
      const __m256i index = load_indexes(indexes + done + kStep * v);
      const __m256i slot = _mm256_and_si256(x[v], slot_mask);
      packed[v] = _mm256_i32gather_epi32(
          packed_slots, _mm256_add_epi32(_mm256_sll_epi32(index, precision), slot), 4);
      wide = _mm256_or_si256(wide, is_unpacked(packed[v]));
    }
    if (mask_of(wide) != 0) break;
    for (int v = 0; v < kVectors; ++v) {
      const Popped popped = unpack(packed[v], packed_base);
      store_states(lanes.states + lane + kStep * v, advance(x[v], precision, popped, words));
      store_symbols(symbols + done + kStep * v, popped.value);
    }
    lane = (lane + kStep * kVectors) & (lanes.count - 1);
    done += kStep * kVectors;
  }
  lanes.next = lane;
  next = words;
  return done;
}

template <class Index>
std::size_t pop(const TableView& tables, const Index* indexes, std::size_t count,
                std::int32_t* symbols, Lanes& lanes, const std::uint8_t*& next,
                const std::uint8_t* end) {
  const unsigned group = lanes.count < 32 ? lanes.count : 32;
  const auto groups = group == 8    ? &pop_packed<1, Index>
                      : group == 16 ? &pop_packed<2, Index>
                                    : &pop_packed<4, Index>;
  const __m128i precision = _mm_cvtsi32_si128(tables.precision);
  const __m256i slot_mask = _mm256_set1_epi32((1 << tables.precision) - 1);
  const __m256i packed_base = _mm256_set1_epi32(tables.packed_base);
  const __m256i all_lanes = _mm256_set1_epi32(-1);
  std::size_t done = 0;
  for (;;) {
    if (lanes.next % group == 0 && tables.packed_slots) {
      done += groups(tables, indexes + done, count - done, symbols + done, lanes, next, end);
    }
    if (count - done < kStep || end - next < kStepBytes) break;
    // One vector, packed or not.
    const __m256i x = load_states(lanes.states + lanes.next);
    const __m256i index = load_indexes(indexes + done);
    const __m256i slot = _mm256_and_si256(x, slot_mask);
    const __m256i slot_number = _mm256_add_epi32(_mm256_sll_epi32(index, precision), slot);
    __m256i packed = all_lanes;
    if (tables.packed_slots) packed = gather<4>(all_lanes, tables.packed_slots, slot_number);
    const __m256i wide = is_unpacked(packed);
    Popped popped = unpack(packed, packed_base);
    if (mask_of(wide) != 0 && !look_up(tables, wide, index, slot, slot_number, popped)) break;
    store_states(lanes.states + lanes.next, advance(x, precision, popped, next));
    store_symbols(symbols + done, popped.value);
    lanes.next = (lanes.next + kStep) & (lanes.count - 1);
    done += kStep;
  }
  return done;
}

// As float32; above 2^31 too, which there is no instruction for.
inline __m256 unsigned_to_float(__m256i x) {
  const __m256 upper = _mm256_cvtepi32_ps(_mm256_srli_epi32(x, 16));
  const __m256 lower = _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff)));
  return _mm256_add_ps(_mm256_mul_ps(upper, _mm256_set1_ps(65536.0f)), lower);
}

template <class Index>
std::size_t push(const TableView& tables, const std::int32_t* symbols, const Index* indexes,
                 std::size_t count, Lanes& lanes, std::uint8_t*& top) {
  const __m128i limit_shift = _mm_cvtsi32_si128(16 - tables.precision);
  const __m256i total = _mm256_set1_epi32(1 << tables.precision);
  const __m256i packed_base = _mm256_set1_epi32(tables.packed_base);
  const __m256i last_packed = _mm256_set1_epi32(kPackedValues - 1);
  const __m256i no_entry = _mm256_set1_epi32(-1);
  const __m256i low_half = _mm256_set1_epi32(0xffff);
  const __m256i one = _mm256_set1_epi32(1);
  const std::uint32_t* const packed_entries = tables.packed_entries;
  std::uint8_t* words = top;
  unsigned lane = lanes.next;
  std::size_t left = count;
  while (left >= kStep) {
    const __m256i index = load_indexes(indexes + left - kStep);
    const __m256i value =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(symbols + left - kStep));
    __m256i entry = no_entry;
    if (packed_entries) {
      const __m256i offset = _mm256_sub_epi32(value, packed_base);
      const __m256i packed = _mm256_cmpeq_epi32(_mm256_min_epu32(offset, last_packed), offset);
      entry = _mm256_mask_i32gather_epi32(no_entry, reinterpret_cast<const int*>(packed_entries),
                                          _mm256_add_epi32(_mm256_slli_epi32(index, 8), offset),
                                          packed, 4);
    }
    const __m256i wide = _mm256_cmpeq_epi32(entry, no_entry);
    if (__builtin_expect(mask_of(wide) != 0, 0)) {
      const __m256i first_value =
          gather_info(wide, index, tables.infos, offsetof(TableInfo, first_value));
      const __m256i num_values =
          gather_info(wide, index, tables.infos, offsetof(TableInfo, num_values));
      const __m256i rank = _mm256_sub_epi32(value, first_value);
      const __m256i outside = _mm256_cmpeq_epi32(_mm256_max_epu32(rank, num_values), rank);
      if (mask_of(_mm256_and_si256(wide, outside)) != 0) break;
      const __m256i first_entry =
          gather_info(wide, index, tables.infos, offsetof(TableInfo, first_entry));
      const __m256i wide_entry =
          gather<4>(wide, tables.decode_entries, _mm256_add_epi32(first_entry, rank));
      entry = _mm256_blendv_epi8(entry, wide_entry, wide);
    }
    lane = (lane - kStep) & (lanes.count - 1);
    __m256i x = load_states(lanes.states + lane);
    const __m256i start = _mm256_and_si256(entry, low_half);
    const __m256i frequency = _mm256_add_epi32(_mm256_srli_epi32(entry, 16), one);
    const __m256i upper = _mm256_srli_epi32(x, 16);
    const __m256i full =  // both sides are at most 2^16
        _mm256_cmpgt_epi32(upper, _mm256_sub_epi32(_mm256_sll_epi32(frequency, limit_shift), one));
    const int mask = mask_of(full);
    const __m256i lower = _mm256_and_si256(x, low_half);
    const __m128i lane_words =
        _mm_packus_epi32(_mm256_castsi256_si128(lower), _mm256_extracti128_si256(lower, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(words - kStepBytes),
                     _mm_shuffle_epi8(lane_words, load_16_bytes(kPermutations.compress[mask])));
    words -= 2 * __builtin_popcount(static_cast<unsigned>(mask));
    x = _mm256_blendv_epi8(x, upper, full);
    // x div f: see kMinSimdPushPrecision. Once renormalized, the quotient is below 2^22.
    __m256i quotient =
        _mm256_cvttps_epi32(_mm256_div_ps(unsigned_to_float(x), _mm256_cvtepi32_ps(frequency)));
    const __m256i remainder = _mm256_sub_epi32(x, _mm256_mullo_epi32(quotient, frequency));
    // A comparison gives -1 where it holds.
    quotient = _mm256_add_epi32(quotient, _mm256_srai_epi32(remainder, 31));
    quotient =
        _mm256_sub_epi32(quotient, _mm256_cmpgt_epi32(remainder, _mm256_sub_epi32(frequency, one)));
    x = _mm256_add_epi32(_mm256_add_epi32(x, start),
                         _mm256_mullo_epi32(quotient, _mm256_sub_epi32(total, frequency)));
    store_states(lanes.states + lane, x);
    left -= kStep;
  }
  lanes.next = lane;
  top = words;
  return count - left;
}

constexpr Kernels kKernels = {kStep, &pop<std::uint8_t>, &pop<std::uint16_t>, &push<std::uint8_t>,
                              &push<std::uint16_t>};

}  // namespace

const Kernels* const kAvx2Kernels = &kKernels;

}  // namespace rans
}  // namespace pycodec
