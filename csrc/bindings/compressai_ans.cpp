#include <pybind11/numpy.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/spans.hpp"
#include "cpu_module.hpp"
#include "rans/compressai.hpp"

namespace py = pybind11;

namespace {

using pycodec::compressai::CdfRow;
using pycodec::compressai::CdfTables;
using Search = CdfTables::Search;

bool is_list(py::handle object) {
  return PyList_Check(object.ptr()) != 0 || PyTuple_Check(object.ptr()) != 0;
}

// Integers that Python gave in whatever form, as int32. Contiguous int32 arrays and CPU tensors are
// read in place. Lists and tuples are read here, since NumPy needs several times as long for them.
class Int32Items {
 public:
  // Reads no more than `most` items of a list. Throws std::invalid_argument for what is no integer
  // or exceeds int32.
  Int32Items(py::handle source, const std::string& name,
             std::size_t most = std::numeric_limits<std::size_t>::max()) {
    if (is_list(source)) {
      read_list(source, name, most);
    } else {
      read_array(source, name);
    }
  }

  const std::int32_t* data() const { return data_; }
  std::size_t size() const { return size_; }
  // Of the array; empty for a list.
  const std::vector<py::ssize_t>& shape() const { return shape_; }

 private:
  void read_list(py::handle list, const std::string& name, std::size_t most) {
    owner_ = py::reinterpret_borrow<py::object>(list);
    PyObject* const items = list.ptr();
    copy_.reserve(std::min(most, static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items))));
    // The size is read again and again: an item's __index__ may change the list.
    while (copy_.size() < most &&
           copy_.size() < static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items))) {
      const auto i = static_cast<py::ssize_t>(copy_.size());
      copy_.push_back(to_int32(PySequence_Fast_GET_ITEM(items, i), name));
    }
    data_ = copy_.data();
    size_ = copy_.size();
  }

  static std::int32_t to_int32(PyObject* item, const std::string& name) {
    py::object number;
    if (PyLong_Check(item) == 0) {
      const auto held = py::reinterpret_borrow<py::object>(item);
      number = py::reinterpret_steal<py::object>(PyNumber_Index(item));
      if (!number) {
        PyErr_Clear();
        throw std::invalid_argument(name + " must be integers, not " + Py_TYPE(item)->tp_name);
      }
      item = number.ptr();
    }
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(item, &overflow);
    if (overflow != 0 || value < std::numeric_limits<std::int32_t>::min() ||
        value > std::numeric_limits<std::int32_t>::max()) {
      throw std::invalid_argument(name + " exceed int32");
    }
    return static_cast<std::int32_t>(value);
  }

  void read_array(py::handle source, const std::string& name) {
    const py::array array = py::array::ensure(source);
    if (!array || array.ndim() == 0) {
      throw std::invalid_argument(name + " must be integers in an array or a list");
    }
    shape_.assign(array.shape(), array.shape() + array.ndim());
    size_ = static_cast<std::size_t>(array.size());
    if (array.dtype().is(py::dtype::of<std::int32_t>()) &&
        (array.flags() & py::array::c_style) != 0) {
      data_ = static_cast<const std::int32_t*>(array.data());
      owner_ = array;
      return;
    }
    copy_.resize(size_);
    data_ = copy_.data();
    const char kind = array.dtype().kind();
    const py::ssize_t bytes = array.itemsize();
    if (kind == 'i' || kind == 'b') {
      convert<std::int64_t>(array, name);
    } else if (kind == 'u' && bytes == 8) {
      convert<std::uint64_t>(array, name);
    } else if (kind == 'u') {
      convert<std::uint32_t>(array, name);
    } else if (size_ > 0) {  // an empty list has no integers to tell its type by
      throw std::invalid_argument(name + " must be integers, not " +
                                  std::string(py::str(array.dtype())));
    }
  }

  template <class Wide>
  void convert(const py::array& array, const std::string& name) {
    const auto wide = py::array_t<Wide, py::array::c_style | py::array::forcecast>::ensure(array);
    if (!wide) throw std::invalid_argument(name + " must be integers");
    const Wide* items = wide.data();
    bool fits = true;
    for (std::size_t i = 0; i < size_; ++i) {
      copy_[i] = static_cast<std::int32_t>(items[i]);
      fits &= static_cast<Wide>(copy_[i]) == items[i] && (items[i] < 0) == (copy_[i] < 0);
    }
    if (!fits) throw std::invalid_argument(name + " exceed int32");
  }

  py::object owner_;
  std::vector<std::int32_t> copy_;
  const std::int32_t* data_ = nullptr;
  std::size_t size_ = 0;
  std::vector<py::ssize_t> shape_;
};

