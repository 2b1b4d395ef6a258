// Arrays hold the elements that the dtype's name says, or, for float16 and bfloat16, their words.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/pseudocylindrical_mask.hpp"
#include "cpu/pseudocylindrical_pad.hpp"
#include "cpu/pseudocylindrical_slice.hpp"
#include "cpu/spans.hpp"
#include "cpu_module.hpp"

namespace py = pybind11;

namespace {

using Widths = std::vector<std::int64_t>;

void check_array(const py::array& array, int threads) {
  if (array.ndim() != 4 || !(array.flags() & py::array::c_style)) {
    throw std::invalid_argument("the array must be C-contiguous, of 4 dimensions");
  }
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
}

pycodec::ElementType check_elements(const py::array& array, const std::string& dtype) {
  const pycodec::ElementType type = pycodec::parse_element_type(dtype);
  if (array.itemsize() != pycodec::element_bytes(type)) {
    throw std::invalid_argument("elements of " + std::to_string(array.itemsize()) +
                                " bytes are not " + dtype);
  }
  return type;
}

// Adds padding or, the adjoint, takes it away.
py::array pad(const py::array& array, const std::string& dtype, const Widths& widths,
              const std::pair<std::int64_t, std::int64_t>& pads, bool channels_last, int threads,
              bool adjoint) {
  constexpr std::int64_t kMost = 1 << 12;  // MAX_PAD in pycodec/ops/pseudocylindrical_pad.py
  check_array(array, threads);
  if (pads.first < 0 || pads.first > kMost || pads.second < 0 || pads.second > kMost) {
    throw std::invalid_argument("padding must be 0 to " + std::to_string(kMost));
  }
  std::vector<py::ssize_t> shape(array.shape(), array.shape() + 4);
  const int first = channels_last ? 1 : 2;
  pycodec::PadShape s = {};
  s.type = check_elements(array, dtype);
  s.batch = shape[0];
  s.channels = shape[channels_last ? 3 : 1];
  const std::int64_t more = adjoint ? -2 : 2;
  s.height = shape[first] + (adjoint ? -2 * pads.first : 0);
  s.width = shape[first + 1] + (adjoint ? -2 * pads.second : 0);
  s.pad_rows = pads.first;
  s.pad_columns = pads.second;
  s.channels_last = channels_last;
  shape[first] += more * pads.first;
  shape[first + 1] += more * pads.second;
  if (s.height < 1 || s.width < 1) throw std::invalid_argument("tiles need pixels");
  py::array out(array.dtype(), shape);
  const void* from = array.data();
  void* to = out.mutable_data();
  {
    const pycodec::SpanScope span(
        adjoint ? "pseudocylindrical_pad_adjoint" : "pseudocylindrical_pad",
        [&] { return pycodec::SpanWork{array.nbytes() + out.nbytes()}; });
    py::gil_scoped_release unlocked;
    const auto run =
        adjoint ? pycodec::pseudocylindrical_pad_adjoint : pycodec::pseudocylindrical_pad;
    run(s, widths, from, to, threads);
  }
  return out;
}

py::array mask(const py::array& array, const Widths& widths, bool channels_last, int threads) {
  check_array(array, threads);
  const py::ssize_t* shape = array.shape();
  py::array out(array.dtype(), std::vector<py::ssize_t>(shape, shape + 4));
  const std::int64_t rows = channels_last ? shape[1] : shape[1] * shape[2];
  const std::int64_t columns = channels_last ? shape[2] : shape[3];
  const std::int64_t bytes = array.itemsize() * (channels_last ? shape[3] : 1);
  const std::int64_t batch = shape[0];
  const auto* from = static_cast<const std::uint8_t*>(array.data());
  auto* to = static_cast<std::uint8_t*>(out.mutable_data());
  {
    const pycodec::SpanScope span("pseudocylindrical_mask",
                                  [&] { return pycodec::SpanWork{array.nbytes() + out.nbytes()}; });
    py::gil_scoped_release unlocked;
    pycodec::pseudocylindrical_mask(batch, rows, columns, bytes, widths, from, to, threads);
  }
  return out;
}

using Integers = py::array_t<std::int32_t, py::array::c_style>;

py::array resample(const py::array& array, const std::string& dtype, const Integers& table,
                   const Integers& sizes, const Integers& first, const py::array& weights,
                   bool to_tiles, int threads) {
  check_array(array, threads);
  pycodec::ResampleShape s = {};
  s.type = check_elements(array, dtype);
  const bool is_double = s.type == pycodec::ElementType::kFloat64;
  if (!weights.dtype().is(is_double ? py::dtype::of<double>() : py::dtype::of<float>()) ||
      !(weights.flags() & py::array::c_style)) {
    throw std::invalid_argument("weights must be contiguous float64 for float64, or float32");
  }
  if (table.ndim() != 1 || sizes.ndim() != 2 || sizes.shape(1) != 3 || first.ndim() != 2 ||
      first.shape(0) != sizes.shape(0) || first.shape(1) != array.shape(3) || weights.ndim() != 3 ||
      weights.shape(0) != sizes.shape(0) || weights.shape(2) != array.shape(3)) {
    throw std::invalid_argument("the tables do not fit together");
  }
  std::vector<py::ssize_t> shape(array.shape(), array.shape() + 4);
  const py::ssize_t tiles = table.shape(0);
  const int cut = to_tiles ? 2 : 0;  // the dimension that counts tiles
  if (tiles < 1 || shape[cut] % tiles != 0) {
    throw std::invalid_argument("that many tiles do not divide the array");
  }
  s.to_tiles = to_tiles;
  s.tiles = tiles;
  s.channels = shape[1];
  s.width = shape[3];
  shape[cut] /= tiles;
  s.pictures = shape[0];
  s.height = shape[2];
  shape[2 - cut] *= tiles;
  const pycodec::ResampleTables tables = {sizes.shape(0), weights.shape(1), table.data(),
                                          sizes.data(),   first.data(),     weights.data()};
  py::array out(array.dtype(), shape);
  const void* from = array.data();
  void* to = out.mutable_data();
  {
    const pycodec::SpanScope span("pseudocylindrical_resample",
                                  [&] { return pycodec::SpanWork{array.nbytes() + out.nbytes()}; });
    py::gil_scoped_release unlocked;
    pycodec::pseudocylindrical_resample(s, tables, from, to, threads);
  }
  return out;
}

}  // namespace

