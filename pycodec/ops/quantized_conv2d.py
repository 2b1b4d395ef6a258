"""The integer convolution of entropy models and quantized transforms, exact on every backend.

With one scale per output channel ``s = multiplier * 2**-shift``, it is the integer form of
``clamp(round(s * (conv2d(x, weight) + bias)) + residual)`` (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, with a
64-bit product)::

    acc = bias + sum over the window of weight * x                           int32
    r   = (int64(acc) * multiplier + 2**(shift - 1)) >> shift                64 bits
    out = clamp(r + residual)                                                to out_dtype or bits

Halves round up, whatever the sign. The clamp is to the range of ``out_dtype``, or of ``bits`` of
it, from 0 with ``relu``. Accumulators wrap modulo 2**32 on every backend; export proves that a
layer's do not. ``docs/quantization.md`` says how a network is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.errors import InputError
from pycodec.ops.backends import check_backend, default_backend, launch_cuda
from pycodec.profiling.spans import LAYER, span

INPUT_DTYPES = (torch.uint8, torch.int8, torch.int16)
WEIGHT_DTYPES = (torch.int8, torch.int16, torch.uint8)
OUTPUT_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32)
MAX_SHIFT = 62
MAX_WEIGHT = 2**15 - 129
"""The largest int16 weight: that many are 256 * high + low, two int8."""
MAX_UPSCALE = 4
CUDA_KERNELS = ("dp4a", "mma", "mma128x96", "mma128x64", "mma64x32")
"""Of the CUDA backend: without tensor cores; with them, the tile chosen by shape or named."""


@dataclass(frozen=True)
class ConvOptions:
    """What is fixed for a layer besides its tensors; see :func:`quantized_conv2d`."""

    out_dtype: torch.dtype
    relu: bool = False
    stride: int = 1
    upscale: int = 1
    bits: int = 0

    @property
    def lower(self) -> int:
        lowest = torch.iinfo(self.out_dtype).min
        return 0 if self.relu else lowest >> (8 - self.bits if self.bits else 0)

    @property
    def upper(self) -> int:
        return torch.iinfo(self.out_dtype).max >> (8 - self.bits if self.bits else 0)


def pack_int4(weight: Tensor) -> Tensor:
    """Weights of 4 bits, two a byte: even input channels in the low half.

    Args:
        weight: int8 [Cout, kh, kw, Cin], values -8 to 7.

    Returns:
        uint8 [Cout, kh, kw, ceil(Cin / 2)]; the half that is left over at an odd Cin is 0.
    """
    if weight.dtype != torch.int8 or bool(((weight < -8) | (weight > 7)).any()):
        raise InputError("pack_int4: weights must be int8, -8 to 7")
    halves = F.pad(weight.view(torch.uint8) & 15, (0, weight.shape[-1] % 2))
    return halves[..., ::2] | halves[..., 1::2] << 4


def unpack_int4(packed: Tensor, in_channels: int) -> Tensor:
    """The inverse of :func:`pack_int4`: int8 [Cout, kh, kw, in_channels]."""
    halves = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., :in_channels]
    return ((halves ^ 8).view(torch.int8) - 8).contiguous()


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
    stride: int = 1,
    upscale: int = 1,
    bits: int = 0,
    zero_point: Tensor | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
    kernel: str | None = None,
) -> Tensor:
    """Integer convolution with padding k // 2; see the module for the formula.

    Packs the weights in every call: where one layer runs often, use :class:`QuantizedConv2d`.

    Args:
        x: uint8, int8 or int16 [N, H, W, Cin], contiguous.
        weight: int8 or int16 [Cout, kh, kw, Cin], kh and kw odd, contiguous, at most
            MAX_WEIGHT; or of 4 bits, packed: uint8 [Cout, kh, kw, ceil(Cin / 2)], see
            :func:`pack_int4`.
        bias: int32 [Cout], in units of the accumulator.
        multiplier: int32 [Cout].
        shift: 1 to 62, one for the layer.
        out_dtype: uint8, int8, int16 or int32.
        relu: clamp from 0 instead of the least value of ``out_dtype``.
        stride: 1 or 2.
        upscale: 1 to 4: outputs of a position are a patch of so many rows and columns. Channel
            (dy * upscale + dx) * C + c, C = Cout / upscale**2, becomes channel c at (dy, dx).
        bits: 2 to 8: clamp to the range of so many bits of ``out_dtype`` uint8 or int8; 0 for all.
        zero_point: what x is outside the picture: int16 [Cin], values of x's type; None for 0.
        residual: int16, of the output's shape: added before the clamp; upscale is 1 then.
        backend: one of ``pycodec.ops.backends.BACKENDS``; by default the fastest for x's device.
        kernel: with backend ``cuda``, one of ``CUDA_KERNELS``; by default the one that suits the
            shape. All give the same bits.

    Returns:
        ``out_dtype`` [N, ceil(H / stride) * upscale, ceil(W / stride) * upscale, C], contiguous, on
        x's device.

    Raises:
        InputError: an argument does not fit the description above.
    """
    options = ConvOptions(out_dtype, relu, stride, upscale, bits)
    _check_kernel(kernel, backend)
    if backend is None:
        return torch.ops.pycodec.quantized_conv2d(
            *(x, weight, bias, multiplier, shift, out_dtype, relu),
            *(stride, upscale, bits, zero_point, residual),
        )
    check_backend(backend)
    _check_parameters(weight, bias, multiplier, shift, options)
    _check_input(x, weight, zero_point, residual, options)
    arguments = (x, weight, bias, multiplier, shift, options, zero_point, residual)
    return _run(backend, kernel, *arguments)


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
        stride: int = 1,
        upscale: int = 1,
        bits: int = 0,
        zero_point: Tensor | None = None,
        in_channels: int | None = None,
        backend: str | None = None,
        kernel: str | None = None,
        name: str = "quantized_conv2d",
    ) -> None:
        """``in_channels``: of packed weights, if that is an odd number; ``name``: of its spans.

        ``packed`` is the native layer, None for the other backends.
        """
        self.name = name
        self.backend = backend or default_backend(weight.device)
        check_backend(self.backend)
        _check_kernel(kernel, self.backend)
        self._kernel = kernel
        options = ConvOptions(out_dtype, relu, stride, upscale, bits)
        _check_parameters(weight, bias, multiplier, shift, options)
        self.in_channels = in_channels or weight.shape[3] * (1 + (weight.dtype == torch.uint8))
        self.kernel_size = tuple(weight.shape[1:3])
        self._weight, self._zero_point, self._options = weight, zero_point, options
        self._arguments = (weight, bias, multiplier, shift, options, zero_point)
        self.packed = None
        if self.backend == "native":
            self.packed = _pack(*self._arguments, self.in_channels)

    def __call__(
        self, x: Tensor, threads: int | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Convolves x: uint8, int8 or int16 [N, H, W, Cin].

        ``threads`` is for the native backend.
        """
        _check_input(x, self._weight, self._zero_point, residual, self._options)
        with span(self.name, LAYER):
            if self.packed is not None:
                return _run_native(self.packed, x, threads, residual)
            return _run(self.backend, self._kernel, x, *self._arguments, residual)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"quantized_conv2d: {message}")


