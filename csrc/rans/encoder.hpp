// The interleaved rANS encoder.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "rans/kernels.hpp"
#include "rans/rans.hpp"
#include "rans/tables.hpp"

namespace pycodec {
namespace rans {

// Bytes written from the end of a buffer to its beginning; the buffer grows as needed.
class WordStack {
 public:
  // Makes room for at least `words` more; `top()` moves with the buffer.
  void reserve(std::size_t words) {
    const std::size_t bytes = words * kWordBytes;
    if (free_bytes() >= bytes) return;
    const std::size_t used = size();
    const std::size_t capacity = std::max(2 * capacity_, used + bytes + kMinCapacity);
    std::unique_ptr<std::uint8_t[]> larger(new std::uint8_t[capacity]);
    if (used > 0) std::memcpy(larger.get() + capacity - used, top_, used);
    buffer_ = std::move(larger);
    capacity_ = capacity;
    top_ = buffer_.get() + capacity - used;
  }

  std::size_t free_bytes() const { return static_cast<std::size_t>(top_ - buffer_.get()); }
  std::size_t size() const { return capacity_ - free_bytes(); }
  std::uint8_t*& top() { return top_; }
  const std::uint8_t* top() const { return top_; }

 private:
  static constexpr std::size_t kMinCapacity = 4096;

  std::unique_ptr<std::uint8_t[]> buffer_;
  std::size_t capacity_ = 0;
  std::uint8_t* top_ = nullptr;
};

// Takes the symbols from the last to the first, in runs of any length.
class Encoder {
 public:
  // `lanes` is a power of two, 1..64. The tables must outlive the encoder.
  Encoder(const TableSet& tables, int lanes)
      : tables_(tables),
        view_(tables.view()),
        kernels_(kernels_for(push_level(tables), lanes)),
        lanes_(static_cast<unsigned>(lanes)) {
    if (lanes < 1 || lanes > kMaxLanes || (lanes & (lanes - 1)) != 0) {
      throw std::invalid_argument("lanes must be a power of two, 1..64, not " +
                                  std::to_string(lanes));
    }
    std::fill(states_, states_ + kMaxLanes, kLowerBound);
  }

  // Pushes a run whose first symbol is number `position` of the stream; the run before it in the
  // stream comes next. Throws std::invalid_argument for an index without table and for a symbol
  // outside a table without escape; the encoder is of no use afterwards.
  template <class Index>
  void push(const std::int32_t* symbols, const Index* indexes, std::size_t count,
            std::size_t position) {
    tables_.check_indexes(indexes, count);
    while (count > 0) {
      const auto next = static_cast<unsigned>((position + count) & (lanes_ - 1));
      if (next % kernels_.step == 0 && count >= kernels_.step) {
        // In runs, so that the buffer stays in proportion to what it holds.
        const std::size_t run = std::min(count, kSymbolsPerRun);
        words_.reserve(run + kPushMargin / kWordBytes);
        Lanes lanes = {states_, lanes_, next};
        const std::size_t done = push_kernel(indexes)(
            view_, symbols + count - run, indexes + count - run, run, lanes, words_.top());
        count -= done;
        if (done == run) continue;
      }
      // What stopped the kernel, and on to its next step.
      do {
        --count;
        push_one(symbols[count], indexes[count], position + count);
      } while (count > 0 && (position + count) % kernels_.step != 0);
    }
  }

  // Bytes of words so far; the lanes' states come on top.
  std::size_t num_word_bytes() const { return words_.size(); }

  // The whole stream: header, states, words.
  std::vector<std::uint8_t> finish() const {
    std::vector<std::uint8_t> stream;
    stream.reserve(kHeaderBytes + body_size());
    stream.push_back(header_byte(static_cast<int>(lanes_), tables_.precision()));
    append_body(stream);
    return stream;
  }

  // States and words.
  std::size_t body_size() const { return kStateBytes * lanes_ + words_.size(); }
  void append_body(std::vector<std::uint8_t>& out) const {
    for (unsigned lane = 0; lane < lanes_; ++lane) {
      std::uint8_t bytes[kStateBytes];
      store_state(bytes, states_[lane]);
      out.insert(out.end(), bytes, bytes + kStateBytes);
    }
    out.insert(out.end(), words_.top(), words_.top() + words_.size());
  }

 private:
  static constexpr std::size_t kSymbolsPerRun = 1 << 16;

  static SimdLevel push_level(const TableSet& tables) {
    return tables.precision() < kMinSimdPushPrecision ? SimdLevel::kScalar : simd_level();
  }

  PushKernel<std::uint8_t> push_kernel(const std::uint8_t*) const { return kernels_.push8; }
  PushKernel<std::uint16_t> push_kernel(const std::uint16_t*) const { return kernels_.push16; }

