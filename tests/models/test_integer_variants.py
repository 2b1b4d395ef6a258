"""Dynamic models: the encoder's choice of widths reaches the decoder, which gets its pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from pycodec import api
from pycodec.coding.container import unpack
from pycodec.errors import CorruptStreamError, InputError
from pycodec.images import Picture
from pycodec.models.integer_variants import VariantTransform, branch_layers, load_selectors
from pycodec.models.photo import PhotoCodec, load_photo_model, save_integers, save_photo_model
from pycodec.quantization.bit_width import WIDTHS
from pycodec.quantization.export import export_entropy_model
from pycodec.quantization.photo import Calibration
from pycodec.quantization.recipe import by_layer, plan
from pycodec.quantization.simulation import SimulatedTransforms, drop_unused_variants, export

from ..networks import quantized_network


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    low = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3))
    return low.repeat(8, 0).repeat(8, 1).astype(np.uint8)


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A model whose selectors ask for fewer bits at lower quality; its first branch has no 4."""
    network = quantized_network(2)
    tensors = {
        name: tensor.detach()
        for name, tensor in network.state_dict().items()
        if not name.startswith("entropy_model.")
    }
    entropy = export_entropy_model(network.entropy_model)
    folder = tmp_path_factory.mktemp("dynamic")
    save_photo_model(
        folder, tensors | {f"entropy.{k}": v for k, v in entropy.items()}, network.config
    )
    codec = load_photo_model(folder, precision="fp32")
    plans = plan(Calibration(codec, [pixels(64, 128), pixels(64, 64, 1)]), WIDTHS, rounded=())
    streams = {name: by_width[8].streams for name, by_width in plans.items()}
    model = SimulatedTransforms(network, by_layer(plans, WIDTHS), streams, dynamic=True).eval()
    with torch.no_grad():
        for selector in model.selectors.values():
            selector.by_quality.nodes.zero_()
            selector.hidden.weight.zero_()
            selector.hidden.weight[0, -1] = 1.0  # quality, -1 to 1
            selector.hidden.bias[0] = 1.0
            choice = selector.choice.weight.view(-1, 3, selector.choice.in_features)
            choice[:, 2, 0] = 5.0
            choice[:, 1, 0] = 2.5
            selector.choice.bias.view(-1, 3)[:] = torch.tensor([4.0, 2.4, 0.0])
    chosen = {n: WIDTHS for t in model.selectors for n in model.dynamic_layers(t)}
    chosen["synthesis.blocks16.0.reduce"] = (6, 8)
    drop_unused_variants(model, chosen)
    integers = export(model)
    save_integers(folder, "mixed", integers)
    return folder, integers


def transform(integers: dict[str, torch.Tensor], name: str, backend=None) -> VariantTransform:
    part = {k.removeprefix(f"{name}."): v for k, v in integers.items() if k.startswith(f"{name}.")}
    return VariantTransform(name, part, backend)


def test_widths_are_chosen_and_told(dynamic):
    folder, integers = dynamic
    picture = Picture(pixels(96, 136))
    synthesis = transform(integers, "synthesis")
    widths = {}
    for quality in (2, 40, 98):
        options = {"model": folder, "precision": "mixed", "exact_pixels": True}
        file, _ = api.encode_picture(picture, quality, **options)
        section = unpack(file).precision
        bits = synthesis.unpack(section[1:])
        widths[quality] = set(bits[1:])
        decoded, _ = api.decode_picture(file, model=folder)
        exact, _ = api.decode_picture(file, model=folder, exact_pixels=True)
        assert np.array_equal(decoded.pixels, exact.pixels)
        tiled, _ = api.encode_picture(picture, quality, tile=64, **options)
        assert np.array_equal(
            decoded.pixels, api.decode_picture(file, model=folder, precision="mixed")[0].pixels
        )
        assert unpack(tiled).precision == section
        widest, _ = api.decode_picture(
            api.encode_picture(picture, quality, model=folder, precision="mixed")[0],
            model=folder,
            precision="mixed",
        )
        assert np.array_equal(decoded.pixels, widest.pixels) == (quality == 98)
    assert widths == {2: {4}, 40: {6}, 98: {8}}


def test_a_layer_without_the_variant_has_its_widest(dynamic):
    _, integers = dynamic
    synthesis = transform(integers, "synthesis")
    layers = branch_layers("synthesis")
    assert len(layers) == 17 and layers[0] == "blocks16.0.reduce"
    four = (4,) * 17
    assert synthesis.available(four) == (8, *four[1:])
    assert synthesis.variants[layers[0]] == (6,)
    assert not transform(integers, "hyper_analysis").variants


def test_packing_is_undone_by_unpacking(dynamic):
    _, integers = dynamic
    synthesis = transform(integers, "synthesis")
    random = np.random.default_rng(0)
    for _ in range(20):
        bits = synthesis.available(tuple(int(b) for b in random.choice(WIDTHS, 17)))
        data = synthesis.pack(bits)
        assert len(data) == 5 and synthesis.unpack(data) == bits
    assert synthesis.unpack(b"") == (8,) * 17
    for wrong in (b"\x00", bytes(6), b"\x03" + bytes(4), b"\x02" + bytes(4), bytes(4) + b"\x04"):
        with pytest.raises(CorruptStreamError, match="widths"):
            synthesis.unpack(wrong)


def test_backends_agree_on_every_choice(dynamic):
    _, integers = dynamic
    native, reference = (transform(integers, "synthesis", b) for b in ("native", "reference"))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randint(-900, 900, (4, 6, 32), generator=generator).int()
    results = []
    for bits in ((8,) * 17, native.available((4,) * 17), native.available((6, 4) * 8 + (8,))):
        results.append(native(latents, 5000, bits=bits))
        assert torch.equal(results[-1], reference(latents, 5000, bits=bits))
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_tensors_that_fit_nothing(dynamic):
    _, integers = dynamic
    with pytest.raises(InputError, match="without a layer"):
        transform({**integers, "synthesis.head@4.weight": torch.zeros(1)}, "synthesis")
    with pytest.raises(InputError, match="does not fit"):
        load_selectors({**integers, "selector.synthesis.center": torch.zeros(3)})
    with pytest.raises(InputError, match="number of layers"):
        load_selectors(
            {k.replace("selector.synthesis", "selector.analysis"): v for k, v in integers.items()}
        )


def test_a_static_model_tells_no_widths(dynamic):
    folder, integers = dynamic
    static = {k: v for k, v in integers.items() if "@" not in k and not k.startswith("selector.")}
    base = load_photo_model(folder, precision="mixed")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    codec = PhotoCodec(tensors, base.config, b"testonly", precision="mixed", integers=static)
    coded = codec.compress(pixels(64, 64), 20)
    assert coded.widths == b""
    with pytest.raises(CorruptStreamError, match="widths"):
        codec.decompress(coded.streams, 64, 64, coded.quality_code, widths=b"\x00")
