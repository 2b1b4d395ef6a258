// The wave engine on a GPU, called by pycodec/context/wave_network_cuda.py with addresses of device
// memory.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "cuda/wave_network.hpp"
#include "cuda_module.hpp"
#include "rans/device.hpp"

namespace py = pybind11;

namespace {

using pycodec::cuda::WaveDecodeArguments;

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// As in cuda_rans.cpp.
using Tables = std::tuple<int, std::uint32_t, std::uintptr_t, std::uintptr_t, std::uintptr_t,
                          std::uintptr_t, std::uintptr_t, std::int32_t>;

WaveDecodeArguments arguments_of(const py::dict& d) {
  const auto address = [&](const char* name) { return d[name].cast<std::uintptr_t>(); };
  const auto number = [&](const char* name) { return d[name].cast<std::int64_t>(); };
  WaveDecodeArguments a = {};
  const auto [precision, num_tables, infos, encode_entries, decode_entries, ranks, packed_slots,
              packed_base] = d["tables"].cast<Tables>();
  a.tables = {precision,
              num_tables,
              pointer<const pycodec::rans::DeviceTableInfo>(infos),
              pointer<const pycodec::rans::EncodeEntry>(encode_entries),
              pointer<const std::uint32_t>(decode_entries),
              pointer<const std::uint16_t>(ranks),
              pointer<const std::uint32_t>(packed_slots),
              packed_base};
  a.body = pointer<const std::uint8_t>(address("body"));
  a.body_size = d["body_size"].cast<std::uint64_t>();
  a.lanes = d["lanes"].cast<int>();
  a.check_indexes = d["check_indexes"].cast<bool>();
  a.stages_tables = d["stages_tables"].cast<bool>();
  a.layers = pointer<const pycodec::cuda::WaveCudaLayer>(address("layers"));
  a.stages = pointer<const std::int32_t>(address("stages"));
  a.num_stages = d["num_stages"].cast<int>();
  a.groups = d["groups"].cast<int>();
  a.places = pointer<const std::uint64_t>(address("places"));
  a.begin = pointer<const std::int64_t>(address("begin"));
  a.phase_height = number("phase_height");
  a.phase_width = number("phase_width");
  a.pitch = number("pitch");
  a.num_waves = number("num_waves");
  a.symbol_frame = pointer<std::int8_t>(address("symbol_frame"));
  a.symbol_bytes = number("symbol_bytes");
  a.symbols = pointer<std::int32_t>(address("symbols"));
  a.indexes = pointer<std::uint8_t>(address("indexes"));
  a.checkpoint = pointer<std::uint32_t>(address("checkpoint"));
  a.state = pointer<pycodec::cuda::WaveCudaState>(address("state"));
  return a;
}

void decode(const py::dict& arguments, int blocks, int threads, int staged_bytes,
            std::uintptr_t stream) {
  pycodec::cuda::wave_decode(arguments_of(arguments), blocks, threads, staged_bytes,
                             pointer<void>(stream));
}

void decode_graph(const py::dict& arguments, int threads, std::uintptr_t stream) {
  const WaveDecodeArguments a = arguments_of(arguments);
  py::gil_scoped_release release;
  pycodec::cuda::wave_decode_graph(a, threads, pointer<void>(stream));
}

void barriers(std::int64_t count, int blocks, int threads, std::uintptr_t stream) {
  pycodec::cuda::wave_barriers(count, blocks, threads, pointer<void>(stream));
}

}  // namespace

void bind_cuda_wave_network(py::module_& m) {
  m.def("wave_decode", &decode, py::arg("arguments"), py::kw_only(), py::arg("blocks"),
        py::arg("threads"), py::arg("staged_bytes"), py::arg("stream"),
        "All waves in one kernel; csrc/cuda/wave_network.hpp describes the arguments.");
  m.def("wave_decode_graph", &decode_graph, py::arg("arguments"), py::kw_only(), py::arg("threads"),
        py::arg("stream"), "The same by launches that a CUDA graph repeats for every wave.");
  m.def("wave_decode_blocks", &pycodec::cuda::wave_decode_blocks, py::arg("lanes"),
        py::arg("threads"), py::arg("blocks_per_multiprocessor"), py::arg("staged_bytes"),
        "How many blocks of wave_decode the current device holds.");
  m.def("wave_barriers", &barriers, py::kw_only(), py::arg("count"), py::arg("blocks"),
        py::arg("threads"), py::arg("stream"), "Meetings of all blocks, for benchmarks.");
}
