// The parts of the padding that depend on the SIMD level.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycodec {

constexpr int kPadBlock = 16;           // columns interpolated at once
constexpr int kPadCopyBlock = 64;       // bytes copied at once
constexpr int kPadPrefetch = 4 * 1024;  // bytes ahead of what is written

// How a row is read from the `source` columns of another tile, stored as `width`: out[i] = (1 -
// weight[i]) * in[left[i]] + weight[i] * in[right[i]] in float32, and zeros from `columns` up to
// `total`. The arrays go on to a multiple of kPadBlock columns, with zeros.
//
// Neighbouring columns read neighbouring ones, or go around: mostly what block b reads lies in two
// windows of kPadBlock columns, which begin at windows[2 b] and [2 b + 1]. Places are columns in
// these, those of the second window from kPadBlock on. Where they do not hold it all windows are
// -1.
struct PadInterpolation {
  std::int64_t source, width, columns, total;
  const std::int32_t* left;
  const std::int32_t* right;
  const float* weight;
  const std::int32_t* windows;
  const std::int32_t* left_places;
  const std::int32_t* right_places;
  bool has_all_windows;
};

// A block of a row that is copied: byte i is in[first + i] for bit i of first_bytes, in[second + i]
// for those of second_bytes, or zero.
struct PadCopyBlock {
  std::int64_t first, second;
  std::uint64_t first_bytes, second_bytes;
};

// A row that is copied around a row of `source` bytes, from `first` on: `columns` bytes, and zeros
// up to `total`. The same as blocks, of which those from whole_begin to whole_end are whole ones of
// the source one after the other; null where one of them needs more pieces than two.
struct PadCopy {
  std::int64_t source, first, columns, total;
  const PadCopyBlock* blocks;
  std::int64_t whole_begin, whole_end;
};

// Bytes behind what is read where that of the next row is: rows are short and come from three
// tiles, so the hardware does not see what is next. 0 where there is none.
using PadDistance = std::ptrdiff_t;

// `scratch` is for `source` floats.
using PadInterpolateHalves = void(const PadInterpolation& row, const std::uint16_t* in,
                                  std::uint16_t* out, PadDistance next, float* scratch);

struct PadKernel {
  const char* name;
  void (*interpolate)(const PadInterpolation& row, const float* in, float* out, PadDistance next);
  // The same of words of 16-bit floats, rounded to nearest; null where the level does not convert
  // them itself.
  PadInterpolateHalves* interpolate_float16;
  PadInterpolateHalves* interpolate_bfloat16;
  void (*copy)(const PadCopy& row, const std::uint8_t* in, std::uint8_t* out, PadDistance next);
  // Copies whole cache lines, from and to their starts, past the cache.
  void (*stream)(std::uint8_t* to, const std::uint8_t* from, std::size_t bytes);
  bool prefetches;  // while it works; otherwise a row at a time is prefetched before
};

// The portable one.
void copy_around(const PadCopy& row, const std::uint8_t* in, std::uint8_t* out, PadDistance next);

extern const PadKernel kPadKernelScalar;
extern const PadKernel kPadKernelAvx2;
extern const PadKernel kPadKernelAvx512Vnni;

}  // namespace pycodec
