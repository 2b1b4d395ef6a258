// The parts of the Python module pycodec._cuda.
#pragma once

#include <pybind11/pybind11.h>

void bind_cuda_rans(pybind11::module_& m);
