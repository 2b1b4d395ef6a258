"""Hyperprior models in integers: what they decode, on which machine, and how close to float."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
import torch

import pycodec
from pycodec.api import decode_picture, encode_picture
from pycodec.coding.container import Codec, peek, unpack
from pycodec.errors import CodecError, CorruptStreamError, InputError, UnsupportedError
from pycodec.images import Picture
from pycodec.models.hyperprior import (
    HYPER_BITS,
    LATENT_BITS,
    SCALE_BITS,
    HyperpriorEntropyModel,
    bottleneck_tables,
    export_entropy_model,
    hyperlatents,
)
from pycodec.models.hyperprior_codec import load_hyperprior_model, save_hyperprior_model
from pycodec.models.hyperprior_network import ARCHITECTURES, HyperpriorNetwork, load_checkpoint

from ..hyperprior_networks import GROUPED, RASTER, WITH_CONTEXT, make_network
from ..levels import LEVELS, simd_level


@pytest.fixture(scope="module")
def exported():
    """Network and integer tensors by architecture."""
    generator = torch.Generator().manual_seed(5)
    pictures = torch.rand(2, 3, 128, 128, generator=generator)
    networks = {name: make_network(name) for name in ARCHITECTURES}
    return {name: (net, export_entropy_model(net, pictures)) for name, net in networks.items()}


@pytest.fixture(scope="module")
def folders(exported, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, (network, tensors) in exported.items():
        save_hyperprior_model(root / name, network, tensors)
    return root


def latents_of(network, height=1, width=2):
    """Float latents and hyperlatents of a picture of height x width hyperlatents."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    y = network.g_a(torch.rand(1, 3, 64 * height, 64 * width, generator=generator))
    if network.architecture == "bmshj2018-factorized":
        return y[0], None
    return y[0], hyperlatents(network, y, abs_latents=not network.has_means)[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 1)])
def test_the_same_streams_everywhere(exported, architecture, size):
    """1, 2 and 3 threads, every SIMD level, and the definition: one stream, one set of latents."""
    network, tensors = exported[architecture]
    y, z = latents_of(network, *size)
    shape = (y if z is None else z).shape[1:]
    reference = HyperpriorEntropyModel(tensors, "reference").encode(y, z)
    assert len(np.unique(reference.symbols)) > 3
    for level, threads in itertools.product(LEVELS, (1, 2, 3)):
        with simd_level(level):
            model = HyperpriorEntropyModel(tensors)
            coded = model.encode(y, z, threads)
            decoded = model.decode(reference.streams, *shape, threads)
        assert coded.streams == reference.streams
        assert torch.equal(coded.latents, reference.latents)
        assert torch.equal(decoded, reference.latents)
        np.testing.assert_array_equal(coded.indexes, reference.indexes)
    decoded = reference.latents.permute(2, 0, 1) / (1 << LATENT_BITS)
    assert float((decoded - y).abs().max()) <= 0.5 + 2**-6


@pytest.mark.parametrize("architecture", WITH_CONTEXT)
def test_the_definition_decodes(exported, architecture):
    network, tensors = exported[architecture]
    y, z = latents_of(network)
    coded = HyperpriorEntropyModel(tensors).encode(y, z, 2)
    decoded = HyperpriorEntropyModel(tensors, "reference").decode(coded.streams, *z.shape[1:])
    assert torch.equal(decoded, coded.latents)


