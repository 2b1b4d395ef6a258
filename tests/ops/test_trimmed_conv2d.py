"""The trimmed convolution is its formula, entry by entry, and so is its gradient."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.context.layers import TrimmedConv2d
from pycodec.context.orders import ORDERS, mask, weight_mask
from pycodec.errors import InputError
from pycodec.ops import trimmed_conv2d

from ..levels import LEVELS, simd_level

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


@st.composite
def native_cases(draw):
    """float32, for the blocks and tiles of the native kernel: sizes that fill none, and some."""
    groups = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    sides = {"1x1": (1, 1), "1xN": (1, 70), "Nx1": (40, 1), "HxW": (20, 110)}[
        draw(st.sampled_from(["1x1", "1xN", "Nx1", "HxW"]))
    ]
    height, width = (draw(st.integers(1, side)) for side in sides)
    shape = draw(st.sampled_from([0, 1, 1, 2])), groups[0] * draw(st.integers(1, 6)), height, width
    kernel = draw(st.sampled_from([(1, 1), (1, 7), (7, 1), (3, 3), (3, 5), (5, 5), (7, 7)]))
    return make_layer(
        draw(st.integers(0, 2**32 - 1)),
        shape,
        groups[1] * draw(st.integers(1, 19)),
        kernel,
        groups,
        bias=draw(st.booleans()),
        dtype=torch.float32,
        order=draw(st.sampled_from([None, *ORDERS])),
    )


def doubled(*tensors):
    """The same in float64, and no gradient history."""
    return [t if t is None or t.dtype == torch.bool else t.detach().double() for t in tensors]


@given(native_cases(), st.sampled_from(LEVELS), st.sampled_from(["native", None]))
@settings(max_examples=150, deadline=None)
def test_native_is_the_reference(case, level, backend):
    """Integers far below 2**24: sums are exact whatever their order."""
    with simd_level(level):
        actual = trimmed_conv2d(*case, backend=backend)
    assert actual.dtype == torch.float32
    assert actual.is_contiguous()
    expected = trimmed_conv2d(*doubled(*case), backend="reference")
    assert torch.equal(actual.double(), expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cout", range(1, 20))
def test_native_blocks(cout, level):
    """All numbers of output channels, all numbers of vectors that a row can leave over."""
    x, weight, group_mask, bias = make_layer(
        cout, (1, 2, 2, 260), cout, (3, 3), (2, 1), dtype=torch.float32
    )
    for width in (*range(1, 34, 4), 100, 192, 193, 260):
        part = x[..., :width]
        with simd_level(level):
            actual = trimmed_conv2d(part, weight, group_mask, bias, backend="native")
        expected = trimmed_conv2d(*doubled(part, weight, group_mask, bias), backend="reference")
        assert torch.equal(actual.double(), expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cout", [1, 2, 8, 16, 24])
@pytest.mark.parametrize("order", [None, "plane", "slope", "channelwise"])
def test_native_narrow_groups(order, cout, level):
    """Groups that share a block, up to a group for each channel."""
    for groups in {1, 2, cout // 2, cout} - {0}:
        if cout % groups:
            continue
        shape, pair = (2, 2 * groups, 5, 9), (groups, groups)
        layer = make_layer(cout, shape, cout, (3, 5), pair, order=order, dtype=torch.float32)
        with simd_level(level):
            actual = trimmed_conv2d(*layer, backend="native")
        expected = trimmed_conv2d(*doubled(*layer), backend="reference")
        assert torch.equal(actual.double(), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_native_error(level):
    """Against float64, at the size of a layer: a sum of n rounded terms."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 64, 40, 50), torch.randn(64, 64, 5, 5), torch.randn(64)
    group_mask = mask("plane", "B", 8, 8, 5)
    with simd_level(level):
        actual = trimmed_conv2d(x, weight, group_mask, bias, backend="native")
    layer = doubled(x, weight, group_mask, bias)
    expected = trimmed_conv2d(*layer, backend="reference")
    scale = trimmed_conv2d(*[t if t.dtype == torch.bool else t.abs() for t in layer])
    assert ((actual - expected).abs() / scale).max() < 1e-5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_native_reads_only_what_is_seen(value, level):
    """Neither trimmed weights nor inputs that only they would see."""
    x, weight, group_mask, bias = make_layer(
        11, (1, 8, 6, 40), 16, (3, 3), (4, 8), order="channelwise", dtype=torch.float32
    )
    expected = trimmed_conv2d(x, weight, group_mask, bias, backend="native")
    weight[~weight_mask(group_mask, 8, 16)] = value
    x[:, 6:] = value  # of the last group in, which no earlier group out sees
    seen = group_mask[:, 3].any(-1).any(-1).repeat_interleave(2)
    assert seen.any() and not seen.all()
    with simd_level(level):
        actual = trimmed_conv2d(x, weight, group_mask, bias, backend="native")
    assert torch.equal(actual[:, ~seen], expected[:, ~seen])
    assert not actual[:, seen].isfinite().any()


