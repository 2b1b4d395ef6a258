"""The hot operations: a contract and a PyTorch reference each, and dispatch to the kernels.

Every operation is a file here, and has the same name where its kernels are: ``csrc/cpu``,
``csrc/cuda`` and ``triton_kernels``.
"""

from pycodec.ops.int16_conv2d import Int16Conv2d
from pycodec.ops.masked_conv2d import masked_conv2d
from pycodec.ops.pseudocylindrical_mask import pseudocylindrical_mask
from pycodec.ops.pseudocylindrical_pad import pseudocylindrical_pad
from pycodec.ops.pseudocylindrical_slice import (
    pseudocylindrical_slice,
    pseudocylindrical_unslice,
)
from pycodec.ops.quantize import dequantize, quantize
from pycodec.ops.quantized_conv2d import QuantizedConv2d, quantized_conv2d
from pycodec.ops.quantized_trimmed_conv2d import quantized_trimmed_conv2d
from pycodec.ops.trimmed_conv2d import trimmed_conv2d

__all__ = [
    "Int16Conv2d",
    "QuantizedConv2d",
    "dequantize",
    "masked_conv2d",
    "pseudocylindrical_mask",
    "pseudocylindrical_pad",
    "pseudocylindrical_slice",
    "pseudocylindrical_unslice",
    "quantize",
    "quantized_conv2d",
    "quantized_trimmed_conv2d",
    "trimmed_conv2d",
]
