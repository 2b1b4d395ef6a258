// Codes random streams at every SIMD level that the processor has and compares all with scalar
// code. A program of its own so that it can be built for, and run on, other processors too:
//
//     simd_levels STREAMS SEED
//
// prints the levels and exits with 1 at the first difference.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cpu/simd_level.hpp"
#include "rans/decoder.hpp"
#include "rans/encoder.hpp"

namespace {

using pycodec::rans::TableSet;
using Random = std::mt19937;

int below(Random& random, int limit) {
  return static_cast<int>(random() % static_cast<unsigned>(limit));
}

struct Tables {
  std::vector<std::uint32_t> frequencies, sizes;
  std::vector<std::int32_t> offsets;
  std::vector<bool> escapes;
};

Tables random_tables(Random& random, int precision) {
  Tables tables;
  const int total = 1 << precision;
  for (int t = 0, count = 1 + below(random, 6); t < count; ++t) {
    const int size = 1 + below(random, std::min(total, below(random, 2) ? 600 : 6));
    std::vector<std::uint32_t> f(static_cast<std::size_t>(size), 1);
    for (int left = total - size; left > 0;) {
      const int part = 1 + below(random, left);
      f[static_cast<std::size_t>(below(random, size))] += static_cast<std::uint32_t>(part);
      left -= part;
    }
    tables.frequencies.insert(tables.frequencies.end(), f.begin(), f.end());
    tables.sizes.push_back(static_cast<std::uint32_t>(size));
    const std::int32_t offsets[] = {-size / 2, 0, -300, 100, INT32_MIN, INT32_MAX - size};
    tables.offsets.push_back(offsets[below(random, 6)]);
    tables.escapes.push_back(below(random, 2) == 1);
  }
  return tables;
}

// Each value as often as its table says, and escapes.
std::int32_t random_symbol(Random& random, const TableSet& tables, std::size_t index) {
  const auto& info = tables.info(index);
  const std::uint32_t slot = random() & ((1u << tables.precision()) - 1);
  const std::uint32_t rank = tables.rank(index, slot);
  if (rank < info.num_values) {
    return static_cast<std::int32_t>(std::int64_t{info.first_value} + rank);
  }
  return static_cast<std::int32_t>(random()) >> below(random, 31);
}

template <class Index>
bool check_stream(Random& random, const TableSet& tables, std::size_t num_tables) {
  using namespace pycodec;
  const auto count = static_cast<std::size_t>(below(random, 700));
  const int lanes = 1 << below(random, 7);
  std::vector<Index> indexes(count);
  std::vector<std::int32_t> symbols(count);
  for (std::size_t n = 0; n < count; ++n) {
    indexes[n] = static_cast<Index>(random() % num_tables);
    symbols[n] = random_symbol(random, tables, indexes[n]);
  }
  std::vector<std::uint8_t> expected;
  for (const SimdLevel level : supported_simd_levels()) {
    set_simd_level(level);
    const auto stream = rans::encode(tables, symbols.data(), indexes.data(), count, lanes);
    if (expected.empty()) expected = stream;
    std::vector<std::int32_t> decoded(count);
    rans::Decoder decoder(tables, stream.data(), stream.size());
    for (std::size_t done = 0; done < count;) {
      const std::size_t part = std::min(count - done, std::size_t{1} + random() % 400);
      decoder.decode(indexes.data() + done, part, decoded.data() + done);
      done += part;
    }
    decoder.finish();
    if (stream != expected || decoded != symbols) {
      std::printf("%s differs: %zu symbols, %d lanes, %d bits\n", simd_level_name(level), count,
                  lanes, tables.precision());
      return false;
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int streams = std::atoi(argv[1]);
  Random random(static_cast<unsigned>(std::atoi(argv[2])));
  for (int done = 0; done < streams;) {
    const int precision = below(random, 2) ? 12 : 1 + below(random, 16);
    const Tables t = random_tables(random, precision);
    const std::size_t max_direct_slots = below(random, 2) ? pycodec::rans::kMaxDirectSlots : 0;
    const TableSet tables(precision, t.frequencies, t.sizes, t.offsets, t.escapes,
                          max_direct_slots);
    for (int i = 0; i < 50 && done < streams; ++i, ++done) {
      const bool good = i % 2 ? check_stream<std::uint8_t>(random, tables, t.sizes.size())
                              : check_stream<std::uint16_t>(random, tables, t.sizes.size());
      if (!good) return 1;
    }
  }
  std::printf("%d streams equal:", streams);
  for (const auto level : pycodec::supported_simd_levels()) {
    std::printf(" %s", pycodec::simd_level_name(level));
  }
  std::printf("\n");
  return 0;
}
