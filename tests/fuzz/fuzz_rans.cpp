// libFuzzer target for csrc/rans, under AddressSanitizer and UndefinedBehaviorSanitizer: run.py
// builds and runs it.
//
// An input chooses what is done, and with what. Its first bytes are read as numbers; where they run
// out, a generator that is seeded by all of them goes on, so that short inputs describe large
// cases. Besides what the sanitizers see, it checks that
//   - only std::invalid_argument and CorruptStream are thrown, and a throw changes nothing;
//   - every SIMD level, and a decoder that is asked for one symbol at a time, gives the same
//     symbols or the same exception;
//   - a stream that decodes to its end is what the encoder makes of its symbols, at every level;
//   - what was encoded is what is decoded.
// Symbols, indexes and streams lie in heap buffers of exactly their size.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/simd_level.hpp"
#include "rans/compressai.hpp"
#include "rans/decoder.hpp"
#include "rans/encoder.hpp"
#include "rans/rans.hpp"
#include "rans/substreams.hpp"
#include "rans/tables.hpp"

namespace {

using pycodec::CorruptStream;
using pycodec::SimdLevel;
using pycodec::rans::TableInfo;
using pycodec::rans::TableSet;
using Bytes = std::vector<std::uint8_t>;

constexpr std::int32_t kMinInt32 = std::numeric_limits<std::int32_t>::min();
constexpr std::int32_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)

// ------------------------------------------------------------------------------------------------
// Numbers from the input

class Source {
 public:
  Source(const std::uint8_t* data, std::size_t size) : next_(data), end_(data + size) {
    for (std::size_t i = 0; i < size; ++i) state_ = (state_ ^ data[i]) * 0x100000001b3u;
  }

  std::uint8_t byte() {
    return next_ != end_ ? *next_++ : static_cast<std::uint8_t>(random() >> 56);
  }
  std::uint32_t u32() {
    if (next_ == end_) return static_cast<std::uint32_t>(random() >> 32);
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i) value = value << 8 | byte();
    return value;
  }
  std::int32_t i32() { return static_cast<std::int32_t>(u32()); }

  // 0 ... n - 1; one byte where that is enough.
  std::size_t below(std::size_t n) { return n < 2 ? 0 : (n <= 256 ? byte() : u32()) % n; }
  bool one_in(std::size_t n) { return below(n) == n - 1; }
  template <class T>
  T pick(std::initializer_list<T> items) {
    return items.begin()[below(items.size())];
  }

  // What is left of the input itself.
  Bytes rest() {
    Bytes bytes(next_, end_);
    next_ = end_;
    return bytes;
  }

  // Cheap, for the many numbers of which none matters much.
  std::uint64_t random() {  // splitmix64
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  std::size_t random_below(std::size_t n) { return random() % n; }

 private:
  const std::uint8_t* next_;
  const std::uint8_t* end_;
  std::uint64_t state_ = 0xcbf29ce484222325u;
};

// A heap buffer of exactly its size, so that the sanitizer sees each access beyond it.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t size) : items_(new T[size]()), size_(size) {}
  Buffer(const T* items, std::size_t size) : Buffer(size) {
    std::copy(items, items + size, items_.get());
  }
  explicit Buffer(const std::vector<T>& items) : Buffer(items.data(), items.size()) {}

  T* data() { return items_.get(); }
  const T* data() const { return items_.get(); }
  std::size_t size() const { return size_; }

 private:
  std::unique_ptr<T[]> items_;
  std::size_t size_;
};

// How a call ended. Any other exception ends the process.
struct Outcome {
  enum { kDone, kInvalid, kCorrupt } kind = kDone;
  std::string message;
  std::size_t offset = 0;

  bool operator==(const Outcome& other) const {
    return kind == other.kind && message == other.message && offset == other.offset;
  }
  bool is_done() const { return kind == kDone; }
};

template <class Function>
Outcome outcome_of(Function&& function) {
  try {
    function();
    return {};
  } catch (const CorruptStream& error) {
    return {Outcome::kCorrupt, error.what(), error.offset()};
  } catch (const std::invalid_argument& error) {
    return {Outcome::kInvalid, error.what(), 0};
  }
}

const std::vector<SimdLevel>& levels() {
  static const std::vector<SimdLevel> levels = pycodec::supported_simd_levels();
  return levels;
}

// Calls `run` at every level; all results must be equal. Returns one of them.
template <class Function>
auto same_at_every_level(Function&& run) {
  pycodec::set_simd_level(SimdLevel::kScalar);
  const auto expected = run();
  for (const SimdLevel level : levels()) {
    if (level == SimdLevel::kScalar) continue;
    pycodec::set_simd_level(level);
    CHECK(run() == expected);
  }
  return expected;
}

// Call sizes that add up to `count`.
std::vector<std::size_t> make_calls(Source& source, std::size_t count) {
  std::vector<std::size_t> calls;
  const std::size_t most = source.pick<std::size_t>({count, 1 + count / 2, 100, 40, 17});
  while (count > 0) {
    const std::size_t call = std::min(count, source.random_below(most + 1));
    calls.push_back(call);
    count -= call;
  }
  return calls;
}

std::size_t make_count(Source& source) {
  // Encoders start with room for 4 KiB.
  if (source.one_in(32)) return 600 + source.below(1000);
  return source.below(source.pick<std::size_t>({4, 40, 80, 150, 150, 600}));
}

void mutate(Source& source, Bytes& bytes) {
  for (std::size_t n = source.below(4) + 1; n > 0 && !bytes.empty(); --n) {
    const std::size_t at = source.below(bytes.size());
    switch (source.below(8)) {
      case 0:
        bytes.resize(at);
        break;
      case 1:
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), 1 + source.below(4), 0);
        break;
      case 2:
        bytes.push_back(source.byte());
        break;
      case 3:
        bytes[at] = 0;
        break;
      case 4:
        bytes[at] = source.byte();
        break;
      default:
        bytes[at] = static_cast<std::uint8_t>(bytes[at] ^ 1 << source.below(8));
    }
  }
}

