#include "rans/rans.hpp"

#include <pybind11/numpy.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu_module.hpp"
#include "rans/decoder.hpp"
#include "rans/encoder.hpp"
#include "rans/tables.hpp"

namespace py = pybind11;

namespace {

using pycodec::rans::TableSet;

template <class T>
bool is_contiguous_array_of(const py::array& array) {
  return array.dtype().is(py::dtype::of<T>()) && (array.flags() & py::array::c_style) != 0;
}

const std::int32_t* symbol_data(const py::array& symbols) {
  if (!is_contiguous_array_of<std::int32_t>(symbols)) {
    throw std::invalid_argument("symbols must be a contiguous int32 array");
  }
  return static_cast<const std::int32_t*>(symbols.data());
}

// Calls f with the indexes as a typed pointer.
template <class Function>
void with_indexes(const py::array& indexes, Function&& f) {
  if (is_contiguous_array_of<std::uint8_t>(indexes)) {
    f(static_cast<const std::uint8_t*>(indexes.data()));
  } else if (is_contiguous_array_of<std::uint16_t>(indexes)) {
    f(static_cast<const std::uint16_t*>(indexes.data()));
  } else {
    throw std::invalid_argument("indexes must be a contiguous uint8 or uint16 array");
  }
}

template <class T>
std::vector<T> to_vector(const py::array_t<T, py::array::c_style>& array) {
  return {array.data(), array.data() + array.size()};
}

std::shared_ptr<TableSet> make_table_set(
    int precision, const py::array_t<std::uint32_t, py::array::c_style>& frequencies,
    const py::array_t<std::uint32_t, py::array::c_style>& sizes,
    const py::array_t<std::int32_t, py::array::c_style>& offsets,
    const py::array_t<bool, py::array::c_style>& escapes) {
  const std::vector<bool> has_escape(escapes.data(), escapes.data() + escapes.size());
  return std::make_shared<TableSet>(precision, to_vector(frequencies), to_vector(sizes),
                                    to_vector(offsets), has_escape);
}

py::bytes encode(const py::array& symbols, const py::array& indexes, const TableSet& tables,
                 int lanes) {
  if (symbols.size() != indexes.size()) {
    throw std::invalid_argument(std::to_string(symbols.size()) + " symbols with " +
                                std::to_string(indexes.size()) + " indexes");
  }
  const auto count = static_cast<std::size_t>(symbols.size());
  const std::int32_t* data = symbol_data(symbols);
  std::vector<std::uint8_t> stream;
  with_indexes(indexes, [&](const auto* typed) {
    py::gil_scoped_release release;
    stream = pycodec::rans::encode(tables, data, typed, count, lanes);
  });
  return py::bytes(reinterpret_cast<const char*>(stream.data()), stream.size());
}

// Holds on to what the C++ decoder only refers to: the stream's buffer and the tables.
class BoundDecoder {
 public:
  BoundDecoder(const py::buffer& data, std::shared_ptr<const TableSet> tables)
      : tables_(std::move(tables)), buffer_(data.request()), decoder_(make_decoder()) {}

  void decode(const py::array& indexes, py::array& out) {
    if (!is_contiguous_array_of<std::int32_t>(out) || !out.writeable()) {
      throw std::invalid_argument("out must be a contiguous writable int32 array");
    }
    if (out.size() != indexes.size()) {
      throw std::invalid_argument(std::to_string(indexes.size()) + " indexes, but out has " +
                                  std::to_string(out.size()) + " items");
    }
    auto* symbols = static_cast<std::int32_t*>(out.mutable_data());
    const auto count = static_cast<std::size_t>(indexes.size());
    with_indexes(indexes, [&](const auto* typed) {
      py::gil_scoped_release release;
      decoder_.decode(typed, count, symbols);
    });
  }

  void finish() const { decoder_.finish(); }
  int lanes() const { return decoder_.lanes(); }

 private:
  pycodec::rans::Decoder make_decoder() const {
    if (buffer_.itemsize != 1 || buffer_.ndim != 1 ||
        (buffer_.size > 1 && buffer_.strides[0] != 1)) {
      throw std::invalid_argument("a rANS stream must be bytes or a contiguous buffer of them");
    }
    return {*tables_, static_cast<const std::uint8_t*>(buffer_.ptr),
            static_cast<std::size_t>(buffer_.size)};
  }

  std::shared_ptr<const TableSet> tables_;
  py::buffer_info buffer_;
  pycodec::rans::Decoder decoder_;
};

// C++ errors become those of pycodec.errors.
void translate_exception(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const pycodec::CorruptStream& e) {
    const py::object type = py::module_::import("pycodec.errors").attr("CorruptStreamError");
    PyErr_SetObject(type.ptr(), type(e.what(), py::arg("offset") = e.offset()).ptr());
  } catch (const std::invalid_argument& e) {
    const py::object type = py::module_::import("pycodec.errors").attr("InputError");
    PyErr_SetString(type.ptr(), e.what());
  }
}

}  // namespace

void bind_rans(py::module_& m) {
  py::register_local_exception_translator(&translate_exception);

  py::class_<TableSet, std::shared_ptr<TableSet>>(m, "RansTableSet",
                                                  "Tables laid out for the coder; immutable.")
      .def(py::init(&make_table_set), py::arg("precision"), py::arg("frequencies"),
           py::arg("sizes"), py::arg("offsets"), py::arg("escapes"));

  m.def("rans_encode", &encode, py::arg("symbols"), py::arg("indexes"), py::arg("tables"),
        py::arg("lanes") = 0, "Encodes int32 symbols; lanes 0 lets the encoder choose.");

  py::class_<BoundDecoder>(m, "RansDecoder", "Decodes a stream call by call.")
      .def(py::init<const py::buffer&, std::shared_ptr<TableSet>>(), py::arg("data"),
           py::arg("tables"))
      .def("decode", &BoundDecoder::decode, py::arg("indexes"), py::arg("out").noconvert())
      .def("finish", &BoundDecoder::finish)
      .def_property_readonly("lanes", &BoundDecoder::lanes);
}
