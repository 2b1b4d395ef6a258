// The pseudocylindrical operations, called by pycodec/ops/pseudocylindrical_kernels.py with
// addresses of device memory.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/pseudocylindrical.hpp"
#include "cuda_module.hpp"

namespace py = pybind11;

namespace {

using pycodec::cuda::MaskArguments;
using pycodec::cuda::PadArguments;
using pycodec::cuda::ResampleArguments;
using pycodec::cuda::TileType;

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

TileType tile_type(const std::string& name) {
  if (name == "float32") return TileType::kFloat32;
  if (name == "float64") return TileType::kFloat64;
  if (name == "float16") return TileType::kFloat16;
  if (name == "bfloat16") return TileType::kBfloat16;
  if (name == "bytes1") return TileType::kBytes1;
  if (name == "bytes2") return TileType::kBytes2;
  if (name == "bytes4") return TileType::kBytes4;
  if (name == "bytes8") return TileType::kBytes8;
  if (name == "bytes16") return TileType::kBytes16;
  throw std::invalid_argument("no kernel for tiles of " + name);
}

PadArguments pad_arguments(std::uintptr_t x, std::uintptr_t y, std::uintptr_t widths, int tiles,
                           const std::string& dtype, bool channels_last, std::int64_t batch,
                           std::int64_t channels, std::int64_t height, std::int64_t width,
                           std::int64_t pad_rows, std::int64_t pad_columns) {
  PadArguments a = {};
  a.batch = batch;
  a.channels = channels;
  a.height = height;
  a.width = width;
  a.pad_rows = pad_rows;
  a.pad_columns = pad_columns;
  a.tiles = tiles;
  a.channels_last = channels_last;
  a.type = tile_type(dtype);
  a.widths = pointer<const std::int32_t>(widths);
  a.x = pointer<void>(x);
  a.y = pointer<void>(y);
  return a;
}

void pad(std::uintptr_t x, std::uintptr_t y, std::uintptr_t widths, int tiles,
         const std::string& dtype, bool channels_last, std::int64_t batch, std::int64_t channels,
         std::int64_t height, std::int64_t width, std::int64_t pad_rows, std::int64_t pad_columns,
         std::uintptr_t stream) {
  const PadArguments a = pad_arguments(x, y, widths, tiles, dtype, channels_last, batch, channels,
                                       height, width, pad_rows, pad_columns);
  pycodec::cuda::pseudocylindrical_pad(a, pointer<void>(stream));
}

void pad_adjoint(std::uintptr_t y, std::uintptr_t x, std::uintptr_t widths, std::uintptr_t begins,
                 std::uintptr_t readers, int tiles, const std::string& dtype, bool channels_last,
                 std::int64_t batch, std::int64_t channels, std::int64_t height, std::int64_t width,
                 std::int64_t pad_rows, std::int64_t pad_columns, std::uintptr_t stream) {
  PadArguments a = pad_arguments(x, y, widths, tiles, dtype, channels_last, batch, channels, height,
                                 width, pad_rows, pad_columns);
  a.begins = pointer<const std::int32_t>(begins);
  a.readers = pointer<const std::int32_t>(readers);
  pycodec::cuda::pseudocylindrical_pad_adjoint(a, pointer<void>(stream));
}

void mask(std::uintptr_t x, std::uintptr_t out, std::uintptr_t widths, int tiles, int element_bytes,
          std::int64_t batch, std::int64_t rows, std::int64_t columns, std::int64_t elements,
          std::uintptr_t stream) {
  MaskArguments a = {};
  a.batch = batch;
  a.rows = rows;
  a.columns = columns;
  a.elements = elements;
  a.tiles = tiles;
  a.type = tile_type("bytes" + std::to_string(element_bytes));
  a.widths = pointer<const std::int32_t>(widths);
  a.x = pointer<const void>(x);
  a.out = pointer<void>(out);
  pycodec::cuda::pseudocylindrical_mask(a, pointer<void>(stream));
}

void resample(std::uintptr_t x, std::uintptr_t out, std::uintptr_t table, std::uintptr_t sizes,
              std::uintptr_t first, std::uintptr_t weights, std::int64_t most_taps,
              const std::string& dtype, bool to_tiles, std::int64_t pictures, std::int64_t channels,
              std::int64_t tiles, std::int64_t height, std::int64_t width, std::uintptr_t stream) {
  ResampleArguments a = {};
  a.pictures = pictures;
  a.channels = channels;
  a.tiles = tiles;
  a.height = height;
  a.width = width;
  a.most_taps = most_taps;
  a.to_tiles = to_tiles;
  a.type = tile_type(dtype);
  a.table = pointer<const std::int32_t>(table);
  a.sizes = pointer<const std::int32_t>(sizes);
  a.first = pointer<const std::int32_t>(first);
  a.weights = pointer<const void>(weights);
  a.x = pointer<const void>(x);
  a.out = pointer<void>(out);
  pycodec::cuda::pseudocylindrical_resample(a, pointer<void>(stream));
}

}  // namespace

void bind_cuda_pseudocylindrical(py::module_& m) {
  m.def("pseudocylindrical_pad", &pad, py::kw_only(), py::arg("x"), py::arg("y"), py::arg("widths"),
        py::arg("tiles"), py::arg("dtype"), py::arg("channels_last"), py::arg("batch"),
        py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("pad_rows"),
        py::arg("pad_columns"), py::arg("stream"),
        "csrc/cuda/pseudocylindrical.hpp describes the arguments.");
  m.def("pseudocylindrical_pad_adjoint", &pad_adjoint, py::kw_only(), py::arg("y"), py::arg("x"),
        py::arg("widths"), py::arg("begins"), py::arg("readers"), py::arg("tiles"),
        py::arg("dtype"), py::arg("channels_last"), py::arg("batch"), py::arg("channels"),
        py::arg("height"), py::arg("width"), py::arg("pad_rows"), py::arg("pad_columns"),
        py::arg("stream"), "csrc/cuda/pseudocylindrical.hpp describes the arguments.");
  m.def("pseudocylindrical_mask", &mask, py::kw_only(), py::arg("x"), py::arg("out"),
        py::arg("widths"), py::arg("tiles"), py::arg("element_bytes"), py::arg("batch"),
        py::arg("rows"), py::arg("columns"), py::arg("elements"), py::arg("stream"),
        "csrc/cuda/pseudocylindrical.hpp describes the arguments.");
  m.def("pseudocylindrical_resample", &resample, py::kw_only(), py::arg("x"), py::arg("out"),
        py::arg("table"), py::arg("sizes"), py::arg("first"), py::arg("weights"),
        py::arg("most_taps"), py::arg("dtype"), py::arg("to_tiles"), py::arg("pictures"),
        py::arg("channels"), py::arg("tiles"), py::arg("height"), py::arg("width"),
        py::arg("stream"), "csrc/cuda/pseudocylindrical.hpp describes the arguments.");
}
