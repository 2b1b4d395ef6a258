// The rANS streams of CompressAI (compressai.ans), byte for byte. docs/rans.md has the format;
// rans.hpp explains why a rANS coder works.
//
// One 64-bit state x in [2^31, 2^63), 32-bit words, probabilities of 16 bits. The last symbol of
// every CDF is an escape: the value follows as raw nibbles ("bypass coding").
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "rans.hpp"

namespace pycodec {
namespace compressai {

constexpr int kPrecision = 16;
constexpr std::int32_t kTotal = 1 << kPrecision;
constexpr std::uint64_t kLowerBound = std::uint64_t{1} << 31;
constexpr std::uint64_t kUpperBound = std::uint64_t{1} << 63;
constexpr int kWordBits = 32;
constexpr std::size_t kWordBytes = 4;
constexpr std::size_t kStateBytes = 8;
constexpr int kBypassBits = 4;
constexpr std::uint32_t kBypassMask = (1u << kBypassBits) - 1;
// As many as a raw value of 32 bits has.
constexpr std::uint32_t kMaxNibbles = 8;

// One row of the argument `cdfs` with its size and offset. `values` has `length` items, of which
// the first `size` are the CDF: 0, ..., 65536, each greater than the one before it.
struct CdfRow {
  const std::int32_t* values;
  std::size_t length;
  std::int32_t size;
  std::int32_t offset;
};

// The CDF of one table: its values are offset + rank, 0 <= rank < num_values, and rank num_values
// is the escape.
struct CdfInfo {
  std::size_t first;  // of its items in CdfTables::cdfs()
  std::size_t first_bucket;
  std::uint32_t num_values;
  std::int32_t offset;
  int bucket_shift;
};

// Checked tables; immutable, safe to share between threads.
//
// Buckets make the decoder's search short: those of a table divide the 2^16 slots evenly, at least
// 8 for each symbol as long as that is at most 4096, and each holds the rank at its first slot.
class CdfTables {
 public:
  enum class Search { kBisect, kBuckets };

  // Throws std::invalid_argument if there is no row or one is not as CdfRow says.
  CdfTables(const std::vector<CdfRow>& rows, Search search) : search_(search) {
    if (rows.empty()) throw std::invalid_argument("cdfs has no rows");
    infos_.reserve(rows.size());
    for (const CdfRow& row : rows) {
      check_row(row, infos_.size());
      infos_.push_back(
          {cdfs_.size(), 0, static_cast<std::uint32_t>(row.size) - 2, row.offset, kPrecision});
      cdfs_.insert(cdfs_.end(), row.values, row.values + row.size);
    }
    if (search == Search::kBuckets) fill_buckets();
  }

  Search search() const { return search_; }
  std::size_t num_tables() const { return infos_.size(); }
  const CdfInfo* infos() const { return infos_.data(); }
  const std::int32_t* cdfs() const { return cdfs_.data(); }
  const std::uint16_t* buckets() const { return buckets_.data(); }

 private:
  static constexpr int kMaxLog2Buckets = 12;

  static void check_row(const CdfRow& row, std::size_t table) {
    const std::string name = "cdf " + std::to_string(table);
    if (row.size < 2 || row.size > kTotal + 1) {
      throw std::invalid_argument("the size of " + name + " must be 2..65537, not " +
                                  std::to_string(row.size));
    }
    const auto size = static_cast<std::size_t>(row.size);
    if (size > row.length) {
      throw std::invalid_argument(name + " has " + std::to_string(row.length) +
                                  " items, its size says " + std::to_string(size));
    }
    if (row.values[0] != 0 || row.values[size - 1] != kTotal) {
      throw std::invalid_argument(name + " must go from 0 to 65536, not from " +
                                  std::to_string(row.values[0]) + " to " +
                                  std::to_string(row.values[size - 1]));
    }
    bool increasing = true;
    for (std::size_t i = 1; i < size; ++i) increasing &= row.values[i - 1] < row.values[i];
    if (!increasing) {
      throw std::invalid_argument(name + " must increase from each item to the next");
    }
    if (std::int64_t{row.offset} + row.size - 3 > std::numeric_limits<std::int32_t>::max()) {
      throw std::invalid_argument("the values of " + name + " exceed int32");
    }
  }