// ------------------------------------------------------------------------------------------------
// Tables

// `size` frequencies that add up to `total`, each at least 1.
void append_frequencies(Source& source, std::vector<std::uint32_t>& out, std::size_t size,
                        std::uint32_t total) {
  const std::size_t first = out.size();
  out.resize(first + size, 1);
  std::uint32_t* const frequencies = out.data() + first;
  auto left = total - static_cast<std::uint32_t>(size);
  const std::size_t shape = source.below(4);
  if (shape == 1) {  // even
    for (std::size_t i = 0; i < size; ++i) {
      frequencies[i] += left / static_cast<std::uint32_t>(size);
    }
    left %= static_cast<std::uint32_t>(size);
  } else if (shape > 1) {
    for (std::size_t i = 0; i < size; ++i) {
      const auto more =
          static_cast<std::uint32_t>(source.random_below(left + 1)) >> (shape - 2) * 2;
      frequencies[i] += more;
      left -= more;
    }
  }
  frequencies[source.below(size)] += left;
}

std::int32_t make_offset(Source& source, std::size_t num_values) {
  const std::int64_t last = std::int64_t{kMaxInt32} - static_cast<std::int64_t>(num_values) + 1;
  const auto middle = static_cast<std::int64_t>(num_values / 2);
  const std::int64_t offset = source.pick<std::int64_t>(
      {-middle, -middle, -middle, 0, -127, 127, -128, 100, -1000, kMinInt32, last, source.i32()});
  return static_cast<std::int32_t>(std::min({offset, last, std::int64_t{kMaxInt32}}));
}

std::size_t make_size(Source& source, std::uint32_t total) {
  const std::size_t size = source.pick<std::size_t>({1, 2, 3, 4, 9, 20, 60, 255, 256, 300, total});
  return std::min<std::size_t>(source.one_in(2) ? size : 1 + source.below(size), total);
}

// One layout or the other; the streams are the same.
std::size_t make_max_direct_slots(Source& source) {
  return source.one_in(2) ? 0 : pycodec::rans::kMaxDirectSlots;
}

struct TableNumbers {
  int precision;
  std::vector<std::uint32_t> frequencies;
  std::vector<std::uint32_t> sizes;
  std::vector<std::int32_t> offsets;
  std::vector<bool> escapes;
  std::size_t max_direct_slots;

  TableSet make() const {
    return {precision, frequencies, sizes, offsets, escapes, max_direct_slots};
  }
};

TableNumbers make_table_numbers(Source& source) {
  // Mostly small ones: large tables take their time.
  const int precision = source.pick({1, 2,  3,  4,  5,  6,  7,  8,  8,  9,  9,  10, 10, 10, 10, 10,
                                     8, 11, 11, 11, 12, 12, 12, 12, 13, 14, 15, 16, 10, 7,  6,  5});
  const std::uint32_t total = 1u << precision;
  const std::size_t most = std::min<std::size_t>(300, std::max<std::size_t>(1, 8192 / total));
  const std::size_t num_tables =
      source.one_in(8) ? most : 1 + source.below(std::min<std::size_t>(most, 4));
  std::vector<std::uint32_t> frequencies;
  std::vector<std::uint32_t> sizes;
  std::vector<std::int32_t> offsets;
  std::vector<bool> escapes;
  for (std::size_t table = 0; table < num_tables; ++table) {
    const std::size_t size = make_size(source, total);
    const bool escape = source.one_in(2);
    append_frequencies(source, frequencies, size, total);
    sizes.push_back(static_cast<std::uint32_t>(size));
    offsets.push_back(make_offset(source, size - (escape ? 1 : 0)));
    escapes.push_back(escape);
  }
  return {precision, frequencies, sizes, offsets, escapes, make_max_direct_slots(source)};
}

// Values are int32, and each slot lies in the interval of its rank.
void check_tables(Source& source, const TableSet& tables) {
  for (std::size_t table = 0; table < tables.num_tables(); ++table) {
    CHECK(last_value(tables.info(table)) <= kMaxInt32);
  }
  for (int i = 0; i < 20; ++i) {
    const std::size_t table = source.random_below(tables.num_tables());
    const auto slot =
        static_cast<std::uint32_t>(source.random_below(std::size_t{1} << tables.precision()));
    const TableInfo& info = tables.info(table);
    const std::uint32_t rank = tables.rank(table, slot);
    CHECK(rank < info.num_values || (rank == info.num_values && tables.has_escape(table)));
    const auto& entry = tables.decode_entry(info, rank);
    CHECK(entry.start <= slot && slot - entry.start <= entry.last_bias);
  }
}

// From numbers that need not make sense.
std::optional<TableSet> make_raw_tables(Source& source) {
  const int precision = source.one_in(4) ? source.pick<int>({source.i32(), 0, 17, -1, 32, 64})
                                         : 1 + static_cast<int>(source.below(16));
  const std::uint32_t total = 1u << (precision & 15);
  const std::size_t num_tables = source.below(5);
  std::vector<std::uint32_t> sizes;
  std::vector<std::uint32_t> frequencies;
  std::vector<std::int32_t> offsets;
  std::vector<bool> escapes;
  for (std::size_t table = 0; table < num_tables; ++table) {
    const std::size_t size = source.below(6);
    sizes.push_back(source.one_in(8) ? source.u32() : static_cast<std::uint32_t>(size));
    std::uint32_t left = total;
    for (std::size_t i = 0; i < size; ++i) {
      const std::uint32_t frequency =
          i + 1 == size ? left : source.pick<std::uint32_t>({1, total / 2, total / 4, total});
      frequencies.push_back(source.one_in(16) ? source.u32() : frequency);
      left -= frequency;
    }
    offsets.push_back(source.one_in(2) ? source.i32()
                                       : kMaxInt32 - static_cast<std::int32_t>(source.below(8)));
    escapes.push_back(source.one_in(2));
  }
  if (source.one_in(16)) offsets.resize(source.below(6));
  if (source.one_in(16)) escapes.resize(source.below(6));
  if (source.one_in(16)) frequencies.resize(source.below(40));
  const std::size_t max_direct_slots = make_max_direct_slots(source);
  std::optional<TableSet> tables;
  const Outcome outcome = outcome_of(
      [&] { tables.emplace(precision, frequencies, sizes, offsets, escapes, max_direct_slots); });
  CHECK(outcome.kind != Outcome::kCorrupt);
  return tables;
}

