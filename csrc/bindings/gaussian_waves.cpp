#include "cpu/gaussian_waves.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bytes.hpp"
#include "cpu/int16_conv2d.hpp"
#include "cpu/spans.hpp"
#include "cpu_module.hpp"
#include "rans/decoder.hpp"
#include "rans/tables.hpp"

namespace py = pybind11;

namespace {

using pycodec::GaussianWaves;
using pycodec::Int16Conv2d;
using pycodec::Int16ConvParameters;
using pycodec::rans::TableSet;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

constexpr int kInt16Max = std::numeric_limits<std::int16_t>::max();

int dimension(const py::array& array, int axis) {
  const py::ssize_t size = array.shape(axis);
  if (size > kInt16Max) throw std::invalid_argument("weight is too large");
  return static_cast<int>(size);
}

// Refers to the arrays.
Int16ConvParameters parameters_of(const Array<std::int16_t>& weight,
                                  const Array<std::int32_t>& bias,
                                  const Array<std::int32_t>& multiplier,
                                  const Array<std::int32_t>& negative_multiplier, int shift,
                                  std::int32_t limit) {
  if (weight.ndim() != 4) {
    throw std::invalid_argument("weight must be [out_channels, height, width, in_channels]");
  }
  for (const auto* per_channel : {&bias, &multiplier, &negative_multiplier}) {
    if (per_channel->ndim() != 1 || per_channel->shape(0) != weight.shape(0)) {
      throw std::invalid_argument("bias and multipliers need one value for each output channel");
    }
  }
  return {dimension(weight, 0),
          dimension(weight, 1),
          dimension(weight, 2),
          dimension(weight, 3),
          weight.data(),
          bias.data(),
          multiplier.data(),
          negative_multiplier.data(),
          shift,
          limit};
}

py::array run_conv(const Int16Conv2d& conv, const Array<std::int16_t>& x, bool out_is_int32,
                   int threads) {
  if (x.ndim() != 4 || x.shape(3) != conv.in_channels()) {
    throw std::invalid_argument("x must be [batch, height, width, " +
                                std::to_string(conv.in_channels()) + "]");
  }
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  if (!out_is_int32 && conv.limit() > kInt16Max) {
    throw std::invalid_argument("results up to the limit exceed int16");
  }
  py::array out(out_is_int32 ? py::dtype::of<std::int32_t>() : py::dtype::of<std::int16_t>(),
                {x.shape(0), x.shape(1), x.shape(2), py::ssize_t{conv.out_channels()}});
  const std::int16_t* source = x.data();
  void* target = out.mutable_data();
  const pycodec::SpanScope span("int16_conv2d", [&] {
    return pycodec::SpanWork{x.nbytes() + out.nbytes() + 2 * conv.products(),
                             2 * conv.products() * (x.size() / conv.in_channels()),
                             pycodec::Arithmetic::kInt16};
  });
  {
    py::gil_scoped_release unlocked;
    conv.run(source, x.shape(0), x.shape(1), x.shape(2), target, out_is_int32, threads);
  }
  return out;
}

std::unique_ptr<GaussianWaves> make_waves(const std::vector<py::dict>& layers, int side_channels,
                                          int context_shift, std::int32_t context_limit,
                                          int fraction_bits,
                                          const std::vector<std::int32_t>& thresholds,
                                          std::int64_t row_step) {
  if (layers.empty()) throw std::invalid_argument("gaussian waves: there are no layers");
  std::vector<py::object> arrays;  // what the pointers refer to
  const auto keep = [&](auto array) {
    arrays.push_back(array);
    return array;
  };
  std::vector<Int16ConvParameters> parameters;
  for (const py::dict& d : layers) {
    const auto vector = [&](const char* name) { return keep(d[name].cast<Array<std::int32_t>>()); };
    parameters.push_back(parameters_of(
        keep(d["weight"].cast<Array<std::int16_t>>()), vector("bias"), vector("multiplier"),
        vector("negative_multiplier"), d["shift"].cast<int>(), d["limit"].cast<std::int32_t>()));
  }
  const std::vector<Int16ConvParameters> heads(parameters.begin() + 1, parameters.end());
  return std::make_unique<GaussianWaves>(
      pycodec::GaussianWavesParameters{parameters[0], heads, side_channels, context_shift,
                                       context_limit, fraction_bits, thresholds, row_step});
}

const std::int16_t* side_data(const GaussianWaves& waves, const Array<std::int16_t>& side,
                              std::int64_t height, std::int64_t width, int threads) {
  if (side.ndim() != 3 || side.shape(0) != height || side.shape(1) != width ||
      side.shape(2) != waves.side_channels()) {
    throw std::invalid_argument("gaussian waves: side must be int16 [height, width, " +
                                std::to_string(waves.side_channels()) + "]");
  }
  if (threads < 1) throw std::invalid_argument("gaussian waves: threads must be at least 1");
  return side.data();
}

py::tuple encode(const GaussianWaves& waves, const Array<std::int32_t>& latents,
                 const Array<std::int16_t>& side, int threads) {
  if (latents.ndim() != 3 || latents.shape(2) != waves.channels()) {
    throw std::invalid_argument("gaussian waves: latents must be int32 [height, width, " +
                                std::to_string(waves.channels()) + "]");
  }
  const std::int64_t height = latents.shape(0);
  const std::int64_t width = latents.shape(1);
  const std::int16_t* from_side = side_data(waves, side, height, width, threads);
  Array<std::int32_t> symbols(latents.size());
  Array<std::uint8_t> indexes(latents.size());
  Array<std::int32_t> decoded({latents.shape(0), latents.shape(1), latents.shape(2)});
  auto* to_symbols = symbols.mutable_data();
  auto* to_indexes = indexes.mutable_data();
  auto* to_decoded = decoded.mutable_data();
  const pycodec::SpanScope span("gaussian_waves_encode", [&] {
    return pycodec::SpanWork{latents.nbytes() + side.nbytes() + symbols.nbytes() +
                             indexes.nbytes() + decoded.nbytes()};
  });
  {
    py::gil_scoped_release unlocked;
    waves.encode(latents.data(), from_side, height, width, to_symbols, to_indexes, to_decoded,
                 threads);
  }
  return py::make_tuple(symbols, indexes, decoded);
}

Array<std::int32_t> decode(const GaussianWaves& waves, const py::buffer& data,
                           const TableSet& tables, const Array<std::int16_t>& side, int threads) {
  if (side.ndim() != 3) throw std::invalid_argument("gaussian waves: side must have 3 dimensions");
  const Bytes bytes(data);
  const std::int64_t height = side.shape(0);
  const std::int64_t width = side.shape(1);
  const std::int16_t* from_side = side_data(waves, side, height, width, threads);
  Array<std::int32_t> decoded({side.shape(0), side.shape(1), py::ssize_t{waves.channels()}});
  auto* to_decoded = decoded.mutable_data();
  const pycodec::SpanScope span("gaussian_waves_decode", [&] {
    return pycodec::SpanWork{side.nbytes() + decoded.nbytes() +
                             static_cast<std::int64_t>(bytes.size())};
  });
  {
    py::gil_scoped_release unlocked;
    pycodec::rans::Decoder decoder(tables, bytes.data(), bytes.size());
    waves.decode(decoder, from_side, height, width, to_decoded, threads);
    decoder.finish();
  }
  return decoded;
}

}  // namespace

