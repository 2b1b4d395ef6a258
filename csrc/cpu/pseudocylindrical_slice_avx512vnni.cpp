#include "cpu/pseudocylindrical_slice_kernel.hpp"

namespace pycodec {

const ResampleKernel kResampleKernelAvx512Vnni = {"avx512vnni", resample_rows<float>,
                                                  resample_rows<double>};

}  // namespace pycodec
