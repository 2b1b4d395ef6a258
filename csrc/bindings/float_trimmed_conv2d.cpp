#include "cpu/float_trimmed_conv2d.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>

#include "cpu/spans.hpp"
#include "cpu_module.hpp"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

Array<float> float_trimmed_conv2d(const Array<float>& x, const Array<float>& weight,
                                  const Array<bool>& mask, const Array<float>& bias, int threads) {
  if (x.ndim() != 4 || weight.ndim() != 4 || mask.ndim() != 4) {
    throw std::invalid_argument("x, weight and mask must have 4 dimensions");
  }
  if (weight.shape(1) != x.shape(1) || mask.shape(2) != weight.shape(2) ||
      mask.shape(3) != weight.shape(3)) {
    throw std::invalid_argument("x, weight and mask do not fit together");
  }
  if (bias.ndim() != 1 || bias.shape(0) != weight.shape(0)) {
    throw std::invalid_argument("bias needs one value for each output channel");
  }
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  const pycodec::TrimmedShape shape = {x.shape(0),      x.shape(1),      x.shape(2),
                                       x.shape(3),      weight.shape(0), weight.shape(2),
                                       weight.shape(3), mask.shape(0),   mask.shape(1)};
  Array<float> out({x.shape(0), weight.shape(0), x.shape(2), x.shape(3)});
  const float *x_data = x.data(), *weight_data = weight.data(), *bias_data = bias.data();
  const bool* mask_data = mask.data();
  float* out_data = out.mutable_data();
  {
    const pycodec::SpanScope span("float_trimmed_conv2d", [&] {
      const auto seen = std::count(mask_data, mask_data + mask.size(), true);
      py::gil_scoped_release unlocked;
      const std::int64_t products =
          seen * (shape.in_channels / shape.groups_in) * (shape.out_channels / shape.groups_out);
      return pycodec::SpanWork{x.nbytes() + out.nbytes() + 4 * products,
                               2 * products * shape.batch * shape.height * shape.width,
                               pycodec::Arithmetic::kFloat32};
    });
    pycodec::float_trimmed_conv2d(shape, x_data, weight_data, mask_data, bias_data, out_data,
                                  threads);
  }
  return out;
}

}  // namespace

void bind_float_trimmed_conv2d(py::module_& m) {
  m.def("float_trimmed_conv2d", &float_trimmed_conv2d, py::arg("x").noconvert(),
        py::arg("weight").noconvert(), py::arg("mask").noconvert(), py::arg("bias").noconvert(),
        py::arg("threads") = 1,
        "pycodec.ops.trimmed_conv2d in float32, at the SIMD level in force. Releases the GIL.");
}
