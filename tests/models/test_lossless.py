"""The lossless codec: every pixel comes back, whoever decodes, and damage is noticed."""

from __future__ import annotations

import io

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

import pycodec
from pycodec import CodecError, api
from pycodec.coding.container import peek
from pycodec.context.causality import check_causality
from pycodec.context.schedule import find_schedule
from pycodec.context.wave_network import WaveNetwork
from pycodec.errors import InputError, UnsupportedError
from pycodec.models.lossless import (
    KIND,
    SIDES,
    from_bits,
    from_components,
    load_lossless_model,
    save_lossless_model,
    to_bits,
    to_components,
)
from pycodec.models.lossless_network import (
    SIZES,
    LosslessConfig,
    LosslessNetwork,
    bit_planes,
    grow,
    join_planes,
    seen_weights,
)
from pycodec.models.model_folder import WEIGHTS_FILE, write_model_folder
from pycodec.models.zoo import DEFAULT_LOSSLESS_MODEL, WEIGHTS, load_model
from pycodec.quantization.context import (
    LOGIT_STEP,
    NUM_TABLES,
    QuantizedNetwork,
    bit_tables,
    effective_weight,
    weight_scale,
)
from pycodec.training.lossless import to_component

from ..levels import LEVELS, simd_level
from ..lossless_networks import quantized_network, random_codec

ORDERS = ("plane", "slope")
MODELS = sorted(p.name for p in WEIGHTS.glob("tcae*"))


@pytest.fixture(scope="module", params=ORDERS)
def codec(request):
    return random_codec(0, request.param)


def picture(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = rng.integers(0, 256, shape[2:] or None) + np.arange(shape[1])[:, None]
    base = smooth if len(shape) == 3 else smooth[:, 0]
    return (base + rng.integers(0, 20, shape)).astype(np.uint8)


def round_trip(codec, pixels: np.ndarray, **options) -> np.ndarray:
    coded = codec.compress(pixels, **options)
    height, width = pixels.shape[:2]
    return codec.decompress(
        coded.streams, width, height, gray=pixels.ndim == 2, tile_log2=coded.tile_log2
    )


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 70), (70, 1), (2, 3), (64, 64), (65, 63), (130, 67)], ids=str
)
@pytest.mark.parametrize("channels", [(), (3,)], ids=["gray", "rgb"])
def test_every_pixel_comes_back(codec, size, channels):
    pixels = picture(3, *size, *channels)
    assert np.array_equal(round_trip(codec, pixels, tile_log2=6), pixels)


@pytest.mark.parametrize("pixels", [np.zeros((9, 9)), np.full((9, 9), 255), None], ids=str)
def test_extremes(codec, pixels):
    if pixels is None:
        pixels = np.indices((16, 16)).sum(0) % 2 * 255
    pixels = pixels.astype(np.uint8)
    assert np.array_equal(round_trip(codec, pixels), pixels)


def test_every_value_survives_the_colour_transform():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    pixels = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, len(levels), 3)
    assert np.array_equal(from_components(to_components(pixels)), pixels)
    everything = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(from_bits(to_bits(everything)), everything)
    planes = bit_planes(torch.from_numpy(everything)[None])[0].numpy()
    assert np.array_equal(planes, to_bits(everything))
    joined = join_planes(torch.from_numpy(planes.astype(np.int32))[None])
    assert joined.dtype == torch.uint8 and np.array_equal(joined[0].numpy(), everything)
    assert np.array_equal(planes[0], everything >= 128), "the most significant plane is first"


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 4),
    order=st.sampled_from(ORDERS),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    colour=st.booleans(),
    threads=st.integers(1, 3),
    levels=st.tuples(st.sampled_from(LEVELS), st.sampled_from(LEVELS)),
)
def test_the_same_file_and_pixels_on_every_backend(
    seed, order, height, width, colour, threads, levels
):
    """Written at one SIMD level, read at another, both equal to the PyTorch definition."""
    native, reference = (random_codec(seed, order, name) for name in ("native", "reference"))
    pixels = picture(seed, height, width, *((3,) if colour else ()))
    with simd_level(levels[0]):
        streams = native.compress(pixels, threads=threads).streams
    assert streams == reference.compress(pixels).streams
    for codec, level in ((native, levels[1]), (reference, levels[0])):
        with simd_level(level):
            decoded = codec.decompress(streams, width, height, gray=not colour, threads=threads)
        assert np.array_equal(decoded, pixels)