template <class Index>
std::vector<Index> make_indexes(Source& source, std::size_t num_tables, std::size_t count) {
  const std::size_t limit =
      std::min<std::size_t>(num_tables, std::numeric_limits<Index>::max() + std::size_t{1});
  std::vector<Index> indexes(count);
  for (Index& index : indexes) index = static_cast<Index>(source.random_below(limit));
  if (count > 0 && source.one_in(32))
    indexes[source.below(count)] = static_cast<Index>(source.u32());
  return indexes;
}

std::int64_t clamp_to_int32(std::int64_t value) {
  return std::clamp<std::int64_t>(value, kMinInt32, kMaxInt32);
}

// Any, but mostly near the values [first, last]; or mostly far from them, where codes are longest.
std::int32_t make_escaped(Source& source, std::int64_t first, std::int64_t last, bool is_far) {
  const auto near = static_cast<std::int64_t>(source.random_below(4)) + 1;
  const std::int64_t far = std::int64_t{1} << source.random_below(32);
  const std::int64_t choices[] = {last + near,
                                  first - near,
                                  last + far,
                                  first - far,
                                  kMinInt32,
                                  kMaxInt32,
                                  static_cast<std::int32_t>(source.random())};
  return static_cast<std::int32_t>(
      clamp_to_int32(choices[is_far ? 4 + source.random_below(3) : source.random_below(7)]));
}

// Symbols for `indexes`, which the tables can code unless the input says otherwise.
template <class Index>
std::vector<std::int32_t> make_symbols(Source& source, const TableSet& tables,
                                       const std::vector<Index>& indexes) {
  const std::size_t rareness = source.pick<std::size_t>({1, 4, 16, 100, 1000000});
  const bool is_far = source.one_in(4);
  const bool is_careless = source.one_in(32);
  std::vector<std::int32_t> symbols;
  for (const Index index : indexes) {
    const std::size_t table = index < tables.num_tables() ? index : 0;
    const TableInfo& info = tables.info(table);
    const std::int64_t first = info.first_value;
    std::int64_t value = first;
    if (info.num_values > 0) {
      const std::uint32_t slot =
          static_cast<std::uint32_t>(source.random()) & ((1u << tables.precision()) - 1);
      const std::uint32_t rank = tables.rank(table, slot);
      value += std::min(rank, info.num_values - 1);
    }
    if ((tables.has_escape(table) || is_careless) && source.random_below(rareness) == 0) {
      value = make_escaped(source, first, last_value(info), is_far);
    }
    symbols.push_back(static_cast<std::int32_t>(value));
  }
  return symbols;
}

// ------------------------------------------------------------------------------------------------
// Decoding and encoding

struct Trace {
  std::vector<Outcome> outcomes;  // of the constructor, of each call, of finish()
  std::vector<std::int32_t> symbols;

  bool operator==(const Trace& other) const {
    return outcomes == other.outcomes && symbols == other.symbols;
  }
  bool is_done() const { return outcomes.back().is_done(); }
};

// Decodes a call; if that throws, the decoder must go on like `untouched`, with fewer symbols.
// `decode` is called with a decoder, indexes, a count and symbols.
template <class Decoder, class Index, class Decode>
void decode_call(Decoder& decoder, const Index* indexes, std::size_t count, const Decode& decode,
                 Trace& trace) {
  Decoder untouched(decoder);
  for (;; count /= 2) {
    const Buffer<Index> call_indexes(indexes, count);
    Buffer<std::int32_t> symbols(count);
    trace.outcomes.push_back(
        outcome_of([&] { decode(decoder, call_indexes.data(), count, symbols.data()); }));
    if (trace.outcomes.back().is_done()) {
      trace.symbols.insert(trace.symbols.end(), symbols.data(), symbols.data() + count);
      if (trace.outcomes.size() > 1 && !(trace.outcomes.end() - 2)->is_done()) {
        Buffer<std::int32_t> expected(count);
        decode(untouched, call_indexes.data(), count, expected.data());
        CHECK(std::equal(symbols.data(), symbols.data() + count, expected.data()));
      }
      return;
    }
  }
}

// Decodes until a call throws; the trace ends with the last outcome.
template <class Index>
Trace decode_calls(pycodec::rans::Decoder& decoder, const std::vector<Index>& indexes,
                   const std::vector<std::size_t>& calls) {
  Trace trace;
  std::size_t done = 0;
  const auto decode = [](auto& d, const Index* i, std::size_t n, std::int32_t* s) {
    d.decode(i, n, s);
  };
  for (const std::size_t call : calls) {
    const std::size_t outcomes = trace.outcomes.size() + 1;
    decode_call(decoder, indexes.data() + done, call, decode, trace);
    if (trace.outcomes.size() > outcomes) {
      trace.outcomes.push_back(trace.outcomes[outcomes - 1]);
      return trace;
    }
    done += call;
  }
  trace.outcomes.push_back(outcome_of([&] { decoder.finish(); }));
  return trace;
}

