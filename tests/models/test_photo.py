"""The photo codec with random weights: tiling, sizes, arguments, model files."""

from __future__ import annotations

import json
import weakref

import numpy as np
import pytest
import torch

from pycodec.errors import CorruptStreamError, InputError, UnsupportedError
from pycodec.models.photo import load_photo_model, read_photo_tensors, save_photo_model
from pycodec.models.photo_network import PhotoConfig, PhotoNetwork, quality_lambda
from pycodec.models.zoo import DEFAULT_MODEL, WEIGHTS, load_model
from pycodec.ops.quadtree_stage import LATENT_FRACTION_BITS
from pycodec.quantization.export import export_entropy_model

from ..networks import SMALL, quantized_network, random_codec

PACKAGED = WEIGHTS / DEFAULT_MODEL


@pytest.fixture(scope="module")
def codec():
    return random_codec(0)


def random_picture(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 12, (height, width, 3))
    rows, columns = np.mgrid[:height, :width]
    base = 128 + 90 * np.sin(rows / rng.uniform(3, 30) + columns / rng.uniform(3, 30))
    return (base[..., None] + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(50))
def test_symbols_are_the_same_whoever_decodes(seed):
    """Random weights, picture, quality, tiling; encoded and decoded by either backend."""
    rng = np.random.default_rng(1000 + seed)
    codecs = {name: random_codec(seed % 5, name) for name in ("native", "reference")}
    picture = random_picture(seed, *(int(n) for n in rng.integers(1, 150, 2)))
    quality = float(rng.uniform(1, 100))
    height, width, _ = picture.shape
    tile_log2 = int(rng.integers(6, 9))
    coded = {
        name: codec.compress(
            picture, quality, tile_log2=tile_log2, threads=1 + seed % 2, keep_symbols=True
        )
        for name, codec in codecs.items()
    }
    assert coded["native"].streams == coded["reference"].streams
    for mine, other in zip(coded["native"].symbols, coded["reference"].symbols, strict=True):
        assert np.array_equal(mine, other)
    pictures = [
        codec.decompress(
            coded["native"].streams,
            width,
            height,
            coded["native"].quality_code,
            tile_log2=tile_log2,
            threads=threads,
        )
        for codec in codecs.values()
        for threads in (1, 2)
    ]
    # The transforms are float: a different thread count may move a pixel by a rounding.
    for other in pictures[1:]:
        assert np.abs(pictures[0].astype(int) - other).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (16, 16), (17, 63), (65, 130)])
def test_any_size(codec, shape):
    picture = random_picture(1, *shape)
    coded = codec.compress(picture, 50, tile_log2=6)
    decoded = codec.decompress(coded.streams, shape[1], shape[0], coded.quality_code, tile_log2=6)
    assert decoded.shape == picture.shape and decoded.dtype == np.uint8


def test_tiles_leave_no_seam(codec):
    """Latents of a tiled picture are those of the whole: the transforms look across borders."""
    picture = random_picture(2, 256, 320)
    tiled, whole = (codec.compress(picture, 100, tile_log2=log2) for log2 in (7, 10))
    decoded = [
        codec.decompress(c.streams, 320, 256, c.quality_code, tile_log2=c.tile_log2)
        for c in (tiled, whole)
    ]
    # Quality 100 quantizes finely; entropy models differ by tile, so latents differ below a step.
    difference = np.abs(decoded[0].astype(int) - decoded[1]).mean(axis=(0, 2))
    border = difference[[126, 127, 128, 129]].mean()
    assert border <= 1.5 * difference.mean() + 0.05


