"""The integer convolution of the entropy models, exact on every backend.

With one scale per output channel ``s = multiplier * 2**-shift``, it is the integer form of
``clamp(round(s * (conv2d(x, weight) + bias)))`` (Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, with a 64-bit product)::

    acc = bias + sum over the window of weight * x                           int32
    out = clamp((int64(acc) * multiplier + 2**(shift - 1)) >> shift)         64 bits, then out_dtype

Halves round up, whatever the sign. The clamp is to the range of ``out_dtype``, from 0 with
``relu``. Accumulators wrap modulo 2**32 on every backend; export proves that a layer's do not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.errors import InputError
from pycodec.ops.backends import check_backend, default_backend, launch_cuda
from pycodec.profiling.spans import LAYER, span

INPUT_DTYPES = (torch.uint8, torch.int8)
OUTPUT_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32)
MAX_SHIFT = 62
_DEVICE_TYPE = "cuda"


def quantized_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    *,
    out_dtype: torch.dtype,
    relu: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Integer convolution, stride 1, zero padding to the same size; see the module for the formula.

    Packs the weights in every call: where one layer runs often, use :class:`QuantizedConv2d`.

    Args:
        x: uint8 or int8 [N, H, W, Cin], contiguous.
        weight: int8 [Cout, kh, kw, Cin], kh and kw odd, contiguous.
        bias: int32 [Cout], in units of the accumulator.
        multiplier: int32 [Cout].
        shift: 1 to 62, one for the layer.
        out_dtype: uint8, int8, int16 or int32.
        relu: clamp from 0 instead of the least value of ``out_dtype``.
        backend: one of ``pycodec.ops.backends.BACKENDS``; by default the fastest for x's device.

    Returns:
        ``out_dtype`` [N, H, W, Cout], contiguous, on x's device.

    Raises:
        InputError: an argument does not fit the description above.
    """
    if backend is None:
        return torch.ops.pycodec.quantized_conv2d(
            x, weight, bias, multiplier, shift, out_dtype, relu
        )
    check_backend(backend)
    _check_arguments(x, weight, bias, multiplier, shift, out_dtype)
    return _IMPLEMENTATIONS[backend](x, weight, bias, multiplier, shift, out_dtype, relu)