@pytest.mark.parametrize("architecture", ["bmshj2018-hyperprior", "mbt2018-mean", *RASTER])
def test_integers_say_what_floats_say(exported, architecture):
    """Scales and means along a whole picture, of the integers and of the float networks."""
    network, tensors = exported[architecture]
    y, z = latents_of(network, 2, 2)
    model = HyperpriorEntropyModel(tensors, "reference")
    medians = tensors["medians"].view(-1, 1, 1) / (1 << HYPER_BITS)
    z_hat = torch.round(z - medians) + medians
    coded = model.encode(y, z)
    float_parameters = network.h_s(z_hat[None])
    fixed = (z_hat.permute(1, 2, 0) * (1 << HYPER_BITS)).to(torch.int32).numpy()
    side = model._synthesize(fixed, 1)
    if architecture not in RASTER:
        integers = torch.from_numpy(side).permute(2, 0, 1).double()
    else:
        y_hat = coded.latents.permute(2, 0, 1)[None] / (1 << LATENT_BITS)
        seen = network.context_prediction(y_hat)
        float_parameters = network.entropy_parameters(torch.cat([float_parameters, seen], 1))
        waves = model.context_model
        shift = waves.context_shift
        x = (coded.latents + ((1 << shift) >> 1)) >> shift
        x = torch.cat([torch.from_numpy(side)[None], waves.context(x.to(torch.int16)[None])], 3)
        for head in waves.heads:
            x = head(x)
        integers = x[0].permute(2, 0, 1).double()
    channels = model.channels
    steps = torch.full((len(integers), 1, 1), 2.0**-LATENT_BITS)
    steps[:channels] = 2.0**-SCALE_BITS
    actual, expected = integers * steps, float_parameters[0].double()
    assert float(expected.std()) > 0.02
    assert float((actual - expected).abs().max()) < 0.01 * float(expected.abs().max()) + 2**-8


def positions_in_order(architecture, groups, height, width):
    """Channels, rows and columns of all symbols, in stream order."""
    board = np.indices((height, width)).reshape(2, -1)
    halves = [board[:, board.sum(0) % 2 == parity] for parity in (0, 1)]
    order = []
    for start, size in zip(itertools.accumulate(groups, initial=0), groups, strict=False):
        for half in halves:
            for h, w in half.T:
                order += [(c, h, w) for c in range(start, start + size)]
    return tuple(np.array(order).T)


def float_groups(network, z_hat, y_hat):
    """Scales and means [M, H, W] as CompressAI's latent codecs compute them, from the decoded."""
    codec = network.latent_codec.y
    side = network.latent_codec.hyper.h_s(z_hat)
    groups = getattr(codec, "groups", [network.m])
    anchors = torch.from_numpy(np.indices(y_hat.shape[2:]).sum(0) % 2 == 0)
    parts = y_hat.split(list(groups), 1)
    scales, means = [], []
    for k, own in enumerate(parts):
        child, known = codec, side
        if hasattr(codec, "groups"):
            child = codec.latent_codec[f"y{k}"]
            if k > 0:
                is_second = network.architecture == "elic2022-chandelier"
                seen = parts[:k] if not is_second or k == 1 else (parts[0], parts[k - 1])
                context = codec.channel_context[f"y{k}"](torch.cat(seen, 1))
                known = torch.cat([context, side], 1)
        context = child.context_prediction(own * anchors)
        context = torch.where(anchors, 0.0, context)
        pair = child.entropy_parameters(torch.cat([context, known], 1)).chunk(2, 1)
        scales.append(pair[child.y.chunks.index("scales")])
        means.append(pair[child.y.chunks.index("means")])
    return torch.cat(scales, 1)[0], torch.cat(means, 1)[0]


@pytest.mark.parametrize("architecture", GROUPED)
def test_integer_groups_say_what_floats_say(exported, architecture):
    """The tables and means of every symbol, of the integers and of the float networks."""
    network, tensors = exported[architecture]
    y, z = latents_of(network, 2, 2)
    coded = HyperpriorEntropyModel(tensors).encode(y, z)
    medians = tensors["medians"].view(-1, 1, 1) / (1 << HYPER_BITS)
    z_hat = torch.round(z - medians) + medians
    y_hat = coded.latents.permute(2, 0, 1) / (1 << LATENT_BITS)
    scales, means = float_groups(network, z_hat[None], y_hat[None])
    order = positions_in_order(architecture, network.groups or [network.m], *y.shape[1:])
    assert float(means.std()) > 0.02
    integer_means = y_hat[order] - torch.from_numpy(coded.symbols)
    error = (integer_means - means[order]).abs().max()
    assert float(error) < 0.01 * float(means.abs().max()) + 2**-8
    thresholds = tensors["thresholds"] * 2.0**-SCALE_BITS
    indexes = (scales[order][:, None] > thresholds).sum(1).numpy()
    assert np.abs(coded.indexes.astype(int) - indexes).max() <= 1
    assert (coded.indexes == indexes).mean() > 0.97


