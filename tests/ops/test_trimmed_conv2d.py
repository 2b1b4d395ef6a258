"""The trimmed convolution is its formula, entry by entry, and so is its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pycodec.context.layers import TrimmedConv2d
from pycodec.context.orders import ORDERS, mask, weight_mask
from pycodec.errors import InputError
from pycodec.ops import trimmed_conv2d

BACKENDS = (None, "reference")


def naive(x, weight, group_mask, bias):
    """The formula, a Python number at a time."""
    n, cin, height, width = x.shape
    cout, _, kh, kw = weight.shape
    groups_out, groups_in = group_mask.shape[:2]
    x, weight, seen = x.tolist(), weight.tolist(), group_mask.tolist()
    out = np.zeros((n, cout, height, width))
    for b, o, h, w in np.ndindex(out.shape):
        total = 0.0 if bias is None else float(bias[o])
        for c, i, j in np.ndindex(cin, kh, kw):
            hh, ww = h + i - kh // 2, w + j - kw // 2
            inside = 0 <= hh < height and 0 <= ww < width
            group_out, group_in = o * groups_out // cout, c * groups_in // cin
            if inside and seen[group_out][group_in][i][j]:
                total += weight[o][c][i][j] * x[b][c][hh][ww]
        out[b, o, h, w] = total
    return torch.from_numpy(out)


def make_layer(seed, shape, cout, kernel, groups, *, bias=True, dtype=torch.float64, order=None):
    """Random (x, weight, mask, bias) of small integers; the mask of an order, or random."""
    rng = np.random.default_rng(seed)

    def draw(*size):
        return torch.from_numpy(rng.integers(-8, 9, size)).to(dtype)

    groups_in, groups_out = groups
    if order is None:
        group_mask = torch.from_numpy(rng.random((groups_out, groups_in, *kernel)) < 0.5)
    else:
        group_mask = mask(order, "A", groups_in, groups_out, kernel)
    weight = draw(cout, shape[1], *kernel)
    return draw(*shape), weight, group_mask, draw(cout) if bias else None


@st.composite
def cases(draw):
    groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = (
        draw(st.integers(0, 2)),
        groups[0] * draw(st.integers(1, 3)),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
    )
    kernel = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 3, 5]))
    return make_layer(
        draw(st.integers(0, 2**32 - 1)),
        shape,
        groups[1] * draw(st.integers(1, 3)),
        kernel,
        groups,
        bias=draw(st.booleans()),
        order=draw(st.sampled_from([None, *ORDERS])),
    )


@given(cases(), st.sampled_from(BACKENDS))
@settings(max_examples=25)
def test_is_the_formula(case, backend):
    """Integers: sums are exact whatever their order."""
    actual = trimmed_conv2d(*case, backend=backend)
    expected = naive(*case)
    assert actual.dtype == torch.float64
    assert actual.is_contiguous()
    assert torch.equal(actual, expected)


@given(cases(), st.sampled_from(BACKENDS))
@settings(max_examples=25)
def test_gradients_are_those_of_a_masked_weight(case, backend):
    x, weight, group_mask, bias = case
    leaves = [t for t in (x, weight, bias) if t is not None]
    for leaf in leaves:
        leaf.requires_grad_()
    wide = weight_mask(group_mask, weight.shape[1], weight.shape[0])
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    expected = F.conv2d(x, weight * wide, bias, padding=padding)
    actual = trimmed_conv2d(*case, backend=backend)
    cotangent = torch.randint(-8, 9, actual.shape).double()
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    for a, b in zip(torch.autograd.grad(actual, leaves, cotangent), wanted, strict=True):
        assert torch.equal(a, b)
    trimmed = torch.autograd.grad(trimmed_conv2d(*case).sum(), weight)[0][~wide]
    assert not trimmed.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(backend, bias):
    x, weight, group_mask, b = make_layer(
        0, (1, 2, 2, 3), 2, (3, 3), (2, 2), bias=bias, order="plane"
    )
    tensors = [x, weight] + ([b] if bias else [])
    tensors = [(t / 4).requires_grad_() for t in tensors]

    def run(x, weight, b=None):
        return trimmed_conv2d(x, weight, group_mask, b, backend=backend)

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_only_wanted_gradients(frozen):
    x, weight, group_mask, bias = make_layer(1, (1, 2, 3, 3), 2, (3, 3), (2, 1))
    leaves = {"x": x, "weight": weight, "bias": bias}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name != frozen)
    trimmed_conv2d(x, weight, group_mask, bias).sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is None} == {frozen}


def test_trimmed_weights_may_be_anything():
    x, weight, group_mask, bias = make_layer(2, (1, 4, 5, 5), 4, (3, 3), (2, 2), order="slope")
    expected = trimmed_conv2d(x, weight, group_mask, bias)
    weight[~weight_mask(group_mask, 4, 4)] = torch.tensor(float("nan"), dtype=weight.dtype)
    weight.requires_grad_()
    for backend in BACKENDS:
        actual = trimmed_conv2d(x, weight, group_mask, bias, backend=backend)
        assert torch.equal(actual, expected)
        (gradient,) = torch.autograd.grad(actual.sum(), weight)
        assert gradient.isfinite().all()


def test_groups_of_any_width():
    """Unequal groups: a mask for single channels."""
    x, weight, _, bias = make_layer(3, (1, 5, 4, 4), 7, (3, 3), (1, 1))
    wide = weight_mask(mask("plane", "A", 3, 3, 3), [2, 0, 3], [1, 4, 2])
    assert torch.equal(trimmed_conv2d(x, weight, wide, bias), naive(x, weight, wide, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    layer = make_layer(4, (2, 4, 5, 6), 6, (3, 3), (2, 3))
    x, weight, group_mask, bias = layer
    actual = trimmed_conv2d(x.to(dtype), weight.to(dtype), group_mask, bias.to(dtype))
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), naive(*layer), rtol=0.01, atol=1)


def test_strided_arguments():
    x, weight, group_mask, bias = make_layer(5, (2, 4, 5, 6), 6, (3, 3), (2, 3))
    expected = trimmed_conv2d(x, weight, group_mask, bias)
    strided = [t.to(memory_format=torch.channels_last) for t in (x, weight, group_mask)]
    assert not strided[0].is_contiguous()
    for backend in BACKENDS:
        actual = trimmed_conv2d(*strided, bias, backend=backend)
        assert actual.is_contiguous()
        assert torch.equal(actual, expected)


def test_autocast():
    x, weight, group_mask, bias = make_layer(
        6, (1, 4, 5, 6), 6, (3, 3), (2, 2), dtype=torch.float32
    )
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        for backend in BACKENDS:
            out = trimmed_conv2d(x, weight, group_mask, bias, backend=backend)
            assert out.dtype == torch.bfloat16
            (gradient,) = torch.autograd.grad(out.float().sum(), weight)
            assert gradient.dtype == torch.float32


@pytest.mark.parametrize(("requires_grad", "bias"), [(False, False), (True, True)])
def test_opcheck(requires_grad, bias):
    x, weight, group_mask, b = make_layer(7, (1, 4, 5, 6), 6, (3, 5), (2, 3), bias=bias)
    for tensor in (x, weight, *([b] if bias else [])):
        tensor.requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.pycodec.trimmed_conv2d, (x, weight, group_mask, b))


def test_compiles():
    layer = TrimmedConv2d(4, 8, 3, order="plane", kind="A", groups_in=2)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).square().sum().backward()
    gradients = x.grad, layer.weight.grad, layer.bias.grad
    x.grad = layer.weight.grad = layer.bias.grad = None
    layer(x).square().sum().backward()
    for a, b in zip(gradients, (x.grad, layer.weight.grad, layer.bias.grad), strict=True):
        torch.testing.assert_close(a, b)


def test_module():
    layer = TrimmedConv2d(4, 6, (3, 5), order="slope", kind="B", groups_in=2)
    assert {name: t.shape for name, t in layer.state_dict().items()} == {
        "weight": (6, 4, 3, 5),
        "bias": (6,),
    }
    assert "order=slope, kind=B, groups=2x2" in repr(layer)
    plain = torch.nn.Conv2d(4, 6, (3, 5), padding=(1, 2))
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(1, 4, 6, 6)
    expected = F.conv2d(
        x,
        plain.weight * weight_mask(mask("slope", "B", 2, 2, (3, 5)), 4, 6),
        plain.bias,
        padding=(1, 2),
    )
    torch.testing.assert_close(layer(x), expected)
    layer.backend = "reference"
    torch.testing.assert_close(layer(x), expected)
    no_bias = TrimmedConv2d(4, 6, 3, order="plane", kind="A", groups_in=4, groups_out=2, bias=False)
    assert list(no_bias.state_dict()) == ["weight"]
    assert no_bias(x).shape == (1, 6, 6, 6)
    assert not no_bias(x)[:, :, 0, 0][:, :3].any()


@pytest.mark.parametrize("bias", [False, True])
def test_checkerboard_module_looks_away_at_even_positions(bias):
    layer = TrimmedConv2d(2, 4, 3, order="checkerboard", kind="A", groups_in=1, bias=bias)
    x = torch.randn(1, 2, 5, 6)
    out = layer(x)
    even = (torch.arange(5)[:, None] + torch.arange(6)) % 2 == 0
    constant = layer.bias.detach() if bias else torch.zeros(4)
    assert torch.equal(out[0][:, even], constant[:, None].expand(4, 15))
    full = trimmed_conv2d(x, layer.weight, mask("checkerboard", "A", 1, 1, 3), layer.bias)
    torch.testing.assert_close(out[0][:, ~even], full[0][:, ~even])


def test_module_refuses_groups_that_do_not_fit():
    with pytest.raises(InputError, match="5 channels"):
        TrimmedConv2d(5, 6, 3, order="slope", kind="B", groups_in=2)


BAD_ARGUMENTS = {
    "x dtype": lambda a: a.update(x=a["x"].int()),
    "x dimensions": lambda a: a.update(x=a["x"][0]),
    "x channels": lambda a: a.update(x=a["x"][:, 1:]),
    "weight dtype": lambda a: a.update(weight=a["weight"].float()),
    "weight dimensions": lambda a: a.update(weight=a["weight"][0]),
    "even kernel": lambda a: a.update(weight=a["weight"][:, :, 1:], mask=a["mask"][:, :, 1:]),
    "no channels": lambda a: a.update(weight=a["weight"][:0]),
    "mask dtype": lambda a: a.update(mask=a["mask"].int()),
    "mask kernel": lambda a: a.update(mask=a["mask"][..., :1]),
    "mask groups": lambda a: a.update(mask=a["mask"].repeat(4, 1, 1, 1)),
    "bias length": lambda a: a.update(bias=a["bias"][1:]),
    "bias dtype": lambda a: a.update(bias=a["bias"].float()),
    "device": lambda a: a.update(bias=a["bias"].to("meta")),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fault", BAD_ARGUMENTS)
def test_bad_arguments(fault, backend):
    layer = make_layer(8, (1, 4, 5, 6), 6, (3, 3), (2, 3))
    arguments = dict(zip(("x", "weight", "mask", "bias"), layer, strict=True))
    BAD_ARGUMENTS[fault](arguments)
    with pytest.raises(InputError, match="trimmed_conv2d: "):
        trimmed_conv2d(**arguments, backend=backend)


def test_backends():
    layer = make_layer(9, (1, 1, 1, 1), 1, (1, 1), (1, 1))
    with pytest.raises(InputError, match="reference, native, cuda, triton"):
        trimmed_conv2d(*layer, backend="abacus")
