// A stream of bytes from Python.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>

// A buffer of bytes that stays where it is for as long as this lives.
class Bytes {
 public:
  explicit Bytes(const pybind11::buffer& data) : info_(data.request()) {
    if (info_.itemsize != 1 || info_.ndim != 1 || (info_.size > 1 && info_.strides[0] != 1)) {
      throw std::invalid_argument("a rANS stream must be bytes or a contiguous buffer of them");
    }
  }

  const std::uint8_t* data() const { return static_cast<const std::uint8_t*>(info_.ptr); }
  std::size_t size() const { return static_cast<std::size_t>(info_.size); }

 private:
  pybind11::buffer_info info_;
};
