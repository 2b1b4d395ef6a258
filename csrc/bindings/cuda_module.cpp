// The Python module pycodec._cuda. Its functions take addresses of device memory: pycodec/ops gets
// them from tensors that it has checked. It imports on machines without a GPU.
#include "cuda_module.hpp"

#include <pybind11/pybind11.h>

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of pycodec; they queue work and do not wait for it.";
  bind_cuda_pseudocylindrical(m);
  bind_cuda_quantize(m);
  bind_cuda_quantized_conv2d(m);
  bind_cuda_rans(m);
  bind_cuda_trimmed_conv2d(m);
  bind_cuda_wave_network(m);
}
