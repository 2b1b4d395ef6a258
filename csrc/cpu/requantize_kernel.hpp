// What the SIMD variants of requantization have in common. Only plain structs and functions with
// internal linkage: see simd_level.hpp.
#pragma once

#include <cstdint>

namespace pycodec {

// out = clamp((x * multiplier[c] + offset[c]) >> shift, lower, upper), in 64 bits.
struct RequantizeLayer {
  int channels;
  const std::int32_t* multiplier;
  const std::int64_t* offset;
  int shift;
  std::int32_t lower, upper;
};

// How results are stored: bytes, exclusive-or `flip`; the bytes of value + 2^15 in two planes; or
// int16.
enum class RequantizeStore { kBytes, kPlanes, kInt16 };

struct RequantizeRow {
  const void* x;  // int16, or int32 if wide: [pixels][channels]
  bool wide;
  std::int64_t pixels;
  std::uint8_t* out;
  std::int64_t pixel_bytes;   // from one pixel to the next
  std::int64_t plane_stride;  // of kPlanes
  RequantizeStore store;
  std::uint8_t flip;
};

using RequantizeKernel = void (*)(const RequantizeLayer&, const RequantizeRow&);

void requantize_scalar(const RequantizeLayer& layer, const RequantizeRow& row);
void requantize_avx512vnni(const RequantizeLayer& layer, const RequantizeRow& row);

// Stores a value of channel c of the pixel at `out`.
static inline void store_requantized(const RequantizeRow& row, std::uint8_t* out, int c,
                                     std::int32_t value) {
  switch (row.store) {
    case RequantizeStore::kBytes:
      out[c] = static_cast<std::uint8_t>(value ^ row.flip);
      break;
    case RequantizeStore::kPlanes:
      out[c] = static_cast<std::uint8_t>((value + 0x8000) >> 8);
      out[c + row.plane_stride] = static_cast<std::uint8_t>(value);
      break;
    default:
      reinterpret_cast<std::int16_t*>(out)[c] = static_cast<std::int16_t>(value);
  }
}

}  // namespace pycodec
