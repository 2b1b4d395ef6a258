#include "cpu/wave_network.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bytes.hpp"
#include "cpu/spans.hpp"
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

std::unique_ptr<WaveNetwork> make_network(int groups, const std::vector<int>& side_widths,
                                          const std::vector<py::dict>& descriptions,
                                          const std::vector<std::int64_t>& steps,
                                          const Array<std::int64_t>& phase) {
  if (groups < 1 || groups > 1024 || steps.size() != 3 || phase.ndim() != 2) {
    throw std::invalid_argument("wave network: bad number of groups, steps or phase");
  }
  std::vector<WaveLayer> layers;
  std::vector<py::object> arrays;  // what the pointers refer to
  for (const py::dict& d : descriptions) {
    WaveLayer layer = {};
    pycodec::TrimmedConvParameters& conv = layer.conv;
    const auto number = [&](const char* name) { return d[name].cast<int>(); };
    layer.input = number("input");
    layer.residual = number("residual");
    conv.groups = groups;
    conv.in_width = number("in_width");
    conv.out_width = number("out_width");
    conv.kernel_rows = conv.kernel_columns = number("kernel");
    conv.shift = number("shift");
    conv.lower = number("lower");
    conv.upper = number("upper");
    if (conv.kernel_rows < 1 || conv.kernel_rows > 63 || conv.in_width < 1 || conv.out_width < 1 ||
        conv.in_width > 4096 || conv.out_width > 4096) {
      throw std::invalid_argument("wave network: bad kernel or width");
    }
    const std::int64_t channels = std::int64_t{groups} * conv.out_width;
    const std::int64_t taps = std::int64_t{conv.kernel_rows} * conv.kernel_columns;
    const auto keep = [&](auto array) {
      arrays.push_back(array);
      return array;
    };
    conv.weight = data_of(keep(d["weight"].cast<Array<std::int8_t>>()),
                          channels * taps * groups * conv.in_width, "weight");
    conv.mask =
        data_of(keep(d["mask"].cast<Array<std::uint8_t>>()), groups * taps * groups, "mask");
    conv.bias = data_of(keep(d["bias"].cast<Array<std::int32_t>>()), channels, "bias");
    conv.multiplier =
        data_of(keep(d["multiplier"].cast<Array<std::int32_t>>()), channels, "multiplier");
    conv.negative_multiplier = data_of(keep(d["negative_multiplier"].cast<Array<std::int32_t>>()),
                                       channels, "negative_multiplier");
    if (layer.residual >= 0) {
      conv.residual_multiplier = data_of(keep(d["residual_multiplier"].cast<Array<std::int32_t>>()),
                                         channels, "residual_multiplier");
    }
    if (!d["active"].is_none()) {
      layer.active = data_of(keep(d["active"].cast<Array<std::uint8_t>>()), phase.size(), "active");
    }
    layers.push_back(layer);
  }
  const pycodec::WaveOrder order = {steps[0],       steps[1],
                                    steps[2],       phase.shape(0),
                                    phase.shape(1), {phase.data(), phase.data() + phase.size()}};
  return std::make_unique<WaveNetwork>(groups, side_widths, layers, order);
}

std::vector<const std::int8_t*> side_data(const WaveNetwork& network,
                                          const std::vector<Array<std::int8_t>>& side,
                                          std::int64_t area) {
  if (side.size() != network.side_widths().size()) {
    throw std::invalid_argument("wave network: wrong number of side tensors");
  }
  std::vector<const std::int8_t*> result;
  for (std::size_t s = 0; s < side.size(); ++s) {
    const std::int64_t channels = std::int64_t{network.groups()} * network.side_widths()[s];
    result.push_back(data_of(side[s], channels * area, "a side tensor"));
  }
  return result;
}

void check_symbols(const WaveNetwork& network, const Array<std::int32_t>& symbols, int threads) {
  if (symbols.ndim() != 3 || symbols.shape(0) != network.groups()) {
    throw std::invalid_argument("wave network: symbols must be int32 [groups, height, width]");
  }
  if (threads < 1) throw std::invalid_argument("wave network: threads must be at least 1");
}

py::tuple encode(const WaveNetwork& network, const Array<std::int32_t>& symbols,
                 const std::vector<Array<std::int8_t>>& side, int threads) {
  check_symbols(network, symbols, threads);
  Array<std::int32_t> ordered(symbols.size());
  Array<std::uint8_t> indexes(symbols.size());
  auto* ordered_data = ordered.mutable_data();
  auto* index_data = indexes.mutable_data();
  const std::int64_t height = symbols.shape(1);
  const std::int64_t width = symbols.shape(2);
  const auto side_pointers = side_data(network, side, height * width);
  const pycodec::SpanScope span("wave_network_encode", [&] {
    return pycodec::SpanWork{symbols.nbytes() + ordered.nbytes() + indexes.nbytes()};
  });
  {
    py::gil_scoped_release release;
    network.encode(symbols.data(), side_pointers, height, width, ordered_data, index_data, threads);
  }
  return py::make_tuple(ordered, indexes);
}

