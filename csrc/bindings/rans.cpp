#include "rans/rans.hpp"

#include <pybind11/numpy.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bytes.hpp"
#include "cpu/spans.hpp"
#include "cpu_module.hpp"
#include "rans/decoder.hpp"
#include "rans/encoder.hpp"
#include "rans/substreams.hpp"
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

void check_same_size(const py::array& symbols, const py::array& indexes) {
  if (symbols.size() != indexes.size()) {
    throw std::invalid_argument(std::to_string(symbols.size()) + " symbols with " +
                                std::to_string(indexes.size()) + " indexes");
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

// Bytes that a coder reads and writes; of a stream that is decoded in parts, without the stream.
pycodec::SpanWork coder_work(const py::array& symbols, const py::array& indexes,
                             std::uint64_t stream_size) {
  return {symbols.nbytes() + indexes.nbytes() + static_cast<std::int64_t>(stream_size)};
}

py::bytes encode(const py::array& symbols, const py::array& indexes, const TableSet& tables,
                 int lanes) {
  check_same_size(symbols, indexes);
  const auto count = static_cast<std::size_t>(symbols.size());
  const std::int32_t* data = symbol_data(symbols);
  std::vector<std::uint8_t> stream;
  with_indexes(indexes, [&](const auto* typed) {
    const pycodec::SpanScope span("rans_encode", [&] {
      return coder_work(symbols, indexes, stream.size());
      py::gil_scoped_release release;
    });
    stream = pycodec::rans::encode(tables, data, typed, count, lanes);
  });
  return py::bytes(reinterpret_cast<const char*>(stream.data()), stream.size());
}

// `out` as a typed pointer to `count` symbols.
std::int32_t* mutable_symbol_data(py::array& out, py::ssize_t count) {
  if (!is_contiguous_array_of<std::int32_t>(out) || !out.writeable()) {
    throw std::invalid_argument("out must be a contiguous writable int32 array");
  }
  if (out.size() != count) {
    throw std::invalid_argument(std::to_string(count) + " indexes, but out has " +
                                std::to_string(out.size()) + " items");
  }
  return static_cast<std::int32_t*>(out.mutable_data());
}

// Holds on to what the C++ decoder only refers to: the stream's buffer and the tables.
class BoundDecoder {
 public:
  BoundDecoder(const py::buffer& data, std::shared_ptr<const TableSet> tables)
      : tables_(std::move(tables)),
        bytes_(std::make_shared<Bytes>(data)),
        decoder_(*tables_, bytes_->data(), bytes_->size()) {}

  BoundDecoder(std::shared_ptr<const Bytes> bytes, std::shared_ptr<const TableSet> tables,
               const pycodec::rans::Decoder& decoder)
      : tables_(std::move(tables)), bytes_(std::move(bytes)), decoder_(decoder) {}

  void decode(const py::array& indexes, py::array& out) {
    auto* symbols = mutable_symbol_data(out, indexes.size());
    const auto count = static_cast<std::size_t>(indexes.size());
    with_indexes(indexes, [&](const auto* typed) {
      const pycodec::SpanScope span("rans_decode", [&] { return coder_work(out, indexes, 0); });
      py::gil_scoped_release release;
      decoder_.decode(typed, count, symbols);
    });
  }

  void finish() const { decoder_.finish(); }
  int lanes() const { return decoder_.lanes(); }

 private:
  std::shared_ptr<const TableSet> tables_;
  std::shared_ptr<const Bytes> bytes_;
  pycodec::rans::Decoder decoder_;
};

py::bytes encode_substreams(const py::array& symbols, const py::array& indexes,
                            const TableSet& tables,
                            const py::array_t<std::uint32_t, py::array::c_style>& counts, int lanes,
                            int threads) {
  check_same_size(symbols, indexes);
  const std::vector<std::uint32_t> lengths = to_vector(counts);
  const std::int32_t* data = symbol_data(symbols);
  std::vector<std::uint8_t> out;
  with_indexes(indexes, [&](const auto* typed) {
    const pycodec::SpanScope span("rans_encode_substreams", [&] {
      return coder_work(symbols, indexes, out.size());
      py::gil_scoped_release release;
    });
    out = pycodec::rans::encode_substreams(tables, data, typed, lengths, lanes, threads);
  });
  return py::bytes(reinterpret_cast<const char*>(out.data()), out.size());
}

class BoundSubstreams {
 public:
  BoundSubstreams(const py::buffer& data, std::shared_ptr<const TableSet> tables)
      : tables_(std::move(tables)),
        bytes_(std::make_shared<Bytes>(data)),
        index_(*tables_, bytes_->data(), bytes_->size()) {}

  // Substreams [first, last); the caller has checked the range.
  void decode(std::size_t first, std::size_t last, const py::array& indexes, py::array& out,
              int threads) const {
    std::uint64_t count = 0;
    for (std::size_t i = first; i < last; ++i) count += index_[i].num_symbols;
    if (count != static_cast<std::uint64_t>(indexes.size())) {
      throw std::invalid_argument("the substreams hold " + std::to_string(count) +
                                  " symbols, but there are " + std::to_string(indexes.size()) +
                                  " indexes");
    }
    auto* symbols = mutable_symbol_data(out, indexes.size());
    with_indexes(indexes, [&](const auto* typed) {
      const pycodec::SpanScope span("rans_decode_substreams", [&] {
        std::uint64_t stream_size = 0;
        for (std::size_t i = first; i < last; ++i) stream_size += index_[i].body_size;
        return coder_work(out, indexes, stream_size);
        py::gil_scoped_release release;
      });
      pycodec::rans::decode_substreams(*tables_, index_, bytes_->data(), first, last, typed,
                                       symbols, threads);
    });
  }

  BoundDecoder decoder(std::size_t i) const {
    return {bytes_, tables_, index_.decoder(i, *tables_, bytes_->data())};
  }

  // uint64 [S, 4]: first symbol, number of symbols, offset and size of the body in bytes.
  py::array_t<std::uint64_t> layout() const {
    py::array_t<std::uint64_t> out({static_cast<py::ssize_t>(index_.size()), py::ssize_t{4}});
    auto rows = out.mutable_unchecked<2>();
    for (std::size_t i = 0; i < index_.size(); ++i) {
      const auto row = static_cast<py::ssize_t>(i);
      rows(row, 0) = index_[i].first_symbol;
      rows(row, 1) = index_[i].num_symbols;
      rows(row, 2) = index_[i].body;
      rows(row, 3) = index_[i].body_size;
    }
    return out;
  }

  int lanes() const { return index_.lanes(); }

 private:
  std::shared_ptr<const TableSet> tables_;
  std::shared_ptr<const Bytes> bytes_;
  pycodec::rans::SubstreamIndex index_;
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

  m.def("rans_encode_substreams", &encode_substreams, py::arg("symbols"), py::arg("indexes"),
        py::arg("tables"), py::arg("counts"), py::arg("lanes"), py::arg("threads"));

  py::class_<BoundSubstreams>(m, "RansSubstreams", "Decodes independent substreams.")
      .def(py::init<const py::buffer&, std::shared_ptr<TableSet>>(), py::arg("data"),
           py::arg("tables"))
      .def("decode", &BoundSubstreams::decode, py::arg("first"), py::arg("last"),
           py::arg("indexes"), py::arg("out").noconvert(), py::arg("threads"))
      .def("decoder", &BoundSubstreams::decoder, py::arg("index"))
      .def("layout", &BoundSubstreams::layout)
      .def_property_readonly("lanes", &BoundSubstreams::lanes);
}
