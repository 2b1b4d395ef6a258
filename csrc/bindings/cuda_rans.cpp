// The rANS kernels, called by pycodec/coding/rans_cuda.py with addresses of device memory.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "cuda/rans.hpp"
#include "cuda_module.hpp"
#include "rans/device.hpp"
#include "rans/kernels.hpp"

namespace py = pybind11;

namespace {

using pycodec::cuda::RansSubstream;

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// precision, num_tables, infos, encode_entries, decode_entries, ranks, packed_slots, packed_base
using Tables = std::tuple<int, std::uint32_t, std::uintptr_t, std::uintptr_t, std::uintptr_t,
                          std::uintptr_t, std::uintptr_t, std::int32_t>;

pycodec::rans::DeviceTables device_tables(const Tables& tables) {
  const auto& [precision, num_tables, infos, encode_entries, decode_entries, ranks, packed_slots,
               packed_base] = tables;
  return {precision,
          num_tables,
          pointer<const pycodec::rans::DeviceTableInfo>(infos),
          pointer<const pycodec::rans::EncodeEntry>(encode_entries),
          pointer<const std::uint32_t>(decode_entries),
          pointer<const std::uint16_t>(ranks),
          pointer<const std::uint32_t>(packed_slots),
          packed_base};
}

void decode(const Tables& tables, std::uintptr_t indexes, int index_bytes, std::uintptr_t symbols,
            std::uintptr_t data, std::uintptr_t substreams, std::int64_t num_substreams, int lanes,
            std::uintptr_t before, std::uintptr_t after, std::uintptr_t failures,
            std::uintptr_t stream) {
  pycodec::cuda::RansDecodeArguments a = {};
  a.tables = device_tables(tables);
  a.indexes = pointer<const void>(indexes);
  a.index_bytes = index_bytes;
  a.symbols = pointer<std::int32_t>(symbols);
  a.data = pointer<const std::uint8_t>(data);
  a.substreams = pointer<const RansSubstream>(substreams);
  a.num_substreams = num_substreams;
  a.lanes = lanes;
  a.before = pointer<const std::uint32_t>(before);
  a.after = pointer<std::uint32_t>(after);
  a.failures = pointer<std::uint64_t>(failures);
  pycodec::cuda::rans_decode(a, pointer<void>(stream));
}

void encode(const Tables& tables, std::uintptr_t symbols, std::uintptr_t indexes, int index_bytes,
            std::uintptr_t substreams, std::int64_t num_substreams, std::uintptr_t lanes,
            int most_lanes, int words_per_symbol, std::uintptr_t scratch, std::uintptr_t states,
            std::uintptr_t num_words, std::uintptr_t failures, std::uintptr_t stream) {
  pycodec::cuda::RansEncodeArguments a = {};
  a.tables = device_tables(tables);
  a.symbols = pointer<const std::int32_t>(symbols);
  a.indexes = pointer<const void>(indexes);
  a.index_bytes = index_bytes;
  a.substreams = pointer<const RansSubstream>(substreams);
  a.num_substreams = num_substreams;
  a.lanes = pointer<const std::int32_t>(lanes);
  a.most_lanes = most_lanes;
  a.words_per_symbol = words_per_symbol;
  a.scratch = pointer<std::uint16_t>(scratch);
  a.states = pointer<std::uint32_t>(states);
  a.num_words = pointer<std::uint64_t>(num_words);
  a.failures = pointer<std::uint64_t>(failures);
  pycodec::cuda::rans_encode(a, pointer<void>(stream));
}

void copy(std::uintptr_t substreams, std::int64_t num_substreams, std::uintptr_t lanes,
          int most_lanes, int words_per_symbol, std::uintptr_t scratch, std::uintptr_t states,
          std::uintptr_t data, std::uintptr_t stream) {
  pycodec::cuda::RansCopyArguments a = {};
  a.substreams = pointer<const RansSubstream>(substreams);
  a.num_substreams = num_substreams;
  a.lanes = pointer<const std::int32_t>(lanes);
  a.most_lanes = most_lanes;
  a.words_per_symbol = words_per_symbol;
  a.scratch = pointer<const std::uint16_t>(scratch);
  a.states = pointer<const std::uint32_t>(states);
  a.data = pointer<std::uint8_t>(data);
  pycodec::cuda::rans_copy(a, pointer<void>(stream));
}

}  // namespace

void bind_cuda_rans(py::module_& m) {
  m.def("rans_decode", &decode, py::kw_only(), py::arg("tables"), py::arg("indexes"),
        py::arg("index_bytes"), py::arg("symbols"), py::arg("data"), py::arg("substreams"),
        py::arg("num_substreams"), py::arg("lanes"), py::arg("before"), py::arg("after"),
        py::arg("failures"), py::arg("stream"),
        "Decodes substreams, a warp each; csrc/cuda/rans.hpp describes the arguments.");
  m.def("rans_encode", &encode, py::kw_only(), py::arg("tables"), py::arg("symbols"),
        py::arg("indexes"), py::arg("index_bytes"), py::arg("substreams"),
        py::arg("num_substreams"), py::arg("lanes"), py::arg("most_lanes"),
        py::arg("words_per_symbol"), py::arg("scratch"), py::arg("states"), py::arg("num_words"),
        py::arg("failures"), py::arg("stream"),
        "Encodes substreams, a warp each, to scratch memory.");
  m.def("rans_copy", &copy, py::kw_only(), py::arg("substreams"), py::arg("num_substreams"),
        py::arg("lanes"), py::arg("most_lanes"), py::arg("words_per_symbol"), py::arg("scratch"),
        py::arg("states"), py::arg("data"), py::arg("stream"),
        "Brings encoded substreams to their place.");
}
