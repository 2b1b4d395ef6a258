// A small, fast libFuzzer target beside fuzz_rans.cpp: arbitrary bytes, decoded with arbitrary
// tables and counts at one SIMD level that the input chooses. Only the sanitizers and the kinds of
// exceptions are checked, so it runs many times as often.
//
// An input: its level, the tables' precision and how many, each table (size, first value, whether
// it has an escape, how its frequencies are spread), the calls' counts, then the stream.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cpu/simd_level.hpp"
#include "rans/compressai.hpp"
#include "rans/decoder.hpp"
#include "rans/rans.hpp"
#include "rans/substreams.hpp"
#include "rans/tables.hpp"

namespace {

using pycodec::CorruptStream;
using pycodec::rans::TableSet;

struct Input {
  const std::uint8_t* next;
  const std::uint8_t* end;

  std::uint32_t byte() { return next == end ? 0 : *next++; }
  std::uint32_t word() {
    const std::uint32_t low = byte();
    return low | byte() << 8;
  }
  std::size_t size() const { return static_cast<std::size_t>(end - next); }
};

// Valid tables of a chosen shape; or, one time in 16, whatever the numbers say.
TableSet make_tables(Input& input, int precision, std::size_t num_tables) {
  const std::uint32_t total = 1u << precision;
  std::vector<std::uint32_t> frequencies;
  std::vector<std::uint32_t> sizes;
  std::vector<std::int32_t> offsets;
  std::vector<bool> escapes;
  for (std::size_t t = 0; t < num_tables; ++t) {
    const std::uint32_t shape = input.byte();
    const std::uint32_t size = 1 + (shape & 1 ? input.word() % 300 : shape >> 4) % total;
    const std::uint32_t last = shape & 2 ? total - size + 1 : 1 + (total - size) / 2;
    for (std::uint32_t i = 0; i < size; ++i) frequencies.push_back(1);
    frequencies[frequencies.size() - size] += total - size + 1 - last;
    frequencies.back() += last - 1;
    sizes.push_back(size);
    escapes.push_back((shape & 4) != 0);
    const auto far = static_cast<std::int32_t>(input.word() << 16);
    offsets.push_back(shape & 8 ? far : -static_cast<std::int32_t>(size / 2));
  }
  if (input.byte() < 16) {
    for (auto* numbers : {&frequencies, &sizes}) {
      (*numbers)[input.word() % numbers->size()] = input.word() << (input.byte() % 17);
    }
  }
  const std::size_t max_direct = input.byte() < 64 ? 0 : pycodec::rans::kMaxDirectSlots;
  return {precision, frequencies, sizes, offsets, escapes, max_direct};
}

template <class Index>
void decode(Input input, const TableSet& tables, std::uint32_t seed) {
  std::uint32_t counts[3];
  for (std::uint32_t& count : counts) count = input.word() % 600;
  const bool has_substreams = input.byte() < 64;
  const std::size_t size = input.size();
  // Of exactly this size, so that the sanitizer sees what lies beyond.
  const std::unique_ptr<std::uint8_t[]> stream(new std::uint8_t[size]);
  std::copy(input.next, input.end, stream.get());
  if (size > 0 && (seed & 1) == 0) {  // mostly a header that fits, and states that do
    stream[0] = static_cast<std::uint8_t>((seed >> 1) % 7 | (tables.precision() - 1) << 4);
    for (std::size_t i = 4; i < size && i <= 256; i += 4) stream[i] |= 1;
  }
  const auto make_indexes = [&](std::size_t count) {
    std::unique_ptr<Index[]> indexes(new Index[count]);
    for (std::size_t i = 0; i < count; ++i) {
      seed = seed * 1664525 + 1013904223;
      indexes[i] = static_cast<Index>((seed >> 16) % (tables.num_tables() + (seed >> 24 == 0)));
    }
    return indexes;
  };
  if (has_substreams) {
    const pycodec::rans::SubstreamIndex index(tables, stream.get(), size);
    if (index.num_symbols() > 4096) return;
    const std::size_t count = index.num_symbols();
    const std::unique_ptr<std::int32_t[]> symbols(new std::int32_t[count]);
    pycodec::rans::decode_substreams(tables, index, stream.get(), 0, index.size(),
                                     make_indexes(count).get(), symbols.get(), 1);
    return;
  }
  pycodec::rans::Decoder decoder(tables, stream.get(), size);
  for (const std::uint32_t count : counts) {
    const std::unique_ptr<std::int32_t[]> symbols(new std::int32_t[count]);
    decoder.decode(make_indexes(count).get(), count, symbols.get());
  }
  decoder.finish();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto levels = pycodec::supported_simd_levels();
  Input input = {data, data + size};
  pycodec::set_simd_level(levels[input.byte() % levels.size()]);
  const std::uint32_t seed = input.word();
  // Large tables take long to make: 11 to 16 bits one time in 16.
  const std::uint32_t choice = input.byte();
  const int precision = static_cast<int>(choice < 16 ? 11 + choice % 6 : 1 + choice % 10);
  try {
    const TableSet tables = make_tables(input, precision, 1 + input.byte() % 4);
    seed & 2 ? decode<std::uint8_t>(input, tables, seed)
             : decode<std::uint16_t>(input, tables, seed);
  } catch (const std::invalid_argument&) {
  } catch (const CorruptStream&) {
  }
  return 0;
}
