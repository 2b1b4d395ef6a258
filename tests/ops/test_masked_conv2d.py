"""The masked convolution is its formula, entry by entry, and so is its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pycodec.context.layers import MaskedConv2d
from pycodec.context.orders import mask
from pycodec.errors import InputError
from pycodec.ops import masked_conv2d, trimmed_conv2d
from pycodec.ops.masked_conv2d import raster_mask

from ..levels import LEVELS, simd_level

BACKENDS = (None, "reference")


def naive(x, weight, bias, kind):
    """The formula, a Python number at a time."""
    n, cin, height, width = x.shape
    cout, _, kh, kw = weight.shape
    x, weight = x.tolist(), weight.tolist()
    out = np.zeros((n, cout, height, width))
    for b, o, h, w in np.ndindex(out.shape):
        total = 0.0 if bias is None else float(bias[o])
        for c, i, j in np.ndindex(cin, kh, kw):
            hh, ww = h + i - kh // 2, w + j - kw // 2
            seen = (hh, ww) < (h, w) or (kind == "B" and (hh, ww) == (h, w))
            if seen and 0 <= hh < height and 0 <= ww < width:
                total += weight[o][c][i][j] * x[b][c][hh][ww]
        out[b, o, h, w] = total
    return torch.from_numpy(out)


def make_layer(seed, shape, cout, kernel, *, bias=True, dtype=torch.float64):
    """Random (x, weight, bias) of small integers."""
    rng = np.random.default_rng(seed)

    def draw(*size):
        return torch.from_numpy(rng.integers(-8, 9, size)).to(dtype)

    return draw(*shape), draw(cout, shape[1], *kernel), draw(cout) if bias else None


@st.composite
def cases(draw):
    shape = tuple(draw(st.integers(low, 5)) for low in (0, 1, 1, 1))
    kernel = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 3, 5]))
    seed = draw(st.integers(0, 2**32 - 1))
    return make_layer(seed, shape, draw(st.integers(1, 4)), kernel, bias=draw(st.booleans()))


KINDS = st.sampled_from(["A", "B"])


@given(cases(), KINDS, st.sampled_from(BACKENDS))
@settings(max_examples=25)
def test_is_the_formula(case, kind, backend):
    """Integers: sums are exact whatever their order."""
    actual = masked_conv2d(*case, kind=kind, backend=backend)
    assert actual.dtype == torch.float64
    assert actual.is_contiguous()
    assert torch.equal(actual, naive(*case, kind))


@given(cases(), KINDS)
@settings(max_examples=25)
def test_is_the_trimmed_convolution_in_raster_order(case, kind):
    x, weight, bias = case
    group_mask = mask("raster", kind, 1, 1, tuple(weight.shape[2:]))
    assert torch.equal(raster_mask(kind, *weight.shape[2:]), group_mask[0, 0])
    expected = trimmed_conv2d(x, weight, group_mask, bias)
    assert torch.equal(masked_conv2d(x, weight, bias, kind=kind), expected)


@given(cases(), KINDS, st.sampled_from(BACKENDS))
@settings(max_examples=25)
def test_gradients_are_those_of_a_masked_weight(case, kind, backend):
    x, weight, bias = case
    leaves = [t for t in case if t is not None]
    for leaf in leaves:
        leaf.requires_grad_()
    seen = mask("raster", kind, 1, 1, tuple(weight.shape[2:]))[0, 0]
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    expected = F.conv2d(x, weight * seen, bias, padding=padding)
    actual = masked_conv2d(*case, kind=kind, backend=backend)
    cotangent = torch.randint(-8, 9, actual.shape).double()
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    for a, b in zip(torch.autograd.grad(actual, leaves, cotangent), wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["A", "B"])
def test_gradcheck(backend, kind):
    tensors = [(t / 4).requires_grad_() for t in make_layer(0, (1, 2, 2, 3), 2, (3, 3))]

    def run(x, weight, bias):
        return masked_conv2d(x, weight, bias, kind=kind, backend=backend)

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


def test_trimmed_weights_may_be_anything():
    x, weight, bias = make_layer(1, (1, 2, 5, 5), 3, (3, 3))
    expected = masked_conv2d(x, weight, bias, kind="A")
    weight[:, :, 1, 1:] = float("inf")
    weight[:, :, 2] = float("nan")
    weight.requires_grad_()
    for backend in BACKENDS:
        actual = masked_conv2d(x, weight, bias, kind="A", backend=backend)
        assert torch.equal(actual, expected)
        (gradient,) = torch.autograd.grad(actual.sum(), weight)
        assert not gradient[:, :, 1, 1:].any() and not gradient[:, :, 2].any()


def test_autocast():
    x, weight, bias = make_layer(2, (1, 2, 5, 5), 3, (3, 3), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for backend in BACKENDS:
            out = masked_conv2d(x, weight, bias, kind="B", backend=backend)
            assert out.dtype == torch.bfloat16


@pytest.mark.parametrize(("requires_grad", "bias"), [(False, False), (True, True)])
def test_opcheck(requires_grad, bias):
    tensors = make_layer(3, (1, 4, 5, 6), 6, (3, 5), bias=bias)
    for tensor in tensors[: 2 + bias]:
        tensor.requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.pycodec.masked_conv2d, (*tensors, "A"))


def test_compiles():
    layer = MaskedConv2d(4, 8, 5)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(compiled(x), layer(x))


def published_context_model(kind):
    """A state dict as CompressAI's ``MaskedConv2d`` writes it: a mask beside the weight."""
    conv = torch.nn.Conv2d(4, 8, 5, padding=2)
    seen = torch.ones_like(conv.weight.data)
    _, _, h, w = seen.shape
    seen[:, :, h // 2, w // 2 + (kind == "B") :] = 0
    seen[:, :, h // 2 + 1 :] = 0
    conv.register_buffer("mask", seen)
    return conv


@pytest.mark.parametrize("kind", ["A", "B"])
def test_module_loads_weights_from_elsewhere(kind):
    theirs = published_context_model(kind)
    ours = MaskedConv2d(4, 8, 5, kind=kind)
    assert list(ours.state_dict()) == ["weight", "bias"]
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 4, 6, 7)
    expected = F.conv2d(x, theirs.weight * theirs.mask, theirs.bias, padding=2)
    torch.testing.assert_close(ours(x), expected)
    ours.backend = "reference"
    torch.testing.assert_close(ours(x), expected)
    other = MaskedConv2d(4, 8, 5, kind="AB".replace(kind, ""))
    with pytest.raises(RuntimeError, match="mask is not the mask of"):
        other.load_state_dict(theirs.state_dict())


@st.composite
def native_cases(draw):
    """float32, in the sizes that the native kernel treats differently."""
    sides = draw(st.sampled_from([(1, 1), (1, 60), (30, 1), (12, 50)]))
    height, width = (draw(st.integers(1, side)) for side in sides)
    kernel = draw(st.sampled_from([(1, 1), (1, 7), (7, 1), (3, 3), (5, 5), (7, 7)]))
    return make_layer(
        draw(st.integers(0, 2**32 - 1)),
        (draw(st.sampled_from([0, 1, 2])), draw(st.integers(1, 20)), height, width),
        draw(st.integers(1, 30)),
        kernel,
        bias=draw(st.booleans()),
        dtype=torch.float32,
    )


@given(native_cases(), KINDS, st.sampled_from(LEVELS), st.sampled_from(["native", None]))
@settings(max_examples=100, deadline=None)
def test_native_is_the_reference(case, kind, level, backend):
    """Integers far below 2**24: sums are exact whatever their order. Gradients likewise."""
    leaves = [t for t in case if t is not None]
    doubles = [t.double().requires_grad_() for t in leaves]
    for leaf in leaves:
        leaf.requires_grad_()
    with simd_level(level):
        actual = masked_conv2d(*case, kind=kind, backend=backend)
        cotangent = torch.randint(-8, 9, actual.shape).float()
        gradients = torch.autograd.grad(actual, leaves, cotangent)
    bias = doubles[2] if case[2] is not None else None
    expected = masked_conv2d(*doubles[:2], bias, kind=kind, backend="reference")
    assert actual.dtype == torch.float32
    assert actual.is_contiguous()
    assert torch.equal(actual.double(), expected)
    wanted = torch.autograd.grad(expected, doubles, cotangent.double())
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_native_reads_only_what_is_seen(value, kind, level):
    x, weight, bias = make_layer(6, (1, 3, 7, 20), 9, (5, 3), dtype=torch.float32)
    expected = masked_conv2d(x, weight, bias, kind=kind, backend="reference")
    weight[:, :, ~raster_mask(kind, 5, 3)] = value
    x[:, :, 4, 10:] = value
    x[:, :, 5:] = value
    with simd_level(level):
        actual = masked_conv2d(x, weight, bias, kind=kind, backend="native")
    assert torch.equal(actual[:, :, :4], expected[:, :, :4])
    before = 10 if kind == "B" else 11
    assert torch.equal(actual[:, :, 4, :before], expected[:, :, 4, :before])
    assert not actual[:, :, 4, before:].isfinite().any()


@pytest.mark.parametrize(("requires_grad", "bias"), [(False, False), (True, True)])
def test_native_opcheck(requires_grad, bias):
    tensors = make_layer(7, (1, 4, 5, 6), 6, (3, 5), bias=bias, dtype=torch.float32)
    for tensor in tensors[: 2 + bias]:
        tensor.requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.pycodec.masked_conv2d, (*tensors, "A"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_native_is_for_float32(dtype):
    layer = make_layer(8, (1, 4, 5, 6), 6, (3, 3), dtype=dtype)
    with pytest.raises(InputError, match="native backend runs float32 on the CPU"):
        masked_conv2d(*layer, kind="A", backend="native")


BAD_ARGUMENTS = {
    "x dtype": lambda a: a.update(x=a["x"].int()),
    "x channels": lambda a: a.update(x=a["x"][:, 1:]),
    "weight dtype": lambda a: a.update(weight=a["weight"].half()),
    "even kernel": lambda a: a.update(weight=a["weight"][:, :, 1:]),
    "bias length": lambda a: a.update(bias=a["bias"][1:]),
    "kind": lambda a: a.update(kind="C"),
}


@pytest.mark.parametrize(
    ("backend", "dtype"), [*((b, torch.float64) for b in BACKENDS), ("native", torch.float32)]
)
@pytest.mark.parametrize("fault", BAD_ARGUMENTS)
def test_bad_arguments(fault, backend, dtype):
    layer = make_layer(4, (1, 4, 5, 6), 6, (3, 3), dtype=dtype)
    arguments = {**dict(zip(("x", "weight", "bias"), layer, strict=True)), "kind": "A"}
    BAD_ARGUMENTS[fault](arguments)
    with pytest.raises(InputError, match="masked_conv2d: "):
        masked_conv2d(**arguments, backend=backend)


def test_backends():
    with pytest.raises(InputError, match="reference, native, cuda, triton"):
        masked_conv2d(*make_layer(5, (1, 1, 1, 1), 1, (1, 1)), kind="A", backend="abacus")