@pytest.mark.parametrize("side", [0, SIDES], ids=["gray", "chroma"])
@pytest.mark.parametrize("order", ORDERS)
def test_integers_are_what_was_simulated(order, side):
    """Up to what float sums change of values near the middle between two integers."""
    quantized = quantized_network(3, order, side=side)
    bits = bit_planes(torch.from_numpy(picture(5, 48, 40))[None])
    known = bits.repeat_interleave(side, 1) if side else None
    with torch.inference_mode():
        logits = quantized(bits.float(), known.float() if side else None)[0].numpy()
    component = to_component(quantized)
    widths = (side,) if side else ()
    network = WaveNetwork(component.layers, component.steps, side_widths=widths)
    sides = [known[0].numpy().astype(np.int8)] if side else []
    indexes = network.table_indexes(bits[0].numpy().astype(np.int32), sides)
    difference = indexes - (np.rint(logits / LOGIT_STEP) + NUM_TABLES // 2)
    assert np.abs(difference).max() * LOGIT_STEP < 0.16  # one activation's step, times its weight
    assert (difference == 0).mean() > 0.9


@pytest.mark.parametrize(("side", "bound"), [(0, 0.8), (SIDES, 1.0)], ids=["gray", "chroma"])
def test_rounding_weights_together_beats_rounding_each(side, bound):
    """With ``side``, most of the error comes from activations."""
    bits = bit_planes(torch.from_numpy(data.camera()[None, 200:264, 200:264])).float()
    known = bits.repeat_interleave(side, 1) if side else None
    quantized = quantized_network(5, width=4, side=side)
    quantized.calibrate(bits, known)
    exact = quantized.network(bits, known)
    each = quantized(bits, known)
    quantized.round_weights(bits, known)
    together = quantized(bits, known)
    errors = [(x - exact).square().mean().item() for x in (each, together)]
    assert errors[1] < bound * errors[0]
    for step, layer in zip(quantized.network.steps(), to_component(quantized).layers, strict=True):
        assert np.abs(layer.weight).max(axis=(1, 2, 3)).min() == 127  # scales are still the same
        weight, bias = effective_weight(step)
        scale = weight_scale(weight * quantized.scales()[step.input].view(1, -1, 1, 1), bias)
        integers = weight * quantized.scales()[step.input].view(1, -1, 1, 1) / scale
        torch.testing.assert_close(
            integers, torch.from_numpy(layer.weight).permute(0, 3, 1, 2).float(), atol=1e-2, rtol=0
        )


@pytest.mark.parametrize("side", [0, SIDES], ids=["gray", "chroma"])
def test_weights_of_bits_are_rounded_before_the_rest(side):
    """What training simulates is what is exported: the first integers are not changed again."""
    bits = bit_planes(torch.from_numpy(data.camera()[None, 200:264, 200:264])).float()
    known = bits.repeat_interleave(side, 1) if side else None
    quantized = quantized_network(5, width=4, side=side)
    network, quantized.enabled = quantized.network, False
    exact = quantized(bits, known)
    quantized.rounds_first = True
    simulated = quantized(bits, known)
    assert not torch.equal(simulated, exact)
    simulated.square().sum().backward()
    assert all(step.conv.weight.grad.abs().max() > 0 for step in network.steps())
    quantized.round_first()
    torch.testing.assert_close(network(bits, known), simulated, atol=1e-5, rtol=0)
    first = [step.conv for step in network.steps() if step.input <= bool(side)]
    assert len(first) == 1 + bool(side)
    units = []
    for conv in first:
        weight = torch.where(seen_weights(conv), conv.weight, 0.0)
        units.append(weight / weight_scale(weight, conv.bias))
        torch.testing.assert_close(units[-1], units[-1].round(), atol=1e-3, rtol=0)
    quantized.calibrate(bits, known)
    quantized.round_weights(bits, known)
    for expected, layer in zip(units, to_component(quantized).layers, strict=False):
        found = torch.from_numpy(layer.weight).permute(0, 3, 1, 2)
        assert torch.equal(expected.round(), found.float())


def test_a_channel_without_weights_keeps_its_bias():
    quantized = quantized_network(4)
    first = quantized.network.first
    with torch.no_grad():
        first.conv.weight[3] = 0
        first.conv.bias[3] = 0.7
        quantized.calibrate(torch.randint(0, 2, (2, 8, 16, 16)).float())
    layer = to_component(quantized).layers[0]
    assert not layer.weight[3].any()
    out = (int(layer.bias[3]) * int(layer.multiplier[3]) + (1 << (layer.shift - 1))) >> layer.shift
    scale = quantized.scales()[1][3].item()
    assert abs(min(out, 127) * scale - 0.7) <= scale


@pytest.mark.parametrize("size", sorted(SIZES))
@pytest.mark.parametrize("order", ORDERS)
def test_networks_are_causal(size, order):
    network = LosslessNetwork(LosslessConfig(**{**SIZES[size].to_dict(), "order": order}))
    schedule = find_schedule(network.masks(), 8, 12, 12)
    assert check_causality(network.masks(), schedule, 8, 12, 12).latest == -1


@pytest.mark.parametrize("size", sorted(SIZES))
@pytest.mark.parametrize("order", ORDERS)
def test_published_shape_from_a_state_dict(size, order):
    """Parameters by name, as documented; weights from elsewhere write real files."""
    shape = SIZES[size]
    channels = 8 * shape.width
    rng = np.random.default_rng(2)

    def layer(prefix: str, inputs: int, kernel: int) -> dict[str, torch.Tensor]:
        weight = rng.normal(
            0, (inputs * kernel * kernel) ** -0.5, (channels, inputs, kernel, kernel)
        )
        return {
            f"{prefix}.conv.weight": torch.tensor(weight),
            f"{prefix}.conv.bias": torch.zeros(channels),
            f"{prefix}.prelu.weight": torch.full((channels,), 0.25),
        }

    state = layer("first", 8, shape.first)
    for i, kernel in enumerate(shape.hidden):
        state |= layer(f"hidden.{i}", channels, kernel)
    for i, kernels in enumerate(shape.blocks):
        for j, kernel in enumerate(kernels):
            state |= layer(f"blocks.{i}.{j}", channels, kernel)
    state["head.weight"] = torch.tensor(rng.normal(0, 0.1, (16, channels, shape.head, shape.head)))
    state["head.bias"] = torch.zeros(16)
    network = LosslessNetwork(LosslessConfig(**{**shape.to_dict(), "order": order}))
    network.load_state_dict(state)  # strict: no name is missing or too many

    quantized = QuantizedNetwork(network)
    pixels = picture(7, 20, 17)
    quantized.calibrate(bit_planes(torch.from_numpy(pixels)[None]).float())
    steps = to_component(quantized).steps
    assert steps == ((1, 1, 1) if order == "slope" else (9, 3, 1))
    codec = pycodec.models.lossless.LosslessCodec(
        to_component(quantized), None, bit_tables(), b"elsewher"
    )
    file, _ = api.encode_picture(pycodec.images.Picture(pixels), 100, lossless=True, model=codec)
    decoded, _ = api.decode_picture(file, model=codec)
    assert np.array_equal(decoded.pixels, pixels)


def test_size_of_the_models():
    trimmed, whole = LosslessNetwork(SIZES["tcae"]).multiplications()
    assert whole == 64 * 25 * (8 + 9 * 64) + 16 * 64 * 9
    assert 0.5 < trimmed / whole < 0.6
    assert LosslessNetwork(SIZES["tcae-fast"]).multiplications()[0] <= 60_000


@pytest.mark.parametrize("order", ORDERS)
def test_growing_keeps_the_function(order):
    torch.manual_seed(0)
    configs = (LosslessConfig(**{**SIZES[size].to_dict(), "order": order}) for size in SIZES)
    large, small = map(LosslessNetwork, configs)
    grow(large, small)
    bits = torch.randint(0, 2, (1, 8, 12, 11)).float()
    torch.testing.assert_close(large(bits), small(bits))
    with pytest.raises(InputError):
        grow(small, large)


def test_a_channel_that_does_nothing_costs_no_precision():
    quantized = quantized_network(4)
    layer = quantized.network.hidden[0]
    with torch.no_grad():
        layer.conv.bias[3], layer.prelu.weight[3] = -1000, 0
    quantized.calibrate(torch.randint(0, 2, (2, 8, 24, 24)).float())
    exported = to_component(quantized).layers[1]
    assert np.delete(exported.multiplier, 3).min() > 1 << 16


def test_older_models_have_one_multiplier_for_all_channels(tmp_path):
    parts = to_component(quantized_network(1)), to_component(quantized_network(2, side=2))
    save_lossless_model(tmp_path / "new", *parts, bit_tables(), {})
    arrays = safetensors.numpy.load((tmp_path / "new" / WEIGHTS_FILE).read_bytes())
    multipliers = {}
    for name in [n for n in arrays if n.endswith(".numbers")]:
        prefix = name.removesuffix("numbers")
        multiplier = arrays.pop(prefix + "residual_multiplier", [0])[0]
        arrays[name] = np.insert(arrays[name], 3, multiplier)
        multipliers[prefix] = multiplier
    write_model_folder(tmp_path / "older", KIND, safetensors.numpy.save(arrays), {})
    codec = load_lossless_model(tmp_path / "older")
    added = 0
    for name, network in (("gray", codec.gray), ("chroma", codec.chroma)):
        for i, layer in enumerate(network.layers):
            if layer.residual is not None:
                assert (layer.residual_multiplier == multipliers[f"{name}.{i}."]).all()
                added += 1
    assert added == 3


def test_model_folder(tmp_path):
    parts = to_component(quantized_network(1)), to_component(quantized_network(2, side=2))
    save_lossless_model(tmp_path / "m", *parts, bit_tables(), {})
    codec = load_lossless_model(tmp_path / "m")
    pixels = picture(1, 30, 20, 3)
    data, _ = api.encode_picture(pycodec.images.Picture(pixels), 1, lossless=True, model=codec)
    assert peek(data).fingerprint == codec.fingerprint
    decoded, _ = api.decode_picture(data, model=tmp_path / "m")
    assert np.array_equal(decoded.pixels, pixels)
    with pytest.raises(UnsupportedError):
        api.decode_picture(data)

    weights = tmp_path / "m" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="damaged"):
        load_lossless_model(tmp_path / "m")

    save_lossless_model(tmp_path / "gray", parts[0], None, bit_tables(), {})
    gray = load_lossless_model(tmp_path / "gray")
    assert np.array_equal(round_trip(gray, pixels[..., 0]), pixels[..., 0])
    with pytest.raises(InputError, match="gray pictures only"):
        gray.compress(pixels)


