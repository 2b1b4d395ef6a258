// Interleaved rANS: what every encoder and decoder in this folder shares.
//
// THE IDEA ON ONE PAGE
//
// An entropy coder turns symbols into bits so that a symbol of probability P costs about -log2(P)
// bits. Let P = f / M with integers f and M = 2^p, and give each symbol an interval
// [start, start + f) of the M slots, so that all intervals tile [0, M).
//
// A positional number system is such a coder for uniform digits: x' = 10 x + d pushes the digit d,
// and d = x' mod 10, x = x' div 10 pops it again. The number grows by a factor of 10 for each
// digit: log2(10) bits. ANS ("asymmetric numeral systems", J. Duda, arXiv 1311.2540) generalizes
// this to digits that are not equally likely. Its range variant, rANS, pushes symbol s onto x by
//
//     x' = (x div f) * M + start + (x mod f)                                             (push)
//
// x' mod M lies in the interval of s, so the decoder sees which symbol it was and undoes the step:
//
//     slot = x' mod M;  s = the symbol whose interval holds slot
//     x = f * (x' div M) + slot - start                                                   (pop)
//
// x grew by a factor of M / f = 1 / P: by -log2(P) bits, as wished. It is a stack: what was pushed
// last is popped first. So the encoder walks through the symbols BACKWARDS, and the decoder, which
// may need symbol n to know the distribution of symbol n + 1, reads them forwards.
//
// A number of unbounded size is slow. So x is kept in [L, L * 2^16), L = 2^16 (it fits 32 bits):
// before a push that would leave the interval, the encoder moves the low 16 bits of x to the
// stream; after a pop that left it, the decoder moves them back:
//
//     encoder:  if (x >= f * 2^(32 - p)) { emit(x mod 2^16); x = x div 2^16; }   then push
//     decoder:  pop, then   if (x < L) { x = x * 2^16 + next word; }
//
// Both decide alike: the encoder's bound is exactly the one from which push would give a number of
// L * 2^16 or more, and a renormalized x lies in [f * 2^(16-p), f * 2^(32-p)), which push maps into
// [L, L * 2^16). As M <= 2^16 = L, one word is always enough. The encoder starts at x = L and
// stores its last x; the decoder starts there and must end at L with no words left: a free
// integrity check, though no checksum.
//
// Why 32-bit states and 16-bit words: a state fits a 32-bit SIMD lane, renormalization is at most
// one word and so has no loop and no branch, and p goes up to 16 bits.
//
// LANES. A pop needs the result of the pop before it: about 20 cycles in which the processor idles.
// So N = 2^k independent states ("lanes") take turns: symbol n of the stream uses lane n mod N. All
// lanes share one sequence of words, in the order in which the decoder needs them; as the encoder
// does everything backwards, it writes its words from the end of the buffer to its beginning. The
// order is defined symbol by symbol, so it does not matter how many symbols one call decodes.
// (F. Giesen, "Interleaved entropy coders", arXiv 1402.3392, and his ryg_rans.)
//
// DIVISION. Push divides by f, a constant of the table: multiply by m = ceil(2^64 / f) and keep the
// upper half. With m * f = 2^64 + e, 0 <= e < f <= 2^16, the product is x / f + x * e / (f * 2^64);
// the error is below 2^-16 / f since x < 2^32, too little to reach the next integer. f = 1 would
// need m = 2^64: there m = 2^64 - 1 gives x - 1, and the bias makes up for it. With q = x div f,
// (push) is x' = x + start + q * (M - f): see EncodeEntry.
//
// RAW BITS. k <= 16 equally likely bits are a symbol with M = 2^k and f = 1: push is
// x' = x * 2^k + bits, pop takes the low k bits. No table, no multiplication.
//
// ESCAPES. A table may end with one slot more than it has values: "none of these". Directly after
// it, and through the same lane, comes the distance to the table in Elias' gamma code as raw bits;
// see escape_code() and pop_escape_code() in decoder.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "rans/kernels.hpp"

namespace pycodec {

// A stream that no encoder can have written, or that ended too early.
class CorruptStream : public std::runtime_error {
 public:
  CorruptStream(const std::string& message, std::size_t offset)
      : std::runtime_error(message), offset_(offset) {}

  // Where in the stream it was noticed, in bytes from its start.
  std::size_t offset() const { return offset_; }

