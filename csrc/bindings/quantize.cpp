#include "cpu/quantize.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cpu_module.hpp"

namespace py = pybind11;

namespace {

using pycodec::QuantizedType;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

constexpr int kDense = py::array::c_style;

template <class T>
std::vector<T> values_of(const Array<T>& array, const char* name) {
  if (array.ndim() != 1) throw std::invalid_argument(std::string(name) + " must have 1 dimension");
  return {array.data(), array.data() + array.size()};
}

QuantizedType type_of(const py::dtype& dtype) {
  if (dtype.is(py::dtype::of<std::uint8_t>())) return QuantizedType::kUint8;
  if (dtype.is(py::dtype::of<std::int8_t>())) return QuantizedType::kInt8;
  if (dtype.is(py::dtype::of<std::int16_t>())) return QuantizedType::kInt16;
  throw std::invalid_argument("the integers must be uint8, int8 or int16");
}

std::int64_t pixels_of(const py::array& x, std::size_t channels) {
  if (x.ndim() < 1 || channels == 0 ||
      x.shape(x.ndim() - 1) != static_cast<py::ssize_t>(channels) || !(x.flags() & kDense)) {
    throw std::invalid_argument("values must be contiguous, their last dimension the channels");
  }
  return x.size() / static_cast<std::int64_t>(channels);
}

std::vector<py::ssize_t> shape_of(const py::array& x) { return {x.shape(), x.shape() + x.ndim()}; }

py::array quantize(const Array<float>& x, const Array<float>& scale,
                   const Array<std::int32_t>& zero_point, std::int32_t lower, std::int32_t upper,
                   const py::object& out_dtype, int threads) {
  const auto scales = values_of(scale, "scale");
  const auto zeros = values_of(zero_point, "zero_point");
  const std::int64_t pixels = pixels_of(x, scales.size());
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  const py::dtype dtype = py::dtype::from_args(out_dtype);
  const QuantizedType type = type_of(dtype);
  py::array out(dtype, shape_of(x));
  const float* source = x.data();
  void* target = out.mutable_data();
  {
    py::gil_scoped_release unlocked;
    pycodec::quantize(scales, zeros, lower, upper, source, pixels, type, target, threads);
  }
  return out;
}

Array<float> dequantize(const py::array& q, const Array<float>& scale,
                        const Array<std::int32_t>& zero_point, int threads) {
  const auto scales = values_of(scale, "scale");
  const auto zeros = values_of(zero_point, "zero_point");
  const QuantizedType type = type_of(q.dtype());
  const std::int64_t pixels = pixels_of(q, scales.size());
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  Array<float> out(shape_of(q));
  const void* source = q.data();
  float* target = out.mutable_data();
  {
    py::gil_scoped_release unlocked;
    pycodec::dequantize(scales, zeros, source, type, pixels, target, threads);
  }
  return out;
}

}  // namespace

void bind_quantize(py::module_& m) {
  m.def("quantize", &quantize, py::arg("x").noconvert(), py::arg("scale").noconvert(),
        py::arg("zero_point").noconvert(), py::arg("lower"), py::arg("upper"), py::arg("out_dtype"),
        py::arg("threads") = 1,
        "pycodec.ops.quantize is the definition; arrays are NumPy's. Releases the GIL.");
  m.def("dequantize", &dequantize, py::arg("q"), py::arg("scale").noconvert(),
        py::arg("zero_point").noconvert(), py::arg("threads") = 1,
        "pycodec.ops.dequantize is the definition. Releases the GIL.");
}
