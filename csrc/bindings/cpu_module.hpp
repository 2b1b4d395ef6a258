// What makes up the Python module pycodec._cpu: a bind function for each file beside this one.
#pragma once

#include <pybind11/pybind11.h>

void bind_compressai_ans(pybind11::module_& m);
void bind_trimmed_training(pybind11::module_& m);
void bind_float_trimmed_conv2d(pybind11::module_& m);
void bind_gaussian_waves(pybind11::module_& m);
void bind_pseudocylindrical(pybind11::module_& m);
void bind_quadtree_stage(pybind11::module_& m);
void bind_quantize(pybind11::module_& m);
void bind_quantized_conv2d(pybind11::module_& m);
void bind_quantized_trimmed_conv2d(pybind11::module_& m);
void bind_rans(pybind11::module_& m);
void bind_simd_level(pybind11::module_& m);
void bind_spans(pybind11::module_& m);
void bind_transform_program(pybind11::module_& m);
void bind_wave_network(pybind11::module_& m);
