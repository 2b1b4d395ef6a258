// The shape of the AMX tiles: all eight are as large as they can be. Internal linkage, as in all
// that SIMD variants include: see simd_level.hpp.
#pragma once

#include <cstdint>

namespace pycodec {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row

struct alignas(64) TileConfiguration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t column_bytes[16] = {};
  std::uint8_t rows[16] = {};

  TileConfiguration() {
    for (int i = 0; i < 8; ++i) {
      column_bytes[i] = kTileBytes;
      rows[i] = kTileRows;
    }
  }
};

}  // namespace
}  // namespace pycodec