// One symbol at a time: the inner loops, which take steps, play no part where there are two lanes.
template <class Index>
Trace decode_singly(pycodec::rans::Decoder& decoder, const std::vector<Index>& indexes) {
  Trace trace;
  for (const Index& index : indexes) {
    std::int32_t symbol = 0;
    const Outcome outcome = outcome_of([&] { decoder.decode(&index, 1, &symbol); });
    if (!outcome.is_done()) {
      trace.outcomes.push_back(outcome);
      return trace;
    }
    trace.symbols.push_back(symbol);
  }
  trace.outcomes.push_back(outcome_of([&] { decoder.finish(); }));
  return trace;
}

template <class Index>
struct Encoded {
  Outcome outcome;
  Bytes bytes;

  bool operator==(const Encoded& other) const {
    return outcome == other.outcome && bytes == other.bytes;
  }
};

// In calls from the last to the first, or, where there are none, in one call of encode().
template <class Index>
Encoded<Index> encode_calls(const TableSet& tables, const std::vector<std::int32_t>& symbols,
                            const std::vector<Index>& indexes, int lanes,
                            const std::vector<std::size_t>& calls) {
  Encoded<Index> encoded;
  encoded.outcome = outcome_of([&] {
    if (calls.empty()) {
      const Buffer<std::int32_t> all_symbols(symbols);
      const Buffer<Index> all_indexes(indexes);
      encoded.bytes = pycodec::rans::encode(tables, all_symbols.data(), all_indexes.data(),
                                            symbols.size(), lanes);
      return;
    }
    pycodec::rans::Encoder encoder(tables, lanes);
    std::size_t left = symbols.size();
    for (const std::size_t call : calls) {
      left -= call;
      const Buffer<std::int32_t> call_symbols(symbols.data() + left, call);
      const Buffer<Index> call_indexes(indexes.data() + left, call);
      encoder.push(call_symbols.data(), call_indexes.data(), call, left);
    }
    encoded.bytes = encoder.finish();
  });
  return encoded;
}

// Any bytes as a stream. Returns what its decoder said last.
template <class Index>
Trace check_stream(Source& source, const TableSet& tables, const Bytes& bytes,
                   const std::vector<Index>& indexes) {
  const Buffer<std::uint8_t> stream(bytes);
  // An empty buffer may have no address.
  const std::uint8_t* const data = bytes.empty() && source.one_in(2) ? nullptr : stream.data();
  const std::vector<std::size_t> calls = make_calls(source, indexes.size());
  int lanes = 0;
  const auto decode = [&](const auto& run) {
    std::optional<pycodec::rans::Decoder> decoder;
    Trace trace;
    trace.outcomes.push_back(outcome_of([&] { decoder.emplace(tables, data, bytes.size()); }));
    if (decoder) {
      lanes = decoder->lanes();
      trace = run(*decoder);
    }
    for (const Outcome& outcome : trace.outcomes) CHECK(outcome.offset <= bytes.size());
    return trace;
  };
  Trace trace = same_at_every_level(
      [&] { return decode([&](auto& decoder) { return decode_calls(decoder, indexes, calls); }); });
  // A call with one wrong index throws before it decodes any.
  if (trace.outcomes.back().kind != Outcome::kInvalid) {
    const Trace single = decode([&](auto& decoder) { return decode_singly(decoder, indexes); });
    CHECK(single.outcomes.back() == trace.outcomes.back());
    CHECK(single.symbols.size() >= trace.symbols.size());
    CHECK(std::equal(trace.symbols.begin(), trace.symbols.end(), single.symbols.begin()));
  }
  if (trace.is_done()) {
    const auto encoded = same_at_every_level(
        [&] { return encode_calls(tables, trace.symbols, indexes, lanes, {}); });
    CHECK(encoded.outcome.is_done() && encoded.bytes == bytes);
  }
  return trace;
}

// An inner loop of the encoder alone, with no more room for words than it asks for. Returns what it
// wrote, and how many symbols it took.
template <class Index>
std::pair<Bytes, std::size_t> push_alone(const TableSet& tables, int lanes,
                                         const Buffer<std::int32_t>& symbols,
                                         const Buffer<Index>& indexes) {
  using namespace pycodec::rans;
  const Kernels& kernels = kernels_for(pycodec::simd_level(), lanes);
  alignas(64) std::uint32_t states[kMaxLanes];
  std::fill(std::begin(states), std::end(states), kLowerBound);
  Lanes position = {states, static_cast<unsigned>(lanes), 0};
  Buffer<std::uint8_t> room(kWordBytes * symbols.size() + kPushMargin);
  std::uint8_t* const end = room.data() + room.size();
  std::uint8_t* top = end;
  std::size_t done = 0;
  if constexpr (sizeof(Index) == 1) {
    done =
        kernels.push8(tables.view(), symbols.data(), indexes.data(), symbols.size(), position, top);
  } else {
    done = kernels.push16(tables.view(), symbols.data(), indexes.data(), symbols.size(), position,
                          top);
  }
  CHECK(done <= symbols.size() && end - top <= static_cast<std::ptrdiff_t>(kWordBytes * done));
  return {Bytes(top, end), done};
}

template <class Index>
void check_push_kernels(const TableSet& tables, int lanes, const std::vector<std::int32_t>& symbols,
                        const std::vector<Index>& indexes) {
  if (tables.precision() < pycodec::rans::kMinSimdPushPrecision) return;
  if (outcome_of([&] { tables.check_indexes(indexes.data(), indexes.size()); }).message != "")
    return;
  const Buffer<std::int32_t> all_symbols(symbols);
  const Buffer<Index> all_indexes(indexes);
  pycodec::set_simd_level(SimdLevel::kScalar);
  const auto expected = push_alone(tables, lanes, all_symbols, all_indexes);
  for (const SimdLevel level : levels()) {
    pycodec::set_simd_level(level);
    const auto pushed = push_alone(tables, lanes, all_symbols, all_indexes);
    // A larger step stops earlier.
    const Bytes& shorter = pushed.second < expected.second ? pushed.first : expected.first;
    const Bytes& longer = pushed.second < expected.second ? expected.first : pushed.first;
    CHECK(shorter.size() <= longer.size());
    CHECK(std::equal(shorter.rbegin(), shorter.rend(), longer.rbegin()));
  }
}