def test_unusable_arguments(codec):
    good = picture(0, 8, 8)
    for wrong in (good.astype(np.int32), good[None, None], good[:0], np.zeros((4, 4, 2), np.uint8)):
        with pytest.raises(InputError):
            codec.compress(wrong)
    with pytest.raises(InputError):
        codec.compress(good, tile_log2=11)
    with pytest.raises(InputError):
        codec.compress(good, threads=0)
    with pytest.raises(CodecError):
        codec.decompress([b"", b""], 8, 8, gray=True)
    with pytest.raises(CodecError):
        codec.decompress([b""], 8, 8, gray=True, tile_log2=24)


@pytest.fixture(scope="module")
def file(codec) -> bytes:
    pixels = picture(2, 24, 20, 3)
    return api.encode_picture(pycodec.images.Picture(pixels), 1, lossless=True, model=codec)[0]


def test_damaged_streams(codec):
    """Behind the checksums: any bytes decode to some picture or raise a CodecError."""
    stream = codec.compress(picture(2, 24, 20, 3)).streams[0]
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(stream)
        for position in rng.integers(0, len(stream), 3):
            damaged[position] ^= int(rng.integers(1, 256))
        damaged = bytes(damaged[: int(rng.integers(0, len(stream) + 1))])
        try:
            pixels = codec.decompress([damaged], 20, 24, gray=False)
        except CodecError:
            continue
        assert pixels.shape == (24, 20, 3)


