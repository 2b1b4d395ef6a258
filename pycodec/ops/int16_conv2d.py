"""The convolution of int16 by int16, exact on every backend.

For networks that were trained in floating point and take no further training: activations of 14
bits and weights as wide as the accumulators leave room for. The arithmetic is that of
:mod:`pycodec.ops.quantized_conv2d` with a second factor for what is negative, a (leaky or
parametric) ReLU::

    acc = bias + sum over the window of weight * x                           int32
    m   = negative_multiplier where acc < 0, else multiplier
    out = clamp((int64(acc) * m + 2**(shift - 1)) >> shift, -limit, limit)   64 bits

Accumulators wrap modulo 2**32 on every backend; export proves that a layer's do not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.errors import InputError

MAX_SHIFT = 62
INT16_MAX, INT32_MAX = 2**15 - 1, 2**31 - 1
BACKENDS = ("reference", "native")


class Int16Conv2d:
    """A layer, stride 1, zero padding to the same size; see the module for the formula.

    Taps whose weights are zero for some dozens of neighbouring outputs cost nothing there: masked
    kernels and transposed convolutions may be written as full ones.

    Args:
        weight: int16 [Cout, kh, kw, Cin], kh and kw odd.
        bias, multiplier, negative_multiplier: int32 [Cout].
        shift: 1 to 62.
        limit: 0 to 2**31 - 1; results are int16 up to 2**15 - 1, int32 above.
        backend: ``native`` (runs at the SIMD level in force at a call) or ``reference``.

    Raises:
        InputError: an argument does not fit the description above.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        multiplier: Tensor,
        negative_multiplier: Tensor,
        shift: int,
        limit: int,
        *,
        backend: str = "native",
    ) -> None:
        _require(backend in BACKENDS, f"there are the backends {', '.join(BACKENDS)}")
        _require(
            weight.dtype == torch.int16 and weight.dim() == 4, "weight must be int16 [O,h,w,I]"
        )
        _require(all(size > 0 for size in weight.shape), "weight has an empty dimension")
        _require(weight.shape[1] % 2 == 1 and weight.shape[2] % 2 == 1, "kernels must be odd")
        _require(max(weight.shape) <= INT16_MAX, "weight is too large")
        for name, values in (
            ("bias", bias),
            ("multiplier", multiplier),
            ("negative_multiplier", negative_multiplier),
        ):
            _require(
                values.dtype == torch.int32 and values.shape == weight.shape[:1],
                f"{name} must be int32 [{weight.shape[0]}]",
            )
        _require(1 <= shift <= MAX_SHIFT, f"shift must be 1 to {MAX_SHIFT}, not {shift}")
        _require(0 <= limit <= INT32_MAX, f"limit must be 0 to 2**31 - 1, not {limit}")
        self.weight, self.bias = weight.contiguous(), bias.contiguous()
        self.multiplier = multiplier.contiguous()
        self.negative_multiplier = negative_multiplier.contiguous()
        self.shift, self.limit, self.backend = shift, limit, backend
        self.out_dtype = torch.int16 if limit <= INT16_MAX else torch.int32
        description = self.native_description()
        self._native = _cpu.Int16Conv2d(**description) if backend == "native" else None

    def native_description(self) -> dict:
        """The layer as the C++ engines take it."""
        return {
            "weight": self.weight.numpy(),
            "bias": self.bias.numpy(),
            "multiplier": self.multiplier.numpy(),
            "negative_multiplier": self.negative_multiplier.numpy(),
            "shift": self.shift,
            "limit": self.limit,
        }

    def __call__(self, x: Tensor, threads: int | None = None) -> Tensor:
        """Convolves x, int16 [N, H, W, Cin] on the CPU, to ``out_dtype`` [N, H, W, Cout].

        Args:
            x: the input.
            threads: of the native backend; None for as many as torch uses.
        """
        channels = self.weight.shape[3]
        _require(
            x.dtype == torch.int16 and x.dim() == 4 and x.shape[3] == channels,
            f"x must be int16 [N, H, W, {channels}], not {x.dtype} {list(x.shape)}",
        )
        if self._native is None:
            return self.reference(x)
        is_int32 = self.out_dtype == torch.int32
        out = self._native.run(x.contiguous().numpy(), is_int32, threads or torch.get_num_threads())
        return torch.from_numpy(out)

    def reference(self, x: Tensor) -> Tensor:
        """The definition.

        Products and sums are integers below 2**53, so float64 matrix products are exact whatever
        the order in which a BLAS adds.
        """
        _, height, width, _ = x.shape
        _, kh, kw, _ = self.weight.shape
        padded = F.pad(x.double(), (0, 0, kw // 2, kw // 2, kh // 2, kh // 2))
        total = self.bias.double()
        for i in range(kh):
            for j in range(kw):
                window = padded[:, i : i + height, j : j + width]
                total = total + window @ self.weight[:, i, j].double().T
        acc = total.to(torch.int64).to(torch.int32).to(torch.int64)
        multiplier = torch.where(acc < 0, self.negative_multiplier, self.multiplier).to(torch.int64)
        value = (acc * multiplier + (1 << (self.shift - 1))) >> self.shift
        return value.clamp(-self.limit, self.limit).to(self.out_dtype)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"int16_conv2d: {message}")