// Returns the stream; it is empty if there is none.
template <class Index>
Bytes check_round_trip(Source& source, const TableSet& tables,
                       const std::vector<std::int32_t>& symbols,
                       const std::vector<Index>& indexes) {
  const int lanes = source.one_in(6) ? 0 : 1 << source.below(7);
  const auto encoded =
      same_at_every_level([&] { return encode_calls(tables, symbols, indexes, lanes, {}); });
  if (lanes != 0) {
    check_push_kernels(tables, lanes, symbols, indexes);
    const std::vector<std::size_t> calls = make_calls(source, symbols.size());
    const auto again =
        same_at_every_level([&] { return encode_calls(tables, symbols, indexes, lanes, calls); });
    CHECK(again.outcome.kind == encoded.outcome.kind && again.bytes == encoded.bytes);
  }
  CHECK(encoded.outcome.kind != Outcome::kCorrupt);
  if (!encoded.outcome.is_done()) return {};
  const Trace trace = check_stream(source, tables, encoded.bytes, indexes);
  CHECK(trace.is_done() && trace.symbols == symbols);
  return encoded.bytes;
}

Bytes make_stream(Source& source, const TableSet& tables, Bytes bytes) {
  using namespace pycodec::rans;
  const std::size_t form = source.below(8);
  if (form == 0 || bytes.empty()) return bytes;
  const std::size_t lanes = std::size_t{1} << source.below(7);
  bytes[0] = header_byte(static_cast<int>(lanes), tables.precision());
  const std::size_t states = kHeaderBytes + kStateBytes * lanes;
  if (form < 3) return bytes;
  // States and words, however few bytes there are.
  const std::size_t words = source.below(source.pick<std::size_t>({3, 30, 300}));
  const std::size_t size = states + kWordBytes * words;
  const bool has_zeros = source.one_in(8);
  while (bytes.size() < size)
    bytes.push_back(has_zeros ? 0 : static_cast<std::uint8_t>(source.random()));
  bytes.resize(size);
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    std::uint8_t* const upper = bytes.data() + kHeaderBytes + kStateBytes * lane + kWordBytes;
    if (load_word(upper) == 0) upper[form % 2] = 1;
  }
  return bytes;
}

template <class Index>
void fuzz_stream(Source& source, const TableSet& tables) {
  const auto indexes = make_indexes<Index>(source, tables.num_tables(), make_count(source));
  const Bytes bytes = make_stream(source, tables, source.rest());
  const Trace trace = check_stream(source, tables, bytes, indexes);
  if (trace.symbols.size() == indexes.size()) {
    check_round_trip(source, tables, trace.symbols, indexes);
  }
}

template <class Index>
void fuzz_round_trip(Source& source, const TableSet& tables) {
  auto indexes = make_indexes<Index>(source, tables.num_tables(), make_count(source));
  const std::vector<std::int32_t> symbols = make_symbols(source, tables, indexes);
  Bytes bytes = check_round_trip(source, tables, symbols, indexes);
  mutate(source, bytes);
  if (source.one_in(4)) indexes.resize(source.below(indexes.size() + 1));
  check_stream(source, tables, bytes, indexes);
}

// A stream says nothing of the tables' first values: decoded with others, its symbols are moved by
// the difference, unless one leaves int32.
template <class Index>
void fuzz_shifted(Source& source, const TableSet& tables, TableNumbers numbers) {
  const auto indexes = make_indexes<Index>(source, tables.num_tables(), make_count(source));
  const std::vector<std::int32_t> symbols = make_symbols(source, tables, indexes);
  const auto encoded = encode_calls(tables, symbols, indexes, 1 << source.below(7), {});
  if (!encoded.outcome.is_done()) return;
  // As far as all tables' values allow, or less.
  std::int64_t up = std::int64_t{kMaxInt32} - kMinInt32;
  std::int64_t down = up;
  for (std::size_t table = 0; table < tables.num_tables(); ++table) {
    const TableInfo& info = tables.info(table);
    const std::int64_t last = std::max<std::int64_t>(last_value(info), info.first_value);
    up = std::min(up, kMaxInt32 - last);
    down = std::min(down, std::int64_t{info.first_value} - kMinInt32);
  }
  std::int64_t shift = source.one_in(2) ? up : -down;
  if (source.one_in(4)) shift /= 1 + source.byte();
  for (std::int32_t& offset : numbers.offsets) offset = static_cast<std::int32_t>(offset + shift);
  const Trace trace = check_stream(source, numbers.make(), encoded.bytes, indexes);
  const bool is_int32 = std::all_of(symbols.begin(), symbols.end(), [&](std::int32_t symbol) {
    return clamp_to_int32(symbol + shift) == symbol + shift;
  });
  CHECK(trace.is_done() == is_int32);
  for (std::size_t i = 0; i < trace.symbols.size(); ++i) {
    CHECK(trace.symbols[i] == symbols[i] + shift);
  }
}

// ------------------------------------------------------------------------------------------------
// Substreams

constexpr std::size_t kMaxSubstreamSymbols = 2000;

// Threads take their time: few inputs use them.
int make_threads(Source& source) { return source.one_in(64) ? 3 : 1; }

template <class Index>
Encoded<Index> encode_substreams(const TableSet& tables, const std::vector<std::int32_t>& symbols,
                                 const std::vector<Index>& indexes,
                                 const std::vector<std::uint32_t>& counts, int lanes, int threads) {
  const Buffer<std::int32_t> all_symbols(symbols);
  const Buffer<Index> all_indexes(indexes);
  Encoded<Index> encoded;
  encoded.outcome = outcome_of([&] {
    encoded.bytes = pycodec::rans::encode_substreams(tables, all_symbols.data(), all_indexes.data(),
                                                     counts, lanes, threads);
  });
  // Which substream's exception comes first is up to the threads.
  if (threads > 1) encoded.outcome.message.clear();
  return encoded;
}

