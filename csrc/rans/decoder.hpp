// The interleaved rANS decoder. It never reads outside the stream it was given.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "rans/kernels.hpp"
#include "rans/rans.hpp"
#include "rans/tables.hpp"

namespace pycodec {
namespace rans {

// The words that are still unread.
struct WordReader {
  const std::uint8_t* next;
  const std::uint8_t* end;

  std::ptrdiff_t words_left() const { return (end - next) / std::ptrdiff_t{kWordBytes}; }
};

// Keeps its state between calls, so that a context model can ask for symbols wave by wave: any
// split into calls gives the same symbols. Not for use by two threads at once.
class Decoder {
 public:
  // A whole stream. Neither it nor the tables are copied; both must outlive the decoder. Throws
  // CorruptStream if the stream does not start like one of these tables' precision.
  Decoder(const TableSet& tables, const std::uint8_t* data, std::size_t size)
      : Decoder(tables, parse_header_byte(tables, data, size), data, data + kHeaderBytes,
                data + size) {}

  // A stream whose header byte is elsewhere: states and words are [body, end). Offsets in errors
  // count from `begin`.
  Decoder(const TableSet& tables, int lanes, const std::uint8_t* begin, const std::uint8_t* body,
          const std::uint8_t* end)
      : tables_(tables),
        view_(tables.view()),
        kernels_(kernels_for(simd_level(), lanes)),
        begin_(begin),
        lanes_(static_cast<unsigned>(lanes)) {
    const std::size_t size = static_cast<std::size_t>(end - body);
    if (size < kStateBytes * lanes_) {
      throw CorruptStream("the rANS stream ends inside its states", offset(end));
    }
    if ((size - kStateBytes * lanes_) % kWordBytes != 0) {
      throw CorruptStream("the rANS stream ends inside a word", offset(end));
    }
    for (unsigned lane = 0; lane < lanes_; ++lane, body += kStateBytes) {
      cursor_.states[lane] = load_state(body);
      if (cursor_.states[lane] < kLowerBound) {
        throw CorruptStream("the state of rANS lane " + std::to_string(lane) + " is too small",
                            offset(body));
      }
    }
    cursor_.reader = {body, end};
  }

  // The number of lanes; throws like the constructor.
  static int parse_header_byte(const TableSet& tables, const std::uint8_t* data, std::size_t size) {
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
    return 1 << log2_lanes;
  }

  // Pops the next `count` symbols. Throws std::invalid_argument for an index without table and
  // CorruptStream if the stream ends too early or holds an impossible escape; the decoder then
  // stands where it stood before the call.
  template <class Index>
  void decode(const Index* indexes, std::size_t count, std::int32_t* symbols) {
    tables_.check_indexes(indexes, count);
    Cursor cursor = cursor_;  // a throw leaves the decoder as it was
    pop(indexes, count, symbols, cursor);
    cursor_ = cursor;
  }

  // Throws CorruptStream unless the symbols popped so far are all that was encoded.
  void finish() const {
    if (cursor_.reader.words_left() > 0) {
      throw CorruptStream("the rANS stream goes on after its last symbol", offset(cursor_));
    }
    for (unsigned lane = 0; lane < lanes_; ++lane) {
      if (cursor_.states[lane] != kLowerBound) {
        throw CorruptStream("rANS lane " + std::to_string(lane) + " did not return to its start",
                            offset(cursor_));
      }
    }
  }

  int lanes() const { return static_cast<int>(lanes_); }

 private:
  struct Cursor {
    alignas(64) std::uint32_t states[kMaxLanes];
    WordReader reader;
    unsigned lane = 0;  // of the next symbol
  };

  template <class Index>
  void pop(const Index* indexes, std::size_t count, std::int32_t* symbols, Cursor& cursor) const {
    std::size_t done = 0;
    while (done < count) {
      if (cursor.lane % kernels_.step == 0 && count - done >= kernels_.step) {
        Lanes lanes = {cursor.states, lanes_, cursor.lane};
        done += pop_kernel(indexes)(view_, indexes + done, count - done, symbols + done, lanes,
                                    cursor.reader.next, cursor.reader.end);
        cursor.lane = lanes.next;
        if (done == count) break;
      }
      // What stopped the kernel, and on to its next step.
      do {
        symbols[done] = pop_one(indexes[done], cursor);
        ++done;
        cursor.lane = (cursor.lane + 1) & (lanes_ - 1);
      } while (done < count && cursor.lane % kernels_.step != 0);
    }
  }

  PopKernel<std::uint8_t> pop_kernel(const std::uint8_t*) const { return kernels_.pop8; }
  PopKernel<std::uint16_t> pop_kernel(const std::uint16_t*) const { return kernels_.pop16; }

  std::int32_t pop_one(std::size_t index, Cursor& cursor) const {
    const int precision = tables_.precision();
    const TableInfo& info = tables_.info(index);
    std::uint32_t& x = cursor.states[cursor.lane];
    const std::uint32_t slot = x & ((1u << precision) - 1);
    const std::uint32_t rank = tables_.rank(index, slot);
    const DecodeEntry& entry = tables_.decode_entry(info, rank);
    x = (entry.last_bias + 1u) * (x >> precision) + (slot - entry.start);
    renormalize(x, cursor);
    if (rank < info.num_values) {
      return static_cast<std::int32_t>(std::int64_t{info.first_value} + rank);
    }
    const std::int64_t value =
        escaped_value(pop_escape_code(x, cursor), info.first_value, last_value(info));
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

  std::size_t offset(const std::uint8_t* p) const { return static_cast<std::size_t>(p - begin_); }
  std::size_t offset(const Cursor& cursor) const { return offset(cursor.reader.next); }

  const TableSet& tables_;
  TableView view_;
  const Kernels& kernels_;
  const std::uint8_t* begin_;
  unsigned lanes_;
  Cursor cursor_;
};

}  // namespace rans
}  // namespace pycodec