void bind_pseudocylindrical(py::module_& m) {
  m.def(
      "pseudocylindrical_pad",
      [](const py::array& x, const std::string& dtype, const Widths& widths,
         const std::pair<std::int64_t, std::int64_t>& pads, bool channels_last,
         int threads) { return pad(x, dtype, widths, pads, channels_last, threads, false); },
      py::arg("x").noconvert(), py::arg("dtype"), py::arg("widths"), py::arg("pad"),
      py::arg("channels_last"), py::arg("threads") = 1,
      "pycodec.ops.pseudocylindrical_pad, at the SIMD level in force. Releases the GIL.");
  m.def(
      "pseudocylindrical_pad_adjoint",
      [](const py::array& y, const std::string& dtype, const Widths& widths,
         const std::pair<std::int64_t, std::int64_t>& pads, bool channels_last,
         int threads) { return pad(y, dtype, widths, pads, channels_last, threads, true); },
      py::arg("y").noconvert(), py::arg("dtype"), py::arg("widths"), py::arg("pad"),
      py::arg("channels_last"), py::arg("threads") = 1, "The transposed map. Releases the GIL.");
  m.def("pseudocylindrical_mask", &mask, py::arg("x").noconvert(), py::arg("widths"),
        py::arg("channels_last"), py::arg("threads") = 1,
        "pycodec.ops.pseudocylindrical_mask. Releases the GIL.");
  m.def("pseudocylindrical_resample", &resample, py::arg("x").noconvert(), py::arg("dtype"),
        py::arg("table").noconvert(), py::arg("sizes").noconvert(), py::arg("first").noconvert(),
        py::arg("weights").noconvert(), py::arg("to_tiles"), py::arg("threads") = 1,
        "pycodec.ops.pseudocylindrical_slice, or the opposite, by tables. Releases the GIL.");
}
