"""Run by test_pseudocylindrical_gpu.py with TRITON_INTERPRET=1: no GPU is needed."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch

from pycodec.ops import (
    pseudocylindrical_mask,
    pseudocylindrical_pad,
    pseudocylindrical_slice,
    pseudocylindrical_unslice,
)

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: pycodec is the installed one

from tests.ops.sphere_cases import draw_tiles

# The interpreter is slow.
SMALL = (
    ((3, 7, 5), 9, 2, (1, 2)),
    ((1, 2), 3, 1, (3, 4)),
    ((129, 200), 200, 1, (1, 1)),
)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.uint8)
# The interpreter rounds to bfloat16 towards zero.
RTOL = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2**-6}


def compare(what, run, *tensors) -> None:
    """Results, and gradients of floats, of the Triton kernels and the definition."""
    results = []
    for backend in ("reference", "triton"):
        leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in tensors]
        out = run(*leaves, backend=backend)
        results.append([out.detach()])
        if leaves[0].requires_grad:
            torch.manual_seed(0)
            cotangent = torch.randint(-9, 9, out.shape).to(out.dtype)
            results[-1] += torch.autograd.grad(out, leaves, cotangent)
    for actual, expected in zip(*results, strict=True):
        error = RTOL.get(actual.dtype, 0)
        equal = torch.allclose(actual.double(), expected.double(), rtol=error, atol=500 * error)
        if actual.dtype != expected.dtype or not equal:
            raise SystemExit(f"differs: {what}")


def main() -> None:
    count = 0
    for (i, geometry), dtype, last in itertools.product(
        enumerate(SMALL), FLOATS + INTEGERS, (False, True)
    ):
        widths, _, _, pad = geometry
        if i > 0 and dtype not in (torch.float32, torch.int8):
            continue
        x = draw_tiles(count, geometry, 2, 3, dtype, last)
        x = pseudocylindrical_mask(x, widths, channels_last=last)

        def run_pad(x, backend, widths=widths, pad=pad, last=last):
            return pseudocylindrical_pad(x, widths, pad, channels_last=last, backend=backend)

        def run_mask(x, backend, widths=widths, last=last):
            return pseudocylindrical_mask(x, widths, channels_last=last, backend=backend)

        compare((geometry, dtype, last, "pad"), run_pad, x)
        compare((geometry, dtype, last, "mask"), run_mask, x)
        count += 2
        if dtype in FLOATS and not last:
            for run in (pseudocylindrical_slice, pseudocylindrical_unslice):

                def resample(x, backend, run=run, widths=widths):
                    return run(x, widths, backend=backend)

                picture = x.unflatten(0, (2, -1)).transpose(1, 2).flatten(2, 3)
                argument = picture if run is pseudocylindrical_slice else x
                compare((geometry, dtype, run.__name__), resample, argument.contiguous())
                count += 1
        if dtype == torch.float32 and not last:
            x = torch.randint(0, 8 * 255 + 1, x.shape) / 8
            exact = [
                pseudocylindrical_unslice(x, widths, exact=True, backend=backend)
                for backend in ("reference", "triton")
            ]
            if not torch.equal(*exact):
                raise SystemExit(f"not exact: {geometry}")
            count += 1
    print(f"{count} cases are equal")


if __name__ == "__main__":
    main()