def test_truncated_files(codec, file):
    for length in range(0, len(file), 7):
        with pytest.raises(CodecError):
            api.decode_picture(file[:length], model=codec)


# The models of the package


@pytest.mark.parametrize("name", MODELS)
def test_packaged_models_beat_png(name):
    """Real files of pictures that the models were not trained on."""
    pixels = data.camera()[100:356, 100:356]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    coded = pycodec.encode(pixels, lossless=True, model=name)
    assert np.array_equal(pycodec.decode(coded), pixels)
    assert len(coded) < 0.93 * len(buffer.getvalue())


@pytest.mark.parametrize("channels", [1, 2, 3, 4], ids=["gray", "gray+alpha", "rgb", "rgba"])
def test_default_model(channels):
    pixels = data.astronaut()[:70, :61]
    if channels == 1:
        pixels = pixels[..., 0]
    if channels == 2:
        pixels = pixels[..., :1]
    if channels in (2, 4):
        alpha = np.indices(pixels.shape[:2]).sum(0)[..., None] % 256
        pixels = np.concatenate([pixels, alpha], axis=2).astype(np.uint8)
    coded = pycodec.encode(pixels, lossless=True)
    assert peek(coded).fingerprint == load_model(DEFAULT_LOSSLESS_MODEL).fingerprint
    assert np.array_equal(pycodec.decode(coded), pixels)
    assert np.array_equal(pycodec.decode(coded, exact_pixels=True), pixels)