void check_count(const Int32Items& items, const std::string& name, std::size_t rows) {
  if (items.size() != rows) {
    throw std::invalid_argument(name + " has " + std::to_string(items.size()) + " items, cdfs " +
                                std::to_string(rows) + " rows");
  }
}

// `num_symbols` is how many will be decoded with the tables.
std::shared_ptr<CdfTables> make_tables(const py::object& cdfs, const py::object& cdfs_sizes,
                                       const py::object& offsets, std::size_t num_symbols) {
  const Int32Items sizes(cdfs_sizes, "cdfs_sizes");
  const Int32Items first_values(offsets, "offsets");
  std::vector<CdfRow> rows;
  std::vector<Int32Items> owners;
  if (is_list(cdfs)) {
    const auto list = py::reinterpret_borrow<py::sequence>(cdfs);
    const std::size_t num_rows = list.size();
    check_count(sizes, "cdfs_sizes", num_rows);
    check_count(first_values, "offsets", num_rows);
    for (std::size_t i = 0; i < num_rows; ++i) {
      const auto most = static_cast<std::size_t>(std::max(sizes.data()[i], 0));
      const py::object row = list[i];
      owners.emplace_back(row, "the items of cdfs", most);
      rows.push_back(
          {owners.back().data(), owners.back().size(), sizes.data()[i], first_values.data()[i]});
    }
  } else {
    owners.emplace_back(cdfs, "cdfs");
    if (owners[0].shape().size() != 2) {
      throw std::invalid_argument("cdfs must be a 2-D array or a list of lists");
    }
    const auto num_rows = static_cast<std::size_t>(owners[0].shape()[0]);
    const auto width = static_cast<std::size_t>(owners[0].shape()[1]);
    check_count(sizes, "cdfs_sizes", num_rows);
    check_count(first_values, "offsets", num_rows);
    for (std::size_t i = 0; i < num_rows; ++i) {
      rows.push_back(
          {owners[0].data() + i * width, width, sizes.data()[i], first_values.data()[i]});
    }
  }
  std::size_t num_items = 0;
  for (const CdfRow& row : rows) num_items += static_cast<std::size_t>(std::max(row.size, 0));
  // To fill the 8 to 16 buckets of an item takes about as long as to bisect for a symbol.
  return std::make_shared<CdfTables>(rows,
                                     num_symbols >= num_items ? Search::kBuckets : Search::kBisect);
}

py::bytes to_bytes(const std::vector<std::uint8_t>& stream) {
  return {reinterpret_cast<const char*>(stream.data()), stream.size()};
}

// The lock is taken after the GIL is given up, and not by way of Python: threads that share a coder
// get its calls one after the other.
class BoundEncoder {
 public:
  void add(const py::object& symbols, const py::object& indexes, const CdfTables& tables) {
    const Int32Items symbol_items(symbols, "symbols");
    const Int32Items index_items(indexes, "indexes");
    if (symbol_items.size() != index_items.size()) {
      throw std::invalid_argument(std::to_string(symbol_items.size()) + " symbols with " +
                                  std::to_string(index_items.size()) + " indexes");
    }
    py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    encoder_.add(tables, symbol_items.data(), index_items.data(), symbol_items.size());
    num_symbols_ += symbol_items.size();
  }