 private:
  std::size_t offset_;
};

namespace rans {

constexpr int kMaxPrecision = 16;
constexpr int kMaxLog2Lanes = 6;
constexpr int kMaxLanes = 1 << kMaxLog2Lanes;
constexpr std::uint32_t kLowerBound = 1u << 16;  // L
constexpr std::size_t kWordBytes = 2;
constexpr std::size_t kStateBytes = 4;
constexpr std::size_t kHeaderBytes = 1;
// Gamma codes of all distances between two int32 values have at most this many bits after the
// leading one.
constexpr int kMaxEscapeBits = 32;
constexpr int kMaxRawBits = 16;
// An escape is its symbol, two runs of 16 zeros and one with the leading one, and two raw pieces.
constexpr std::size_t kMaxWordsPerEscape = 6;

// The stream's first byte: bits 0-2 log2 of the lanes, bit 3 zero, bits 4-7 the precision less 1.
inline std::uint8_t header_byte(int lanes, int precision) {
  int log2_lanes = 0;
  while (1 << log2_lanes < lanes) ++log2_lanes;
  return static_cast<std::uint8_t>(log2_lanes | (precision - 1) << 4);
}

// Byte by byte, so that neither alignment nor the host's byte order matters; compilers make one
// 16-bit access of it.
inline std::uint32_t load_word(const std::uint8_t* p) {
  return static_cast<std::uint32_t>(p[0] | p[1] << 8);
}

inline void store_word(std::uint8_t* p, std::uint32_t word) {
  p[0] = static_cast<std::uint8_t>(word);
  p[1] = static_cast<std::uint8_t>(word >> 8);
}

inline std::uint32_t load_state(const std::uint8_t* p) {
  return load_word(p) | load_word(p + kWordBytes) << 16;
}

inline void store_state(std::uint8_t* p, std::uint32_t state) {
  store_word(p, state);
  store_word(p + kWordBytes, state >> 16);
}

// The upper 64 bits of a 128-bit product.
inline std::uint64_t multiply_high(std::uint64_t a, std::uint64_t b) {
  __extension__ using uint128 = unsigned __int128;
  return static_cast<std::uint64_t>(static_cast<uint128>(a) * b >> 64);
}

inline EncodeEntry make_encode_entry(std::uint32_t start, std::uint32_t frequency, int precision) {
  const std::uint32_t total = 1u << precision;
  EncodeEntry entry;
  entry.reciprocal = frequency == 1 ? ~std::uint64_t{0} : ~std::uint64_t{0} / frequency + 1;
  entry.bias = frequency == 1 ? start + total - 1 : start;
  entry.complement = static_cast<std::uint16_t>(total - frequency);
  entry.limit = static_cast<std::uint16_t>((frequency << (16 - precision)) - 1);
  return entry;
}

// Pushes a symbol; `words` points at the last word written and moves down by at most one word.
// Whether a word leaves is a coin toss to the branch predictor, so it is always stored, and kept by
// moving the pointer: there must be room for it. Written as arithmetic, since compilers make a
// branch of the conditional operator here (a quarter slower).
inline std::uint32_t push_symbol(std::uint32_t x, const EncodeEntry& entry, std::uint8_t*& words) {
  const std::uint32_t upper = x >> 16;
  const std::uint32_t full = upper > entry.limit ? 1 : 0;
  store_word(words - kWordBytes, x);
  words -= kWordBytes * full;
  x >>= 16 * full;
  const auto quotient = static_cast<std::uint32_t>(multiply_high(x, entry.reciprocal));
  return x + entry.bias + quotient * entry.complement;
}

// Pushes `count` raw bits, 1 <= count <= 16.
inline std::uint32_t push_bits(std::uint32_t x, std::uint32_t bits, int count,
                               std::uint8_t*& words) {
  if (x >> (32 - count) != 0) {
    words -= kWordBytes;
    store_word(words, x);
    x >>= 16;
  }
  return x << count | bits;
}

// Escaped values are numbered by their distance from the table's values [first, last], above and
// below in turn: last + 1, first - 1, last + 2, first - 2, ... are 1, 2, 3, 4, ...
inline std::uint64_t escape_code(std::int64_t value, std::int64_t first, std::int64_t last) {
  const std::int64_t code = value > last ? 2 * (value - last) - 1 : 2 * (first - value);
  return static_cast<std::uint64_t>(code);
}

inline std::int64_t escaped_value(std::uint64_t code, std::int64_t first, std::int64_t last) {
  const auto distance = static_cast<std::int64_t>((code + 1) / 2);
  return code % 2 == 1 ? last + distance : first - distance;
}

}  // namespace rans
}  // namespace pycodec