@pytest.mark.parametrize("shape", [(300, 290), (128, 300), (270, 100)])
def test_tiles_are_synthesized_like_the_whole(codec, shape):
    """Pixels are those of one synthesis of all latents at once, but for float rounding."""
    height, width = shape
    coded = codec.compress(random_picture(7, height, width), 60, tile_log2=7)
    decoded = codec.decompress(coded.streams, width, height, 6000, tile_log2=7)
    latents = torch.zeros((-(-height // 16), -(-width // 16), SMALL.latent_channels))
    tiles = [(top, left) for top in range(0, height, 128) for left in range(0, width, 128)]
    for (top, left), stream in zip(tiles, coded.streams, strict=True):
        part = latents[top // 16 : top // 16 + 8, left // 16 : left // 16 + 8]
        part.copy_(codec.entropy_model.decode(stream, *part.shape[:2], 6000))
    y = (latents / (1 << LATENT_FRACTION_BITS)).permute(2, 0, 1)[None]
    with torch.no_grad():
        whole = codec.synthesis(y, torch.tensor([60.0]))[0, :, :height, :width]
    expected = np.rint(255 * whole.float().clamp(0, 1).permute(1, 2, 0).numpy())
    difference = np.abs(decoded - expected)
    assert difference.max() <= 1 and difference.mean() < 0.01


def test_synthesis_halo_is_wide_enough(codec):
    """With the same latents, a tile's pixels do not depend on how far the picture is cut."""
    from pycodec.models.photo import SYNTHESIS_HALO

    y = torch.randn(1, SMALL.latent_channels, 4, 40)
    quality = torch.tensor([60.0])
    with torch.no_grad():
        whole = codec.synthesis.float()(y, quality)[..., : 16 * 16]
        part = codec.synthesis(y[..., : 16 + SYNTHESIS_HALO], quality)[..., : 16 * 16]
    assert torch.allclose(whole, part, atol=1e-4)


def test_analysis_halo_is_wide_enough():
    from pycodec.models.photo import ANALYSIS_HALO

    network = quantized_network(4)
    x = torch.rand(1, 3, 64, 640)
    with torch.no_grad():
        whole = network.analysis(x, torch.tensor([60.0]))[..., :16]
        part = network.analysis(x[..., : 256 + ANALYSIS_HALO], torch.tensor([60.0]))[..., :16]
    assert torch.allclose(whole, part, atol=1e-4)


def test_decoder_holds_two_rows_of_tiles(codec, monkeypatch):
    picture = random_picture(6, 64 * 8, 64)
    coded = codec.compress(picture, 50, tile_log2=6)
    held: list[weakref.ref] = []
    most = 0
    decode = codec.entropy_model.decode

    def decode_tile(*args):
        nonlocal most
        latents = decode(*args).numpy().copy()  # lives as long as a tensor, or view, refers to it
        held.append(weakref.ref(latents))
        most = max(most, sum(row() is not None for row in held))
        return torch.from_numpy(latents)

    monkeypatch.setattr(codec.entropy_model, "decode", decode_tile)
    codec.decompress(coded.streams, 64, 512, coded.quality_code, tile_log2=6)
    assert (len(held), most) == (8, 2)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("quality", 0.5),
        ("quality", 101),
        ("quality", "50"),
        ("tile_log2", 5),
        ("tile_log2", 13),
        ("threads", 0),
        ("threads", 10**9),
    ],
)
def test_arguments_out_of_range(codec, argument, value):
    arguments = {"quality": 50.0, argument: value}
    with pytest.raises(InputError):
        codec.compress(np.zeros((8, 8, 3), np.uint8), **arguments)


@pytest.mark.parametrize(
    "picture", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)]
)
def test_not_a_picture(codec, picture):
    with pytest.raises(InputError, match="expected uint8"):
        codec.compress(picture)


def test_symbols_and_code_length_only_when_asked_for(codec):
    picture = random_picture(5, 100, 150)  # 2 x 3 tiles
    plain = codec.compress(picture, 50, tile_log2=6)
    full = codec.compress(picture, 50, tile_log2=6, code_length=True, keep_symbols=True)
    assert (plain.symbols, plain.indexes, plain.code_length_bits) == ([], [], None)
    assert plain.streams == full.streams
    assert plain.num_symbols == full.num_symbols == sum(map(len, full.symbols))
    assert len(full.symbols) == len(full.indexes) == 6
    tables, tiles = codec.entropy_model.tables, zip(full.symbols, full.indexes, strict=True)
    assert full.code_length_bits == sum(tables.cost_bits(*tile) for tile in tiles)


def test_wrong_number_of_streams(codec):
    coded = codec.compress(np.zeros((64, 64, 3), np.uint8), 50, tile_log2=6)
    for count in (0, 1, 3):
        with pytest.raises(CorruptStreamError, match=f"2 tiles, but {count}"):
            codec.decompress(coded.streams * count, 128, 64, 5000, tile_log2=6)