  void fill_buckets() {
    for (CdfInfo& info : infos_) {
      int log2_buckets = 3;
      while (log2_buckets < kMaxLog2Buckets && info.num_values + 1 > 1u << (log2_buckets - 3)) {
        ++log2_buckets;
      }
      info.bucket_shift = kPrecision - log2_buckets;
      info.first_bucket = buckets_.size();
      const std::int32_t* cdf = cdfs_.data() + info.first;
      std::uint16_t rank = 0;
      for (std::int32_t slot = 0; slot < kTotal; slot += 1 << info.bucket_shift) {
        while (cdf[rank + 1] <= slot) ++rank;
        buckets_.push_back(rank);
      }
    }
  }

  Search search_;
  std::vector<CdfInfo> infos_;
  std::vector<std::int32_t> cdfs_;
  std::vector<std::uint16_t> buckets_;
};

[[noreturn]] inline void throw_no_table(std::int32_t index, std::size_t position,
                                        const CdfTables& tables) {
  throw std::invalid_argument("index " + std::to_string(index) + " at position " +
                              std::to_string(position) + ", but there are " +
                              std::to_string(tables.num_tables()) + " cdfs");
}

// x div f for all x < f * 2^47: with s = ceil(log2 f) and m = ceil(2^(63+s) / f), it is
// (2x * m) >> (64 + s). For m f = 2^(63+s) + e, 0 <= e < f <= 2^s, the product is too large by
// x e / (f 2^(63+s)) < 1 / f: too little to reach the next integer. One table for all CDFs (512
// KiB, of which a stream uses few lines), so that nothing is prepared when tables change with every
// call, as they do in CompressAI's context models.
class Reciprocals {
 public:
  static const Reciprocals& get() {
    static const Reciprocals reciprocals;
    return reciprocals;
  }

  // `last` is f - 1.
  std::uint64_t divide(std::uint64_t x, std::uint32_t last) const {
    return rans::multiply_high(2 * x, multipliers_[last]) >> num_bits(last);
  }

 private:
  Reciprocals() : multipliers_(new std::uint64_t[kTotal]) {
    for (std::uint32_t last = 0; last < kTotal; ++last) {
      // Long division in two digits of 32 bits: the dividend has up to 80.
      const std::uint64_t f = last + std::uint64_t{1};
      const std::uint64_t dividend = std::uint64_t{1} << (31 + num_bits(last));
      const std::uint64_t rest = dividend % f << 32;
      multipliers_[last] = (dividend / f << 32) + rest / f + (rest % f != 0 ? 1 : 0);
    }
  }

  static int num_bits(std::uint32_t v) { return 31 - __builtin_clz(2 * v + 1); }

  std::unique_ptr<std::uint64_t[]> multipliers_;
};

// Takes symbols in the order of decoding, in any number of calls; flush() codes them all, from the
// last to the first. Not for use by two threads at once.
class Encoder {
 public:
  // The tables are not needed afterwards. Throws std::invalid_argument for an index without table
  // and for a symbol whose distance from its table's values does not fit 31 bits; the encoder then
  // holds what it held before the call.
  void add(const CdfTables& tables, const std::int32_t* symbols, const std::int32_t* indexes,
           std::size_t count) {
    const std::size_t size_before = pending_.size();
    try {
      Pending block[2 * kBlock];
      for (std::size_t done = 0; done < count; done += kBlock) {
        const std::size_t end = std::min(count, done + kBlock);
        const Pending* block_end = resolve(tables, symbols, indexes, done, end, block);
        pending_.insert(pending_.end(), static_cast<const Pending*>(block), block_end);
      }
    } catch (...) {
      pending_.resize(size_before);
      throw;
    }
  }

  // The stream of all symbols added since the last flush.
  std::vector<std::uint8_t> flush() {
    const Reciprocals& reciprocals = Reciprocals::get();
    std::vector<std::uint32_t> words;  // in the reverse of their order in the stream
    std::uint64_t x = kLowerBound;
    for (std::size_t i = pending_.size(); i > 0; --i) {
      const Pending interval = pending_[i - 1];
      const std::uint32_t start = interval & (kTotal - 1);
      const std::uint32_t last = interval >> kPrecision;
      if (start + last == kTotal - 1) {
        --i;
        x = push_raw(x, pending_[i - 1], words);
      }
      if (x >> (kWordBits + kPrecision - 1) > last) x = emit_word(x, words);
      x += start + reciprocals.divide(x, last) * (kTotal - 1 - last);
    }
    pending_.clear();
    std::vector<std::uint8_t> stream(kStateBytes + kWordBytes * words.size());
    store(stream.data(), static_cast<std::uint32_t>(x));
    store(stream.data() + kWordBytes, static_cast<std::uint32_t>(x >> kWordBits));
    std::uint8_t* next = stream.data() + kStateBytes;
    for (auto word = words.rbegin(); word != words.rend(); ++word, next += kWordBytes) {
      store(next, *word);
    }
    return stream;
  }