  void push_one(std::int32_t symbol, std::size_t index, std::size_t position) {
    words_.reserve(kMaxWordsPerEscape);
    std::uint32_t& state = states_[position & (lanes_ - 1)];
    const TableInfo& info = tables_.info(index);
    std::uint32_t rank =
        static_cast<std::uint32_t>(symbol) - static_cast<std::uint32_t>(info.first_value);
    if (rank >= info.num_values) {
      if (!tables_.has_escape(index)) throw_not_covered(symbol, index, position);
      rank = info.num_values;
      push_escape_code(state, escape_code(symbol, info.first_value, last_value(info)));
    }
    state = push_symbol(state, tables_.encode_entry(info, rank), words_.top());
  }

  // The mirror image of pop_escape_code() in decoder.hpp: last bits first.
  void push_escape_code(std::uint32_t& state, std::uint64_t code) {
    int bits = 0;  // after the leading one
    while (code >> bits > 1) ++bits;
    std::uint8_t*& words = words_.top();
    const int low_bits = std::min(bits, kMaxRawBits);
    if (bits > kMaxRawBits) {
      const std::uint32_t upper = static_cast<std::uint32_t>(code >> kMaxRawBits);
      const int upper_bits = bits - kMaxRawBits;
      state = push_bits(state, upper & ((1u << upper_bits) - 1), upper_bits, words);
    }
    if (low_bits > 0) {
      const std::uint32_t low = static_cast<std::uint32_t>(code) & ((1u << low_bits) - 1);
      state = push_bits(state, low, low_bits, words);
    }
    const int zeros = bits % kMaxRawBits;
    state = push_bits(state, 1u << zeros, zeros + 1, words);
    for (int run = 0; run < bits / kMaxRawBits; ++run) {
      state = push_bits(state, 0, kMaxRawBits, words);
    }
  }

  [[noreturn]] void throw_not_covered(std::int32_t symbol, std::size_t index,
                                      std::size_t position) const {
    const TableInfo& info = tables_.info(index);
    throw std::invalid_argument("symbol " + std::to_string(symbol) + " at position " +
                                std::to_string(position) + " is outside table " +
                                std::to_string(index) + " (values " +
                                std::to_string(info.first_value) + ".." +
                                std::to_string(last_value(info)) + "), which has no escape");
  }

  const TableSet& tables_;
  TableView view_;
  const Kernels& kernels_;
  unsigned lanes_;
  alignas(64) std::uint32_t states_[kMaxLanes];
  WordStack words_;
};

// The most lanes whose states stay within 0.25 % of the words. A state holds 32 bits of which 0 to
// 16 are information, so a lane costs 3 bytes on average.
inline int lanes_for_payload(std::size_t bytes) {
  constexpr std::size_t kPayloadPerLane = 3 * 400;
  int lanes = 1;
  while (lanes < kMaxLanes && 2 * static_cast<std::size_t>(lanes) * kPayloadPerLane <= bytes) {
    lanes *= 2;
  }
  return lanes;
}

// For symbols that make `streams` streams of about one size. Estimates the payload by coding up to
// 64 runs of 256 symbols, spread evenly.
template <class Index>
int choose_lanes(const TableSet& tables, const std::int32_t* symbols, const Index* indexes,
                 std::size_t count, std::size_t streams = 1) {
  constexpr std::size_t kRuns = 64;
  constexpr std::size_t kRunLength = 256;
  Encoder sampler(tables, 1);
  if (count <= kRuns * kRunLength) {
    sampler.push(symbols, indexes, count, 0);
    return lanes_for_payload(sampler.num_word_bytes() / std::max<std::size_t>(streams, 1));
  }
  for (std::size_t run = 0; run < kRuns; ++run) {
    const std::size_t begin = (count - kRunLength) / (kRuns - 1) * run;
    sampler.push(symbols + begin, indexes + begin, kRunLength, begin);
  }
  const double scale =
      static_cast<double>(count) / (kRuns * kRunLength) / static_cast<double>(streams);
  return lanes_for_payload(
      static_cast<std::size_t>(static_cast<double>(sampler.num_word_bytes()) * scale));
}

// Encodes `count` symbols, each with the index of its table. `lanes` 0 lets choose_lanes() decide.
// Throws like Encoder.
template <class Index>
std::vector<std::uint8_t> encode(const TableSet& tables, const std::int32_t* symbols,
                                 const Index* indexes, std::size_t count, int lanes = 0) {
  if (lanes == 0) lanes = choose_lanes(tables, symbols, indexes, count);
  Encoder encoder(tables, lanes);
  encoder.push(symbols, indexes, count, 0);
  return encoder.finish();
}

}  // namespace rans
}  // namespace pycodec
