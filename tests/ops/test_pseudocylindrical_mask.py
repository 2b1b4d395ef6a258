"""Beyond the tiles there is nothing left, and in them everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pycodec import _cpu
from pycodec.errors import InputError
from pycodec.ops import pseudocylindrical_mask
from pycodec.ops.pseudocylindrical_mask import DTYPES

from .sphere_cases import draw_tiles, geometries

BACKENDS = ("reference", "native")


@given(
    st.integers(0, 2**32 - 1),
    geometries(),
    st.integers(0, 2),
    st.integers(0, 5),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.sampled_from([None, *BACKENDS]),
)
@settings(max_examples=80)
def test_is_zero_beyond_the_tiles(
    seed, geometry, pictures, channels, dtype, channels_last, backend
):
    widths, width = geometry[:2]
    x = draw_tiles(seed, geometry, pictures, channels, dtype, channels_last)
    actual = pseudocylindrical_mask(x, widths, channels_last=channels_last, backend=backend)
    assert actual.dtype == dtype
    assert actual.shape == x.shape
    assert actual.is_contiguous()
    if channels_last:
        actual, x = actual.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
    for tile in range(len(x)):
        w = widths[tile % len(widths)]
        assert torch.equal(actual[tile, ..., :w], x[tile, ..., :w])
        assert not actual[tile, ..., w:].any()
    assert actual.shape[3] == width


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients(channels_last, backend):
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    widths = [2, 4] if channels_last else [3, 6]

    def run(x):
        return pseudocylindrical_mask(x, widths, channels_last=channels_last, backend=backend)

    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(run, x)
    torch.library.opcheck(
        torch.ops.pycodec.pseudocylindrical_mask, (x, widths, channels_last, backend)
    )


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_bad_arguments(backend):
    x = torch.zeros(2, 1, 3, 8)
    for bad, widths in (
        (x.bool(), [4, 8]),
        (x[0], [4, 8]),
        (x[:1], [4, 8]),
        (x[..., :0], [4, 8]),
        (x, []),
        (x, [4, 9]),
        (x, [0, 8]),
    ):
        with pytest.raises(InputError, match="pseudocylindrical_mask: "):
            pseudocylindrical_mask(bad, widths, backend=backend)


def test_native_module_checks_for_itself():
    """It is an extension module, so nothing that Python passes may crash it."""
    x = np.ones((2, 1, 3, 8), np.float32)
    good = {"x": x, "widths": [4, 8], "channels_last": False}
    assert _cpu.pseudocylindrical_mask(**good).sum() == 36
    for changed in (
        {"x": x[0]},
        {"x": x[..., ::2]},
        {"x": x[:1]},
        {"widths": []},
        {"widths": [4, 9]},
        {"widths": [0, 8]},
        {"threads": 0},
    ):
        with pytest.raises(InputError):
            _cpu.pseudocylindrical_mask(**{**good, **changed})