@given(native_cases(), st.sampled_from(LEVELS))
@settings(max_examples=60, deadline=None)
def test_native_gradients(case, level):
    x, weight, group_mask, bias = case
    leaves = [t for t in (x, weight, bias) if t is not None]
    doubles = [t.double().requires_grad_() for t in leaves]
    for leaf in leaves:
        leaf.requires_grad_()
    with simd_level(level):
        out = trimmed_conv2d(x, weight, group_mask, bias, backend="native")
        cotangent = torch.randint(-8, 9, out.shape).float()
        actual = torch.autograd.grad(out, leaves, cotangent)
    wide = [*doubles[:2], group_mask, *doubles[2:]]
    expected = torch.autograd.grad(
        trimmed_conv2d(*wide, backend="reference"), doubles, cotangent.double()
    )
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_native_second_derivatives(level):
    """A gradient penalty, against float64."""
    results = []
    for dtype, backend in ((torch.float32, "native"), (torch.float64, "reference")):
        x, weight, group_mask, bias = make_layer(
            12, (1, 4, 5, 6), 6, (3, 5), (2, 3), order="slope", dtype=dtype
        )
        leaves = [(t / 8).requires_grad_() for t in (x, weight, bias)]
        with simd_level(level):
            out = trimmed_conv2d(*leaves[:2], group_mask, leaves[2], backend=backend)
            (slope,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
            slope.square().sum().backward()
        results.append([t.grad.double() for t in leaves])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("level", LEVELS)
def test_threads_give_the_same_bits(level):
    """Also forward and backward through the operation, where torch says how many there are."""
    torch.manual_seed(1)
    x, weight, bias = torch.randn(2, 16, 37, 210), torch.randn(24, 16, 3, 5), torch.randn(24)
    group_mask = mask("plane", "B", 8, 8, (3, 5))
    arguments = [t.numpy() for t in (x, weight, group_mask, bias)]
    with simd_level(level):
        expected = _cpu.float_trimmed_conv2d(*arguments, threads=1)
        for threads in (2, 3, 7):
            actual = _cpu.float_trimmed_conv2d(*arguments, threads=threads)
            assert np.array_equal(actual.view(np.int32), expected.view(np.int32))
        gradients = []
        before = torch.get_num_threads()
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                leaf = x.clone().requires_grad_()
                out = trimmed_conv2d(leaf, weight, group_mask, bias, backend="native")
                assert np.array_equal(out.detach().numpy(), expected)
                gradients += torch.autograd.grad(out.square().sum(), leaf)
        finally:
            torch.set_num_threads(before)
    assert torch.equal(*gradients)


def test_native_is_called_by_several_threads():
    layer = make_layer(13, (1, 16, 40, 60), 32, (3, 3), (4, 4), order="slope", dtype=torch.float32)
    expected = trimmed_conv2d(*layer, backend="native")
    wrong = []

    def work():
        results = (trimmed_conv2d(*layer, backend="native") for _ in range(10))
        wrong.extend(1 for actual in results if not torch.equal(actual, expected))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_native_strided_arguments():
    """Any strides: transposed, sliced, expanded."""
    x, weight, group_mask, bias = make_layer(
        14, (2, 8, 9, 14), 6, (3, 3), (2, 3), dtype=torch.float32
    )
    strided = (
        x[:, ::2, :, 1::2],
        weight.to(memory_format=torch.channels_last)[:, 1::2],
        group_mask[:1].expand(3, -1, -1, -1),
        bias[:1].expand(6),
    )
    assert not any(t.is_contiguous() for t in strided)
    actual = trimmed_conv2d(*strided, backend="native")
    dense = [t.contiguous() for t in strided]
    assert torch.equal(actual, trimmed_conv2d(*dense, backend="reference"))


@pytest.mark.parametrize(("requires_grad", "bias"), [(False, False), (True, True)])
def test_native_opcheck(requires_grad, bias):
    x, weight, group_mask, b = make_layer(
        15, (1, 4, 5, 6), 6, (3, 5), (2, 3), bias=bias, dtype=torch.float32
    )
    for tensor in (x, weight, *([b] if bias else [])):
        tensor.requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.pycodec.trimmed_conv2d, (x, weight, group_mask, b))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_native_is_for_float32(dtype):
    x, weight, group_mask, bias = make_layer(16, (1, 4, 5, 6), 6, (3, 3), (2, 3), dtype=dtype)
    with pytest.raises(InputError, match="native backend runs float32 on the CPU"):
        trimmed_conv2d(x, weight, group_mask, bias, backend="native")


