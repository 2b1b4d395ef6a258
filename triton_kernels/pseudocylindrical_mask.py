"""The pseudocylindrical mask in Triton; :mod:`pycodec.ops.pseudocylindrical_mask` defines it.

A program computes a block of one row.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

NUM_WARPS = 4
BLOCK_ELEMENTS = 1024


@triton.jit
def mask_kernel(
    x_ptr,  # [batch, rows, row_elements]
    widths_ptr,  # int32 [tiles]
    out_ptr,
    tiles,
    rows,
    row_elements,
    elements,  # of a column
    BLOCK_ELEMENTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK_ELEMENTS + tl.arange(0, BLOCK_ELEMENTS)
    kept = tl.load(widths_ptr + row // rows % tiles) * elements
    value = tl.load(x_ptr + row * row_elements + i, mask=i < kept, other=0)
    tl.store(out_ptr + row * row_elements + i, value, mask=i < row_elements)


def launch(
    x: Tensor, widths: Tensor, out: Tensor, *, batch: int, rows: int, columns: int, elements: int
) -> None:
    """Runs the kernel on checked, contiguous arguments and writes ``out``."""
    if out.numel() == 0:
        return
    row_elements = columns * elements
    mask_kernel[(batch * rows, triton.cdiv(row_elements, BLOCK_ELEMENTS))](
        x,
        widths,
        out,
        len(widths),
        rows,
        row_elements,
        elements,
        BLOCK_ELEMENTS=BLOCK_ELEMENTS,
        num_warps=NUM_WARPS,
    )


def compile_variants():
    """What to compile ahead of time as a check: (kernel, signature, constants, options)."""
    constants = {"BLOCK_ELEMENTS": BLOCK_ELEMENTS}
    for element in ("fp32", "fp64", "bf16", "i8", "i32"):
        types = {"x_ptr": f"*{element}", "out_ptr": f"*{element}", "widths_ptr": "*i32"}
        signature = {
            n: "constexpr" if n in constants else types.get(n, "i32") for n in mask_kernel.arg_names
        }
        yield mask_kernel, signature, constants, {"num_warps": NUM_WARPS}
