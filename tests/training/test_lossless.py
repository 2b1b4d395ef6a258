"""Training of the lossless networks: a short run, resumed, exported, used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from pycodec.cli import main
from pycodec.errors import InputError
from pycodec.images import load_image
from pycodec.models.lossless import load_lossless_model, save_lossless_model
from pycodec.models.lossless_network import SIZES, LosslessNetwork
from pycodec.quantization.context import bit_tables, restore_network
from pycodec.training import lossless
from pycodec.training.graphs import CapturedPass
from pycodec.training.lossless import (
    CHECKPOINT,
    ROUNDED,
    LosslessOptions,
    LosslessTrainer,
    export_model,
    load_network,
    load_quantized,
    to_component,
    to_gray,
)

from ..lossless_networks import quantized_network

SHORT = {"steps": 6, "quantize": 3, "batch": 4, "crop": 16, "validate_every": 3}


@pytest.fixture(autouse=True)
def short_validation(monkeypatch):
    monkeypatch.setattr(lossless, "VALIDATION_CROP", 32)
    monkeypatch.setattr(lossless, "VALIDATION_BATCHES", 2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("astronaut", "chelsea"):
        Image.fromarray(getattr(data, name)()[:400, :440]).save(folder / f"{name}.png")
    return folder


def test_luma_is_truncated():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    gray = to_gray(torch.from_numpy(rgb).permute(2, 0, 1)[None])[0].numpy()
    exact = [
        [(299 * int(r) + 587 * int(g) + 114 * int(b)) / 1000 for r, g, b in row] for row in rgb
    ]
    assert np.abs(gray - np.floor(exact)).max() <= 1  # whole numbers may fall below in floats
    assert (gray == np.floor(exact)).mean() > 0.95


def test_train_resume_export_use(pictures, tmp_path):
    lines: list[str] = []
    gray, chroma = tmp_path / "gray", tmp_path / "chroma"
    options = LosslessOptions(**SHORT)
    LosslessTrainer(pictures, gray, options, report=lines.append).run()
    assert [line.split(":")[0] for line in lines] == ["step 3", "step 6"]
    weights = load_network(gray).state_dict()

    resumed = LosslessTrainer(pictures, gray, LosslessOptions(**{**SHORT, "steps": 8}))
    assert resumed.step == 6 and resumed.quantized.enabled
    resumed.run()
    after = load_network(gray).state_dict()
    assert any(not torch.equal(after[name], weights[name]) for name in weights)

    LosslessTrainer(
        pictures, chroma, LosslessOptions(**SHORT, chroma=True), start=gray, report=lines.append
    ).run()
    export_model(tmp_path / "model", gray, chroma)
    codec = load_lossless_model(tmp_path / "model")
    assert codec.chroma is not None
    for i, sources in enumerate(((tmp_path / "model", chroma), (gray, tmp_path / "model"))):
        export_model(tmp_path / f"again{i}", *sources)
        assert load_lossless_model(tmp_path / f"again{i}").fingerprint == codec.fingerprint
    with pytest.raises(InputError, match="no network of gray"):
        export_model(tmp_path / "none", chroma, gray)
    export_model(tmp_path / "gray-only", tmp_path / "model")
    with pytest.raises(InputError, match="has no network of chroma"):
        export_model(tmp_path / "none", gray, tmp_path / "gray-only")

    source, coded, result = (str(tmp_path / name) for name in ("a.png", "a.lci", "b.png"))
    Image.fromarray(data.coffee()[:33, :40]).save(source)
    model = ["--model", str(tmp_path / "model"), "--quiet"]
    assert main(["encode", "--lossless", source, coded, *model]) == 0
    assert main(["decode", coded, result, *model]) == 0
    assert np.array_equal(load_image(result).pixels, load_image(source).pixels)


def test_floats_are_rounded_at_the_end_and_may_be_trained_on(pictures, tmp_path):
    lines: list[str] = []
    options = LosslessOptions(**{**SHORT, "quantize": 0})
    LosslessTrainer(pictures, tmp_path, options, report=lines.append).run()
    assert lines[-1].startswith("rounded: ")
    rounded = load_quantized(tmp_path / ROUNDED)
    assert rounded.enabled
    export_model(tmp_path / "model", tmp_path)
    codec = load_lossless_model(tmp_path / "model")
    weight = rounded.network.hidden[0].conv.weight
    integers = torch.from_numpy(codec.gray.layers[1].weight).permute(0, 3, 1, 2)
    assert (weight.sign() == integers.sign()).float().mean() > 0.99

    longer = LosslessTrainer(
        pictures, tmp_path, LosslessOptions(**{**SHORT, "steps": 8, "quantize": 0})
    )
    assert longer.step == 6 and not longer.quantized.enabled
    floats = load_network(tmp_path).hidden[0].conv.weight
    assert not torch.equal(floats, weight)
    longer.step += 1
    longer._save()
    with pytest.raises(InputError, match="trained on after"):
        export_model(tmp_path / "model", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "damaged"),
        (b"hello", "damaged"),
        ("half", "damaged"),
        ({"config": {}, "quantized": True}, "without average"),
        ({"config": {}, "quantized": True, "average": {"x": torch.zeros(1)}}, "another version"),
        (torch.zeros(3), "without"),
    ],
    ids=["missing", "empty", "text", "truncated", "part", "network", "other"],
)
def test_damaged_checkpoints(tmp_path, content, message):
    path = tmp_path / CHECKPOINT
    if content == "half":
        torch.save({"average": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=message):
        load_quantized(tmp_path)


def test_a_run_has_steps(pictures, tmp_path):
    with pytest.raises(InputError, match="a step at least"):
        LosslessTrainer(pictures, tmp_path, LosslessOptions(**{**SHORT, "steps": 0}))


def test_a_model_that_does_not_say_what_it_is_cannot_be_trained(tmp_path):
    part = to_component(quantized_network(5, width=3))
    save_lossless_model(tmp_path, part, None, bit_tables(), {})
    with pytest.raises(InputError, match="does not say"):
        load_network(tmp_path)


@pytest.mark.parametrize("chroma", [False, True], ids=["gray", "chroma"])
def test_a_model_may_be_trained_further(tmp_path, chroma):
    quantized = quantized_network(5, width=3, side=2 if chroma else 0)
    with torch.no_grad():  # a channel that is a constant
        quantized.network.hidden[0].conv.weight[4] = 0
    gray = quantized_network(6, width=3)
    networks = [quantized, gray] if not chroma else [gray, quantized]
    config = {"gray": networks[0].network.config.to_dict()}
    if chroma:
        config["chroma"] = quantized.network.config.to_dict()
    parts = [to_component(network) for network in networks[: 1 + chroma]]
    save_lossless_model(tmp_path, parts[0], parts[1] if chroma else None, bit_tables(), config)

    restored = load_network(tmp_path, chroma)
    bits = torch.randint(0, 2, (2, 8, 30, 30)).float()
    side = torch.randint(0, 2, (2, 16, 30, 30)).float() if chroma else None
    with torch.no_grad():
        expected = quantized(bits, side)
        error = (restored(bits, side).clamp(expected.min(), expected.max()) - expected).abs()
    # What is restored does not round activations.
    assert error.mean() < 0.05 * expected.std()
    for step in restored.steps():
        if step.prelu is not None and step.residual is None:
            size = step.conv.weight.square().sum((1, 2, 3)).sqrt()
            torch.testing.assert_close(size[size > 0], torch.full_like(size[size > 0], 4.0))
    assert not restored.hidden[0].conv.weight[4].any()
    assert restored.hidden[0].conv.weight[:4].abs().amax((1, 2, 3)).all()

    with pytest.raises(InputError, match="another network"):
        restore_network(LosslessNetwork(SIZES["tcae-fast"]), parts[0].layers)


def test_training_by_the_clock(pictures, tmp_path, monkeypatch):
    """A step takes a tenth of a minute here, whatever it takes."""
    lines: list[str] = []
    options = LosslessOptions(**{**SHORT, "steps": 4, "quantize": 1, "minutes": 1.04, "warmup": 1})
    trainer = LosslessTrainer(pictures, tmp_path, options, report=lines.append)
    monkeypatch.setattr(lossless.time, "monotonic", lambda: trainer.began + 6 * trainer.step)
    rates, rounding = [], []
    optimize = trainer._optimize

    def watched(crops):
        rounding.append(trainer.quantized.enabled)
        loss = optimize(crops)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return loss

    trainer._optimize = watched
    trainer.run()
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.1 * rates[0]
    assert len(rates) == 11 and [line.split(":")[0] for line in lines][-1] == "step 11"
    assert rounding == [False] * 8 + [True] * 3  # a quarter of the time
    options = LosslessOptions(**{**SHORT, "minutes": 1.04})
    assert LosslessTrainer(pictures, tmp_path, options).progress() > 1  # resumed, and done


def test_training_lowers_the_rate(pictures, tmp_path):
    options = LosslessOptions(**{**SHORT, "steps": 60, "quantize": 5, "crop": 32}, warmup=1)
    trainer = LosslessTrainer(pictures, tmp_path, options)
    before = trainer.validate()
    trainer.run()
    assert trainer.validate() < 0.95 * before


@pytest.mark.parametrize("chroma", [False, True], ids=["gray", "chroma"])
def test_training_as_on_a_gpu(pictures, tmp_path, monkeypatch, chroma):
    """What a run on a GPU does, crops cut by the device included, but for the graph."""

    class NotCaptured:
        def __init__(self, run, network, batch):
            self.run = run

        def __call__(self, batch):
            loss, values = self.run(batch)
            loss.backward()
            return values

    monkeypatch.setattr(lossless, "CapturedPass", NotCaptured)
    monkeypatch.setattr(LosslessTrainer, "_on_gpu", True)
    short = {**SHORT, "steps": 60, "quantize": 5, "crop": 32, "chroma": chroma}
    trainer = LosslessTrainer(pictures, tmp_path, LosslessOptions(**short, warmup=1))
    before = trainer.validate()
    trainer.run()
    assert trainer.validate() < 0.95 * before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "rounded"])
def test_a_graph_makes_the_gradients(pictures, tmp_path, quantized):
    options = LosslessOptions(**SHORT, device="cuda")
    trainer = LosslessTrainer(pictures, tmp_path, options)
    first, second = trainer.validation
    if quantized:
        trainer.quantized.calibrate(*first)
    loss, _ = trainer._pass(second)
    loss.backward()
    loss = loss.detach()  # else the graph of this pass lives on, see CapturedPass
    parameters = list(trainer.quantized.parameters())
    expected = [p.grad for p in parameters]
    trainer.quantized.zero_grad()
    captured = CapturedPass(trainer._pass, trainer.quantized, first)
    assert not torch.isclose(captured(first)["loss"], loss)
    assert torch.isclose(captured(second)["loss"], loss, rtol=1e-3)
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None:  # sums of cuDNN's may differ from call to call
            assert (parameter.grad - gradient).norm() <= 0.02 * gradient.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu(pictures, tmp_path):
    options = LosslessOptions(
        **{**SHORT, "steps": 60, "quantize": 5, "crop": 32}, warmup=1, device="cuda"
    )
    trainer = LosslessTrainer(pictures, tmp_path, options)
    before = trainer.validate()
    trainer.run()
    assert trainer.validate() < 0.95 * before


def test_training_and_validation_see_crops_of_all_kinds(pictures, tmp_path, monkeypatch):
    samplers = []

    class Recorded(lossless.LosslessCrops):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            samplers.append(self)

    monkeypatch.setattr(lossless, "LosslessCrops", Recorded)
    LosslessTrainer(pictures, tmp_path, LosslessOptions(**{**SHORT, "steps": 1})).run()
    assert len(samplers) == 2
    for sampler in samplers:
        assert (sampler.low, sampler.high) == (0.5, 1.25)
        assert len(sampler.filters) == 5 and sampler.noise > 0


def test_mistakes(pictures, tmp_path):
    with pytest.raises(InputError, match="multiple of 4"):
        LosslessTrainer(pictures, tmp_path / "a", LosslessOptions(batch=5))
    with pytest.raises(InputError, match="pixel"):
        LosslessTrainer(pictures, tmp_path / "a", LosslessOptions(crop=0))
    with pytest.raises(InputError, match="size"):
        LosslessTrainer(pictures, tmp_path / "a", LosslessOptions(size="huge"))
    with pytest.raises(InputError, match="cannot be read"):
        load_network(tmp_path / CHECKPOINT)
    options = LosslessOptions(**{**SHORT, "steps": 1, "quantize": 0})
    LosslessTrainer(pictures, tmp_path / "float", options).run()
    (tmp_path / "float" / ROUNDED).unlink()
    with pytest.raises(InputError, match="not been quantized"):
        export_model(tmp_path / "model", tmp_path / "float")
    with pytest.raises(InputError, match="another network"):
        LosslessTrainer(pictures, tmp_path / "float", LosslessOptions(order="plane"))
