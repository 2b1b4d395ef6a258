// The trimmed convolutions, called by pycodec/ops/trimmed_kernels.py with addresses of device
// memory.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda/trimmed_conv2d.hpp"
#include "cuda_module.hpp"

namespace py = pybind11;

namespace {

using pycodec::cuda::FloatType;
using pycodec::cuda::TrimmedShape;
using Shape = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

FloatType float_type(const std::string& name) {
  if (name == "float32") return FloatType::kFloat32;
  if (name == "float64") return FloatType::kFloat64;
  if (name == "float16") return FloatType::kFloat16;
  if (name == "bfloat16") return FloatType::kBfloat16;
  throw std::invalid_argument("trimmed_conv2d: no kernel for " + name);
}

TrimmedShape trimmed_shape(int groups, std::uintptr_t counts, std::uintptr_t blocks) {
  TrimmedShape s = {};
  s.groups = groups;
  s.counts = pointer<const std::int32_t>(counts);
  s.blocks = pointer<const std::int32_t>(blocks);
  return s;
}

void trimmed_conv2d(std::uintptr_t x, std::uintptr_t weight, std::uintptr_t bias,
                    std::uintptr_t counts, std::uintptr_t blocks, std::uintptr_t out,
                    const Shape& x_shape, const Shape& weight_shape, int groups_out,
                    const std::string& dtype, std::uintptr_t stream) {
  pycodec::cuda::TrimmedConv2dArguments a = {};
  a.shape = trimmed_shape(groups_out, counts, blocks);
  std::tie(a.shape.batch, a.shape.in_channels, a.shape.height, a.shape.width) = x_shape;
  std::tie(a.shape.out_channels, std::ignore, a.shape.kernel_height, a.shape.kernel_width) =
      weight_shape;
  a.type = float_type(dtype);
  a.x = pointer<const void>(x);
  a.weight = pointer<const void>(weight);
  a.bias = pointer<const void>(bias);
  a.out = pointer<void>(out);
  pycodec::cuda::trimmed_conv2d(a, pointer<void>(stream));
}

void quantized_trimmed_conv2d(std::uintptr_t x, std::uintptr_t weight, std::uintptr_t bias,
                              std::uintptr_t multiplier, std::uintptr_t negative_multiplier,
                              std::uintptr_t residual, std::uintptr_t residual_multiplier,
                              std::uintptr_t counts, std::uintptr_t blocks, std::uintptr_t out,
                              const Shape& x_shape, const Shape& weight_shape, int groups_out,
                              int shift, std::int32_t lower, std::int32_t upper,
                              std::uintptr_t stream) {
  pycodec::cuda::QuantizedTrimmedConv2dArguments a = {};
  a.shape = trimmed_shape(groups_out, counts, blocks);
  std::tie(a.shape.batch, a.shape.height, a.shape.width, a.shape.in_channels) = x_shape;
  std::tie(a.shape.out_channels, a.shape.kernel_height, a.shape.kernel_width, std::ignore) =
      weight_shape;
  a.requantization = {shift, lower, upper};
  a.x = pointer<const std::int8_t>(x);
  a.weight = pointer<const std::int8_t>(weight);
  a.bias = pointer<const std::int32_t>(bias);
  a.multiplier = pointer<const std::int32_t>(multiplier);
  a.negative_multiplier = pointer<const std::int32_t>(negative_multiplier);
  a.residual = pointer<const std::int8_t>(residual);
  a.residual_multiplier = pointer<const std::int32_t>(residual_multiplier);
  a.out = pointer<std::uint8_t>(out);
  pycodec::cuda::quantized_trimmed_conv2d(a, pointer<void>(stream));
}

}  // namespace

void bind_cuda_trimmed_conv2d(py::module_& m) {
  m.def("trimmed_conv2d", &trimmed_conv2d, py::kw_only(), py::arg("x"), py::arg("weight"),
        py::arg("bias"), py::arg("counts"), py::arg("blocks"), py::arg("out"), py::arg("x_shape"),
        py::arg("weight_shape"), py::arg("groups_out"), py::arg("dtype"), py::arg("stream"),
        "csrc/cuda/trimmed_conv2d.hpp describes the arguments.");
  m.def("quantized_trimmed_conv2d", &quantized_trimmed_conv2d, py::kw_only(), py::arg("x"),
        py::arg("weight"), py::arg("bias"), py::arg("multiplier"), py::arg("negative_multiplier"),
        py::arg("residual"), py::arg("residual_multiplier"), py::arg("counts"), py::arg("blocks"),
        py::arg("out"), py::arg("x_shape"), py::arg("weight_shape"), py::arg("groups_out"),
        py::arg("shift"), py::arg("lower"), py::arg("upper"), py::arg("stream"),
        "csrc/cuda/trimmed_conv2d.hpp describes the arguments.");
}
