"""Masks are those of the orders, entry by entry."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pycodec.context.orders import ORDERS, CustomOrder, LinearOrder, get_order, mask, weight_mask
from pycodec.errors import InputError

KERNELS = st.one_of(
    st.sampled_from([1, 3, 5, 7]),
    st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5, 7])),
)


def published_plane_rule(kind, groups_out, groups_in, k):
    """TCAE: all of earlier groups, what is before (B: or at) the centre of its own, else nothing.

    DESIGN, "Trimmed convolution"; read as loops, on purpose not as the engine computes it.
    """
    seen = torch.zeros(groups_out, groups_in, k, k, dtype=torch.bool)
    for g, g2, i, j in itertools.product(range(groups_out), range(groups_in), range(k), range(k)):
        dy, dx = i - k // 2, j - k // 2
        if g2 < g:
            seen[g, g2, i, j] = True
        elif g2 == g:
            before = dy < 0 or (dy == 0 and dx < 0)
            seen[g, g2, i, j] = before or (kind == "B" and dy == 0 and dx == 0)
    return seen


def published_slope_rule(kind, groups_out, groups_in, k):
    """Slope TCAE: c' + h' + w' < c + h + w, for type B also equal."""
    seen = torch.zeros(groups_out, groups_in, k, k, dtype=torch.bool)
    for g, g2, i, j in itertools.product(range(groups_out), range(groups_in), range(k), range(k)):
        difference = (g2 + i + j) - (g + 2 * (k // 2))
        seen[g, g2, i, j] = difference < 0 if kind == "A" else difference <= 0
    return seen


@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("k", [1, 3, 5, 7])
@pytest.mark.parametrize("groups", [1, 2, 3, 8])
def test_published_rules(kind, k, groups):
    for order, rule in (("plane", published_plane_rule), ("slope", published_slope_rule)):
        actual = mask(order, kind, groups, groups, k)
        assert actual.dtype == torch.bool
        assert torch.equal(actual, rule(kind, groups, groups, k))


def test_published_gray_model():
    """8 to 64 channels in 8 groups, 5x5: which numbers of the weight are left."""
    first = weight_mask(mask("plane", "A", 8, 8, 5), 8, 64)
    hidden = weight_mask(mask("plane", "B", 8, 8, 5), 64, 64)
    assert first.shape == (64, 8, 5, 5)
    assert [int(n) for n in first.flatten(1).sum(1)[::8]] == [12 + 25 * g for g in range(8)]
    assert [int(n) for n in hidden.flatten(1).sum(1)[::8]] == [8 * (13 + 25 * g) for g in range(8)]


def rank(name, c, h, w):
    """When a symbol is coded, written out order by order."""
    return {
        "raster": (h, w),
        "plane": (c, h, w),
        "zigzag": (c, h + w),
        "channelwise": (c,),
        "diagonal": (h + w,),
        "slope": (c + h + w,),
    }[name]


@given(
    st.sampled_from([name for name in ORDERS if name != "checkerboard"]),
    st.sampled_from(["A", "B"]),
    st.integers(1, 5),
    st.integers(1, 5),
    KERNELS,
)
def test_a_kernel_sees_what_is_coded_before(name, kind, groups_in, groups_out, kernel):
    actual = mask(name, kind, groups_in, groups_out, kernel)
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    assert actual.shape == (groups_out, groups_in, kh, kw)
    for g, g2, i, j in np.ndindex(*actual.shape):
        own = rank(name, g, kh // 2, kw // 2)
        other = rank(name, g2, i, j)
        assert bool(actual[g, g2, i, j]) == (other < own or (kind == "B" and other == own))


def test_checkerboard():
    for kernel in (3, 5):
        first, hidden = (mask("checkerboard", kind, 3, 2, kernel) for kind in "AB")
        assert torch.equal(first, ~hidden)
        for g, g2, i, j in np.ndindex(*first.shape):
            assert bool(first[g, g2, i, j]) == ((i + j - 2 * (kernel // 2)) % 2 == 1)
    order = get_order("checkerboard")
    assert order.active("A").tolist() == [[False, True], [True, False]]
    assert order.active("B") is None


def test_what_a_type_b_layer_sees_at_its_own_position():
    """Its own symbol always; other channels if they are coded together with it."""
    together = {"raster", "diagonal", "checkerboard"}
    for name in ORDERS:
        first = mask(name, "A", 3, 3, 3)[:, :, 1, 1]
        hidden = mask(name, "B", 3, 3, 3)[:, :, 1, 1]
        earlier = torch.zeros(3, 3) if name in together else torch.ones(3, 3).tril(-1)
        assert torch.equal(first, earlier.bool())
        own = torch.ones(3, 3) if name in together else torch.eye(3)
        assert torch.equal(hidden, first | own.bool())


def test_order_of_a_user():
    knight = LinearOrder("knight", ((0, 2, 1),))
    assert mask(knight, "A", 1, 1, 3)[0, 0].int().tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert not mask(knight, "A", 1, 1, 5)[0, 0, 1, 4]
    assert mask(knight, "B", 1, 1, 5)[0, 0, 1, 4]


@given(st.sampled_from(["plane", "slope", "zigzag"]), st.sampled_from(["A", "B"]))
def test_custom_order(name, kind):
    order = get_order(name)
    predicate = CustomOrder(lambda dc, dh, dw: order.visible("A", dc, dh, dw))
    both = CustomOrder(*(order.group_mask(k, 3, 3, 5) for k in "AB"))
    expected = mask(order, kind, 3, 3, 3)
    assert torch.equal(mask(both, kind, 3, 3, 3), expected)
    if kind == "A":
        assert torch.equal(mask(predicate, kind, 3, 3, 3), expected)
    else:
        itself = torch.zeros_like(expected)
        itself[range(3), range(3), 1, 1] = True
        assert torch.equal(mask(predicate, kind, 3, 3, 3), mask(order, "A", 3, 3, 3) | itself)


def test_custom_order_for_all_channels():
    left = np.array([[False] * 3, [True, False, False], [False] * 3])
    order = CustomOrder(left, name="left")
    assert mask(order, "A", 2, 3, 3).sum() == 6
    assert mask(order, "B", 2, 3, 3).sum() == 12
    assert mask(order, "B", 2, 3, 1).all()
    left[1, 0] = False  # it has a copy
    assert mask(order, "A", 1, 1, 3).sum() == 1
    assert mask(order, "B", 1, 1, 3)[0, 0].int().tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 0]]


@given(st.data())
def test_weight_mask(data):
    groups_out, groups_in = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    group_mask = mask("slope", "B", groups_in, groups_out, 3)
    widths_out = data.draw(st.lists(st.integers(0, 3), min_size=groups_out, max_size=groups_out))
    widths_in = data.draw(st.lists(st.integers(0, 3), min_size=groups_in, max_size=groups_in))
    wide = weight_mask(group_mask, widths_in, widths_out)
    group_of_out = [g for g, width in enumerate(widths_out) for _ in range(width)]
    group_of_in = [g for g, width in enumerate(widths_in) for _ in range(width)]
    assert wide.shape == (len(group_of_out), len(group_of_in), 3, 3)
    for o, i in np.ndindex(*wide.shape[:2]):
        assert torch.equal(wide[o, i], group_mask[group_of_out[o], group_of_in[i]])
    equal = weight_mask(group_mask, 2 * groups_in, 3 * groups_out)
    assert torch.equal(equal, weight_mask(group_mask, [2] * groups_in, [3] * groups_out))


def test_errors():
    for call, message in (
        (lambda: mask("spiral", "A", 1, 1, 3), "raster, plane, zigzag"),
        (lambda: mask("plane", "C", 1, 1, 3), "A or B"),
        (lambda: mask("plane", "A", 1, 1, 4), "odd"),
        (lambda: mask("plane", "A", 0, 1, 3), "positive"),
        (lambda: weight_mask(mask("plane", "A", 2, 2, 3), 3, 2), "3 channels"),
        (lambda: weight_mask(mask("plane", "A", 2, 2, 3), [1], 2), "1 widths"),
        (lambda: CustomOrder(np.ones((3, 3))), "bool"),
        (lambda: CustomOrder(np.ones((2, 3), bool)), "odd"),
        (lambda: CustomOrder(np.ones((2, 3, 3, 3), bool)), "as many groups"),
        (lambda: CustomOrder(np.ones((3, 3), bool), lambda *offset: True), "array"),
        (lambda: CustomOrder(lambda *offset: True, np.ones((3, 3), bool)), "function"),
        (lambda: mask(CustomOrder(np.ones((3, 3), bool)), "A", 1, 1, 5), "too small"),
        (lambda: mask(CustomOrder(np.ones((2, 2, 3, 3), bool)), "A", 1, 1, 3), "2 groups"),
        (lambda: mask(CustomOrder(np.ones((3, 3), bool)), "C", 1, 1, 3), "A or B"),
    ):
        with pytest.raises(InputError, match=message):
            call()
