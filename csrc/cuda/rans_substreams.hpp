// What the kernels of rans.cu do with one substream; the tests run it on the host.
#pragma once

#include <cstdint>

#include "cuda/rans.hpp"
#include "rans/device.hpp"
#include "rans/rans.hpp"
#include "rans/warp.hpp"

namespace pycodec::cuda {

template <class Warp, int kLanesPerThread, class Index>
PYCODEC_DEVICE void decode_substream(const RansDecodeArguments& a, std::int64_t number) {
  using Decoder = rans::WarpDecoder<Warp, kLanesPerThread>;
  struct Fetched {
    std::uint32_t index;
  };
  const RansSubstream substream = a.substreams[number];
  const auto* indexes = static_cast<const Index*>(a.indexes) + substream.first_symbol;
  std::int32_t* const symbols = a.symbols + substream.first_symbol;
  const std::uint8_t* const body = a.data + substream.body;
  const auto lanes = static_cast<unsigned>(a.lanes);
  const std::int64_t checkpoint = number * Decoder::checkpoint_size(lanes);

  Decoder decoder(a.tables, a.lanes);
  std::uint64_t report = 0;
  if (a.before == nullptr) {
    report = decoder.start(body, substream.body_size);
  } else {
    decoder.resume(body, substream.body_size, a.before + checkpoint);
  }
  if (report == 0) {
    report = decoder.decode(
        static_cast<std::uint32_t>(substream.num_symbols),
        [&](std::uint32_t n) { return Fetched{rans::load_constant(indexes + n)}; },
        [&](std::uint32_t n, const Fetched&, std::int32_t symbol) { symbols[n] = symbol; });
  }
  if (report == 0) {
    if (a.after == nullptr) {
      report = decoder.finish();
    } else {
      decoder.save(a.after + checkpoint);
    }
  }
  Warp::each([&](unsigned t) {
    if (t == 0) a.failures[number] = report;
  });
}

// The room for the words of one substream.
PYCODEC_HOST_DEVICE inline std::uint32_t scratch_capacity(const RansSubstream& substream,
                                                          int words_per_symbol) {
  const std::uint64_t words = substream.num_symbols * static_cast<unsigned>(words_per_symbol);
  return words < 0xffffffff ? static_cast<std::uint32_t>(words) : 0xffffffff;
}

template <class Warp, int kLanesPerThread, class Index>
PYCODEC_DEVICE void encode_substream(const RansEncodeArguments& a, std::int64_t number) {
  const RansSubstream substream = a.substreams[number];
  const std::int32_t* const symbols = a.symbols + substream.first_symbol;
  const auto* indexes = static_cast<const Index*>(a.indexes) + substream.first_symbol;
  const std::uint32_t capacity = scratch_capacity(substream, a.words_per_symbol);
  rans::WarpEncoder<Warp, kLanesPerThread> encoder(
      a.tables, rans::load_constant(a.lanes + number),
      a.scratch + substream.first_symbol * a.words_per_symbol, capacity);
  const std::uint64_t report = encoder.encode(
      static_cast<std::uint32_t>(substream.num_symbols),
      [&](std::uint32_t n) { return rans::load_constant(symbols + n); },
      [&](std::uint32_t n) -> std::uint32_t { return rans::load_constant(indexes + n); });
  encoder.save_states(a.states + number * a.most_lanes);
  Warp::each([&](unsigned t) {
    if (t != 0) return;
    a.num_words[number] = capacity - encoder.top();
    a.failures[number] = report;
  });
}

template <class Warp>
PYCODEC_DEVICE void copy_substream(const RansCopyArguments& a, std::int64_t number) {
  const RansSubstream substream = a.substreams[number];
  const auto lanes = static_cast<unsigned>(rans::load_constant(a.lanes + number));
  const std::uint64_t num_words =
      (substream.body_size - rans::kStateBytes * lanes) / rans::kWordBytes;
  const std::uint32_t* const states = a.states + number * a.most_lanes;
  const std::uint16_t* const words = a.scratch + substream.first_symbol * a.words_per_symbol +
                                     scratch_capacity(substream, a.words_per_symbol) - num_words;
  auto* const out = reinterpret_cast<std::uint16_t*>(a.data + substream.body);
  Warp::each([&](unsigned t) {
    for (unsigned lane = t; lane < lanes; lane += rans::kWarpThreads) {
      out[2 * lane] = static_cast<std::uint16_t>(states[lane]);
      out[2 * lane + 1] = static_cast<std::uint16_t>(states[lane] >> 16);
    }
    for (std::uint64_t n = t; n < num_words; n += rans::kWarpThreads) {
      out[2 * lanes + n] = words[n];
    }
  });
}

}  // namespace pycodec::cuda