def test_native_module_checks_for_itself():
    """It is an extension module, so nothing that Python passes may crash it."""
    good = {
        "x": np.ones((1, 4, 3, 5), np.float32),
        "weight": np.ones((6, 4, 3, 3), np.float32),
        "mask": np.ones((3, 2, 3, 3), bool),
        "bias": np.ones(6, np.float32),
    }
    _cpu.float_trimmed_conv2d(**good)
    for changed in (
        {"x": good["x"][0]},
        {"x": good["x"][:, 1:].copy()},
        {"weight": good["weight"][:0]},
        {"weight": good["weight"][..., 1:].copy(), "mask": good["mask"][..., 1:].copy()},
        {"mask": good["mask"][..., 1:].copy()},
        {"mask": good["mask"][:0]},
        {"mask": np.ones((4, 2, 3, 3), bool)},
        {"mask": np.ones((3, 3, 3, 3), bool)},
        {"bias": good["bias"][1:]},
        {"threads": 0},
    ):
        with pytest.raises(InputError):
            _cpu.float_trimmed_conv2d(**{**good, **changed})
    for changed in ({"x": good["x"][..., ::2]}, {"x": good["x"].astype(np.float64)}):
        with pytest.raises(TypeError):
            _cpu.float_trimmed_conv2d(**{**good, **changed})


BAD_ARGUMENTS = {
    "x dtype": lambda a: a.update(x=a["x"].int()),
    "x dimensions": lambda a: a.update(x=a["x"][0]),
    "x channels": lambda a: a.update(x=a["x"][:, 1:]),
    "weight dtype": lambda a: a.update(weight=a["weight"].half()),
    "weight dimensions": lambda a: a.update(weight=a["weight"][0]),
    "even kernel": lambda a: a.update(weight=a["weight"][:, :, 1:], mask=a["mask"][:, :, 1:]),
    "no channels": lambda a: a.update(weight=a["weight"][:0]),
    "mask dtype": lambda a: a.update(mask=a["mask"].int()),
    "mask kernel": lambda a: a.update(mask=a["mask"][..., :1]),
    "mask groups": lambda a: a.update(mask=a["mask"].repeat(4, 1, 1, 1)),
    "bias length": lambda a: a.update(bias=a["bias"][1:]),
    "bias dtype": lambda a: a.update(bias=a["bias"].half()),
    "device": lambda a: a.update(bias=a["bias"].to("meta")),
}


@pytest.mark.parametrize(
    ("backend", "dtype"), [*((b, torch.float64) for b in BACKENDS), ("native", torch.float32)]
)
@pytest.mark.parametrize("fault", BAD_ARGUMENTS)
def test_bad_arguments(fault, backend, dtype):
    layer = make_layer(8, (1, 4, 5, 6), 6, (3, 3), (2, 3), dtype=dtype)
    arguments = dict(zip(("x", "weight", "mask", "bias"), layer, strict=True))
    BAD_ARGUMENTS[fault](arguments)
    with pytest.raises(InputError, match="trimmed_conv2d: "):
        trimmed_conv2d(**arguments, backend=backend)


def test_backends():
    layer = make_layer(9, (1, 1, 1, 1), 1, (1, 1), (1, 1))
    with pytest.raises(InputError, match="reference, native, cuda, triton"):
        trimmed_conv2d(*layer, backend="abacus")
