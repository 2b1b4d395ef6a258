#include "cpu/transform_program.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/array_types.hpp"
#include "cpu_module.hpp"

namespace py = pybind11;

namespace {

using pycodec::BorderPixel;
using pycodec::FrameBorders;
using pycodec::OutputType;
using pycodec::QuantizedConv2d;
using pycodec::RequantizeParameters;
using pycodec::TransformProgram;

constexpr int kDense = py::array::c_style;
using Int32Array = py::array_t<std::int32_t, kDense>;
using Int64Array = py::array_t<std::int64_t, kDense>;

// (multiplier, offset, shift, lower, upper), the first two [channels] or [images, channels]
using Parameters = std::tuple<Int32Array, Int64Array, int, std::int32_t, std::int32_t>;

// (rows of a tile, [pixels, 4]: see BorderPixel)
using Borders = std::tuple<std::int64_t, Int64Array>;

RequantizeParameters parameters_of(const Parameters& from) {
  const auto& [multiplier, offset, shift, lower, upper] = from;
  const py::ssize_t dimensions = multiplier.ndim();
  if (dimensions < 1 || dimensions > 2 || offset.ndim() != dimensions) {
    throw std::invalid_argument("multiplier and offset must be [channels] or [images, channels]");
  }
  return {{multiplier.data(), multiplier.data() + multiplier.size()},
          {offset.data(), offset.data() + offset.size()},
          static_cast<int>(multiplier.shape(dimensions - 1)),
          shift,
          lower,
          upper};
}

FrameBorders borders_of(const Borders& from) {
  const auto& [rows, pixels] = from;
  static_assert(sizeof(BorderPixel) == 4 * sizeof(std::int64_t));
  if (pixels.ndim() != 2 || pixels.shape(1) != 4) {
    throw std::invalid_argument("borders must be [pixels, 4]");
  }
  return {rows, reinterpret_cast<const BorderPixel*>(pixels.data()), pixels.shape(0)};
}

py::array run_program(const TransformProgram& program, const py::array& x,
                      const std::vector<Parameters>& parameters,
                      const std::vector<Borders>& borders, int threads) {
  if (x.ndim() != 4 || x.size() == 0 || !(x.flags() & kDense)) {
    throw std::invalid_argument("the input must be [batch, height, width, channels], contiguous");
  }
  if (x.shape(3) > std::numeric_limits<int>::max())
    throw std::invalid_argument("too many channels");
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  std::vector<RequantizeParameters> made;
  for (const Parameters& p : parameters) made.push_back(parameters_of(p));
  std::vector<FrameBorders> around;
  for (const Borders& b : borders) around.push_back(borders_of(b));
  const TransformProgram::Shape shape = {x.shape(0), x.shape(1), x.shape(2),
                                         static_cast<int>(x.shape(3)),
                                         pycodec::output_type_of(x.dtype(), "the input")};
  const TransformProgram::Shape result = program.output_shape(shape);
  py::array out(pycodec::dtype_of(result.type),
                {result.batch, result.height, result.width, std::int64_t{result.channels}});
  const void* source = x.data();
  void* target = out.mutable_data();
  {
    py::gil_scoped_release unlocked;
    program.run(source, shape, made, around, target, threads);
  }
  return out;
}

py::array requantize(const py::array& x, const Int32Array& multiplier, const Int64Array& offset,
                     int shift, std::int32_t lower, std::int32_t upper, const py::object& out_dtype,
                     int threads) {
  const OutputType from = pycodec::output_type_of(x.dtype(), "x");
  if (from != OutputType::kInt16 && from != OutputType::kInt32) {
    throw std::invalid_argument("x must be int16 or int32");
  }
  const auto made = parameters_of({multiplier, offset, shift, lower, upper});
  const py::ssize_t channels = made.channels;
  if (x.ndim() < multiplier.ndim() || channels == 0 || x.shape(x.ndim() - 1) != channels ||
      !(x.flags() & kDense)) {
    throw std::invalid_argument("x must be contiguous, its last dimension the channels");
  }
  const std::int64_t images = multiplier.ndim() == 2 ? x.shape(0) : 1;
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  const OutputType type = pycodec::output_type_of(py::dtype::from_args(out_dtype), "out_dtype");
  if (type == OutputType::kInt32) throw std::invalid_argument("out_dtype cannot be int32");
  py::array out(pycodec::dtype_of(type), std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
  if (x.size() == 0) return out;
  const void* source = x.data();
  void* target = out.mutable_data();
  const std::int64_t pixels = x.size() / channels / images;
  {
    py::gil_scoped_release unlocked;
    pycodec::requantize(made, source, from == OutputType::kInt32, images, pixels, type, target,
                        threads);
  }
  return out;
}

}  // namespace

void bind_transform_program(py::module_& m) {
  m.def("requantize", &requantize, py::arg("x"), py::arg("multiplier"), py::arg("offset"),
        py::arg("shift"), py::arg("lower"), py::arg("upper"), py::arg("out_dtype"),
        py::arg("threads") = 1, "pycodec.ops.requantize is the definition; arrays are NumPy's.");
  py::class_<TransformProgram>(m, "TransformProgram",
                               "Layers that are run one after the other. A value is a dense tensor "
                               "by its number: 0 is the input.")
      .def(py::init())
      .def(
          "add_layer",
          [](TransformProgram& program, std::shared_ptr<QuantizedConv2d> conv,
             const py::object& input, const std::string& name) {
            return program.add_layer(std::move(conv),
                                     pycodec::input_type_of(py::dtype::from_args(input), "input"),
                                     name);
          },
          py::arg("conv"), py::arg("input"), py::arg("name") = "layer",
          "Returns the layer's number; name is that of its spans.")
      .def("unshuffle", &TransformProgram::unshuffle, py::arg("layer"), py::arg("factor"))
      .def("requantize", &TransformProgram::requantize, py::arg("value"), py::arg("layer"),
           "Returns the place of its parameters in run.")
      .def("convolve_to_layer", &TransformProgram::convolve_to_layer, py::arg("layer"),
           py::arg("target"))
      .def("convolve", &TransformProgram::convolve, py::arg("layer"), py::arg("value") = 0,
           py::arg("residual") = false, "Returns the value's number.")
      .def("run", &run_program, py::arg("x"), py::arg("parameters"), py::arg("borders"),
           py::arg("threads") = 1,
           "x: [batch, height, width, channels]; parameters: (multiplier, offset, shift, lower, "
           "upper) of each requantization, the first two [channels] or [batch, channels]; borders: "
           "of tiles that border each other, (rows, int64 [pixels, 4]: target, left, right, weight "
           "of right in 256ths) for each height of tiles; pixels are counted with margins. "
           "Releases the GIL.");
}
