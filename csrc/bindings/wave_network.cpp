#include "cpu/wave_network.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bytes.hpp"
#include "cpu_module.hpp"
#include "rans/decoder.hpp"
#include "rans/tables.hpp"

namespace py = pybind11;

namespace {

using pycodec::WaveLayer;
using pycodec::WaveNetwork;
using pycodec::rans::TableSet;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
const T* data_of(const Array<T>& array, std::int64_t size, const char* name) {
  if (array.size() != size) {
    throw std::invalid_argument(std::string("wave network: ") + name + " has " +
                                std::to_string(array.size()) + " items, not " +
                                std::to_string(size));
  }
  return array.data();
}

std::unique_ptr<WaveNetwork> make_network(int groups, const std::vector<py::dict>& descriptions,
                                          const std::vector<std::int64_t>& steps) {
  if (groups < 1 || groups > 1024 || steps.size() != 3) {
    throw std::invalid_argument("wave network: bad number of groups or steps");
  }
  std::vector<WaveLayer> layers;
  std::vector<py::object> arrays;  // what the pointers refer to
  for (const py::dict& d : descriptions) {
    WaveLayer layer = {};
    const auto number = [&](const char* name) { return d[name].cast<int>(); };
    layer.input = number("input");
    layer.residual = number("residual");
    layer.output = number("output");
    layer.in_width = number("in_width");
    layer.out_width = number("out_width");
    layer.kernel = number("kernel");
    layer.residual_multiplier = number("residual_multiplier");
    layer.shift = number("shift");
    layer.lower = number("lower");
    layer.upper = number("upper");
    if (layer.kernel < 1 || layer.kernel > 63 || layer.in_width < 1 || layer.out_width < 1 ||
        layer.in_width > 4096 || layer.out_width > 4096) {
      throw std::invalid_argument("wave network: bad kernel or width");
    }
    const std::int64_t channels = std::int64_t{groups} * layer.out_width;
    const std::int64_t taps = std::int64_t{layer.kernel} * layer.kernel;
    const auto keep = [&](auto array) {
      arrays.push_back(array);
      return array;
    };
    layer.weight = data_of(keep(d["weight"].cast<Array<std::int8_t>>()),
                           channels * taps * groups * layer.in_width, "weight");
    layer.mask =
        data_of(keep(d["mask"].cast<Array<std::uint8_t>>()), groups * taps * groups, "mask");
    layer.bias = data_of(keep(d["bias"].cast<Array<std::int32_t>>()), channels, "bias");
    layer.multiplier =
        data_of(keep(d["multiplier"].cast<Array<std::int32_t>>()), channels, "multiplier");
    layer.negative_multiplier = data_of(keep(d["negative_multiplier"].cast<Array<std::int32_t>>()),
                                        channels, "negative_multiplier");
    layers.push_back(layer);
  }
  return std::make_unique<WaveNetwork>(groups, layers,
                                       pycodec::WaveOrder{steps[0], steps[1], steps[2]});
}

py::tuple encode(const WaveNetwork& network, const Array<std::int32_t>& symbols, int threads) {
  if (symbols.ndim() != 3 || symbols.shape(0) != network.groups()) {
    throw std::invalid_argument("wave network: symbols must be int32 [groups, height, width]");
  }
  Array<std::int32_t> ordered(symbols.size());
  Array<std::uint8_t> indexes(symbols.size());
  auto* ordered_data = ordered.mutable_data();
  auto* index_data = indexes.mutable_data();
  const std::int64_t height = symbols.shape(1);
  const std::int64_t width = symbols.shape(2);
  {
    py::gil_scoped_release release;
    network.encode(symbols.data(), height, width, ordered_data, index_data, threads);
  }
  return py::make_tuple(ordered, indexes);
}

Array<std::int32_t> decode(const WaveNetwork& network, const py::buffer& data,
                           const TableSet& tables, std::int64_t height, std::int64_t width,
                           int threads) {
  const Bytes bytes(data);
  Array<std::int32_t> symbols({static_cast<py::ssize_t>(network.groups()),
                               static_cast<py::ssize_t>(height), static_cast<py::ssize_t>(width)});
  auto* symbol_data = symbols.mutable_data();
  {
    py::gil_scoped_release release;
    pycodec::rans::Decoder decoder(tables, bytes.data(), bytes.size());
    network.decode(decoder, height, width, symbol_data, threads);
    decoder.finish();
  }
  return symbols;
}

}  // namespace

void bind_wave_network(py::module_& m) {
  py::class_<WaveNetwork>(m, "WaveNetwork", "An integer context network; immutable.")
      .def(py::init(&make_network), py::arg("groups"), py::arg("layers"), py::arg("steps"))
      .def("num_waves", &WaveNetwork::num_waves, py::arg("height"), py::arg("width"))
      .def("encode", &encode, py::arg("symbols"), py::arg("threads"))
      .def("decode", &decode, py::arg("data"), py::arg("tables"), py::arg("height"),
           py::arg("width"), py::arg("threads"));
}
