// The parts of the Python module pycodec._cuda.
#pragma once

#include <pybind11/pybind11.h>

void bind_cuda_pseudocylindrical(pybind11::module_& m);
void bind_cuda_quantize(pybind11::module_& m);
void bind_cuda_quantized_conv2d(pybind11::module_& m);
void bind_cuda_rans(pybind11::module_& m);
void bind_cuda_trimmed_conv2d(pybind11::module_& m);
void bind_cuda_wave_network(pybind11::module_& m);
