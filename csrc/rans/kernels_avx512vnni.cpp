// The inner loops in steps of 16 lanes (AVX-512 F, BW, VL). The comments in rans.hpp and
// kernels.hpp explain what is computed.
#include <immintrin.h>

#include "rans/kernels.hpp"

namespace pycodec {
namespace rans {
namespace {

constexpr unsigned kStep = 16;
constexpr std::ptrdiff_t kStepBytes = 2 * kStep;  // of words that a step may read

inline __m512i load_indexes(const std::uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline __m512i load_indexes(const std::uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// Member `offset` bytes into the TableInfo of each index.
inline __m512i gather_info(__mmask16 lanes, __m512i indexes, const TableInfo* infos,
                           std::size_t offset) {
  static_assert(sizeof(TableInfo) == 16, "an index counts 16 bytes");
  return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), lanes, _mm512_slli_epi32(indexes, 4),
                                     reinterpret_cast<const char*>(infos) + offset, 1);
}

struct Popped {
  __m512i frequency;
  __m512i bias;  // slot - start
  __m512i value;
};

inline Popped unpack(__m512i packed, __m512i packed_base) {
  const __m512i mask = _mm512_set1_epi32((1 << kPackedBits) - 1);
  return {_mm512_add_epi32(_mm512_and_si512(packed, mask), _mm512_set1_epi32(1)),
          _mm512_and_si512(_mm512_srli_epi32(packed, kPackedBits), mask),
          _mm512_add_epi32(_mm512_srli_epi32(packed, 2 * kPackedBits), packed_base)};
}

// What the packed tables lack, for the lanes in `wide`; false if one of them is an escape.
inline bool look_up(const TableView& tables, __mmask16 wide, __m512i index, __m512i slot,
                    __m512i slot_number, Popped& popped) {
  const __m512i low_half = _mm512_set1_epi32(0xffff);
  const __m512i zero = _mm512_setzero_si512();
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i first_entry =
      gather_info(wide, index, tables.infos, offsetof(TableInfo, first_entry));
  const auto entry_of = [&](__m512i rank) {
    return _mm512_mask_i32gather_epi32(zero, wide, _mm512_add_epi32(first_entry, rank),
                                       tables.decode_entries, 4);
  };
  const std::uint16_t* ranks = tables.ranks;
  if (!ranks) {  // compact tables
    ranks = tables.bucket_ranks;
    const __m512i buckets = gather_info(wide, index, tables.infos, offsetof(TableInfo, buckets));
    slot_number =
        _mm512_add_epi32(_mm512_and_si512(buckets, _mm512_set1_epi32((1 << kBucketBits) - 1)),
                         _mm512_srlv_epi32(slot, _mm512_srli_epi32(buckets, kBucketBits)));
  }
  __m512i rank =
      _mm512_and_si512(_mm512_mask_i32gather_epi32(zero, wide, slot_number, ranks, 2), low_half);
  __m512i entry = entry_of(rank);
  const auto is_behind = [&] {
    return _mm512_mask_cmpgt_epu32_mask(wide,
                                        _mm512_sub_epi32(slot, _mm512_and_si512(entry, low_half)),
                                        _mm512_srli_epi32(entry, 16));
  };
  for (__mmask16 behind = is_behind(); behind != 0; behind = is_behind()) {
    rank = _mm512_mask_add_epi32(rank, behind, rank, one);
    entry = entry_of(rank);
  }
  const __m512i num_values =
      gather_info(wide, index, tables.infos, offsetof(TableInfo, num_values));
  if (_mm512_mask_cmpeq_epi32_mask(wide, rank, num_values) != 0) return false;
  const __m512i first_value =
      gather_info(wide, index, tables.infos, offsetof(TableInfo, first_value));
  popped.frequency =
      _mm512_mask_add_epi32(popped.frequency, wide, _mm512_srli_epi32(entry, 16), one);
  popped.bias = _mm512_mask_sub_epi32(popped.bias, wide, slot, _mm512_and_si512(entry, low_half));
  popped.value = _mm512_mask_add_epi32(popped.value, wide, first_value, rank);
  return true;
}

// The states after a pop; the lanes that ran empty take the next words in their order.
inline __m512i advance(__m512i x, __m128i precision, const Popped& popped,
                       const std::uint8_t*& words) {
  x = _mm512_add_epi32(_mm512_mullo_epi32(popped.frequency, _mm512_srl_epi32(x, precision)),
                       popped.bias);
  const __mmask16 empty = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(1 << 16));
  const __m512i word = _mm512_maskz_expand_epi32(
      empty, _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words))));
  words += 2 * __builtin_popcount(empty);
  return _mm512_mask_mov_epi32(x, empty, _mm512_or_si512(_mm512_slli_epi32(x, 16), word));
}

