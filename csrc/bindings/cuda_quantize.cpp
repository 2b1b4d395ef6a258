// Quantization, called by pycodec/ops/quantize.py with addresses of device memory.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "cuda/quantize.hpp"
#include "cuda_module.hpp"

namespace py = pybind11;

namespace {

using pycodec::cuda::QuantizeArguments;

QuantizeArguments arguments_of(std::uintptr_t real, std::uintptr_t integers, std::uintptr_t scale,
                               std::uintptr_t zero_point, std::int64_t values, int channels,
                               int bytes, bool is_signed) {
  QuantizeArguments a = {};
  a.real = reinterpret_cast<float*>(real);
  a.integers = reinterpret_cast<void*>(integers);
  a.scale = reinterpret_cast<const float*>(scale);
  a.zero_point = reinterpret_cast<const std::int32_t*>(zero_point);
  a.values = values;
  a.channels = channels;
  a.bytes = bytes;
  a.is_signed = is_signed;
  return a;
}

void quantize(std::uintptr_t real, std::uintptr_t integers, std::uintptr_t scale,
              std::uintptr_t zero_point, std::int64_t values, int channels, int bytes,
              bool is_signed, std::int32_t lower, std::int32_t upper, std::uintptr_t stream) {
  QuantizeArguments a =
      arguments_of(real, integers, scale, zero_point, values, channels, bytes, is_signed);
  a.lower = lower;
  a.upper = upper;
  pycodec::cuda::quantize(a, reinterpret_cast<void*>(stream));
}

void dequantize(std::uintptr_t real, std::uintptr_t integers, std::uintptr_t scale,
                std::uintptr_t zero_point, std::int64_t values, int channels, int bytes,
                bool is_signed, std::uintptr_t stream) {
  pycodec::cuda::dequantize(
      arguments_of(real, integers, scale, zero_point, values, channels, bytes, is_signed),
      reinterpret_cast<void*>(stream));
}

}  // namespace

void bind_cuda_quantize(py::module_& m) {
  m.def("quantize", &quantize, py::kw_only(), py::arg("real"), py::arg("integers"),
        py::arg("scale"), py::arg("zero_point"), py::arg("values"), py::arg("channels"),
        py::arg("bytes"), py::arg("is_signed"), py::arg("lower"), py::arg("upper"),
        py::arg("stream"),
        "pycodec.ops.quantize is the definition; pointers are addresses on the device.");
  m.def("dequantize", &dequantize, py::kw_only(), py::arg("real"), py::arg("integers"),
        py::arg("scale"), py::arg("zero_point"), py::arg("values"), py::arg("channels"),
        py::arg("bytes"), py::arg("is_signed"), py::arg("stream"),
        "pycodec.ops.dequantize is the definition; pointers are addresses on the device.");
}