class QuantizedConv2d:
    """A :func:`quantized_conv2d` whose weights are packed once; arguments are the same.

    On the CPU it may be called by several threads at a time. It keeps the SIMD level that was in
    force when it was made. ``name`` is that of the layer, for profiles.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        multiplier: Tensor,
        shift: int,
        *,
        out_dtype: torch.dtype,
        relu: bool = False,
        backend: str | None = None,
        name: str = "quantized_conv2d",
    ) -> None:
        self.name = name
        self.backend = backend or default_backend(weight.device)
        check_backend(self.backend)
        _check_parameters(weight, bias, multiplier, shift, out_dtype)
        self._arguments = (weight, bias, multiplier, shift, out_dtype, relu)
        self._packed = _pack(*self._arguments) if self.backend == "native" else None

    def __call__(self, x: Tensor, threads: int | None = None) -> Tensor:
        """Convolves x: uint8 or int8 [N, H, W, Cin]; ``threads`` is for the native backend."""
        _check_input(x, self._arguments[0])
        with span(self.name, LAYER):
            if self._packed is not None:
                return _run_native(self._packed, x, threads)
            return _IMPLEMENTATIONS[self.backend](x, *self._arguments)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"quantized_conv2d: {message}")


def _check_parameters(
    weight: Tensor, bias: Tensor, multiplier: Tensor, shift: int, out_dtype: torch.dtype
) -> None:
    _require(
        weight.dtype == torch.int8 and weight.dim() == 4 and weight.is_contiguous(),
        f"weight must be contiguous int8 [Cout, kh, kw, Cin], not {_describe(weight)}",
    )
    cout, kh, kw, cin = weight.shape
    _require(kh % 2 == 1 and kw % 2 == 1, f"kernels must be odd, not {kh}x{kw}")
    _require(cout > 0 and cin > 0, "weight has no channels")
    for name, values in (("bias", bias), ("multiplier", multiplier)):
        _require(
            values.dtype == torch.int32 and values.shape == (cout,) and values.is_contiguous(),
            f"{name} must be contiguous int32 [{cout}], not {_describe(values)}",
        )
        _require(values.device == weight.device, f"{name} is on another device than weight")
    _require(1 <= shift <= MAX_SHIFT, f"shift must be in 1..{MAX_SHIFT}, not {shift}")
    _require(out_dtype in OUTPUT_DTYPES, f"out_dtype cannot be {out_dtype}")


def _check_input(x: Tensor, weight: Tensor) -> None:
    _require(
        x.dtype in INPUT_DTYPES
        and x.dim() == 4
        and x.shape[-1] == weight.shape[-1]
        and x.is_contiguous(),
        f"x must be contiguous uint8 or int8 [N, H, W, {weight.shape[-1]}], not {_describe(x)}",
    )
    _require(x.device == weight.device, f"x is on {x.device}, but weight on {weight.device}")


def _check_arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    out_dtype: torch.dtype,
) -> None:
    _check_parameters(weight, bias, multiplier, shift, out_dtype)
    _check_input(x, weight)


def _describe(tensor: Tensor) -> str:
    order = "" if tensor.is_contiguous() else "non-contiguous "
    return f"{order}{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _empty_output(x: Tensor, weight: Tensor, out_dtype: torch.dtype) -> Tensor:
    return x.new_empty((*x.shape[:3], weight.shape[0]), dtype=out_dtype)


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    out_dtype: torch.dtype,
    relu: bool,
) -> Tensor:
    """The definition.

    Products and sums are integers far below 2**53, so float64 matrix products are exact whatever
    the order in which a BLAS adds.
    """
    _, height, width, _ = x.shape
    _, kh, kw, _ = weight.shape
    padded = F.pad(x.double(), (0, 0, kw // 2, kw // 2, kh // 2, kh // 2))
    total = bias.double()
    for i in range(kh):
        for j in range(kw):
            total = total + padded[:, i : i + height, j : j + width] @ weight[:, i, j].double().T
    acc = total.to(torch.int64).to(torch.int32)
    value = (acc.to(torch.int64) * multiplier + (1 << (shift - 1))) >> shift
    limits = torch.iinfo(out_dtype)
    return value.clamp(max(limits.min, 0) if relu else limits.min, limits.max).to(out_dtype)


def _pack(
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    out_dtype: torch.dtype,
    relu: bool,
) -> _cpu.QuantizedConv2d:
    dtype = str(out_dtype).removeprefix("torch.")
    return _cpu.QuantizedConv2d(
        weight.numpy(), bias.numpy(), multiplier.numpy(), shift, dtype, relu
    )


def _run_native(packed: _cpu.QuantizedConv2d, x: Tensor, threads: int | None) -> Tensor:
    return torch.from_numpy(packed.run(x.numpy(), threads or torch.get_num_threads()))


def _native(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    out_dtype: torch.dtype,
    relu: bool,
) -> Tensor:
    _require(x.device.type == "cpu", f"the native backend runs on the CPU, but x is on {x.device}")
    return _run_native(_pack(weight, bias, multiplier, shift, out_dtype, relu), x, None)


def _cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    out_dtype: torch.dtype,
    relu: bool,
) -> Tensor:
    on_gpu = x.device.type == _DEVICE_TYPE
    _require(on_gpu, f"the cuda backend runs on a GPU, but x is on {x.device}")
    out = _empty_output(x, weight, out_dtype)
    limits = torch.iinfo(out_dtype)
    launch_cuda(
        "quantized_conv2d",
        x.device,
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        multiplier=multiplier.data_ptr(),
        out=out.data_ptr(),
        x_shape=tuple(x.shape),
        weight_shape=tuple(weight.shape),
        x_is_signed=x.dtype == torch.int8,
        out_bytes=out.element_size(),
        shift=shift,
        lower=max(limits.min, 0) if relu else limits.min,
        upper=limits.max,
    )
    return out


def _triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    out_dtype: torch.dtype,
    relu: bool,
) -> Tensor:
    # Imported late: triton is an optional package and slow to import.
    from pycodec.triton_kernels import quantized_conv2d as kernel

    out = _empty_output(x, weight, out_dtype)
    kernel.launch(x, weight, bias, multiplier, shift, relu, out)
    return out


_IMPLEMENTATIONS = {
    "reference": _reference,
    "native": _native,
    "cuda": _cuda,
    "triton": _triton,
}


@torch.library.custom_op("pycodec::quantized_conv2d", mutates_args=())
def _quantized_conv2d_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    out_dtype: torch.dtype,
    relu: bool,
) -> Tensor:
    _check_arguments(x, weight, bias, multiplier, shift, out_dtype)
    implementation = _IMPLEMENTATIONS[default_backend(x.device)]
    return implementation(x, weight, bias, multiplier, shift, out_dtype, relu)


@_quantized_conv2d_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    out_dtype: torch.dtype,
    relu: bool,
) -> Tensor:
    _check_arguments(x, weight, bias, multiplier, shift, out_dtype)
    return _empty_output(x, weight, out_dtype)