// All lanes at once, kVectors of 16, as long as every symbol is packed. Gathering for all of them
// before any of them goes on keeps as many loads as possible under way.
template <int kVectors, class Index>
std::size_t pop_packed(const TableView& tables, const Index* indexes, std::size_t count,
                       std::int32_t* symbols, std::uint32_t* states, const std::uint8_t*& next,
                       const std::uint8_t* end) {
  const __m128i precision = _mm_cvtsi32_si128(tables.precision);
  const __m512i slot_mask = _mm512_set1_epi32((1 << tables.precision) - 1);
  const __m512i packed_base = _mm512_set1_epi32(tables.packed_base);
  const __m512i unpacked = _mm512_set1_epi32(static_cast<int>(kUnpacked));
  const std::uint32_t* const packed_slots = tables.packed_slots;
  const std::uint8_t* words = next;
  std::size_t done = 0;
  __m512i x[kVectors];
  for (int v = 0; v < kVectors; ++v) x[v] = _mm512_load_si512(states + kStep * v);
  while (count - done >= kStep * kVectors && end - words >= kStepBytes * kVectors) {
    __m512i packed[kVectors];
    __mmask16 wide = 0;
    for (int v = 0; v < kVectors; ++v) {
      const __m512i index = load_indexes(indexes + done + kStep * v);
      const __m512i slot = _mm512_and_si512(x[v], slot_mask);
      packed[v] = _mm512_i32gather_epi32(_mm512_add_epi32(_mm512_sll_epi32(index, precision), slot),
                                         packed_slots, 4);
      wide |= _mm512_cmpge_epu32_mask(packed[v], unpacked);
    }
    if (wide != 0) break;
    for (int v = 0; v < kVectors; ++v) {
      const Popped popped = unpack(packed[v], packed_base);
      x[v] = advance(x[v], precision, popped, words);
      _mm512_storeu_si512(symbols + done + kStep * v, popped.value);
    }
    done += kStep * kVectors;
  }
  for (int v = 0; v < kVectors; ++v) _mm512_store_si512(states + kStep * v, x[v]);
  next = words;
  return done;
}

template <class Index>
std::size_t pop(const TableView& tables, const Index* indexes, std::size_t count,
                std::int32_t* symbols, Lanes& lanes, const std::uint8_t*& next,
                const std::uint8_t* end) {
  const auto groups = lanes.count == 16   ? &pop_packed<1, Index>
                      : lanes.count == 32 ? &pop_packed<2, Index>
                                          : &pop_packed<4, Index>;
  const __m128i precision = _mm_cvtsi32_si128(tables.precision);
  const __m512i slot_mask = _mm512_set1_epi32((1 << tables.precision) - 1);
  const __m512i packed_base = _mm512_set1_epi32(tables.packed_base);
  std::size_t done = 0;
  for (;;) {
    if (lanes.next == 0 && tables.packed_slots) {
      done += groups(tables, indexes + done, count - done, symbols + done, lanes.states, next, end);
    }
    if (count - done < kStep || end - next < kStepBytes) break;
    // One vector, packed or not.
    const __m512i x = _mm512_load_si512(lanes.states + lanes.next);
    const __m512i index = load_indexes(indexes + done);
    const __m512i slot = _mm512_and_si512(x, slot_mask);
    const __m512i slot_number = _mm512_add_epi32(_mm512_sll_epi32(index, precision), slot);
    __m512i packed = _mm512_set1_epi32(-1);
    if (tables.packed_slots) packed = _mm512_i32gather_epi32(slot_number, tables.packed_slots, 4);
    const __mmask16 wide =
        _mm512_cmpge_epu32_mask(packed, _mm512_set1_epi32(static_cast<int>(kUnpacked)));
    Popped popped = unpack(packed, packed_base);
    if (wide != 0 && !look_up(tables, wide, index, slot, slot_number, popped)) break;
    _mm512_store_si512(lanes.states + lanes.next, advance(x, precision, popped, next));
    _mm512_storeu_si512(symbols + done, popped.value);
    lanes.next = (lanes.next + kStep) & (lanes.count - 1);
    done += kStep;
  }
  return done;
}

