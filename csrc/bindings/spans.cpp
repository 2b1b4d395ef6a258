// For pycodec.profiling: the spans of kernels, and what the processor could do at most.
#include "cpu/spans.hpp"

#include <pybind11/pybind11.h>

#include "cpu/arithmetic_peak.hpp"
#include "cpu_module.hpp"

namespace py = pybind11;

namespace {

using pycodec::Arithmetic;
using pycodec::SpanKind;
using pycodec::SpanRecorder;

py::object name_of(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::kInt8:
      return py::str("int8");
    case Arithmetic::kFloat32:
      return py::str("float32");
    case Arithmetic::kInt16:
      return py::str("int16");
    case Arithmetic::kInt8Tiles:
      return py::str("int8 tiles");
    default:
      return py::none();
  }
}

const char* name_of(SpanKind kind) {
  switch (kind) {
    case SpanKind::kLayer:
      return "layer";
    case SpanKind::kWave:
      return "wave";
    default:
      return "kernel";
  }
}

py::tuple take_spans() {
  const auto [threads, dropped] = SpanRecorder::take();
  py::list spans;
  for (const auto& of_thread : threads) {
    for (const pycodec::Span& span : of_thread.spans) {
      const pycodec::SpanWork& work = span.work;
      spans.append(py::make_tuple(span.name, of_thread.thread, span.begin, span.end, work.bytes,
                                  work.operations, name_of(work.arithmetic), work.number,
                                  name_of(work.kind)));
    }
  }
  return py::make_tuple(spans, dropped);
}

// Seconds that `count` spans take, for benchmarks/profiling/overhead.py.
double time_spans(std::int64_t count) {
  const py::gil_scoped_release release;
  const std::int64_t begin = SpanRecorder::now();
  for (std::int64_t i = 0; i < count; ++i) {
    const pycodec::SpanScope span("empty", [] { return pycodec::SpanWork{}; });
  }
  return 1e-9 * static_cast<double>(SpanRecorder::now() - begin);
}

py::object arithmetic_peak(const std::string& arithmetic, int threads) {
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  Arithmetic which = Arithmetic::kNone;
  if (arithmetic == "int8") which = Arithmetic::kInt8;
  if (arithmetic == "int16") which = Arithmetic::kInt16;
  if (arithmetic == "int8 tiles") which = Arithmetic::kInt8Tiles;
  if (arithmetic == "float32") which = Arithmetic::kFloat32;
  if (which == Arithmetic::kNone) {
    throw std::invalid_argument("arithmetic must be int8, int8 tiles, int16 or float32");
  }
  double peak;
  {
    const py::gil_scoped_release release;
    peak = pycodec::arithmetic_peak(which, threads);
  }
  return peak > 0 ? py::object(py::float_(peak)) : py::none();
}

}  // namespace

void bind_spans(py::module_& m) {
  m.def("record_spans", &SpanRecorder::set_on, py::arg("on"),
        "Whether kernels record spans from now on.");
  m.def("take_spans", &take_spans,
        "Takes the spans of all threads away: tuples (name, thread, begin, end, bytes, operations, "
        "arithmetic, number, kind), times in ns of time.perf_counter_ns; and how many found no "
        "room.");
  m.def("time_spans", &time_spans, py::arg("count"), "Seconds that so many empty spans take.");
  m.def("arithmetic_peak", &arithmetic_peak, py::arg("arithmetic"), py::arg("threads") = 1,
        "Multiply-adds a second in registers alone, int8, int16 or float32, at the SIMD level in "
        "force, "
        "of so many threads; None where that level has no such kernel.");
}
