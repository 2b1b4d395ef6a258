#include "cpu/quantize_loops.hpp"

namespace pycodec {

QuantizeKernels quantize_avx2() { return {quantize_any, dequantize_any}; }

}  // namespace pycodec
