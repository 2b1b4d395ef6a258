#include "cpu/quantize_loops.hpp"

namespace pycodec {

QuantizeKernels quantize_scalar() { return {quantize_any, dequantize_any}; }

}  // namespace pycodec
