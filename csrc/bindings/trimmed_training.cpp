#include "cpu/trimmed_training.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>

#include "cpu_module.hpp"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Bfloat16 = Array<std::uint16_t>;  // NumPy has no such type

pycodec::TrimmedShape shape_of(const Bfloat16& x, py::ssize_t out_channels, const Array<bool>& mask,
                               int threads) {
  if (x.ndim() != 4 || mask.ndim() != 4) {
    throw std::invalid_argument("x and mask must have 4 dimensions");
  }
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  return {x.shape(0),    x.shape(3),    x.shape(1),    x.shape(2),   out_channels,
          mask.shape(2), mask.shape(3), mask.shape(0), mask.shape(1)};
}

Bfloat16 convolve(const Bfloat16& x, const Bfloat16& weight, const Array<bool>& mask,
                  const Array<float>& bias, int threads) {
  if (weight.ndim() != 4) throw std::invalid_argument("weight must have 4 dimensions");
  const auto shape = shape_of(x, weight.shape(0), mask, threads);
  if (weight.shape(1) != x.shape(3) || mask.shape(2) != weight.shape(2) ||
      mask.shape(3) != weight.shape(3)) {
    throw std::invalid_argument("x, weight and mask do not fit together");
  }
  if (bias.ndim() != 1 || bias.shape(0) != weight.shape(0)) {
    throw std::invalid_argument("bias needs one value for each output channel");
  }
  Bfloat16 out({x.shape(0), x.shape(1), x.shape(2), weight.shape(0)});
  const std::uint16_t *x_data = x.data(), *weight_data = weight.data();
  const bool* mask_data = mask.data();
  const float* bias_data = bias.data();
  std::uint16_t* out_data = out.mutable_data();
  const py::gil_scoped_release unlocked;
  pycodec::bfloat16_trimmed_conv2d(shape, x_data, weight_data, mask_data, bias_data, out_data,
                                   threads);
  return out;
}

py::tuple gradients(const Bfloat16& x, const Bfloat16& grad, const Array<bool>& mask, int threads) {
  if (grad.ndim() != 4) throw std::invalid_argument("grad must have 4 dimensions");
  const auto shape = shape_of(x, grad.shape(3), mask, threads);
  for (int i = 0; i < 3; ++i) {
    if (grad.shape(i) != x.shape(i)) throw std::invalid_argument("x and grad differ in size");
  }
  Array<float> weight({grad.shape(3), x.shape(3), mask.shape(2), mask.shape(3)});
  Array<float> bias(grad.shape(3));
  const std::uint16_t *x_data = x.data(), *grad_data = grad.data();
  const bool* mask_data = mask.data();
  float *weight_data = weight.mutable_data(), *bias_data = bias.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    pycodec::bfloat16_trimmed_conv2d_gradients(shape, x_data, grad_data, mask_data, weight_data,
                                               bias_data, threads);
  }
  return py::make_tuple(weight, bias);
}

// Throws unless x and `other` are [positions, channels] and `values` [channels].
void check_positions(const Bfloat16& x, const Bfloat16& other, const Array<float>& values,
                     int threads) {
  if (x.ndim() != 2 || other.ndim() != 2 || x.shape(0) != other.shape(0) ||
      x.shape(1) != other.shape(1) || values.ndim() != 1 || values.shape(0) != x.shape(1)) {
    throw std::invalid_argument(
        "tensors must be [positions, channels], slopes and scales [channels]");
  }
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
}

py::tuple prelu_gradients(const Bfloat16& x, const Array<float>& slope, const Bfloat16& grad,
                          int threads) {
  check_positions(x, grad, slope, threads);
  Bfloat16 x_gradient({x.shape(0), x.shape(1)});
  Array<float> slope_gradient(slope.shape(0));
  const std::uint16_t *x_data = x.data(), *grad_data = grad.data();
  const float* slope_data = slope.data();
  std::uint16_t* to = x_gradient.mutable_data();
  float* slope_to = slope_gradient.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    pycodec::bfloat16_prelu_gradients(x.shape(0), x.shape(1), x_data, slope_data, grad_data, to,
                                      slope_to, threads);
  }
  return py::make_tuple(x_gradient, slope_gradient);
}