// Any bytes as substreams. `new_indexes` makes indexes, so many as the bytes say. Returns the
// symbols if all is well.
template <class Index, class NewIndexes>
std::optional<std::vector<std::int32_t>> check_substreams(Source& source, const TableSet& tables,
                                                          const Bytes& bytes,
                                                          const NewIndexes& new_indexes) {
  using namespace pycodec::rans;
  const Buffer<std::uint8_t> data(bytes);
  std::optional<SubstreamIndex> index;
  const Outcome made = outcome_of([&] { index.emplace(tables, data.data(), data.size()); });
  CHECK(made.kind != Outcome::kInvalid && made.offset <= bytes.size());
  if (!index) return {};
  std::uint64_t num_symbols = 0;
  std::vector<std::uint32_t> counts;
  for (std::size_t i = 0; i < index->size(); ++i) {
    const Substream& substream = (*index)[i];
    CHECK(substream.first_symbol == num_symbols);
    num_symbols += substream.num_symbols;
    counts.push_back(substream.num_symbols);
  }
  CHECK(index->num_symbols() == num_symbols);

  if (num_symbols > kMaxSubstreamSymbols) {
    for (std::size_t i = 0; i < std::min<std::size_t>(index->size(), 4); ++i) {
      const auto indexes = new_indexes(std::min(counts[i], std::uint32_t{300}));
      const std::vector<std::size_t> calls = make_calls(source, indexes.size());
      same_at_every_level([&] {
        std::optional<Decoder> decoder;
        const Outcome outcome =
            outcome_of([&] { decoder.emplace(index->decoder(i, tables, data.data())); });
        return decoder ? decode_calls(*decoder, indexes, calls) : Trace{{outcome}, {}};
      });
    }
    return {};
  }

  const std::vector<Index> indexes = new_indexes(static_cast<std::size_t>(num_symbols));
  const auto decode = [&](std::size_t first, std::size_t last, int threads) {
    const std::size_t begin =
        first == index->size() ? indexes.size() : (*index)[first].first_symbol;
    const std::size_t end = last == index->size() ? indexes.size() : (*index)[last].first_symbol;
    const Buffer<Index> call_indexes(indexes.data() + begin, end - begin);
    Buffer<std::int32_t> symbols(end - begin);
    Trace trace;
    trace.outcomes.push_back(outcome_of([&] {
      decode_substreams(tables, *index, data.data(), first, last, call_indexes.data(),
                        symbols.data(), threads);
    }));
    CHECK(trace.outcomes[0].offset <= bytes.size());
    if (threads > 1 && !trace.is_done()) trace.outcomes[0] = {Outcome::kCorrupt, "", 0};
    if (trace.is_done()) trace.symbols.assign(symbols.data(), symbols.data() + symbols.size());
    return trace;
  };
  const int threads = make_threads(source);
  Trace whole = same_at_every_level([&] { return decode(0, index->size(), threads); });
  const std::size_t first = source.below(index->size() + 1);
  const std::size_t last = first + source.below(index->size() - first + 1);
  const Trace part = same_at_every_level([&] { return decode(first, last, 1); });
  if (!whole.is_done()) return {};
  CHECK(part.is_done());
  const auto skipped = first == index->size() ? num_symbols : (*index)[first].first_symbol;
  CHECK(std::equal(part.symbols.begin(), part.symbols.end(),
                   whole.symbols.begin() + static_cast<std::ptrdiff_t>(skipped)));
  const auto encoded = same_at_every_level([&] {
    return encode_substreams(tables, whole.symbols, indexes, counts, index->lanes(), threads);
  });
  CHECK(encoded.outcome.is_done() && encoded.bytes == bytes);
  return std::move(whole.symbols);
}

// An index whose numbers are mostly true.
Bytes make_substreams(Source& source, const TableSet& tables) {
  using namespace pycodec::rans;
  const auto lanes = static_cast<int>(1 << source.below(7));
  Bytes bytes = {header_byte(lanes, tables.precision())};
  const auto count = static_cast<std::uint32_t>(source.below(6));
  append_varint(bytes, source.one_in(16) ? source.u32() : count);
  std::size_t size = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto words = static_cast<std::uint32_t>(source.below(200));
    append_varint(bytes,
                  source.one_in(16) ? source.u32() : static_cast<std::uint32_t>(source.below(300)));
    append_varint(bytes, source.one_in(16) ? source.u32() : words);
    size += kStateBytes * static_cast<std::size_t>(lanes) + kWordBytes * words;
  }
  if (bytes.size() % 2 != 0) bytes.push_back(0);
  const Bytes rest = source.rest();
  const std::size_t begin = bytes.size();
  bytes.insert(bytes.end(), rest.begin(),
               rest.begin() + static_cast<std::ptrdiff_t>(std::min(rest.size(), size)));
  // States are large enough almost always.
  while (bytes.size() < begin + size)
    bytes.push_back(static_cast<std::uint8_t>(source.random() | 1));
  if (source.one_in(4)) mutate(source, bytes);
  return bytes;
}

