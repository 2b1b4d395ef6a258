// The interleaved rANS decoder. It never reads outside the stream it was given.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "rans.hpp"
#include "tables.hpp"

namespace pycodec {
namespace rans {

// The words that are still unread.
struct WordReader {
  const std::uint8_t* next;
  const std::uint8_t* end;

  std::ptrdiff_t words_left() const { return (end - next) / std::ptrdiff_t{kWordBytes}; }
};

// Pops whole groups of kLanes symbols until one is an escape, the words may run short, or all are
// done; returns how many symbols it popped. This loop is where the time goes, and what a SIMD
// variant replaces: like this one it may stop at any symbol, and the caller pops the next ones.
template <int kLanes, class Index>
std::size_t pop_groups(const TableSet& tables, const Index* indexes, std::size_t count,
                       std::int32_t* symbols, std::uint32_t* states, WordReader& reader) {
  const int precision = tables.precision();
  const std::uint32_t slot_mask = (1u << precision) - 1;
  const TableInfo* const infos = tables.infos();
  const DecodeEntry* const entries = tables.decode_entries();
  const std::uint16_t* const ranks = tables.ranks();
  std::uint32_t lanes[kLanes];
  std::copy(states, states + kLanes, lanes);
  WordReader words = reader;
  std::size_t done = 0;
  bool escaped = false;
  // A group reads at most a word a lane, so inside of a group nothing needs to be checked.
  while (done < count && words.words_left() >= kLanes && !escaped) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::uint32_t x = lanes[lane];
      const std::size_t index = indexes[done];
      const TableInfo& info = infos[index];
      const std::uint32_t slot = x & slot_mask;
      const std::uint32_t rank = ranks[(index << precision) + slot];
      if (rank == info.num_values) {
        escaped = true;
        break;
      }
      symbols[done] =
          static_cast<std::int32_t>(static_cast<std::uint32_t>(info.first_value) + rank);
      ++done;
      const DecodeEntry entry = entries[info.first_entry + rank];
      const std::uint32_t popped = entry.frequency() * (x >> precision) + (slot - entry.start);
      // As in push_symbol(): always load, and move the pointer if the word was needed.
      const std::uint32_t empty = popped < kLowerBound ? 1 : 0;
      lanes[lane] = popped << (16 * empty) | (load_word(words.next) & (0u - empty));
      words.next += kWordBytes * empty;
    }
  }
  std::copy(lanes, lanes + kLanes, states);
  reader = words;
  return done;
}

// Keeps its state between calls, so that a context model can ask for symbols wave by wave: any
// split into calls gives the same symbols. Not for use by two threads at once.
class Decoder {
 public:
  // Neither the stream nor the tables are copied; both must outlive the decoder. Throws
  // CorruptStream if the stream does not start like one of these tables' precision.
  Decoder(const TableSet& tables, const std::uint8_t* data, std::size_t size)
      : tables_(tables), begin_(data) {
    if (size < kHeaderBytes) throw CorruptStream("the rANS stream is empty", 0);
    const int log2_lanes = data[0] & 7;
    const int precision = (data[0] >> 4) + 1;
    if (log2_lanes > kMaxLog2Lanes || (data[0] & 8) != 0) {
      throw CorruptStream("the rANS header byte is invalid", 0);
    }
    if (precision != tables.precision()) {
      throw CorruptStream("the rANS stream was coded with a precision of " +
                              std::to_string(precision) + " bits, its tables have " +
                              std::to_string(tables.precision()),
                          0);
    }
    lanes_ = 1 << log2_lanes;
    const std::size_t prefix = kHeaderBytes + kStateBytes * static_cast<std::size_t>(lanes_);
    if (size < prefix) throw CorruptStream("the rANS stream ends inside its states", size);
    if ((size - prefix) % kWordBytes != 0) {
      throw CorruptStream("the rANS stream ends inside a word", size);
    }
    for (int lane = 0; lane < lanes_; ++lane) {
      const std::size_t offset = kHeaderBytes + kStateBytes * static_cast<std::size_t>(lane);
      cursor_.states[lane] = load_state(data + offset);
      if (cursor_.states[lane] < kLowerBound) {
        throw CorruptStream("the state of rANS lane " + std::to_string(lane) + " is too small",
                            offset);
      }
    }
    cursor_.reader = {data + prefix, data + size};
  }

  // Pops the next `count` symbols. Throws std::invalid_argument for an index without table and
  // CorruptStream if the stream ends too early or holds an impossible escape; the decoder then
  // stands where it stood before the call.
  template <class Index>
  void decode(const Index* indexes, std::size_t count, std::int32_t* symbols) {
    tables_.check_indexes(indexes, count);
    cursor_ = pop(indexes, count, symbols, cursor_);
  }

