"""The integer entropy model: the same symbols on every backend, whatever is random."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pycodec.coding import rans
from pycodec.context.integer_entropy_model import IntegerEntropyModel, interpolate_nodes
from pycodec.context.quadtree import stage_mask
from pycodec.errors import CorruptStreamError, InputError
from pycodec.ops.quadtree_stage import stage_group
from pycodec.quantization.export import export_entropy_model

from ..networks import quantized_network


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return export_entropy_model(quantized_network(0).entropy_model)


@pytest.fixture(scope="module")
def native(tensors) -> IntegerEntropyModel:
    return IntegerEntropyModel(tensors, "native")


@pytest.fixture(scope="module")
def reference(tensors) -> IntegerEntropyModel:
    return IntegerEntropyModel(tensors, "reference")


def random_latents(rng: np.random.Generator, height: int, width: int, model: IntegerEntropyModel):
    spread = 2.0 ** rng.uniform(-2, 6)
    y = rng.normal(0, spread * 1024, (height, width, model.latent_channels))
    z = rng.integers(-6, 7, (-(-height // 4), -(-width // 4), model.hyper_channels))
    return torch.from_numpy(y.astype(np.int32)), torch.from_numpy(z.astype(np.int32))


@pytest.mark.parametrize("seed", range(20))
def test_backends_and_threads_agree(native, reference, seed):
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 14, 2))
    latents, z = random_latents(rng, height, width, native)
    code = int(rng.integers(100, 10_001))
    made = native.encode(latents, z, code, threads=1)
    for model, threads in ((native, 2), (reference, 1)):
        other = model.encode(latents, z, code, threads=threads)
        assert other.stream == made.stream
        assert np.array_equal(other.symbols, made.symbols)
        decoded = model.decode(made.stream, height, width, code, threads=threads)
        assert torch.equal(decoded, made.latents)


@pytest.mark.parametrize("stage", range(4))
def test_no_stage_sees_itself_or_a_later_one(native, stage):
    """Perturb all latents of this and later stages: parameters of this stage must not move."""
    rng = np.random.default_rng(stage)
    latents, z = random_latents(rng, 6, 7, native)
    made = native.encode(latents, z, 5000)
    later = np.zeros((native.latent_channels, 6, 7), bool)
    for other in range(stage, 4):
        later |= stage_mask(other, native.latent_channels, 6, 7)
    changed = latents.clone()
    changed[torch.from_numpy(later.transpose(1, 2, 0))] += 9999
    again = native.encode(changed, z, 5000)
    count = latents.numel() // 4
    first = z.numel() + stage * count
    assert np.array_equal(made.indexes[: first + count], again.indexes[: first + count])
    assert np.array_equal(made.symbols[:first], again.symbols[:first])
    assert not np.array_equal(made.symbols[first:], again.symbols[first:])
    if stage < 3:  # and later stages do look at it
        assert not np.array_equal(made.indexes[first + count :], again.indexes[first + count :])


def test_stage_masks_split_the_latents():
    masks = sum(stage_mask(stage, 8, 5, 6).astype(int) for stage in range(4))
    assert (masks == 1).all()
    assert (stage_group(0, 5, 6)[::2, ::2] == 0).all()
    with pytest.raises(ValueError, match="multiple of 4"):
        stage_mask(0, 6, 2, 2)


def test_damaged_streams_raise(native):
    rng = np.random.default_rng(7)
    latents, z = random_latents(rng, 4, 5, native)
    stream = native.encode(latents, z, 6000).stream
    for size in (0, 1, 4, len(stream) // 2, len(stream) - 2):
        with pytest.raises(CorruptStreamError):
            native.decode(stream[:size], 4, 5, 6000)
    caught = 0
    for position in range(1, len(stream), 7):
        damaged = bytearray(stream)
        damaged[position] ^= 0x55
        try:
            native.decode(bytes(damaged), 4, 5, 6000)
        except CorruptStreamError:
            caught += 1
    assert caught > 0.9 * len(range(1, len(stream), 7))


def test_hyperlatents_beyond_int8_are_damage(native):
    """They would wrap around where the networks see them."""
    latents, z = random_latents(np.random.default_rng(8), 4, 5, native)
    made = native.encode(latents, z, 6000)
    for value in (128, -128, -(2**31)):
        symbols = made.symbols.copy()
        symbols[3] = value
        with pytest.raises(CorruptStreamError, match="hyperlatent"):
            native.decode(rans.encode(symbols, made.indexes, native.tables), 4, 5, 6000)


def test_interpolation_meets_its_nodes_and_rounds_half_up():
    nodes = torch.tensor([[-10, 7], [11, 8], [30, -8]], dtype=torch.int32)
    assert interpolate_nodes(nodes, 100).tolist() == [-10, 7]
    assert interpolate_nodes(nodes, 5050).tolist() == [11, 8]
    assert interpolate_nodes(nodes, 10_000).tolist() == [30, -8]
    halfway = interpolate_nodes(nodes, 2575).tolist()
    assert halfway == [1, 8]  # 0.5 and 7.5


def test_bad_arguments(native, tensors):
    latents = torch.zeros((2, 2, native.latent_channels), dtype=torch.int32)
    z = torch.zeros((1, 1, native.hyper_channels), dtype=torch.int32)
    for code in (99, 10_001):
        with pytest.raises(InputError, match="quality"):
            native.encode(latents, z, code)
    broken = {name: tensor for name, tensor in tensors.items() if name != "stage2.mix.weight"}
    with pytest.raises(InputError, match=r"stage2\.mix"):
        IntegerEntropyModel(broken).encode(latents, z, 5000)
