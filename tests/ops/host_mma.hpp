// The tensor-core kernel of the integer convolution on the host.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>

#include "cuda/quantized_conv2d_mma.hpp"
#include "host_warps.hpp"

namespace pycodec::cuda {

template <class Tile, class Types>
void run_mma(const QuantizedConv2dArguments& a, Tile, Types) {
  const auto shared = std::make_unique<MmaShared<Tile>>();
  for (std::int64_t block = 0; block < mma_blocks<Tile>(a); ++block) {
    std::memset(shared.get(), 0x5A, sizeof(MmaShared<Tile>));
    quantized_conv2d_mma_block<EmulatedWarps<Tile::kThreads>, Types, Tile>(
        a, static_cast<std::uint32_t>(block), *shared);
  }
}

}  // namespace pycodec::cuda
