// The integer convolution, called by pycodec/ops/quantized_conv2d.py with addresses of device
// memory.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "cuda/quantized_conv2d.hpp"
#include "cuda_module.hpp"

namespace py = pybind11;

namespace {

using XShape = std::tuple<std::int64_t, std::int64_t, std::int64_t, int>;
using KernelShape = std::tuple<int, int, int>;

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void quantized_conv2d(std::uintptr_t x, std::uintptr_t weight, std::uintptr_t bias,
                      std::uintptr_t multiplier, std::uintptr_t zero_point, std::uintptr_t residual,
                      std::uintptr_t out, const XShape& x_shape, const KernelShape& window,
                      int weight_bits, bool x_is_signed, int x_bytes, int out_bytes, int stride,
                      int upscale, int shift, std::int32_t lower, std::int32_t upper,
                      const std::string& kernel, std::uintptr_t stream) {
  pycodec::cuda::QuantizedConv2dArguments a = {};
  a.x = pointer<const void>(x);
  a.weight = pointer<const void>(weight);
  a.bias = pointer<const std::int32_t>(bias);
  a.multiplier = pointer<const std::int32_t>(multiplier);
  a.zero_point = pointer<const std::int16_t>(zero_point);
  a.residual = pointer<const std::int16_t>(residual);
  a.out = pointer<void>(out);
  std::tie(a.batch, a.height, a.width, a.in_channels) = x_shape;
  std::tie(a.out_channels, a.kernel_height, a.kernel_width) = window;
  a.weight_bits = weight_bits;
  a.x_is_signed = x_is_signed;
  a.x_bytes = x_bytes;
  a.out_bytes = out_bytes;
  a.stride = stride;
  a.upscale = upscale;
  a.shift = shift;
  a.lower = lower;
  a.upper = upper;
  pycodec::cuda::quantized_conv2d(a, kernel, pointer<void>(stream));
}

}  // namespace

void bind_cuda_quantized_conv2d(py::module_& m) {
  m.def("quantized_conv2d", &quantized_conv2d, py::kw_only(), py::arg("x"), py::arg("weight"),
        py::arg("bias"), py::arg("multiplier"), py::arg("zero_point"), py::arg("residual"),
        py::arg("out"), py::arg("x_shape"), py::arg("window"), py::arg("weight_bits"),
        py::arg("x_is_signed"), py::arg("x_bytes"), py::arg("out_bytes"), py::arg("stride"),
        py::arg("upscale"), py::arg("shift"), py::arg("lower"), py::arg("upper"), py::arg("kernel"),
        py::arg("stream"),
        "pycodec.ops.quantized_conv2d is the definition; pointers are addresses on the device.");
}