template <class Index>
std::size_t push(const TableView& tables, const std::int32_t* symbols, const Index* indexes,
                 std::size_t count, Lanes& lanes, std::uint8_t*& top) {
  const __m128i limit_shift = _mm_cvtsi32_si128(16 - tables.precision);
  const __m512i total = _mm512_set1_epi32(1 << tables.precision);
  const __m512i packed_base = _mm512_set1_epi32(tables.packed_base);
  const __m512i packed_values = _mm512_set1_epi32(kPackedValues);
  const __m512i no_entry = _mm512_set1_epi32(-1);
  const __m512i low_half = _mm512_set1_epi32(0xffff);
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i zero = _mm512_setzero_si512();
  const std::uint32_t* const packed_entries = tables.packed_entries;
  std::uint8_t* words = top;
  unsigned lane = lanes.next;
  std::size_t left = count;
  while (left >= kStep) {
    const __m512i index = load_indexes(indexes + left - kStep);
    const __m512i value = _mm512_loadu_si512(symbols + left - kStep);
    __m512i entry = no_entry;
    if (packed_entries) {
      const __m512i offset = _mm512_sub_epi32(value, packed_base);
      const __mmask16 packed = _mm512_cmplt_epu32_mask(offset, packed_values);
      entry = _mm512_mask_i32gather_epi32(no_entry, packed,
                                          _mm512_add_epi32(_mm512_slli_epi32(index, 8), offset),
                                          packed_entries, 4);
    }
    const __mmask16 wide = _mm512_cmpeq_epi32_mask(entry, no_entry);
    if (__builtin_expect(wide != 0, 0)) {
      const __m512i first_value =
          gather_info(wide, index, tables.infos, offsetof(TableInfo, first_value));
      const __m512i num_values =
          gather_info(wide, index, tables.infos, offsetof(TableInfo, num_values));
      const __m512i rank = _mm512_sub_epi32(value, first_value);
      if (_mm512_mask_cmpge_epu32_mask(wide, rank, num_values) != 0) break;
      const __m512i first_entry =
          gather_info(wide, index, tables.infos, offsetof(TableInfo, first_entry));
      entry = _mm512_mask_i32gather_epi32(entry, wide, _mm512_add_epi32(first_entry, rank),
                                          tables.decode_entries, 4);
    }
    lane = (lane - kStep) & (lanes.count - 1);
    __m512i x = _mm512_load_si512(lanes.states + lane);
    const __m512i start = _mm512_and_si512(entry, low_half);
    const __m512i frequency = _mm512_add_epi32(_mm512_srli_epi32(entry, 16), one);
    const __mmask16 full =
        _mm512_cmpge_epu32_mask(_mm512_srli_epi32(x, 16), _mm512_sll_epi32(frequency, limit_shift));
    const int num_words = __builtin_popcount(full);
    words -= 2 * num_words;
    _mm256_mask_storeu_epi16(words, static_cast<__mmask16>((1u << num_words) - 1),
                             _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, x)));
    x = _mm512_mask_srli_epi32(x, full, x, 16);
    // x div f: see kMinSimdPushPrecision.
    __m512i quotient =
        _mm512_cvttps_epu32(_mm512_div_ps(_mm512_cvtepu32_ps(x), _mm512_cvtepi32_ps(frequency)));
    const __m512i remainder = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, frequency));
    quotient = _mm512_mask_add_epi32(quotient, _mm512_cmpge_epi32_mask(remainder, frequency),
                                     quotient, one);
    quotient =
        _mm512_mask_sub_epi32(quotient, _mm512_cmplt_epi32_mask(remainder, zero), quotient, one);
    x = _mm512_add_epi32(_mm512_add_epi32(x, start),
                         _mm512_mullo_epi32(quotient, _mm512_sub_epi32(total, frequency)));
    _mm512_store_si512(lanes.states + lane, x);
    left -= kStep;
  }
  lanes.next = lane;
  top = words;
  return count - left;
}

constexpr Kernels kKernels = {kStep, &pop<std::uint8_t>, &pop<std::uint16_t>, &push<std::uint8_t>,
                              &push<std::uint16_t>};

}  // namespace

const Kernels* const kAvx512Kernels = &kKernels;

}  // namespace rans
}  // namespace pycodec
