// The pseudocylindrical operations on a GPU. pycodec/ops/pseudocylindrical_*.py are their
// definitions, pycodec/ops/pseudocylindrical_kernels.py prepares the arguments.
#pragma once

#include <cstdint>

namespace pycodec::cuda {

// Bytes are copied, in words of 1 to 16 bytes.
enum class TileType {
  kFloat32,
  kFloat64,
  kFloat16,
  kBfloat16,
  kBytes1,
  kBytes2,
  kBytes4,
  kBytes8,
  kBytes16
};

// All pointers are to device memory. Sizes are those of tiles without padding.
struct PadArguments {
  std::int64_t batch, channels, height, width, pad_rows, pad_columns;
  int tiles;
  bool channels_last;
  TileType type;
  const std::int32_t* widths;  // [tiles]
  void* x;                     // [batch][channels][height][width], or with the channels last
  void* y;                     // padded
  // For the adjoint, from y to x: which rows of the padded tiles read a row of the tiles.
  const std::int32_t* begins;   // [tiles * height + 1]
  const std::int32_t* readers;  // 2 * row of the padded tiles, + 1 if half a turn away
};

struct MaskArguments {
  std::int64_t batch, rows, columns, elements;  // a column has so many elements
  int tiles;
  TileType type;
  const std::int32_t* widths;
  const void* x;  // [batch][rows][columns][elements]
  void* out;
};

struct ResampleArguments {
  std::int64_t pictures, channels, tiles, height, width, most_taps;  // height: of a tile
  bool to_tiles;                                                     // or back
  TileType type;
  const std::int32_t* table;  // [tiles]
  const std::int32_t* sizes;  // [maps][3]: source, target, taps
  const std::int32_t* first;  // [maps][width]
  const void* weights;        // [maps][most_taps][width]
  const void* x;
  void* out;
};

// Each queues a kernel on `stream` (a cudaStream_t) of the current device and does not wait for it.
// Throws std::runtime_error where the kernel cannot be launched, and where there is none.
void pseudocylindrical_pad(const PadArguments& arguments, void* stream);
void pseudocylindrical_pad_adjoint(const PadArguments& arguments, void* stream);
void pseudocylindrical_mask(const MaskArguments& arguments, void* stream);
void pseudocylindrical_resample(const ResampleArguments& arguments, void* stream);

}  // namespace pycodec::cuda
