#include "cpu/simd_level.hpp"

#include <pybind11/pybind11.h>

#include "cpu_module.hpp"

namespace py = pybind11;

void bind_simd_level(py::module_& m) {
  m.def(
      "simd_level", [] { return pycodec::simd_level_name(pycodec::simd_level()); },
      "The SIMD level that kernels made from now on will use.");
  m.def(
      "set_simd_level",
      [](const std::string& name) { pycodec::set_simd_level(pycodec::parse_simd_level(name)); },
      py::arg("name"), "Sets it: 'scalar', 'neon', 'avx2', 'avx512vnni' or 'amx'.");
  m.def(
      "supported_simd_levels",
      [] {
        py::list names;
        for (const auto level : pycodec::supported_simd_levels()) {
          names.append(pycodec::simd_level_name(level));
        }
        return names;
      },
      "What this processor can run, lowest first.");
}