def test_tables_are_the_distribution(exported):
    """Of a factorized prior: the probabilities add up, and the median halves them."""
    network, _ = exported["bmshj2018-factorized"]
    with torch.no_grad():
        network.entropy_bottleneck.quantiles[0] = torch.tensor([-3.2, 0.4, 6.0])
    tables, medians = bottleneck_tables(network.entropy_bottleneck.state_dict())
    assert tables.num_tables == network.m
    assert float(medians[0]) == pytest.approx(0.4)
    frequencies, offset, escape = tables.table(0)
    assert (offset, escape, len(frequencies)) == (-4, True, 4 + 6 + 1 + 1)


@pytest.mark.parametrize(
    "architecture",
    ["bmshj2018-factorized", "mbt2018-mean", "mbt2018", "cheng2020-anchor-checkerboard"],
)
def test_damaged_streams(exported, architecture):
    network, tensors = exported[architecture]
    model = HyperpriorEntropyModel(tensors)
    y, z = latents_of(network, 1, 1)
    streams = model.encode(y, z).streams
    shape = (y if z is None else z).shape[1:]
    for number, stream in enumerate(streams):
        for size in {0, 1, 5, len(stream) // 2, len(stream) - 1}:
            cut = [s[:size] if i == number else s for i, s in enumerate(streams)]
            with pytest.raises(CorruptStreamError):
                model.decode(cut, *shape)
        for place in range(0, len(stream), 3):
            damaged = bytearray(stream)
            damaged[place] ^= 0x40
            swapped = [bytes(damaged) if i == number else s for i, s in enumerate(streams)]
            with contextlib.suppress(CodecError):
                assert model.decode(swapped, *shape).shape[2] == model.channels
    with pytest.raises(CorruptStreamError, match="streams"):
        model.decode([*streams, b""], *shape)


def test_wrong_latents(exported):
    network, tensors = exported["mbt2018"]
    model = HyperpriorEntropyModel(tensors)
    y, z = latents_of(network)
    for wrong in [(y[:-1], z), (y, None), (y[:, :3], z), (y, z[:, :, :1]), (y * float("nan"), z)]:
        with pytest.raises(InputError):
            model.encode(*wrong)
    with pytest.raises(InputError):
        model.decode([b"", b""], -1, 1)
    for name in ("medians", "hyper0.bias", "head1.shift", "latent_tables.sizes", "thresholds"):
        with pytest.raises(InputError, match=r"lack|fit"):
            HyperpriorEntropyModel({k: v for k, v in tensors.items() if k != name})


# The codec


SIZES = [(1, 1), (65, 3), (70, 130)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_files(folders, architecture, rng):
    """Files of odd sizes decode to what the encoder had, with any number of threads."""
    codec = load_hyperprior_model(folders / architecture)
    for height, width in SIZES:
        picture = Picture(rng.integers(0, 256, (height, width, 3), np.uint8))
        data, stats = encode_picture(picture, 50, model=codec, tile=64, threads=1)
        assert encode_picture(picture, 50, model=codec, tile=64, threads=2)[0] == data
        assert peek(data).codec == Codec.HYPERPRIOR
        assert stats.symbols > 0
        decoded = [
            decode_picture(data, model=folders / architecture, threads=threads)[0].pixels
            for threads in (1, 2)
        ]
        assert decoded[0].shape == (height, width, 3)
        # The float transform may round otherwise on another number of threads; no more than that.
        assert np.abs(decoded[0].astype(int) - decoded[1]).max() <= 1


def test_tiles_have_no_seam(folders, rng):
    """Latents are those of the whole picture; only the entropy model is cut."""
    codec = load_hyperprior_model(folders / "bmshj2018-factorized")
    picture = rng.integers(0, 256, (70, 200, 3), np.uint8)
    whole, tiles = (codec.compress(picture, tile_log2=log2, threads=1) for log2 in (8, 6))
    assert (len(whole.streams), len(tiles.streams)) == (1, 8)
    a, b = (
        codec.decompress(coded.streams, 200, 70, 5000, tile_log2=log2, threads=1)
        for coded, log2 in ((whole, 8), (tiles, 6))
    )
    assert np.abs(a.astype(int) - b).max() <= 1


def test_gray_and_alpha(folders, rng):
    pixels = rng.integers(0, 256, (20, 30), np.uint8)
    alpha = rng.integers(0, 256, (20, 30), np.uint8)
    model = str(folders / "mbt2018-mean")
    data, _ = encode_picture(Picture(pixels, alpha), 50, model=model)
    picture, _ = decode_picture(data, model=model)
    assert picture.pixels.shape == (20, 30)
    np.testing.assert_array_equal(picture.alpha, alpha)


def test_damaged_files(folders, rng):
    model = str(folders / "mbt2018")
    data = pycodec.encode(rng.integers(0, 256, (40, 50, 3), np.uint8), model=model)
    for size in range(0, len(data), 37):
        with pytest.raises(CodecError):
            decode_picture(data[:size], model=model)
    codec = load_hyperprior_model(folders / "mbt2018")
    (stream,) = unpack(data).streams
    for wrong in ([], [b""], [stream[:-1]], [stream, stream], [b"\xff" * len(stream)]):
        with pytest.raises(CorruptStreamError):
            codec.decompress(wrong, 50, 40, 5000)
    with pytest.raises(CorruptStreamError, match="tile size"):
        codec.decompress([stream], 50, 40, 5000, tile_log2=20)


def test_what_the_codec_refuses(folders, exported, rng):
    pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
    model = str(folders / "mbt2018")
    with pytest.raises(InputError, match="projection"):
        pycodec.encode(pixels, model=model, projection="erp")
    with pytest.raises(InputError, match="not lossless"):
        pycodec.encode(pixels, model=model, lossless=True)
    data = pycodec.encode(pixels, model=model)
    with pytest.raises(UnsupportedError, match="was made with model"):
        decode_picture(data, model=str(folders / "mbt2018-mean"))
    with pytest.raises(UnsupportedError, match="fingerprint"):
        pycodec.decode(data)
    _, tensors = exported["mbt2018"]
    other = HyperpriorNetwork("mbt2018", 12, 16)
    with pytest.raises(InputError, match="do not fit"):
        save_hyperprior_model(folders / "wrong", other, tensors)
        load_hyperprior_model(folders / "wrong")


# The networks


def test_checkpoints_of_all_versions():
    network = make_network("mbt2018")
    state = {"module." + k: v for k, v in network.state_dict().items()}
    for new, old in [("matrices.", "_matrix"), ("biases.", "_bias"), ("factors.", "_factor")]:
        state = {k.replace(f"bottleneck.{new}", f"bottleneck.{old}"): v for k, v in state.items()}
    state["module.entropy_bottleneck._quantized_cdf"] = torch.zeros(3, dtype=torch.int32)
    state["module.gaussian_conditional.scale_table"] = torch.linspace(0.1, 20, 10)
    loaded = load_checkpoint("mbt2018", state)
    for name, value in network.state_dict().items():
        if "scale_table" not in name:
            assert torch.equal(loaded.state_dict()[name], value)
    assert len(loaded.gaussian_conditional.scale_table) == 10


def test_wrong_checkpoints():
    state = make_network("mbt2018").state_dict()
    for architecture in ("mbt2018-mean", "bmshj2018-factorized", "cheng2020-anchor"):
        with pytest.raises(InputError, match="not the weights"):
            load_checkpoint(architecture, state)
    with pytest.raises(InputError, match="unknown architecture"):
        load_checkpoint("mbt2020", state)
    for widths in [(0, 2), (3, 4), (2000, 4)]:
        with pytest.raises(InputError, match="widths"):
            HyperpriorNetwork("mbt2018", *widths)
    for groups in [(4, 8), (20, 0), (16, 4, 4)]:
        with pytest.raises(InputError, match="groups"):
            HyperpriorNetwork("elic2022-official", 12, 20, groups)
    with pytest.raises(InputError, match="groups"):
        HyperpriorNetwork("elic2022-official", 12, 20)  # those of the paper need more
    with pytest.raises(InputError, match="groups"):
        HyperpriorNetwork("mbt2018", 12, 20, (10, 10))
