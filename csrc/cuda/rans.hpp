// Many rANS substreams on a GPU, a warp a substream. docs/rans.md has the bytes, and
// pycodec/coding/rans_cuda.py calls this.
#pragma once

#include <cstdint>

#include "rans/device.hpp"

namespace pycodec::cuda {

// All pointers are to device memory.

struct RansSubstream {
  std::uint64_t first_symbol;  // of all symbols and indexes
  std::uint64_t num_symbols;
  std::uint64_t body;  // where states and words are, in bytes from the start of the data; even
  std::uint64_t body_size;
};

struct RansDecodeArguments {
  rans::DeviceTables tables;
  const void* indexes;
  int index_bytes;  // 1 or 2: uint8 or uint16
  std::int32_t* symbols;
  const std::uint8_t* data;  // at an even address
  const RansSubstream* substreams;
  std::int64_t num_substreams;
  int lanes;
  // Checkpoints [num_substreams][lanes + 2]: where to go on, null for the start; and where to leave
  // off, null for the end of each substream, which is then checked.
  const std::uint32_t* before;
  std::uint32_t* after;
  std::uint64_t* failures;  // [num_substreams], gets rans::failure_report()
};

// The bodies of `substreams` are not read.
struct RansEncodeArguments {
  rans::DeviceTables tables;
  const std::int32_t* symbols;
  const void* indexes;
  int index_bytes;
  const RansSubstream* substreams;
  std::int64_t num_substreams;
  const std::int32_t* lanes;  // [num_substreams]
  int most_lanes;             // of all of them
  int words_per_symbol;       // 1, or rans::kMaxWordsPerEscape if that turned out too few
  std::uint16_t* scratch;     // [number of all symbols][words_per_symbol]
  std::uint32_t* states;      // [num_substreams][most_lanes]
  std::uint64_t* num_words;   // [num_substreams]
  std::uint64_t* failures;    // [num_substreams], gets rans::failure_report()
};

// Brings to their place what was encoded with the same arguments.
struct RansCopyArguments {
  const RansSubstream* substreams;
  std::int64_t num_substreams;
  const std::int32_t* lanes;
  int most_lanes;
  int words_per_symbol;
  const std::uint16_t* scratch;
  const std::uint32_t* states;
  std::uint8_t* data;  // at an even address
};

// Each queues a kernel on `stream` (a cudaStream_t) of the current device and does not wait for it.
// Throws std::runtime_error where the kernel cannot be launched.
void rans_decode(const RansDecodeArguments& arguments, void* stream);
void rans_encode(const RansEncodeArguments& arguments, void* stream);
void rans_copy(const RansCopyArguments& arguments, void* stream);

}  // namespace pycodec::cuda
