"""Run by test_quantize.py with TRITON_INTERPRET=1: the Triton kernels, without a GPU."""

from __future__ import annotations

import numpy as np
import torch

from pycodec.ops import dequantize, quantize
from pycodec.ops.quantize import DTYPES


def main() -> None:
    rng = np.random.default_rng(0)
    count = 0
    for dtype in DTYPES:
        for shape in ((0, 3), (1, 1), (7, 3), (9, 31, 17), (1500, 2)):
            limits = torch.iinfo(dtype)
            steps = rng.normal(0, (limits.max - limits.min) / 3, shape).round()
            scale = np.exp(rng.uniform(-9, 9, shape[-1])).astype(np.float32)
            x = ((steps + rng.choice([0.0, 0.5], shape)) * scale).astype(np.float32)
            if x.size > 20:
                x.reshape(-1)[:3] = [np.nan, np.inf, -np.inf]
            zero = rng.integers(-(2**15), 2**15, shape[-1]).astype(np.int32) >> 6
            arguments = [torch.from_numpy(a) for a in (x, scale, zero)]
            options = {"out_dtype": dtype}
            if count % 2:
                options |= {"lower": limits.min // 2, "upper": limits.max // 3}
            results = []
            for backend in ("reference", "triton"):
                q = quantize(*arguments, **options, backend=backend)
                results.append((q, dequantize(q, *arguments[1:], backend=backend)))
            if not all(map(torch.equal, *results)):
                raise SystemExit(f"differs: {dtype} {shape}")
            count += 1
    print(f"{count} cases are equal")


if __name__ == "__main__":
    main()
