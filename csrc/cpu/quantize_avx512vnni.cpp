#include "cpu/quantize_loops.hpp"

namespace pycodec {

QuantizeKernels quantize_avx512vnni() { return {quantize_any, dequantize_any}; }

}  // namespace pycodec
