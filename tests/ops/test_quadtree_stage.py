"""The steps between network and coder: native against the definition, and the order itself."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pycodec import _cpu
from pycodec.errors import InputError
from pycodec.ops.quadtree_stage import (
    LATENT_LIMIT,
    SCALE_LEVELS,
    quantize_residuals,
    reconstruct_stage,
    stage_group,
    stage_parameters,
)

shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([4, 8, 20]))
INT32 = np.iinfo(np.int32)


def integers(rng: np.random.Generator, low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(low, high, shape, dtype=np.int32, endpoint=True))


def test_every_symbol_belongs_to_one_stage():
    groups = np.stack([stage_group(stage, 5, 7) for stage in range(4)])
    assert (np.sort(groups, axis=0) == np.arange(4)[:, None, None]).all()


def test_a_stage_holds_every_group_once_in_each_block():
    for stage in range(4):
        block = stage_group(stage, 8, 8).reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
        assert (np.sort(block, axis=1) == np.arange(4)).all()


def test_stage_1_lies_diagonally_opposite_to_stage_0():
    first, second = stage_group(0, 4, 4), stage_group(1, 4, 4)
    assert (first[:-1, :-1] == second[1:, 1:]).all()


@given(shapes, st.integers(0, 3), st.integers(0, 2**32 - 1), st.booleans(), st.integers(1, 2))
def test_parameters_equal_the_definition(shape, stage, seed, extreme, threads):
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    head = integers(rng, -3000, 3000, height, width, 2 * channels)
    if extreme:
        head = torch.from_numpy(rng.choice(np.array([INT32.min, INT32.max], np.int32), head.shape))
    log2_step = integers(rng, -400, 400, channels)
    expected = stage_parameters(head, stage, log2_step, backend="reference")
    actual = stage_parameters(head, stage, log2_step, threads=threads)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert int(actual[1].max()) < SCALE_LEVELS


@given(shapes, st.integers(0, 3), st.integers(0, 2**32 - 1), st.integers(1, 2))
def test_quantization_and_reconstruction_equal_the_definition(shape, stage, seed, threads):
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    latents = integers(rng, -LATENT_LIMIT, LATENT_LIMIT, height, width, channels)
    mean = integers(rng, -LATENT_LIMIT, LATENT_LIMIT, height, width, channels // 4)
    index = torch.from_numpy(rng.integers(0, 64, mean.shape, dtype=np.uint8))
    step = integers(rng, 1, 5000, channels)
    rounding = integers(rng, -5, 128, 256)
    arguments = (latents, stage, mean, index, step, rounding)
    symbols = quantize_residuals(*arguments, threads=threads)
    assert torch.equal(symbols, quantize_residuals(*arguments, backend="reference"))
    assert (symbols[rounding[index.long()] < 0] == 0).all()

    multiplier = integers(rng, 1, 1 << 29, channels)
    outputs = []
    for backend in ("native", "reference"):
        decoded = torch.zeros_like(latents)
        context = torch.zeros(latents.shape, dtype=torch.int8)
        reconstruct_stage(
            symbols,
            stage,
            mean,
            step,
            multiplier,
            30,
            decoded,
            context,
            threads=threads,
            backend=backend,
        )
        outputs.append((decoded, context))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])


def test_rounding_to_nearest_is_within_half_a_step():
    rng = np.random.default_rng(0)
    latents = integers(rng, -50_000, 50_000, 6, 6, 8)
    step = integers(rng, 200, 300, 8)
    decoded, context = torch.zeros_like(latents), torch.zeros((6, 6, 8), dtype=torch.int8)
    rounding = torch.full((256,), 128, dtype=torch.int32)
    for stage in range(4):
        mean = integers(rng, -1000, 1000, 6, 6, 2)
        index = torch.zeros((6, 6, 2), dtype=torch.uint8)
        symbols = quantize_residuals(latents, stage, mean, index, step, rounding)
        reconstruct_stage(symbols, stage, mean, step, step, 10, decoded, context)
    assert ((2 * (decoded - latents)).abs() <= step).all()


def test_extreme_symbols_are_clamped_not_overflowed():
    symbols = torch.full((1, 1, 1), INT32.min, dtype=torch.int32)
    mean = torch.full((1, 1, 1), -LATENT_LIMIT, dtype=torch.int32)
    big = torch.full((4,), INT32.max, dtype=torch.int32)
    decoded = torch.zeros((1, 1, 4), dtype=torch.int32)
    context = torch.zeros((1, 1, 4), dtype=torch.int8)
    reconstruct_stage(symbols, 0, mean, big, big, 38, decoded, context)
    assert decoded.tolist() == [[[-LATENT_LIMIT, 0, 0, 0]]]
    assert context.tolist() == [[[-127, 0, 0, 0]]]


def test_wrong_arguments_are_refused():
    head = torch.zeros((2, 2, 8), dtype=torch.int32)
    with pytest.raises(InputError, match="backends"):
        stage_parameters(head, 0, head[0, 0, :4], backend="gpu")
    with pytest.raises(InputError, match="log2_step"):
        stage_parameters(head, 0, torch.zeros(3, dtype=torch.int32))
    with pytest.raises(InputError, match="multiple of 4"):
        stage_parameters(head[..., :6].contiguous(), 0, torch.zeros(3, dtype=torch.int32))
    with pytest.raises(TypeError):  # a converted copy of an output would lose what is written
        _cpu.reconstruct_stage(
            np.zeros((2, 2, 1), np.int32),
            np.zeros((2, 2, 1), np.int32),
            np.ones(4, np.int32),
            0,
            np.ones(4, np.int32),
            1,
            np.zeros((2, 2, 4), np.int64),
            np.zeros((2, 2, 4), np.int8),
        )
