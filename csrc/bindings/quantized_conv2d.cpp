#include "cpu/quantized_conv2d.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "cpu/spans.hpp"
#include "cpu_module.hpp"

namespace py = pybind11;

namespace {

using pycodec::OutputType;
using pycodec::QuantizedConv2d;

constexpr int kDense = py::array::c_style;
using Int8Array = py::array_t<std::int8_t, kDense>;
using Int32Array = py::array_t<std::int32_t, kDense>;

OutputType output_type_of(const py::dtype& dtype) {
  if (dtype.is(py::dtype::of<std::uint8_t>())) return OutputType::kUint8;
  if (dtype.is(py::dtype::of<std::int8_t>())) return OutputType::kInt8;
  if (dtype.is(py::dtype::of<std::int16_t>())) return OutputType::kInt16;
  if (dtype.is(py::dtype::of<std::int32_t>())) return OutputType::kInt32;
  throw std::invalid_argument("out_dtype must be uint8, int8, int16 or int32");
}

py::dtype dtype_of(OutputType type) {
  switch (type) {
    case OutputType::kUint8:
      return py::dtype::of<std::uint8_t>();
    case OutputType::kInt8:
      return py::dtype::of<std::int8_t>();
    case OutputType::kInt16:
      return py::dtype::of<std::int16_t>();
    default:
      return py::dtype::of<std::int32_t>();
  }
}

int dimension(const py::array& array, int axis) {
  const py::ssize_t size = array.shape(axis);
  if (size > std::numeric_limits<int>::max()) throw std::invalid_argument("weight is too large");
  return static_cast<int>(size);
}

QuantizedConv2d make_conv(const Int8Array& weight, const Int32Array& bias,
                          const Int32Array& multiplier, int shift, const py::object& out_dtype,
                          bool relu) {
  if (weight.ndim() != 4) {
    throw std::invalid_argument("weight must be [out_channels, height, width, in_channels]");
  }
  const QuantizedConv2d::Shape shape = {dimension(weight, 0), dimension(weight, 1),
                                        dimension(weight, 2), dimension(weight, 3)};
  for (const Int32Array* per_channel : {&bias, &multiplier}) {
    if (per_channel->ndim() != 1 || per_channel->shape(0) != shape.out_channels) {
      throw std::invalid_argument("bias and multiplier need one value for each output channel");
    }
  }
  return QuantizedConv2d(shape, weight.data(), bias.data(), multiplier.data(), shift,
                         output_type_of(py::dtype::from_args(out_dtype)), relu);
}

py::array run_conv(const QuantizedConv2d& conv, const py::array& x, int threads) {
  const char kind = x.dtype().kind();
  if ((kind != 'i' && kind != 'u') || x.itemsize() != 1) {
    throw std::invalid_argument("x must be int8 or uint8");
  }
  if (x.ndim() != 4 || x.shape(3) != conv.shape().in_channels) {
    throw std::invalid_argument("x must be [batch, height, width, " +
                                std::to_string(conv.shape().in_channels) + "]");
  }
  if (!(x.flags() & kDense)) throw std::invalid_argument("x must be contiguous");
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  py::array out(dtype_of(conv.output_type()),
                {x.shape(0), x.shape(1), x.shape(2), py::ssize_t{conv.shape().out_channels}});
  const void* source = x.data();
  void* target = out.mutable_data();
  {
    const pycodec::SpanScope span("quantized_conv2d", [&] {
      const QuantizedConv2d::Shape& shape = conv.shape();
      py::gil_scoped_release unlocked;
      const std::int64_t weights = std::int64_t{shape.out_channels} * shape.kernel_height *
                                   shape.kernel_width * shape.in_channels;
      return pycodec::SpanWork{x.nbytes() + out.nbytes() + weights,
                               2 * weights * (x.size() / shape.in_channels),
                               pycodec::Arithmetic::kInt8};
    });
    conv.run(source, kind == 'i', x.shape(0), x.shape(1), x.shape(2), target, threads);
  }
  return out;
}

}  // namespace

void bind_quantized_conv2d(py::module_& m) {
  py::class_<QuantizedConv2d>(m, "QuantizedConv2d",
                              "An integer convolution with its weights packed for the SIMD level "
                              "in force when it was made.\n"
                              "The definition is pycodec.ops.quantized_conv2d; arrays are NumPy's.")
      .def(py::init(&make_conv), py::arg("weight"), py::arg("bias"), py::arg("multiplier"),
           py::arg("shift"), py::arg("out_dtype"), py::arg("relu") = false)
      .def("run", &run_conv, py::arg("x"), py::arg("threads") = 1,
           "x: int8 or uint8 [batch, height, width, in_channels], contiguous. Releases the GIL.")
      .def_property_readonly("simd_level", &QuantizedConv2d::simd_level);
}