def _check_kernel(kernel: str | None, backend: str | None) -> None:
    if kernel is not None:
        _require(backend == "cuda", "kernel is an option of the cuda backend")
        names = ", ".join(CUDA_KERNELS)
        _require(kernel in CUDA_KERNELS, f"unknown kernel {kernel!r}; there are {names}")


def _check_parameters(
    weight: Tensor, bias: Tensor, multiplier: Tensor, shift: int, options: ConvOptions
) -> None:
    _require(
        weight.dtype in WEIGHT_DTYPES and weight.dim() == 4 and weight.is_contiguous(),
        "weight must be contiguous int8 or int16 [Cout, kh, kw, Cin], or packed uint8, not "
        f"{_describe(weight)}",
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
    _require(
        weight.dtype != torch.int16 or int(weight.amax()) <= MAX_WEIGHT,
        f"weights of 16 bits must be at most {MAX_WEIGHT}",
    )
    _require(1 <= shift <= MAX_SHIFT, f"shift must be in 1..{MAX_SHIFT}, not {shift}")
    _require(options.out_dtype in OUTPUT_DTYPES, f"out_dtype cannot be {options.out_dtype}")
    _require(options.stride in (1, 2), f"stride must be 1 or 2, not {options.stride}")
    _require(
        1 <= options.upscale <= MAX_UPSCALE and cout % options.upscale**2 == 0,
        f"upscale must be 1 to {MAX_UPSCALE} and its square divide {cout}, not {options.upscale}",
    )
    narrow = options.out_dtype in (torch.uint8, torch.int8)
    _require(
        options.bits == 0 or (2 <= options.bits <= 8 and narrow),
        f"bits must be 2 to 8, of uint8 or int8, not {options.bits} of {options.out_dtype}",
    )


def _check_input(
    x: Tensor,
    weight: Tensor,
    zero_point: Tensor | None,
    residual: Tensor | None,
    options: ConvOptions,
) -> None:
    cin = weight.shape[-1]
    fits = x.dim() == 4 and x.shape[-1] == cin
    if weight.dtype == torch.uint8:
        fits = x.dim() == 4 and (x.shape[-1] + 1) // 2 == cin
    _require(
        x.dtype in INPUT_DTYPES and fits and x.is_contiguous(),
        f"x must be contiguous uint8, int8 or int16 [N, H, W, {cin}] (twice that for weights of "
        f"4 bits), not {_describe(x)}",
    )
    _require(x.device == weight.device, f"x is on {x.device}, but weight on {weight.device}")
    if zero_point is not None:
        _require(
            zero_point.dtype == torch.int16
            and zero_point.shape == x.shape[-1:]
            and zero_point.device == x.device
            and zero_point.is_contiguous(),
            f"zero_point must be int16 [{x.shape[-1]}] on x's device, not {_describe(zero_point)}",
        )
    if residual is not None:
        shape = _output_shape(x, weight, options)
        _require(
            residual.dtype == torch.int16
            and tuple(residual.shape) == shape
            and residual.device == x.device
            and residual.is_contiguous()
            and options.upscale == 1,
            f"residual must be contiguous int16 {list(shape)} on x's device, and upscale 1, not "
            f"{_describe(residual)}",
        )


def _describe(tensor: Tensor) -> str:
    order = "" if tensor.is_contiguous() else "non-contiguous "
    return f"{order}{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _output_shape(x: Tensor, weight: Tensor, options: ConvOptions) -> tuple[int, ...]:
    height, width = (-(-side // options.stride) * options.upscale for side in x.shape[1:3])
    return (x.shape[0], height, width, weight.shape[0] // options.upscale**2)


def _empty_output(x: Tensor, weight: Tensor, options: ConvOptions) -> Tensor:
    return x.new_empty(_output_shape(x, weight, options), dtype=options.out_dtype)


def _whole_weight(weight: Tensor, in_channels: int) -> Tensor:
    return unpack_int4(weight, in_channels) if weight.dtype == torch.uint8 else weight


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    options: ConvOptions,
    zero_point: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """The definition.

    Products and sums are integers far below 2**53, so float64 matrix products are exact whatever
    the order in which a BLAS adds.
    """
    weight = _whole_weight(weight, x.shape[3])
    _, kh, kw, _ = weight.shape
    zero = 0.0 if zero_point is None else zero_point.double()
    padded = F.pad(x.double() - zero, (0, 0, kw // 2, kw // 2, kh // 2, kh // 2)) + zero
    step = options.stride
    height, width = (-(-side // step) for side in x.shape[1:3])
    total = bias.double()
    for i in range(kh):
        for j in range(kw):
            rows = padded[:, i : i + height * step : step, j : j + width * step : step]
            total = total + rows[:, :height, :width] @ weight[:, i, j].double().T
    acc = total.to(torch.int64).to(torch.int32)
    value = (acc.to(torch.int64) * multiplier + (1 << (shift - 1))) >> shift
    if residual is not None:
        value = value + residual
    value = value.clamp(options.lower, options.upper).to(options.out_dtype)
    if options.upscale == 1:
        return value
    u = options.upscale
    patches = value.view(*value.shape[:3], u, u, -1).permute(0, 1, 3, 2, 4, 5)
    return patches.reshape(_output_shape(x, weight, options))


def _pack(
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    options: ConvOptions,
    zero_point: Tensor | None,
    in_channels: int,
) -> _cpu.QuantizedConv2d:
    return _cpu.QuantizedConv2d(
        _whole_weight(weight, in_channels).numpy(),
        bias.numpy(),
        multiplier.numpy(),
        shift,
        str(options.out_dtype).removeprefix("torch."),
        options.relu,
        stride=options.stride,
        upscale=options.upscale,
        bits=options.bits,
        zero_point=[] if zero_point is None else zero_point.tolist(),
    )


def _run_native(
    packed: _cpu.QuantizedConv2d, x: Tensor, threads: int | None, residual: Tensor | None
) -> Tensor:
    added = None if residual is None else residual.numpy()
    return torch.from_numpy(packed.run(x.numpy(), threads or torch.get_num_threads(), added))


def _native(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    options: ConvOptions,
    zero_point: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    _require(x.device.type == "cpu", f"the native backend runs on the CPU, but x is on {x.device}")
    packed = _pack(weight, bias, multiplier, shift, options, zero_point, x.shape[3])
    return _run_native(packed, x, None, residual)


def _cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    options: ConvOptions,
    zero_point: Tensor | None,
    residual: Tensor | None,
    kernel: str | None = None,
) -> Tensor:
    on_gpu = x.device.type == _DEVICE_TYPE
    _require(on_gpu, f"the cuda backend runs on a GPU, but x is on {x.device}")
    out = _empty_output(x, weight, options)
    launch_cuda(
        "quantized_conv2d",
        x.device,
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        multiplier=multiplier.data_ptr(),
        zero_point=0 if zero_point is None else zero_point.data_ptr(),
        residual=0 if residual is None else residual.data_ptr(),
        out=out.data_ptr(),
        x_shape=tuple(x.shape),
        window=tuple(weight.shape[:3]),
        weight_bits={torch.uint8: 4, torch.int8: 8, torch.int16: 16}[weight.dtype],
        x_is_signed=x.dtype != torch.uint8,
        x_bytes=x.element_size(),
        out_bytes=out.element_size(),
        stride=options.stride,
        upscale=options.upscale,
        shift=shift,
        lower=options.lower,
        upper=options.upper,
        kernel=kernel or "",
    )
    return out


def _triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    options: ConvOptions,
    zero_point: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    # Imported late: triton is an optional package and slow to import.
    from pycodec.triton_kernels import quantized_conv2d as kernel

    out = _empty_output(x, weight, options)
    kernel.launch(x, weight, bias, multiplier, shift, options, zero_point, residual, out)
    return out


_IMPLEMENTATIONS = {
    "reference": _reference,
    "native": _native,
    "cuda": _cuda,
    "triton": _triton,
}


def _run(backend: str, kernel: str | None, *arguments: object) -> Tensor:
    if kernel is not None:
        return _cuda(*arguments, kernel=kernel)
    return _IMPLEMENTATIONS[backend](*arguments)


@torch.library.custom_op("pycodec::quantized_conv2d", mutates_args=())
def _quantized_conv2d_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    out_dtype: torch.dtype,
    relu: bool,
    stride: int = 1,
    upscale: int = 1,
    bits: int = 0,
    zero_point: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    options = ConvOptions(out_dtype, relu, stride, upscale, bits)
    _check_parameters(weight, bias, multiplier, shift, options)
    _check_input(x, weight, zero_point, residual, options)
    implementation = _IMPLEMENTATIONS[default_backend(x.device)]
    return implementation(x, weight, bias, multiplier, shift, options, zero_point, residual)


@_quantized_conv2d_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    out_dtype: torch.dtype,
    relu: bool,
    stride: int = 1,
    upscale: int = 1,
    bits: int = 0,
    zero_point: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    options = ConvOptions(out_dtype, relu, stride, upscale, bits)
    _check_parameters(weight, bias, multiplier, shift, options)
    _check_input(x, weight, zero_point, residual, options)
    return _empty_output(x, weight, options)