def test_threads_are_restored(codec):
    before = torch.get_num_threads()
    codec.compress(np.zeros((8, 8, 3), np.uint8), threads=1 if before > 1 else 2)
    assert torch.get_num_threads() == before


def test_model_folder_round_trip_and_damage(tmp_path):
    network = quantized_network(1)
    tensors = {n: t for n, t in network.state_dict().items() if not n.startswith("entropy_model")}
    entropy = export_entropy_model(network.entropy_model)
    tensors |= {f"entropy.{name}": tensor for name, tensor in entropy.items()}
    folder = tmp_path / "small"
    save_photo_model(folder, tensors, network.config)
    codec = load_photo_model(folder)
    assert codec.name == "small" and len(codec.fingerprint) == 8
    picture = random_picture(3, 40, 50)
    coded = codec.compress(picture, 30)
    assert codec.decompress(coded.streams, 50, 40, 3000).shape == picture.shape

    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(InputError, match="SHA-256"):
        load_photo_model(folder)
    weights.write_bytes(good)
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**description, "kind": "sphere"}))
    with pytest.raises(UnsupportedError, match="sphere"):
        load_photo_model(folder)
    with pytest.raises(InputError, match="not a model folder"):
        load_photo_model(tmp_path)


def test_a_model_stored_as_what_differs_from_another(tmp_path):
    """It is whole again when it is read, and refused without the other, or with another other."""
    tensors, _, _ = read_photo_tensors(PACKAGED)
    changed = {**tensors, "entropy.rounding": tensors["entropy.rounding"] + 1}
    folder = tmp_path / "changed"
    save_photo_model(folder, changed, PhotoConfig(), base=DEFAULT_MODEL)
    assert (folder / "model.safetensors").stat().st_size < 2000
    again, _, fingerprint = read_photo_tensors(folder)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in changed.items())
    codec = load_photo_model(folder)
    assert codec.fingerprint == fingerprint != load_photo_model(PACKAGED).fingerprint
    picture = random_picture(5, 40, 50)
    assert codec.decompress(codec.compress(picture, 30).streams, 50, 40, 3000).shape == (40, 50, 3)

    description = json.loads((folder / "model.json").read_text())
    for base in ("tcae-fast", "none", "\0", 7):
        (folder / "model.json").write_text(json.dumps({**description, "base": base}))
        with pytest.raises(UnsupportedError, match="completes the model"):
            load_photo_model(folder)
    save_photo_model(folder, {"base.sha256": torch.zeros(32, dtype=torch.uint8)}, PhotoConfig())
    whole = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**whole, "base": DEFAULT_MODEL}))
    with pytest.raises(UnsupportedError, match="other weights"):
        load_photo_model(folder)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (b"\xff{}", "not a model folder"),
        (b"{", "not a model folder"),
        (b"[]", "not a model folder"),
        (b'{"kind": "photo"}', "SHA-256"),
        ({"config": None}, "no valid model"),
        ({"config": {"depth": 3}}, "no valid model"),
        ({"config": {"latent_channels": 64}}, "do not fit"),
    ],
)
def test_descriptions_that_do_not_fit_the_weights(tmp_path, description, message):
    (tmp_path / "model.safetensors").write_bytes((PACKAGED / "model.safetensors").read_bytes())
    if isinstance(description, dict):
        packaged = json.loads((PACKAGED / "model.json").read_text())
        description = json.dumps({**packaged, **description}).encode()
    (tmp_path / "model.json").write_bytes(description)
    with pytest.raises(InputError, match=message):
        load_photo_model(tmp_path)
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


def test_quality_spans_the_multipliers():
    assert quality_lambda(torch.tensor(1.0)) == pytest.approx(0.0005)
    assert quality_lambda(torch.tensor(100.0)) == pytest.approx(0.3)


def test_every_parameter_is_trained():
    network = PhotoNetwork(SMALL)
    x_hat, y_bits, z_bits = network(torch.rand(2, 3, 64, 64), torch.tensor([20.0, 80.0]))
    (x_hat.square().mean() + y_bits.mean() + z_bits.mean()).backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None and "log_scale" not in n]
    assert not missing