// A pass that has yet to choose its last layer, with the symbols that it will put in order.
struct EncodingPass {
  Array<std::int32_t> symbols;
  std::unique_ptr<WaveNetwork::Pass> pass;

  EncodingPass(const WaveNetwork& network, const Array<std::int32_t>& bits,
               const std::vector<Array<std::int8_t>>& side, int threads)
      : symbols(bits) {
    check_symbols(network, symbols, threads);
    if (symbols.size() == 0) throw std::invalid_argument("wave network: there are no symbols");
    const auto side_pointers = side_data(network, side, symbols.shape(1) * symbols.shape(2));
    const std::int32_t* data = symbols.data();
    const pycodec::SpanScope span("wave_pass", [&] { return pycodec::SpanWork{symbols.nbytes()}; });
    py::gil_scoped_release release;
    pass = network.begin_pass(data, side_pointers, symbols.shape(1), symbols.shape(2), threads);
  }

  Array<std::int8_t> head_input(const std::vector<std::int64_t>& rows) const {
    const py::ssize_t side = 2 * pass->radius() + 1;
    Array<std::int8_t> out({static_cast<py::ssize_t>(rows.size()), side,
                            symbols.shape(2) + side - 1,
                            static_cast<py::ssize_t>(pass->channels())});
    const std::int64_t size =
        rows.empty() ? 0 : out.size() / static_cast<std::int64_t>(rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (rows[i] < 0 || rows[i] >= symbols.shape(1)) {
        throw std::invalid_argument("wave network: no such row");
      }
      pass->copy_head_input(rows[i], out.mutable_data() + static_cast<std::int64_t>(i) * size);
    }
    return out;
  }

  py::tuple finish(const WaveNetwork& head, int threads) const {
    check_symbols(head, symbols, threads);
    Array<std::int32_t> ordered(symbols.size());
    Array<std::uint8_t> indexes(symbols.size());
    const std::int32_t* data = symbols.data();
    auto* ordered_data = ordered.mutable_data();
    auto* index_data = indexes.mutable_data();
    const pycodec::SpanScope span("wave_pass_finish", [&] {
      return pycodec::SpanWork{symbols.nbytes() + ordered.nbytes() + indexes.nbytes()};
    });
    {
      py::gil_scoped_release release;
      pass->finish(head, data, ordered_data, index_data, threads);
    }
    return py::make_tuple(ordered, indexes);
  }
};

Array<std::int32_t> decode(const WaveNetwork& network, const py::buffer& data,
                           const TableSet& tables, const std::vector<Array<std::int8_t>>& side,
                           std::int64_t height, std::int64_t width, int threads) {
  const Bytes bytes(data);
  const auto side_pointers = side_data(network, side, height * width);
  Array<std::int32_t> symbols({static_cast<py::ssize_t>(network.groups()),
                               static_cast<py::ssize_t>(height), static_cast<py::ssize_t>(width)});
  auto* symbol_data = symbols.mutable_data();
  const pycodec::SpanScope span("wave_network_decode", [&] {
    return pycodec::SpanWork{symbols.nbytes() + static_cast<std::int64_t>(bytes.size())};
  });
  {
    py::gil_scoped_release release;
    pycodec::rans::Decoder decoder(tables, bytes.data(), bytes.size());
    network.decode(decoder, side_pointers, height, width, symbol_data, threads);
    decoder.finish();
  }
  return symbols;
}

}  // namespace

void bind_wave_network(py::module_& m) {
  py::class_<WaveNetwork>(m, "WaveNetwork", "An integer context network; immutable.")
      .def(py::init(&make_network), py::arg("groups"), py::arg("side_widths"), py::arg("layers"),
           py::arg("steps"), py::arg("phase"))
      .def("num_waves", &WaveNetwork::num_waves, py::arg("height"), py::arg("width"))
      .def("lines_in_memory", &WaveNetwork::lines_in_memory, py::arg("height"), py::arg("width"))
      .def_property_readonly("wave_stages", &WaveNetwork::wave_stages)
      .def("encode", &encode, py::arg("symbols"), py::arg("side"), py::arg("threads"))
      .def("decode", &decode, py::arg("data"), py::arg("tables"), py::arg("side"),
           py::arg("height"), py::arg("width"), py::arg("threads"));
  py::class_<EncodingPass>(m, "WavePass", "A WaveNetwork's encode whose last layer comes later.")
      .def(py::init<const WaveNetwork&, const Array<std::int32_t>&,
                    const std::vector<Array<std::int8_t>>&, int>(),
           py::arg("network"), py::arg("symbols"), py::arg("side"), py::arg("threads"),
           py::keep_alive<1, 2>())
      .def("head_input", &EncodingPass::head_input, py::arg("rows"))
      .def("finish", &EncodingPass::finish, py::arg("head"), py::arg("threads"));
}