template <class Index>
void fuzz_substreams(Source& source, const TableSet& tables) {
  const auto new_indexes = [&](std::size_t count) {
    return make_indexes<Index>(source, tables.num_tables(), count);
  };
  const std::size_t form = source.below(8);
  if (form < 3) {
    Bytes bytes = form == 0 ? source.rest() : make_substreams(source, tables);
    check_substreams<Index>(source, tables, bytes, new_indexes);
    return;
  }
  std::vector<std::uint32_t> counts(source.below(6));
  const auto most = source.pick<std::size_t>({20, 70, 70, 300});
  std::size_t num_symbols = 0;
  for (std::uint32_t& count : counts) {
    count = static_cast<std::uint32_t>(source.one_in(4) ? 0 : source.below(most));
    num_symbols += count;
  }
  const int lanes = source.one_in(6) ? 0 : 1 << source.below(7);
  const int threads = make_threads(source);
  const std::vector<Index> indexes = new_indexes(num_symbols);
  const std::vector<std::int32_t> symbols = make_symbols(source, tables, indexes);
  const auto encoded = same_at_every_level(
      [&] { return encode_substreams(tables, symbols, indexes, counts, lanes, threads); });
  CHECK(encoded.outcome.kind != Outcome::kCorrupt);
  if (!encoded.outcome.is_done()) return;
  const auto decoded = check_substreams<Index>(source, tables, encoded.bytes, [&](std::size_t n) {
    CHECK(n == num_symbols);
    return indexes;
  });
  CHECK(decoded && *decoded == symbols);
  Bytes bytes = encoded.bytes;
  mutate(source, bytes);
  check_substreams<Index>(source, tables, bytes, [&](std::size_t n) {
    std::vector<Index> fitting = indexes;
    fitting.resize(n);
    return fitting;
  });
}

// ------------------------------------------------------------------------------------------------
// CompressAI's stream

namespace compressai = pycodec::compressai;

using Cdf = std::vector<std::int32_t>;

struct Cdfs {
  std::vector<Cdf> values;
  std::vector<std::int32_t> sizes;
  std::vector<std::int32_t> offsets;
};

Cdfs make_cdfs(Source& source) {
  Cdfs cdfs;
  for (std::size_t n = 1 + source.below(source.pick<std::size_t>({1, 3, 20})); n > 0; --n) {
    const std::size_t size = make_size(source, source.one_in(64) ? 65536 : 300);
    std::vector<std::uint32_t> frequencies;
    append_frequencies(source, frequencies, size, 65536);
    Cdf cdf = {0};
    for (const std::uint32_t f : frequencies)
      cdf.push_back(cdf.back() + static_cast<std::int32_t>(f));
    cdfs.sizes.push_back(static_cast<std::int32_t>(cdf.size()));
    cdfs.offsets.push_back(make_offset(source, size - 1));
    if (source.one_in(4)) cdf.resize(cdf.size() + source.below(4));
    cdfs.values.push_back(std::move(cdf));
  }
  return cdfs;
}

std::optional<compressai::CdfTables> make_cdf_tables(const Cdfs& cdfs,
                                                     compressai::CdfTables::Search search,
                                                     Outcome& outcome) {
  std::vector<Buffer<std::int32_t>> buffers;
  std::vector<compressai::CdfRow> rows;
  for (std::size_t i = 0; i < cdfs.values.size(); ++i) {
    buffers.emplace_back(cdfs.values[i]);
    rows.push_back({buffers.back().data(), buffers.back().size(), cdfs.sizes[i], cdfs.offsets[i]});
  }
  std::optional<compressai::CdfTables> tables;
  outcome = outcome_of([&] { tables.emplace(rows, search); });
  CHECK(outcome.kind != Outcome::kCorrupt);
  return tables;
}

std::vector<std::int32_t> make_cdf_symbols(Source& source, const compressai::CdfTables& tables,
                                           const std::vector<std::int32_t>& indexes) {
  const std::size_t rareness = source.pick<std::size_t>({1, 4, 16, 100, 1000000});
  const bool is_far = source.one_in(4);
  std::vector<std::int32_t> symbols;
  for (const std::int32_t index : indexes) {
    const bool is_known = static_cast<std::size_t>(index) < tables.num_tables();
    const compressai::CdfInfo& info = tables.infos()[is_known ? index : 0];
    const std::int64_t first = info.offset;
    std::int64_t value = first;
    if (info.num_values == 0 || source.random_below(rareness) == 0) {
      value = make_escaped(source, first, first + info.num_values - 1, is_far);
    } else {
      value += static_cast<std::int64_t>(source.random_below(info.num_values));
    }
    symbols.push_back(static_cast<std::int32_t>(value));
  }
  return symbols;
}

std::vector<std::int32_t> make_cdf_indexes(Source& source, std::size_t num_tables,
                                           std::size_t count) {
  std::vector<std::int32_t> indexes(count);
  for (auto& index : indexes) index = static_cast<std::int32_t>(source.random_below(num_tables));
  if (count > 0 && source.one_in(32)) indexes[source.below(count)] = source.i32();
  return indexes;
}

// The trace has no outcome of a constructor that did not throw.
Trace decode_cdf_calls(const compressai::CdfTables& tables, const Buffer<std::uint8_t>& stream,
                       const std::vector<std::int32_t>& indexes,
                       const std::vector<std::size_t>& calls) {
  Trace trace;
  std::optional<compressai::Decoder> decoder;
  const Outcome made = outcome_of([&] { decoder.emplace(stream.data(), stream.size()); });
  trace.outcomes.push_back(made);
  std::size_t done = 0;
  const auto decode = [&](auto& d, const std::int32_t* i, std::size_t n, std::int32_t* s) {
    d.decode(tables, i, n, s);
  };
  for (std::size_t call = 0; decoder && call < calls.size(); ++call) {
    const std::size_t outcomes = trace.outcomes.size() + 1;
    decode_call(*decoder, indexes.data() + done, calls[call], decode, trace);
    if (trace.outcomes.size() > outcomes) {
      trace.outcomes.push_back(trace.outcomes[outcomes - 1]);
      break;
    }
    done += calls[call];
  }
  for (const Outcome& outcome : trace.outcomes) CHECK(outcome.offset <= stream.size());
  return trace;
}