 private:
  // A symbol's interval: its start, and above it the frequency less 1. An escape, which is the
  // symbol whose interval ends at 2^16, comes after its raw value.
  using Pending = std::uint32_t;
  static constexpr std::size_t kBlock = 1024;

  static Pending* resolve(const CdfTables& tables, const std::int32_t* symbols,
                          const std::int32_t* indexes, std::size_t begin, std::size_t end,
                          Pending* out) {
    const std::size_t num_tables = tables.num_tables();
    const CdfInfo* const infos = tables.infos();
    const std::int32_t* const cdfs = tables.cdfs();
    for (std::size_t i = begin; i < end; ++i) {
      const std::int32_t index = indexes[i];
      // A negative index becomes a large one.
      if (static_cast<std::uint32_t>(index) >= num_tables) throw_no_table(index, i, tables);
      const CdfInfo& info = infos[index];
      const std::int64_t value = std::int64_t{symbols[i]} - info.offset;
      auto rank = static_cast<std::uint64_t>(value);
      if (rank >= info.num_values) {
        rank = info.num_values;
        const std::int64_t raw = value < 0 ? -2 * value - 1 : 2 * (value - info.num_values);
        if (raw > std::numeric_limits<std::uint32_t>::max()) {
          throw std::invalid_argument("symbol " + std::to_string(symbols[i]) + " at position " +
                                      std::to_string(i) + " is too far from the values of cdf " +
                                      std::to_string(index));
        }
        *out++ = static_cast<std::uint32_t>(raw);
      }
      const std::int32_t* cdf = cdfs + info.first + rank;
      *out++ = static_cast<std::uint32_t>(cdf[0]) | static_cast<std::uint32_t>(cdf[1] - cdf[0] - 1)
                                                        << kPrecision;
    }
    return out;
  }

  static std::uint64_t emit_word(std::uint64_t x, std::vector<std::uint32_t>& words) {
    words.push_back(static_cast<std::uint32_t>(x));
    return x >> kWordBits;
  }

  // What is read last goes first: the highest nibble, ..., the lowest, their number.
  static std::uint64_t push_raw(std::uint64_t x, std::uint32_t raw,
                                std::vector<std::uint32_t>& words) {
    std::uint32_t nibbles = 0;
    while (nibbles < kMaxNibbles && raw >> (kBypassBits * nibbles) != 0) ++nibbles;
    for (std::uint32_t j = nibbles; j > 0; --j) {
      x = push_nibble(x, raw >> (kBypassBits * (j - 1)) & kBypassMask, words);
    }
    return push_nibble(x, nibbles, words);
  }

  static std::uint64_t push_nibble(std::uint64_t x, std::uint32_t nibble,
                                   std::vector<std::uint32_t>& words) {
    if (x >= kUpperBound >> kBypassBits) x = emit_word(x, words);
    return x << kBypassBits | nibble;
  }

  static void store(std::uint8_t* p, std::uint32_t word) {
    for (int i = 0; i < 4; ++i) p[i] = static_cast<std::uint8_t>(word >> (8 * i));
  }

  std::vector<Pending> pending_;
};

// Keeps its state between calls: any split into calls gives the same symbols. Reads nothing outside
// of its stream, and ignores what follows the last word that it needs, as CompressAI does. Not for
// use by two threads at once.
class Decoder {
 public:
  // The stream is not copied and must outlive the decoder. Throws CorruptStream if it does not
  // start with a state.
  Decoder(const std::uint8_t* data, std::size_t size) : begin_(data) {
    if (size < kStateBytes) throw CorruptStream("the stream ends inside its state", size);
    const std::uint64_t upper = load(data + kWordBytes);
    cursor_ = {upper << kWordBits | load(data), data + kStateBytes, data + size};
    if (cursor_.state < kLowerBound || cursor_.state >= kUpperBound) {
      throw CorruptStream("the state is not in its range", 0);
    }
  }

