// Portable: vectors of the compiler's own kind, which become SSE2 on x86-64 and NEON on aarch64.
#include "cpu/pseudocylindrical_slice_kernel.hpp"

namespace pycodec {

const ResampleKernel kResampleKernelScalar = {"scalar", resample_rows<float>,
                                              resample_rows<double>};

}  // namespace pycodec