Bfloat16 fake_quantize(const Bfloat16& x, const std::optional<Bfloat16>& residual,
                       const Array<float>& scale, int threads) {
  check_positions(x, residual.value_or(x), scale, threads);
  Bfloat16 out({x.shape(0), x.shape(1)});
  const std::uint16_t* x_data = x.data();
  const std::uint16_t* residual_data = residual ? residual->data() : nullptr;
  const float* scale_data = scale.data();
  std::uint16_t* to = out.mutable_data();
  const py::gil_scoped_release unlocked;
  pycodec::bfloat16_fake_quantize(x.shape(0), x.shape(1), x_data, residual_data, scale_data, to,
                                  threads);
  return out;
}

py::tuple fake_quantize_gradients(const Bfloat16& x, const std::optional<Bfloat16>& residual,
                                  const Array<float>& scale, const Bfloat16& grad, int threads) {
  check_positions(x, residual.value_or(x), scale, threads);
  check_positions(x, grad, scale, threads);
  Bfloat16 x_gradient({x.shape(0), x.shape(1)});
  Array<float> scale_gradient(scale.shape(0));
  const std::uint16_t *x_data = x.data(), *grad_data = grad.data();
  const std::uint16_t* residual_data = residual ? residual->data() : nullptr;
  const float* scale_data = scale.data();
  std::uint16_t* to = x_gradient.mutable_data();
  float* scale_to = scale_gradient.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    pycodec::bfloat16_fake_quantize_gradients(x.shape(0), x.shape(1), x_data, residual_data,
                                              scale_data, grad_data, to, scale_to, threads);
  }
  return py::make_tuple(x_gradient, scale_gradient);
}

}  // namespace

void bind_trimmed_training(py::module_& m) {
  m.def("runs_bfloat16", &pycodec::runs_bfloat16,
        "Whether the SIMD level in force has bfloat16_trimmed_conv2d.");
  m.def(
      "bfloat16_trimmed_conv2d", &convolve, py::arg("x").noconvert(), py::arg("weight").noconvert(),
      py::arg("mask").noconvert(), py::arg("bias").noconvert(), py::arg("threads") = 1,
      "pycodec.ops.trimmed_conv2d of [N, H, W, Cin] whose uint16 are bfloat16. Releases the GIL.");
  m.def("bfloat16_trimmed_conv2d_gradients", &gradients, py::arg("x").noconvert(),
        py::arg("grad").noconvert(), py::arg("mask").noconvert(), py::arg("threads") = 1,
        "Its gradients in weight and bias, float32. Releases the GIL.");
  m.def("bfloat16_prelu_gradients", &prelu_gradients, py::arg("x").noconvert(),
        py::arg("slope").noconvert(), py::arg("grad").noconvert(), py::arg("threads") = 1,
        "Gradients of PReLU in x [positions, channels] and slope [channels]. Releases the GIL.");
  m.def("bfloat16_fake_quantize", &fake_quantize, py::arg("x").noconvert(),
        py::arg("residual").noconvert(), py::arg("scale").noconvert(), py::arg("threads") = 1,
        "x plus the residual or None, [positions, channels], rounded to -127..127 times scale "
        "[channels]. Releases the GIL.");
  m.def("bfloat16_fake_quantize_gradients", &fake_quantize_gradients, py::arg("x").noconvert(),
        py::arg("residual").noconvert(), py::arg("scale").noconvert(), py::arg("grad").noconvert(),
        py::arg("threads") = 1,
        "Its gradients in x, which are the residual's too, and in scale. Releases the GIL.");
}
