// NumPy's types and those of the integer kernels.
#pragma once

#include <pybind11/numpy.h>

#include <stdexcept>
#include <string>

#include "cpu/activation_frame.hpp"
#include "cpu/quantized_conv2d_kernel.hpp"

namespace pycodec {

inline OutputType output_type_of(const pybind11::dtype& dtype, const std::string& name) {
  if (dtype.is(pybind11::dtype::of<std::uint8_t>())) return OutputType::kUint8;
  if (dtype.is(pybind11::dtype::of<std::int8_t>())) return OutputType::kInt8;
  if (dtype.is(pybind11::dtype::of<std::int16_t>())) return OutputType::kInt16;
  if (dtype.is(pybind11::dtype::of<std::int32_t>())) return OutputType::kInt32;
  throw std::invalid_argument(name + " must be uint8, int8, int16 or int32");
}

inline InputType input_type_of(const pybind11::dtype& dtype, const std::string& name) {
  if (dtype.is(pybind11::dtype::of<std::uint8_t>())) return InputType::kUint8;
  if (dtype.is(pybind11::dtype::of<std::int8_t>())) return InputType::kInt8;
  if (dtype.is(pybind11::dtype::of<std::int16_t>())) return InputType::kInt16;
  throw std::invalid_argument(name + " must be uint8, int8 or int16");
}

inline pybind11::dtype dtype_of(OutputType type) {
  switch (type) {
    case OutputType::kUint8:
      return pybind11::dtype::of<std::uint8_t>();
    case OutputType::kInt8:
      return pybind11::dtype::of<std::int8_t>();
    case OutputType::kInt16:
      return pybind11::dtype::of<std::int16_t>();
    default:
      return pybind11::dtype::of<std::int32_t>();
  }
}

}  // namespace pycodec