  // Pops the next `count` symbols. Throws std::invalid_argument for an index without table and
  // CorruptStream if the stream ends too early or holds an impossible value; the decoder then
  // stands where it stood before the call.
  void decode(const CdfTables& tables, const std::int32_t* indexes, std::size_t count,
              std::int32_t* symbols) {
    const std::int32_t* const cdfs = tables.cdfs();
    const std::uint16_t* const buckets = tables.buckets();
    if (tables.search() == CdfTables::Search::kBuckets) {
      cursor_ = pop(tables, indexes, count, symbols, [=](const CdfInfo& info, std::int32_t slot) {
        const std::int32_t* cdf = cdfs + info.first;
        const auto bucket = static_cast<std::size_t>(slot >> info.bucket_shift);
        std::uint32_t rank = buckets[info.first_bucket + bucket];
        while (cdf[rank + 1] <= slot) ++rank;
        return rank;
      });
    } else {
      cursor_ = pop(tables, indexes, count, symbols, [=](const CdfInfo& info, std::int32_t slot) {
        const std::int32_t* cdf = cdfs + info.first;
        // Within the inner bounds: the first is 0 and the last more than any slot.
        const auto next = std::upper_bound(cdf + 1, cdf + info.num_values + 1, slot);
        return static_cast<std::uint32_t>(next - cdf - 1);
      });
    }
  }

 private:
  struct Cursor {
    std::uint64_t state;
    const std::uint8_t* next;
    const std::uint8_t* end;
  };

  // Works on a copy of the cursor: a throw leaves the decoder as it was.
  template <class FindRank>
  Cursor pop(const CdfTables& tables, const std::int32_t* indexes, std::size_t count,
             std::int32_t* symbols, FindRank find_rank) const {
    const std::size_t num_tables = tables.num_tables();
    const CdfInfo* const infos = tables.infos();
    const std::int32_t* const cdfs = tables.cdfs();
    Cursor cursor = cursor_;
    for (std::size_t i = 0; i < count; ++i) {
      const std::int32_t index = indexes[i];
      if (static_cast<std::uint32_t>(index) >= num_tables) throw_no_table(index, i, tables);
      const CdfInfo& info = infos[index];
      const auto slot = static_cast<std::int32_t>(cursor.state & (kTotal - 1));
      const std::uint32_t rank = find_rank(info, slot);
      const std::int32_t* cdf = cdfs + info.first + rank;
      const auto frequency = static_cast<std::uint64_t>(cdf[1] - cdf[0]);
      cursor.state =
          frequency * (cursor.state >> kPrecision) + static_cast<std::uint64_t>(slot - cdf[0]);
      renormalize(cursor);
      if (rank < info.num_values) {
        symbols[i] = info.offset + static_cast<std::int32_t>(rank);
      } else {
        // A copy, whose address may be taken: the loop's own stays in registers.
        Cursor after = cursor;
        symbols[i] = pop_escaped(info, after);
        cursor = after;
      }
    }
    return cursor;
  }

  std::int32_t pop_escaped(const CdfInfo& info, Cursor& cursor) const {
    const std::uint32_t nibbles = pop_nibble(cursor);
    if (nibbles > kMaxNibbles) {
      throw CorruptStream("an escaped value has more than 32 bits", offset(cursor));
    }
    std::uint32_t raw = 0;
    for (std::uint32_t j = 0; j < nibbles; ++j) raw |= pop_nibble(cursor) << (kBypassBits * j);
    const std::int64_t half = raw >> 1;
    const std::int64_t value =
        info.offset + ((raw & 1) != 0 ? -half - 1 : half + std::int64_t{info.num_values});
    if (value < std::numeric_limits<std::int32_t>::min() ||
        value > std::numeric_limits<std::int32_t>::max()) {
      throw CorruptStream("an escaped value exceeds int32", offset(cursor));
    }
    return static_cast<std::int32_t>(value);
  }

  std::uint32_t pop_nibble(Cursor& cursor) const {
    const auto nibble = static_cast<std::uint32_t>(cursor.state) & kBypassMask;
    cursor.state >>= kBypassBits;
    renormalize(cursor);
    return nibble;
  }

  // One word is enough: no pop takes more than 16 bits off the state.
  void renormalize(Cursor& cursor) const {
    if (cursor.state >= kLowerBound) return;
    if (cursor.end - cursor.next < static_cast<std::ptrdiff_t>(kWordBytes)) {
      throw CorruptStream("the stream ends before its last symbol", offset(cursor));
    }
    cursor.state = cursor.state << kWordBits | load(cursor.next);
    cursor.next += kWordBytes;
  }

  static std::uint32_t load(const std::uint8_t* p) {
    return p[0] | std::uint32_t{p[1]} << 8 | std::uint32_t{p[2]} << 16 | std::uint32_t{p[3]} << 24;
  }

  std::size_t offset(const Cursor& cursor) const {
    return static_cast<std::size_t>(cursor.next - begin_);
  }

  const std::uint8_t* begin_;
  Cursor cursor_;
};

}  // namespace compressai
}  // namespace pycodec
