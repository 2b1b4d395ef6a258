#include "cpu_module.hpp"

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Native CPU kernels of pycodec.";
  bind_simd_level(m);
  bind_compressai_ans(m);
  bind_rans(m);
  bind_trimmed_training(m);
  bind_float_trimmed_conv2d(m);
  bind_gaussian_waves(m);
  bind_pseudocylindrical(m);
  bind_quadtree_stage(m);
  bind_quantize(m);
  bind_quantized_conv2d(m);
  bind_quantized_trimmed_conv2d(m);
  bind_spans(m);
  bind_transform_program(m);
  bind_wave_network(m);
}
