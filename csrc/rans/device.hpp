// The rANS coder's arithmetic for one lane, in functions that nvcc compiles for the GPU and any
// C++17 compiler for the host, where the tests run them against the CPU coder. rans.hpp says what
// they compute; warp.hpp makes a coder of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "rans/kernels.hpp"
#include "rans/rans.hpp"

#ifdef __CUDACC__
#define PYCODEC_HOST_DEVICE __host__ __device__
#define PYCODEC_DEVICE __device__
#else
#define PYCODEC_HOST_DEVICE
#define PYCODEC_DEVICE
#endif

namespace pycodec {
namespace rans {

// TableInfo in kernels.hpp, but with the escape; 16 bytes, so that one access reads it.
struct alignas(16) DeviceTableInfo {
  std::int32_t first_value;
  std::uint32_t num_values;
  std::uint32_t first_entry;
  std::uint32_t has_escape;
};

// What decoding takes of a table of two values without escape.
struct alignas(16) TableOfTwo {
  std::uint32_t entries[2];
  std::int32_t first_value;
  std::uint32_t unused;
};

// A table set in device memory, laid out as kernels.hpp says for a TableView. All is read through
// the read-only data cache: the slots of 64 tables of 12 bits are 1 MiB, too much for shared
// memory, and what would fit there stays in the first-level cache anyway.
struct DeviceTables {
  int precision;
  std::uint32_t num_tables;
  const DeviceTableInfo* infos;
  const EncodeEntry* encode_entries;    // 16-byte aligned
  const std::uint32_t* decode_entries;  // start | (f - 1) << 16: the bytes of a DecodeEntry
  // Of slot s of table t: at (t << precision) + s. Null for a set whose tables all have two values
  // and no escape: there a comparison with the second entry's start is faster than a look-up.
  const std::uint16_t* ranks;
  const std::uint32_t* packed_slots;  // likewise; null where there are none
  std::int32_t packed_base;
  // Copies of tables of two values that a block keeps in its own memory, where a meeting of blocks
  // leaves them; or null.
  const TableOfTwo* of_two = nullptr;
};

enum class Failure : std::uint32_t {
  kNone = 0,
  kEndsEarly = 1,
  kEscapeTooLong = 2,
  kSymbolTooLarge = 3,
  kStateTooSmall = 4,
  kGoesOn = 5,
  kNotReturned = 6,
  kNoTable = 7,     // here and below the position is a symbol's, above it is a word's
  kNotCovered = 8,  // a symbol outside a table without escape
  kOutOfSpace = 9,  // for the words of the encoder
};

// Failure, lane (where one is to blame) and position in one number; 0 is success.
PYCODEC_HOST_DEVICE inline std::uint64_t failure_report(Failure failure, unsigned lane,
                                                        std::uint32_t position) {
  return static_cast<std::uint64_t>(failure) | lane << 8 | std::uint64_t{position} << 32;
}

// Reads what does not change while the kernel runs.
template <class T>
PYCODEC_HOST_DEVICE T load_constant(const T* p) {
#ifdef __CUDA_ARCH__
  return __ldg(p);
#else
  return *p;
#endif
}

// The same for a struct of 8 or 16 bytes, in one access.
template <class T>
PYCODEC_HOST_DEVICE T load_constant_struct(const T* p) {
  static_assert(sizeof(T) == 8 || sizeof(T) == 16);
#ifdef __CUDA_ARCH__
  using Bits = std::conditional_t<sizeof(T) == 16, uint4, uint2>;
  const Bits bits = __ldg(reinterpret_cast<const Bits*>(p));
  T value;
  memcpy(&value, &bits, sizeof(T));
  return value;
#else
  return *p;
#endif
}

PYCODEC_HOST_DEVICE inline unsigned count_bits(std::uint32_t x) {
#ifdef __CUDA_ARCH__
  return static_cast<unsigned>(__popc(x));
#else
  return static_cast<unsigned>(__builtin_popcount(x));
#endif
}

// The number of the lowest, and of the highest, bit that is set; x is not 0.
PYCODEC_HOST_DEVICE inline unsigned lowest_bit(std::uint32_t x) {
#ifdef __CUDA_ARCH__
  return static_cast<unsigned>(__ffs(static_cast<int>(x))) - 1;
#else
  return static_cast<unsigned>(__builtin_ctz(x));
#endif
}

PYCODEC_HOST_DEVICE inline unsigned highest_bit(std::uint32_t x) {
#ifdef __CUDA_ARCH__
  return 31 - static_cast<unsigned>(__clz(static_cast<int>(x)));
#else
  return 31 - static_cast<unsigned>(__builtin_clz(x));
#endif
}

// Bits 0 to n - 1; n <= 32.
PYCODEC_HOST_DEVICE inline std::uint32_t low_bits(unsigned n) {
  return n >= 32 ? ~std::uint32_t{0} : (std::uint32_t{1} << n) - 1;
}

PYCODEC_HOST_DEVICE inline std::uint32_t smaller(std::uint32_t a, std::uint32_t b) {
  return a < b ? a : b;
}

// What a lane's symbol turned out to be.
enum class Kind : std::uint32_t { kValue, kEscape, kNoTable, kNotCovered };

// DECODING

// The decode entries of a table of two values.
struct alignas(8) EntryPair {
  std::uint32_t entries[2];
};

struct Popped {
  std::uint32_t x;  // not yet renormalized
  std::int32_t symbol;
  Kind kind;
};

PYCODEC_HOST_DEVICE inline TableOfTwo load_table_of_two(const DeviceTables& tables,
                                                        std::uint32_t table) {
  const EntryPair pair =
      load_constant_struct(reinterpret_cast<const EntryPair*>(tables.decode_entries) + table);
  return {{pair.entries[0], pair.entries[1]}, load_constant(&tables.infos[table].first_value), 0};
}

// A symbol of a set that has no ranks; table_at(n) is table n of it. Nothing here depends on the
// thread but by selection, so that the look-ups of a thread's lanes overlap.
template <class TableAt>
PYCODEC_HOST_DEVICE Popped pop_of_two(const DeviceTables& tables, const TableAt& table_at,
                                      std::uint32_t index, std::uint32_t x) {
  const bool has_table = index < tables.num_tables;
  const TableOfTwo table = table_at(has_table ? index : 0);
  const std::uint32_t slot = x & low_bits(static_cast<unsigned>(tables.precision));
  const std::uint32_t rank = slot >= (table.entries[1] & 0xffff) ? 1 : 0;
  const std::uint32_t entry = rank == 0 ? table.entries[0] : table.entries[1];
  const std::uint32_t next =
      ((entry >> 16) + 1) * (x >> tables.precision) + slot - (entry & 0xffff);
  return {has_table ? next : x, table.first_value + static_cast<std::int32_t>(rank),
          has_table ? Kind::kValue : Kind::kNoTable};
}

// A symbol of any other set.
PYCODEC_HOST_DEVICE inline Popped pop_by_slot(const DeviceTables& tables, std::uint32_t index,
                                              std::uint32_t x) {
  if (index >= tables.num_tables) return {x, 0, Kind::kNoTable};
  const std::uint32_t slot = x & low_bits(static_cast<unsigned>(tables.precision));
  const std::uint32_t upper = x >> tables.precision;
  const std::uint32_t cell = (index << tables.precision) + slot;
  if (tables.packed_slots != nullptr) {
    const std::uint32_t packed = load_constant(tables.packed_slots + cell);
    if (packed < kUnpacked) {
      constexpr std::uint32_t kMask = (1u << kPackedBits) - 1;
      return {((packed & kMask) + 1) * upper + (packed >> kPackedBits & kMask),
              tables.packed_base + static_cast<std::int32_t>(packed >> (2 * kPackedBits)),
              Kind::kValue};
    }
  }
  const std::uint32_t rank = load_constant(tables.ranks + cell);
  const DeviceTableInfo info = load_constant_struct(tables.infos + index);
  const std::uint32_t entry = load_constant(tables.decode_entries + info.first_entry + rank);
  return {((entry >> 16) + 1) * upper + slot - (entry & 0xffff),
          static_cast<std::int32_t>(static_cast<std::uint32_t>(info.first_value) + rank),
          rank < info.num_values ? Kind::kValue : Kind::kEscape};
}

// The words of one substream, read one after another by one thread.
struct WordCursor {
  const std::uint16_t* words;
  std::uint32_t count;
  std::uint32_t position;
};

PYCODEC_HOST_DEVICE inline Failure renormalize(std::uint32_t& x, WordCursor& cursor) {
  if (x >= kLowerBound) return Failure::kNone;
  if (cursor.position == cursor.count) return Failure::kEndsEarly;
  x = x << 16 | load_constant(cursor.words + cursor.position);
  ++cursor.position;
  return Failure::kNone;
}

// `bits` gets 1 <= count <= 16 raw bits.
PYCODEC_HOST_DEVICE inline Failure pop_bits(std::uint32_t& x, unsigned count, WordCursor& cursor,
                                            std::uint32_t& bits) {
  bits = x & low_bits(count);
  x >>= count;
  return renormalize(x, cursor);
}

// Elias' gamma code, see Decoder::pop_escape_code().
PYCODEC_HOST_DEVICE inline Failure pop_escape_code(std::uint32_t& x, WordCursor& cursor,
                                                   std::uint64_t& code) {
  constexpr unsigned kMaxBits = kMaxEscapeBits;
  constexpr unsigned kPiece = kMaxRawBits;
  unsigned bits = 0;
  std::uint32_t piece = 0;
  Failure failure = Failure::kNone;
  while ((x & 0xffff) == 0) {
    bits += kPiece;
    if (bits > kMaxBits) return Failure::kEscapeTooLong;
    failure = pop_bits(x, kPiece, cursor, piece);
    if (failure != Failure::kNone) return failure;
  }
  const unsigned zeros = lowest_bit(x);
  bits += zeros;
  if (bits > kMaxBits) return Failure::kEscapeTooLong;
  failure = pop_bits(x, zeros + 1, cursor, piece);
  if (failure != Failure::kNone) return failure;
  code = std::uint64_t{1} << bits;
  if (bits > 0) {
    failure = pop_bits(x, smaller(bits, kPiece), cursor, piece);
    if (failure != Failure::kNone) return failure;
    code |= piece;
  }
  if (bits > kPiece) {
    failure = pop_bits(x, bits - kPiece, cursor, piece);
    if (failure != Failure::kNone) return failure;
    code |= std::uint64_t{piece} << kPiece;
  }
  return Failure::kNone;
}

// The value that follows an escape of a table.
PYCODEC_HOST_DEVICE inline Failure pop_escaped(const DeviceTables& tables, std::uint32_t index,
                                               std::uint32_t& x, WordCursor& cursor,
                                               std::int32_t& symbol) {
  std::uint64_t code = 0;
  const Failure failure = pop_escape_code(x, cursor, code);
  if (failure != Failure::kNone) return failure;
  const DeviceTableInfo info = load_constant_struct(tables.infos + index);
  const std::int64_t first = info.first_value;
  const auto distance = static_cast<std::int64_t>((code + 1) / 2);
  const std::int64_t value =
      code % 2 == 1 ? first + info.num_values - 1 + distance : first - distance;
  symbol = static_cast<std::int32_t>(value);
  return symbol == value ? Failure::kNone : Failure::kSymbolTooLarge;
}

// ENCODING

struct ToPush {
  EncodeEntry entry;
  Kind kind;
};

PYCODEC_HOST_DEVICE inline ToPush find_entry(const DeviceTables& tables, std::uint32_t index,
                                             std::int32_t symbol) {
  if (index >= tables.num_tables) return {{}, Kind::kNoTable};
  const DeviceTableInfo info = load_constant_struct(tables.infos + index);
  std::uint32_t rank =
      static_cast<std::uint32_t>(symbol) - static_cast<std::uint32_t>(info.first_value);
  Kind kind = Kind::kValue;
  if (rank >= info.num_values) {
    if (info.has_escape == 0) return {{}, Kind::kNotCovered};
    rank = info.num_values;
    kind = Kind::kEscape;
  }
  return {load_constant_struct(tables.encode_entries + info.first_entry + rank), kind};
}

// Whether a word must leave before the push.
PYCODEC_HOST_DEVICE inline bool is_full(std::uint32_t x, const EncodeEntry& entry) {
  return x >> 16 > entry.limit;
}

// Pushes onto a state that is not full. DIVISION in rans.hpp says why the quotient is exact.
PYCODEC_HOST_DEVICE inline std::uint32_t push_entry(std::uint32_t x, const EncodeEntry& entry) {
#ifdef __CUDA_ARCH__
  const auto quotient = static_cast<std::uint32_t>(__umul64hi(x, entry.reciprocal));
#else
  const auto quotient = static_cast<std::uint32_t>(multiply_high(x, entry.reciprocal));
#endif
  return x + entry.bias + quotient * entry.complement;
}

// Words written downwards by one thread; the last one written is number `top`.
struct WordPile {
  std::uint16_t* words;
  std::uint32_t top;
};

PYCODEC_HOST_DEVICE inline Failure emit_word(std::uint32_t& x, WordPile& pile) {
  if (pile.top == 0) return Failure::kOutOfSpace;
  pile.words[--pile.top] = static_cast<std::uint16_t>(x);
  x >>= 16;
  return Failure::kNone;
}

// Pushes 1 <= count <= 16 raw bits.
PYCODEC_HOST_DEVICE inline Failure push_bits(std::uint32_t& x, std::uint32_t bits, unsigned count,
                                             WordPile& pile) {
  if (x >> (32 - count) != 0) {
    const Failure failure = emit_word(x, pile);
    if (failure != Failure::kNone) return failure;
  }
  x = x << count | bits;
  return Failure::kNone;
}

// The mirror image of pop_escape_code(): last bits first.
PYCODEC_HOST_DEVICE inline Failure push_escape_code(std::uint32_t& x, std::uint64_t code,
                                                    WordPile& pile) {
  constexpr unsigned kPiece = kMaxRawBits;
  unsigned bits = 0;  // after the leading one
  while (code >> bits > 1) ++bits;
  Failure failure = Failure::kNone;
  if (bits > kPiece) {
    const auto upper = static_cast<std::uint32_t>(code >> kPiece);
    failure = push_bits(x, upper & low_bits(bits - kPiece), bits - kPiece, pile);
    if (failure != Failure::kNone) return failure;
  }
  if (bits > 0) {
    const unsigned count = smaller(bits, kPiece);
    failure = push_bits(x, static_cast<std::uint32_t>(code) & low_bits(count), count, pile);
    if (failure != Failure::kNone) return failure;
  }
  failure = push_bits(x, 1u << bits % kPiece, bits % kPiece + 1, pile);
  for (unsigned run = 0; run < bits / kPiece && failure == Failure::kNone; ++run) {
    failure = push_bits(x, 0, kPiece, pile);
  }
  return failure;
}

// An escaped symbol: its distance from the table, then (to be read first) the escape.
PYCODEC_HOST_DEVICE inline Failure push_escaped(const DeviceTables& tables, std::uint32_t index,
                                                std::int32_t symbol, const EncodeEntry& escape,
                                                std::uint32_t& x, WordPile& pile) {
  const DeviceTableInfo info = load_constant_struct(tables.infos + index);
  const std::int64_t first = info.first_value;
  const std::int64_t last = first + info.num_values - 1;
  const std::int64_t code = symbol > last ? 2 * (symbol - last) - 1 : 2 * (first - symbol);
  Failure failure = push_escape_code(x, static_cast<std::uint64_t>(code), pile);
  if (failure == Failure::kNone && is_full(x, escape)) failure = emit_word(x, pile);
  if (failure == Failure::kNone) x = push_entry(x, escape);
  return failure;
}

}  // namespace rans
}  // namespace pycodec