@pytest.mark.parametrize("mode", ["I;16", "F", "CMYK", "HSV", "YCbCr", "La"])
def test_samples_that_would_change_are_refused(mode):
    gray = data.camera()[:40, :30]
    if mode == "I;16":
        picture = Image.fromarray(gray.astype(np.uint16) * 256 + 7)
    elif mode == "F":
        picture = Image.fromarray(gray.astype(np.float32) / 255)
    elif mode == "La":
        picture = Image.fromarray(gray).convert("LA").convert("La")
    else:
        picture = Image.fromarray(data.astronaut()[:40, :30]).convert(mode)
    assert picture.mode == mode
    with pytest.raises(InputError, match="8 bits"):
        pycodec.encode(picture, lossless=True)


@pytest.mark.parametrize("name", MODELS)
def test_packaged_models_code_alike_on_every_backend(name):
    pixels = data.chelsea()[100:124, 100:130, 0]
    native = load_model(name)
    reference = load_lossless_model(WEIGHTS / name, backend="reference")
    streams = native.compress(pixels).streams
    assert streams == reference.compress(pixels).streams
    for level in LEVELS:
        with simd_level(level):
            assert native.compress(pixels).streams == streams
            decoded = native.decompress(streams, 30, 24, gray=True)
        assert np.array_equal(decoded, pixels)
    assert np.array_equal(reference.decompress(streams, 30, 24, gray=True), pixels)


def test_the_kind_of_model_must_fit():
    pixels = np.zeros((4, 4), np.uint8)
    with pytest.raises(InputError, match="not lossless"):
        pycodec.encode(pixels, lossless=True, model="photo")
    with pytest.raises(InputError, match="lossless"):
        pycodec.encode(pixels, model=DEFAULT_LOSSLESS_MODEL)