void bind_gaussian_waves(py::module_& m) {
  py::class_<Int16Conv2d>(m, "Int16Conv2d",
                          "A convolution of int16 with its weights packed. The definition is "
                          "pycodec.ops.int16_conv2d; arrays are NumPy's.")
      .def(py::init([](const Array<std::int16_t>& weight, const Array<std::int32_t>& bias,
                       const Array<std::int32_t>& multiplier,
                       const Array<std::int32_t>& negative_multiplier, int shift,
                       std::int32_t limit) {
             return Int16Conv2d(
                 parameters_of(weight, bias, multiplier, negative_multiplier, shift, limit));
           }),
           py::arg("weight"), py::arg("bias"), py::arg("multiplier"),
           py::arg("negative_multiplier"), py::arg("shift"), py::arg("limit"))
      .def("run", &run_conv, py::arg("x"), py::arg("out_is_int32"), py::arg("threads"));
  py::class_<GaussianWaves>(m, "GaussianWaves",
                            "Gaussian latents with an autoregressive context; immutable.")
      .def(py::init(&make_waves), py::arg("layers"), py::arg("side_channels"),
           py::arg("context_shift"), py::arg("context_limit"), py::arg("fraction_bits"),
           py::arg("thresholds"), py::arg("row_step"))
      .def("encode", &encode, py::arg("latents"), py::arg("side"), py::arg("threads"))
      .def("decode", &decode, py::arg("data"), py::arg("tables"), py::arg("side"),
           py::arg("threads"));
}
