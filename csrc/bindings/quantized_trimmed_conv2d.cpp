#include "cpu/quantized_trimmed_conv2d.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>

#include "cpu/spans.hpp"
#include "cpu_module.hpp"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

py::array run(const Array<std::int8_t>& x, const Array<std::int8_t>& weight,
              const Array<std::uint8_t>& mask, const Array<std::int32_t>& bias,
              const Array<std::int32_t>& multiplier, const Array<std::int32_t>& negative_multiplier,
              int shift, const std::optional<Array<std::int8_t>>& residual,
              const std::optional<Array<std::int32_t>>& residual_multiplier, std::int32_t lower,
              std::int32_t upper, int threads) {
  if (x.ndim() != 4 || weight.ndim() != 4 || mask.ndim() != 4) {
    throw std::invalid_argument("x, weight and mask must have four dimensions");
  }
  const py::ssize_t groups = mask.shape(0);
  const py::ssize_t cout = weight.shape(0);
  const py::ssize_t cin = weight.shape(3);
  if (groups < 1 || mask.shape(1) != groups || mask.shape(2) != weight.shape(1) ||
      mask.shape(3) != weight.shape(2) || cout % groups != 0 || cin % groups != 0 ||
      x.shape(3) != cin || weight.shape(1) > 63 || weight.shape(2) > 63) {
    throw std::invalid_argument("x, weight and mask do not fit together");
  }
  for (const auto* values : {&bias, &multiplier, &negative_multiplier}) {
    if (values->size() != cout) throw std::invalid_argument("one value for each output channel");
  }
  if (residual.has_value() != residual_multiplier.has_value() ||
      (residual_multiplier && residual_multiplier->size() != cout)) {
    throw std::invalid_argument("a residual needs one multiplier for each output channel");
  }
  if (residual && residual->size() != x.shape(0) * x.shape(1) * x.shape(2) * cout) {
    throw std::invalid_argument("the residual must have the shape of the output");
  }
  if (groups > 1024 || cin / groups > 4096 || cout / groups > 4096) {
    throw std::invalid_argument("at most 1024 groups of at most 4096 channels");
  }
  const pycodec::TrimmedConv conv(
      {static_cast<int>(groups), static_cast<int>(cin / groups), static_cast<int>(cout / groups),
       static_cast<int>(weight.shape(1)), static_cast<int>(weight.shape(2)), weight.data(),
       mask.data(), bias.data(), multiplier.data(), negative_multiplier.data(),
       residual_multiplier ? residual_multiplier->data() : nullptr, shift, lower, upper});
  const auto dtype = upper > 127 ? py::dtype::of<std::uint8_t>() : py::dtype::of<std::int8_t>();
  py::array out(dtype, {x.shape(0), x.shape(1), x.shape(2), cout});
  auto* to = static_cast<std::uint8_t*>(out.mutable_data());
  const std::int8_t* from = x.data();
  const std::int8_t* residual_data = residual ? residual->data() : nullptr;
  {
    const pycodec::SpanScope span("quantized_trimmed_conv2d", [&] {
      const auto seen = mask.size() - std::count(mask.data(), mask.data() + mask.size(), 0);
      py::gil_scoped_release release;
      const std::int64_t products = seen * (cin / groups) * (cout / groups);
      return pycodec::SpanWork{
          x.nbytes() + out.nbytes() + products + (residual ? residual->nbytes() : 0),
          2 * products * (x.size() / cin), pycodec::Arithmetic::kInt8};
    });
    conv.run(from, residual_data, x.shape(0), x.shape(1), x.shape(2), to, threads);
  }
  return out;
}

}  // namespace

void bind_quantized_trimmed_conv2d(py::module_& m) {
  m.def("quantized_trimmed_conv2d", &run, py::arg("x"), py::arg("weight"), py::arg("mask"),
        py::arg("bias"), py::arg("multiplier"), py::arg("negative_multiplier"), py::arg("shift"),
        py::arg("residual"), py::arg("residual_multiplier"), py::arg("lower"), py::arg("upper"),
        py::arg("threads"),
        "The definition is pycodec.ops.quantized_trimmed_conv2d; arrays are NumPy's.");
}
