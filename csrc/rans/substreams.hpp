// Many streams in one: independent substreams that threads, or the warps of a GPU, code side by
// side, with an index that leads to each of them. docs/rans.md has the bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/parallel.hpp"
#include "rans/decoder.hpp"
#include "rans/encoder.hpp"
#include "rans/rans.hpp"
#include "rans/tables.hpp"

namespace pycodec {
namespace rans {

struct Substream {
  std::uint64_t first_symbol;  // of all symbols
  std::uint32_t num_symbols;
  std::size_t body;  // where states and words are, in bytes from the start
  std::size_t body_size;
};

// LEB128: seven bits a byte, the lowest first; the top bit says that more follow.
inline void append_varint(std::vector<std::uint8_t>& out, std::uint32_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<std::uint8_t>(value | 0x80));
  out.push_back(static_cast<std::uint8_t>(value));
}

// Reads at `position` and moves it on.
inline std::uint32_t read_varint(const std::uint8_t* data, std::size_t size,
                                 std::size_t& position) {
  std::uint64_t value = 0;
  for (int shift = 0; shift < 35; shift += 7) {
    if (position == size) throw CorruptStream("the index of the substreams ends early", size);
    const std::uint8_t byte = data[position++];
    value |= std::uint64_t{byte & 0x7fu} << shift;
    if (byte >= 0x80) continue;
    const bool is_shortest = byte != 0 || shift == 0;
    if (!is_shortest || value > std::numeric_limits<std::uint32_t>::max()) break;
    return static_cast<std::uint32_t>(value);
  }
  throw CorruptStream("a number in the index of the substreams is invalid", position - 1);
}

// What the index says, checked against the size of the data. Throws CorruptStream.
class SubstreamIndex {
 public:
  SubstreamIndex(const TableSet& tables, const std::uint8_t* data, std::size_t size)
      : lanes_(Decoder::parse_header_byte(tables, data, size)) {
    const std::size_t states_size = kStateBytes * static_cast<std::size_t>(lanes_);
    std::size_t position = kHeaderBytes;
    const std::uint32_t count = read_varint(data, size, position);
    // Each has two numbers in the index and its states, so a false count is found before it costs
    // memory.
    if (count > (size - position) / (2 + states_size)) {
      throw CorruptStream(
          std::to_string(count) + " substreams do not fit into " + std::to_string(size) + " bytes",
          kHeaderBytes);
    }
    substreams_.resize(count);
    for (Substream& substream : substreams_) {
      substream.num_symbols = read_varint(data, size, position);
      substream.body_size = states_size + kWordBytes * read_varint(data, size, position);
    }
    if (position % 2 != 0) {
      if (position == size) throw CorruptStream("the substreams lack their padding", size);
      if (data[position] != 0) throw CorruptStream("the padding is not zero", position);
      ++position;
    }
    for (Substream& substream : substreams_) {
      substream.first_symbol = num_symbols_;
      num_symbols_ += substream.num_symbols;
      substream.body = position;
      if (substream.body_size > size - position) {
        throw CorruptStream("the last substreams are missing", size);
      }
      position += substream.body_size;
    }
    if (position != size) throw CorruptStream("data goes on after the last substream", position);
  }

  int lanes() const { return lanes_; }
  std::uint64_t num_symbols() const { return num_symbols_; }
  std::size_t size() const { return substreams_.size(); }
  const Substream& operator[](std::size_t i) const { return substreams_[i]; }

  // A decoder for one of them; `data` is what the index was read from.
  Decoder decoder(std::size_t i, const TableSet& tables, const std::uint8_t* data) const {
    const std::uint8_t* const body = data + substreams_[i].body;
    return {tables, lanes_, data, body, body + substreams_[i].body_size};
  }

 private:
  int lanes_;
  std::uint64_t num_symbols_ = 0;
  std::vector<Substream> substreams_;
};

// Substream i codes the next counts[i] symbols; the counts add up to the number of symbols.
// `lanes` 0 takes as many as suit substreams of the mean size. Throws like Encoder.
template <class Index>
std::vector<std::uint8_t> encode_substreams(const TableSet& tables, const std::int32_t* symbols,
                                            const Index* indexes,
                                            const std::vector<std::uint32_t>& counts, int lanes,
                                            int threads) {
  std::vector<std::size_t> first(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), first.begin() + 1, std::plus<std::size_t>());
  if (lanes == 0) lanes = choose_lanes(tables, symbols, indexes, first.back(), counts.size());
  std::vector<std::vector<std::uint8_t>> bodies(counts.size());
  parallel_for(static_cast<std::int64_t>(counts.size()), threads, [&](std::int64_t item) {
    const auto i = static_cast<std::size_t>(item);
    Encoder encoder(tables, lanes);
    encoder.push(symbols + first[i], indexes + first[i], counts[i], 0);
    bodies[i].reserve(encoder.body_size());
    encoder.append_body(bodies[i]);
  });
  std::vector<std::uint8_t> out = {header_byte(lanes, tables.precision())};
  append_varint(out, static_cast<std::uint32_t>(counts.size()));
  const std::size_t states_size = kStateBytes * static_cast<std::size_t>(lanes);
  std::size_t size = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    append_varint(out, counts[i]);
    append_varint(out, static_cast<std::uint32_t>((bodies[i].size() - states_size) / kWordBytes));
    size += bodies[i].size();
  }
  if (out.size() % 2 != 0) out.push_back(0);  // so that words lie at even addresses
  out.reserve(out.size() + size);
  for (const auto& body : bodies) out.insert(out.end(), body.begin(), body.end());
  return out;
}

// Decodes substreams [first, last), each to its end. `indexes` and `symbols` are those of these
// substreams alone. Throws like Decoder; the message then names the substream.
template <class Index>
void decode_substreams(const TableSet& tables, const SubstreamIndex& index,
                       const std::uint8_t* data, std::size_t first, std::size_t last,
                       const Index* indexes, std::int32_t* symbols, int threads) {
  parallel_for(static_cast<std::int64_t>(last - first), threads, [&](std::int64_t item) {
    const std::size_t i = first + static_cast<std::size_t>(item);
    const std::uint64_t begin = index[i].first_symbol - index[first].first_symbol;
    try {
      Decoder decoder = index.decoder(i, tables, data);
      decoder.decode(indexes + begin, index[i].num_symbols, symbols + begin);
      decoder.finish();
    } catch (const CorruptStream& error) {
      throw CorruptStream("substream " + std::to_string(i) + ": " + error.what(), error.offset());
    }
  });
}

}  // namespace rans
}  // namespace pycodec