  // Throws CorruptStream unless the symbols popped so far are all that was encoded.
  void finish() const {
    if (cursor_.reader.words_left() > 0) {
      throw CorruptStream("the rANS stream goes on after its last symbol", offset(cursor_));
    }
    for (int lane = 0; lane < lanes_; ++lane) {
      if (cursor_.states[lane] != kLowerBound) {
        throw CorruptStream("rANS lane " + std::to_string(lane) + " did not return to its start",
                            offset(cursor_));
      }
    }
  }

  int lanes() const { return lanes_; }

 private:
  struct Cursor {
    std::uint32_t states[kMaxLanes];
    WordReader reader;
    std::size_t lane = 0;  // of the next symbol
  };

  // Works on a copy of the cursor: a throw leaves the decoder as it was.
  template <class Index>
  Cursor pop(const Index* indexes, std::size_t count, std::int32_t* symbols, Cursor cursor) const {
    const auto lanes = static_cast<std::size_t>(lanes_);
    std::size_t done = 0;
    while (done < count) {
      if (cursor.lane == 0) {
        const std::size_t whole_groups = (count - done) / lanes * lanes;
        const auto with_lanes = [&](auto num_lanes) {
          return pop_groups<decltype(num_lanes)::value>(
              tables_, indexes + done, whole_groups, symbols + done, cursor.states, cursor.reader);
        };
        const std::size_t popped = dispatch_lanes(lanes_, with_lanes);
        done += popped;
        cursor.lane = popped % lanes;
        if (done == count) break;
      }
      symbols[done] = pop_one(indexes[done], cursor);
      ++done;
      cursor.lane = (cursor.lane + 1) % lanes;
    }
    return cursor;
  }

  std::int32_t pop_one(std::size_t index, Cursor& cursor) const {
    const int precision = tables_.precision();
    const TableInfo& info = tables_.infos()[index];
    std::uint32_t& x = cursor.states[cursor.lane];
    const std::uint32_t slot = x & ((1u << precision) - 1);
    const std::uint32_t rank = tables_.ranks()[(index << precision) + slot];
    const DecodeEntry entry = tables_.decode_entries()[info.first_entry + rank];
    x = entry.frequency() * (x >> precision) + (slot - entry.start);
    renormalize(x, cursor);
    if (rank < info.num_values) {
      return static_cast<std::int32_t>(std::int64_t{info.first_value} + rank);
    }
    const std::int64_t value =
        escaped_value(pop_escape_code(x, cursor), info.first_value, info.last_value());
    if (value < std::numeric_limits<std::int32_t>::min() ||
        value > std::numeric_limits<std::int32_t>::max()) {
      throw CorruptStream("an escaped rANS symbol exceeds int32", offset(cursor));
    }
    return static_cast<std::int32_t>(value);
  }

  void renormalize(std::uint32_t& x, Cursor& cursor) const {
    if (x >= kLowerBound) return;
    if (cursor.reader.words_left() == 0) {
      throw CorruptStream("the rANS stream ends before its last symbol", offset(cursor));
    }
    x = x << 16 | load_word(cursor.reader.next);
    cursor.reader.next += kWordBytes;
  }

  std::uint32_t pop_bits(std::uint32_t& x, int count, Cursor& cursor) const {
    const std::uint32_t bits = x & ((1u << count) - 1);
    x >>= count;
    renormalize(x, cursor);
    return bits;
  }

  // Elias' gamma code: as many zeros as there are bits after the leading one, the one, those bits.
  // Zeros come in runs of at most 16 (a state holds no fewer bits), the one with the last of them;
  // more than 16 bits come as two pieces, the lower 16 first.
  std::uint64_t pop_escape_code(std::uint32_t& x, Cursor& cursor) const {
    int bits = 0;
    while ((x & 0xffff) == 0) {
      bits += kMaxRawBits;
      if (bits > kMaxEscapeBits) throw_escape_too_long(cursor);
      pop_bits(x, kMaxRawBits, cursor);
    }
    int zeros = 0;
    while ((x >> zeros & 1) == 0) ++zeros;
    bits += zeros;
    if (bits > kMaxEscapeBits) throw_escape_too_long(cursor);
    pop_bits(x, zeros + 1, cursor);
    const int low_bits = std::min(bits, kMaxRawBits);
    std::uint64_t code = std::uint64_t{1} << bits;
    if (low_bits > 0) code |= pop_bits(x, low_bits, cursor);
    if (bits > kMaxRawBits) {
      code |= std::uint64_t{pop_bits(x, bits - kMaxRawBits, cursor)} << kMaxRawBits;
    }
    return code;
  }

  [[noreturn]] void throw_escape_too_long(const Cursor& cursor) const {
    throw CorruptStream("a rANS escape has more than 32 bits", offset(cursor));
  }

  std::size_t offset(const Cursor& cursor) const {
    return static_cast<std::size_t>(cursor.reader.next - begin_);
  }

  const TableSet& tables_;
  const std::uint8_t* begin_;
  int lanes_;
  Cursor cursor_;
};

}  // namespace rans
}  // namespace pycodec
