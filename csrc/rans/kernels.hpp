// The inner loops of encoder and decoder, one variant for each SIMD level. All of them read and
// write the same stream. This header is for the variants too, which are built with flags of their
// own: it must have no inline function and no template with external linkage (cpu/simd_level.hpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/simd_level.hpp"

namespace pycodec {
namespace rans {

// A table covers the values first_value + rank, 0 <= rank < num_values, each with one entry; where
// it has an escape, the entry after them (rank num_values) is the escape's.
struct TableInfo {
  std::int32_t first_value;
  std::uint32_t num_values;
  std::uint32_t first_entry;
  std::uint32_t buckets;  // see "compact tables"
};

// All that a scalar push needs to know of its symbol, in 16 bytes: four to a cache line.
struct EncodeEntry {
  std::uint64_t reciprocal;  // ceil(2^64 / f); 2^64 - 1 for f = 1
  std::uint32_t bias;        // start; start + M - 1 for f = 1
  std::uint16_t complement;  // M - f
  std::uint16_t limit;       // f * 2^(16-p) - 1: emit a word if the state's upper half exceeds it
};

// What a pop, or a SIMD push, needs to know of its symbol.
struct DecodeEntry {
  std::uint16_t start;
  std::uint16_t last_bias;  // f - 1
};

// PACKED TABLES. A symbol costs little arithmetic, so memory decides: one load a symbol is best,
// and 32 bits are what SIMD gathers. Where the precision is at most 12 bits, a decoder's slot is
//
//     bits 0-11: f - 1    bits 12-23: slot - start    bits 24-31: value - packed_base
//
// for the 255 values from packed_base on; a slot of any other value, or of the escape, is kUnpacked
// or more. The encoder's packed entry of table t and value v is number 256 t + (v - packed_base): a
// DecodeEntry as a 32-bit number, start below f - 1, or kNoEntry. What is not packed is found by
// way of ranks, infos and entries: three loads more.
constexpr int kPackedBits = 12;
constexpr std::uint32_t kUnpacked = 0xffu << 24;
constexpr std::uint32_t kNoEntry = 0xffffffffu;  // no entry has start and f - 1 of 2^16 - 1
constexpr int kPackedValues = 255;
constexpr int kPackedStride = 256;

// COMPACT TABLES. Slot tables of very many, or very precise, tables would fill the last cache and
// more: then a table's slots are cut into 2^b buckets instead, about as many as it has entries. A
// bucket knows the rank of its first slot; from there on the entries are searched, mostly none or
// one. `buckets` has the number of the table's first bucket in its low 27 bits and p - b above
// them, so slot s lies in bucket (buckets mod 2^27) + (s >> (buckets >> 27)). (Guide tables: H.-C.
// Chen, Y. Asau, "On generating random variates from an empirical distribution", 1974.)
constexpr int kBucketBits = 27;

// The tables as the inner loops see them.
struct TableView {
  int precision;
  const TableInfo* infos;
  const EncodeEntry* encode_entries;  // by TableInfo::first_entry + rank
  const DecodeEntry* decode_entries;
  const std::uint16_t* ranks;           // of slot s of table t: at (t << precision) + s; padded
  const std::uint16_t* bucket_ranks;    // padded; either this or `ranks` is null
  const std::uint32_t* packed_slots;    // likewise; null where there are none
  const std::uint32_t* packed_entries;  // null where there are none
  std::int32_t packed_base;
};

// Where an inner loop stands: symbol n is the next one to pop, or the last one pushed.
struct Lanes {
  std::uint32_t* states;  // 64-byte aligned
  unsigned count;         // a power of two
  unsigned next;          // n mod count
};

// Pops symbols until one is an escape, the words may run short, or too few are left for a step;
// returns how many it popped. `lanes.next` must be a multiple of the step.
template <class Index>
using PopKernel = std::size_t (*)(const TableView& tables, const Index* indexes, std::size_t count,
                                  std::int32_t* symbols, Lanes& lanes, const std::uint8_t*& next,
                                  const std::uint8_t* end);

// Pushes symbols, the last one first, until one needs an escape or too few are left for a step;
// returns how many it pushed. `lanes.next` must be a multiple of the step, and below `top` there
// must be room for a word a symbol and for kPushMargin bytes more.
template <class Index>
using PushKernel = std::size_t (*)(const TableView& tables, const std::int32_t* symbols,
                                   const Index* indexes, std::size_t count, Lanes& lanes,
                                   std::uint8_t*& top);

constexpr std::size_t kPushMargin = 32;

// One variant. A step is what it takes at once; it divides the number of lanes.
struct Kernels {
  unsigned step;
  PopKernel<std::uint8_t> pop8;
  PopKernel<std::uint16_t> pop16;
  PushKernel<std::uint8_t> push8;
  PushKernel<std::uint16_t> push16;
};

// The fastest variant of at most `level` for this many lanes.
const Kernels& kernels_for(SimdLevel level, int lanes);

// The SIMD variants; null where the processor that this is built for has none.
extern const Kernels* const kAvx2Kernels;
extern const Kernels* const kAvx512Kernels;
extern const Kernels* const kNeonKernels;

// SIMD pushes divide in float32, which is exact enough from this precision on; below it they are
// scalar. With q < 2^(32 - p) the quotient is off by at most q * 2^-23 + 1 < 2 before it is put
// right by its remainder.
constexpr int kMinSimdPushPrecision = 10;

}  // namespace rans
}  // namespace pycodec
