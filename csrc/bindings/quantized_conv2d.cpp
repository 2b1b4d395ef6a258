#include "cpu/quantized_conv2d.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/array_types.hpp"
#include "cpu/spans.hpp"
#include "cpu_module.hpp"

namespace py = pybind11;

namespace {

using pycodec::InputType;
using pycodec::OutputType;
using pycodec::QuantizedConv2d;

constexpr int kDense = py::array::c_style;
using Int32Array = py::array_t<std::int32_t, kDense>;

int dimension(const py::array& array, int axis) {
  const py::ssize_t size = array.shape(axis);
  if (size > std::numeric_limits<int>::max()) throw std::invalid_argument("weight is too large");
  return static_cast<int>(size);
}

// The range of a type with so many bits; 0 for all of the type's.
QuantizedConv2d::Output output_of(OutputType type, bool relu, int bits) {
  QuantizedConv2d::Output output = pycodec::full_range(type, relu);
  if (bits == 0) return output;
  if (bits < 2 || bits > 8 || pycodec::output_bytes(type) != 1) {
    throw std::invalid_argument("bits must be 2 to 8, of uint8 or int8");
  }
  output.lower >>= 8 - bits;
  output.upper >>= 8 - bits;
  return output;
}

QuantizedConv2d make_conv(const py::array& weight, const Int32Array& bias,
                          const Int32Array& multiplier, int shift, const py::object& out_dtype,
                          bool relu, int stride, int upscale, int bits,
                          const std::vector<std::int16_t>& zero_point) {
  const bool wide = weight.dtype().is(py::dtype::of<std::int16_t>());
  if (!wide && !weight.dtype().is(py::dtype::of<std::int8_t>())) {
    throw std::invalid_argument("weight must be int8 or int16");
  }
  if (weight.ndim() != 4) {
    throw std::invalid_argument("weight must be [out_channels, height, width, in_channels]");
  }
  const auto values = py::array_t<std::int16_t, kDense | py::array::forcecast>::ensure(weight);
  const QuantizedConv2d::Shape shape = {dimension(weight, 0),
                                        dimension(weight, 1),
                                        dimension(weight, 2),
                                        dimension(weight, 3),
                                        stride,
                                        upscale};
  for (const Int32Array* per_channel : {&bias, &multiplier}) {
    if (per_channel->ndim() != 1 || per_channel->shape(0) != shape.out_channels) {
      throw std::invalid_argument("bias and multiplier need one value for each output channel");
    }
  }
  const OutputType type = pycodec::output_type_of(py::dtype::from_args(out_dtype), "out_dtype");
  return QuantizedConv2d(shape, values.data(), wide, bias.data(), multiplier.data(), shift,
                         output_of(type, relu, bits), zero_point);
}

py::array run_conv(const QuantizedConv2d& conv, const py::array& x, int threads,
                   const std::optional<py::array>& residual) {
  const InputType type = pycodec::input_type_of(x.dtype(), "x");
  const QuantizedConv2d::Shape& shape = conv.shape();
  if (x.ndim() != 4 || x.shape(3) != shape.in_channels) {
    throw std::invalid_argument("x must be [batch, height, width, " +
                                std::to_string(shape.in_channels) + "]");
  }
  if (!(x.flags() & kDense)) throw std::invalid_argument("x must be contiguous");
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  const auto size = [&](int axis) {
    return x.shape(axis) == 0 ? 0 : conv.out_size(x.shape(axis)) * shape.upscale;
  };
  const std::vector<py::ssize_t> out_shape = {x.shape(0), size(1), size(2),
                                              shape.out_channels / shape.upscale / shape.upscale};
  const std::int16_t* added = nullptr;
  if (residual) {
    if (!residual->dtype().is(py::dtype::of<std::int16_t>()) || !(residual->flags() & kDense) ||
        shape.upscale != 1 || residual->ndim() != 4 ||
        !std::equal(out_shape.begin(), out_shape.end(), residual->shape())) {
      throw std::invalid_argument("residual must be contiguous int16 of the output's shape");
    }
    added = static_cast<const std::int16_t*>(residual->data());
  }
  py::array out(pycodec::dtype_of(conv.output().type), out_shape);
  const void* source = x.data();
  void* target = out.mutable_data();
  {
    const pycodec::SpanScope span("quantized_conv2d", [&] {
      return conv.work(conv.frame_shape(type, x.shape(0), x.shape(1), x.shape(2)));
    });
    py::gil_scoped_release unlocked;
    conv.run(source, type, x.shape(0), x.shape(1), x.shape(2), added, target, threads);
  }
  return out;
}

}  // namespace

void bind_quantized_conv2d(py::module_& m) {
  py::class_<QuantizedConv2d, std::shared_ptr<QuantizedConv2d>>(
      m, "QuantizedConv2d",
      "An integer convolution with its weights packed for the SIMD level "
      "in force when it was made.\n"
      "The definition is pycodec.ops.quantized_conv2d; arrays are NumPy's.")
      .def(py::init(&make_conv), py::arg("weight"), py::arg("bias"), py::arg("multiplier"),
           py::arg("shift"), py::arg("out_dtype"), py::arg("relu") = false, py::arg("stride") = 1,
           py::arg("upscale") = 1, py::arg("bits") = 0,
           py::arg("zero_point") = std::vector<std::int16_t>())
      .def("run", &run_conv, py::arg("x"), py::arg("threads") = 1, py::arg("residual") = py::none(),
           "x: uint8, int8 or int16 [batch, height, width, in_channels], contiguous; residual: "
           "int16 like the result. Releases the GIL.")
      .def_property_readonly("simd_level", &QuantizedConv2d::simd_level);
}