  py::bytes flush() {
    std::vector<std::uint8_t> stream;
    std::size_t num_symbols = 0;
    const pycodec::SpanScope span("compressai_encode", [&] {
      return pycodec::SpanWork{static_cast<std::int64_t>(8 * num_symbols + stream.size())};
    });
    {
      py::gil_scoped_release release;
      const std::lock_guard<std::mutex> lock(mutex_);
      stream = encoder_.flush();
      num_symbols = std::exchange(num_symbols_, 0);
    }
    return to_bytes(stream);
  }

 private:
  std::mutex mutex_;
  std::size_t num_symbols_ = 0;  // since the last flush
  pycodec::compressai::Encoder encoder_;
};

// Holds on to the stream's buffer.
class BoundDecoder {
 public:
  explicit BoundDecoder(const py::object& encoded)
      : buffer_(request(encoded)),
        decoder_(static_cast<const std::uint8_t*>(buffer_.ptr),
                 static_cast<std::size_t>(buffer_.size)) {}

  // A list for a list of indexes, else an int32 array in the shape of the indexes.
  py::object decode(const py::object& indexes, const CdfTables& tables) {
    const Int32Items index_items(indexes, "indexes");
    const std::size_t count = index_items.size();
    if (!is_list(indexes)) {
      py::array_t<std::int32_t> symbols(index_items.shape());
      decode_to(tables, index_items, symbols.mutable_data());
      return std::move(symbols);
    }
    std::vector<std::int32_t> symbols(count);
    decode_to(tables, index_items, symbols.data());
    py::list list(count);
    for (std::size_t i = 0; i < count; ++i) {
      PyList_SET_ITEM(list.ptr(), static_cast<py::ssize_t>(i),
                      py::int_(symbols[i]).release().ptr());
    }
    return std::move(list);
  }

 private:
  static py::buffer_info request(const py::object& encoded) {
    if (PyObject_CheckBuffer(encoded.ptr()) == 0) {
      throw std::invalid_argument(std::string("the stream must be bytes, not ") +
                                  Py_TYPE(encoded.ptr())->tp_name);
    }
    py::buffer_info buffer = py::reinterpret_borrow<py::buffer>(encoded).request();
    if (buffer.itemsize != 1 || buffer.ndim != 1 || (buffer.size > 1 && buffer.strides[0] != 1)) {
      throw std::invalid_argument("the stream must be bytes or a contiguous buffer of them");
    }
    return buffer;
  }

  void decode_to(const CdfTables& tables, const Int32Items& indexes, std::int32_t* symbols) {
    const pycodec::SpanScope span("compressai_decode", [&] {
      return pycodec::SpanWork{static_cast<std::int64_t>(8 * indexes.size())};
    });
    py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    decoder_.decode(tables, indexes.data(), indexes.size(), symbols);
  }

  std::mutex mutex_;
  py::buffer_info buffer_;
  pycodec::compressai::Decoder decoder_;
};

}  // namespace

void bind_compressai_ans(py::module_& m) {
  py::class_<CdfTables, std::shared_ptr<CdfTables>>(m, "CompressAICdfTables",
                                                    "Checked CDFs; immutable.")
      .def(py::init(&make_tables), py::arg("cdfs"), py::arg("cdfs_sizes"), py::arg("offsets"),
           py::arg("num_symbols"))
      .def("__len__", &CdfTables::num_tables);

  py::class_<BoundEncoder>(m, "CompressAIEncoder", "Collects symbols and codes them on flush.")
      .def(py::init<>())
      .def("add", &BoundEncoder::add, py::arg("symbols"), py::arg("indexes"), py::arg("tables"))
      .def("flush", &BoundEncoder::flush);

  py::class_<BoundDecoder>(m, "CompressAIDecoder", "Decodes a stream call by call.")
      .def(py::init<const py::object&>(), py::arg("encoded"))
      .def("decode", &BoundDecoder::decode, py::arg("indexes"), py::arg("tables"));
}
