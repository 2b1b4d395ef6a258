// The types of tensors' elements that kernels take, and the 16-bit floats, which C++17 lacks.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace pycodec {

enum class ElementType { kFloat64, kFloat32, kFloat16, kBfloat16, kInt8, kUint8 };

inline ElementType parse_element_type(const std::string& name) {
  if (name == "float64") return ElementType::kFloat64;
  if (name == "float32") return ElementType::kFloat32;
  if (name == "float16") return ElementType::kFloat16;
  if (name == "bfloat16") return ElementType::kBfloat16;
  if (name == "int8") return ElementType::kInt8;
  if (name == "uint8") return ElementType::kUint8;
  throw std::invalid_argument("no kernel for elements of type " + name);
}

inline std::int64_t element_bytes(ElementType type) {
  switch (type) {
    case ElementType::kFloat64:
      return 8;
    case ElementType::kFloat32:
      return 4;
    case ElementType::kFloat16:
    case ElementType::kBfloat16:
      return 2;
    default:
      return 1;
  }
}

inline bool is_float(ElementType type) { return element_bytes(type) > 1; }

inline std::uint32_t float_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounded to nearest, ties to even, as are those below.
struct Bfloat16 {
  std::uint16_t bits;

  Bfloat16() = default;
  explicit Bfloat16(float value) {
    const std::uint32_t b = float_bits(value);
    const bool is_nan = (b & 0x7FFFFFFF) > 0x7F800000;
    bits =
        static_cast<std::uint16_t>(is_nan ? (b >> 16 | 0x40) : (b + 0x7FFF + (b >> 16 & 1)) >> 16);
  }
  explicit operator float() const { return float_of_bits(std::uint32_t{bits} << 16); }
};

struct Float16 {
  std::uint16_t bits;

  Float16() = default;
  explicit Float16(float value) {
    const std::uint32_t b = float_bits(value);
    const std::uint32_t sign = b >> 16 & 0x8000, magnitude = b & 0x7FFFFFFF;
    std::uint32_t half;
    if (magnitude > 0x7F800000) {  // not a number
      half = 0x7E00 | (magnitude >> 13 & 0x3FF);
    } else if (magnitude >= 0x477FF000) {  // rounds to more than the largest
      half = 0x7C00;
    } else if (magnitude < 0x38800000) {  // below the normal ones: adding 1/2 shifts and rounds
      half = float_bits(float_of_bits(magnitude) + 0.5f) - float_bits(0.5f);
    } else {
      half = (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13;
    }
    bits = static_cast<std::uint16_t>(sign | half);
  }
  explicit operator float() const {
    const std::uint32_t sign = std::uint32_t{bits} >> 15 << 31, magnitude = bits & 0x7FFF;
    if (magnitude >= 0x7C00) return float_of_bits(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    // The exponent is too low by 112, also below the normal ones.
    const float scaled = float_of_bits(magnitude << 13) * 0x1p112f;
    return float_of_bits(sign | float_bits(scaled));
  }
};

// What sums of elements are computed in.
template <class Element>
struct AccumulatorOf {
  using Type = float;
};
template <>
struct AccumulatorOf<double> {
  using Type = double;
};
template <class Element>
using Accumulator = typename AccumulatorOf<Element>::Type;

// Calls f with an element of the type; throws std::invalid_argument for integers.
template <class Function>
void with_float(ElementType type, const Function& f) {
  switch (type) {
    case ElementType::kFloat64:
      return f(double{});
    case ElementType::kFloat32:
      return f(float{});
    case ElementType::kFloat16:
      return f(Float16{});
    case ElementType::kBfloat16:
      return f(Bfloat16{});
    default:
      throw std::invalid_argument("there is no such kernel for integers");
  }
}

}  // namespace pycodec