// Adds the symbols in calls. A call that throws adds nothing.
Encoded<std::int32_t> encode_cdf_calls(const compressai::CdfTables& tables,
                                       const std::vector<std::int32_t>& symbols,
                                       const std::vector<std::int32_t>& indexes,
                                       const std::vector<std::size_t>& calls) {
  compressai::Encoder encoder;
  compressai::Encoder expected;  // is given what fits only
  Encoded<std::int32_t> encoded;
  std::size_t done = 0;
  for (const std::size_t call : calls) {
    const Buffer<std::int32_t> call_symbols(symbols.data() + done, call);
    const Buffer<std::int32_t> call_indexes(indexes.data() + done, call);
    const Outcome outcome =
        outcome_of([&] { encoder.add(tables, call_symbols.data(), call_indexes.data(), call); });
    CHECK(outcome.kind != Outcome::kCorrupt);
    if (outcome.is_done()) {
      expected.add(tables, call_symbols.data(), call_indexes.data(), call);
    } else {
      encoded.outcome = outcome;
    }
    done += call;
  }
  encoded.bytes = encoder.flush();
  CHECK(encoded.bytes == expected.flush());
  CHECK(encoder.flush().size() == compressai::kStateBytes);
  return encoded;
}

// Returns whether all of it was decoded.
std::optional<std::vector<std::int32_t>> check_cdf_stream(
    Source& source, const compressai::CdfTables& buckets, const compressai::CdfTables& bisect,
    const Bytes& bytes, const std::vector<std::int32_t>& indexes) {
  const Buffer<std::uint8_t> stream(bytes);
  const std::vector<std::size_t> calls = make_calls(source, indexes.size());
  Trace trace = decode_cdf_calls(buckets, stream, indexes, calls);
  CHECK(trace == decode_cdf_calls(bisect, stream, indexes, calls));
  if (!trace.is_done()) return {};
  return std::move(trace.symbols);
}

void fuzz_compressai(Source& source) {
  using Search = compressai::CdfTables::Search;
  Cdfs cdfs = make_cdfs(source);
  if (source.one_in(4)) {  // wrong ones
    const std::size_t row = source.below(cdfs.values.size());
    Cdf& values = cdfs.values[row];
    switch (source.below(5)) {
      case 0:
        cdfs.sizes[row] =
            source.one_in(2) ? source.i32() : cdfs.sizes[row] + source.pick({-1, 1, -2, 2});
        break;
      case 1:
        cdfs.offsets[row] = source.i32();
        break;
      case 2:
        values.resize(source.below(values.size() + 4));
        break;
      case 3:
        cdfs = {};
        break;
      default:
        values[source.below(values.size())] =
            source.one_in(2) ? source.i32() : source.pick({0, 1, 65535, 65536, -1});
    }
  }
  Outcome outcome;
  Outcome again;
  const auto buckets = make_cdf_tables(cdfs, Search::kBuckets, outcome);
  const auto bisect = make_cdf_tables(cdfs, Search::kBisect, again);
  CHECK(outcome == again);
  if (!buckets) return;

  // The encoder takes blocks of 1024.
  const std::size_t count = source.one_in(16) ? 1024 + source.below(500) : make_count(source);
  std::vector<std::int32_t> indexes = make_cdf_indexes(source, buckets->num_tables(), count);
  Bytes bytes;
  if (source.one_in(2)) {
    bytes = source.rest();
    const std::size_t size = compressai::kStateBytes + source.below(400);
    while (bytes.size() < size) bytes.push_back(static_cast<std::uint8_t>(source.random()));
    if (!source.one_in(8)) bytes[7] &= 0x7f;
    if (source.one_in(4)) bytes.resize(source.below(16));
  } else {
    const auto symbols = make_cdf_symbols(source, *buckets, indexes);
    const auto calls = make_calls(source, symbols.size());
    const auto encoded = encode_cdf_calls(*buckets, symbols, indexes, calls);
    if (encoded.outcome.is_done()) {
      const auto decoded = check_cdf_stream(source, *buckets, *bisect, encoded.bytes, indexes);
      CHECK(decoded && *decoded == symbols);
    }
    bytes = encoded.bytes;
    mutate(source, bytes);
    if (source.one_in(4)) indexes.resize(source.below(indexes.size() + 1));
  }
  const auto decoded = check_cdf_stream(source, *buckets, *bisect, bytes, indexes);
  if (!decoded) return;
  // Not the same bytes: this format has more than one stream for some symbols.
  const auto encoded =
      encode_cdf_calls(*bisect, *decoded, indexes, make_calls(source, indexes.size()));
  CHECK(encoded.outcome.is_done());
  const auto same = check_cdf_stream(source, *buckets, *bisect, encoded.bytes, indexes);
  CHECK(same && *same == *decoded);
}

template <class Index>
void fuzz(Source& source, std::size_t what, const TableSet& tables) {
  if (what < 3) {
    fuzz_stream<Index>(source, tables);
  } else if (what < 5) {
    fuzz_round_trip<Index>(source, tables);
  } else {
    fuzz_substreams<Index>(source, tables);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Source source(data, size);
  const std::size_t what = source.below(8);
  if (what == 0) {
    fuzz_compressai(source);
    return 0;
  }
  std::optional<TableNumbers> numbers;
  std::optional<TableSet> tables;
  if (source.one_in(4)) {
    tables = make_raw_tables(source);
    if (!tables) return 0;
  } else {
    numbers = make_table_numbers(source);
    tables = numbers->make();
  }
  check_tables(source, *tables);
  const bool is_shifted = numbers && source.one_in(8);
  if (source.one_in(2)) {
    is_shifted ? fuzz_shifted<std::uint8_t>(source, *tables, *numbers)
               : fuzz<std::uint8_t>(source, what, *tables);
  } else {
    is_shifted ? fuzz_shifted<std::uint16_t>(source, *tables, *numbers)
               : fuzz<std::uint16_t>(source, what, *tables);
  }
  return 0;
}
