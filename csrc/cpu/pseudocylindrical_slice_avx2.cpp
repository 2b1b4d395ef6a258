#include "cpu/pseudocylindrical_slice_kernel.hpp"

namespace pycodec {

const ResampleKernel kResampleKernelAvx2 = {"avx2", resample_rows<float>, resample_rows<double>};

}  // namespace pycodec
