"""Fine-tuning for the sphere: its pieces, its loss, its loop, and what it writes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from pycodec import cli
from pycodec.errors import InputError
from pycodec.models import model_folder, photo
from pycodec.models.photo import load_photo_model, save_photo_model
from pycodec.models.photo_network import quality_lambda
from pycodec.models.sphere import UNIT, SphereCodec, tile_quality
from pycodec.quantization.export import export_entropy_model
from pycodec.training import sphere, train
from pycodec.training.data import list_pictures
from pycodec.training.pieces import (
    PADDINGS,
    PieceBatch,
    PieceSampler,
    cut_piece,
    tilt_panorama,
)
from pycodec.training.refit import HeadFit
from pycodec.training.sphere import SphereTrainer
from pycodec.training.train import TrainingOptions

from ..networks import SMALL, quantized_network

HEAD = ("weight", "bias")
OPTIONS = {
    "steps": 1000,
    "decay": 1,
    "quantize": 0,
    "warmup": 2,
    "batch": 2,
    "crop": 128,
    "learning_rate": 1e-3,
    "bfloat16": False,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Five panoramas, of which one is held out, and five photographs."""
    panoramas, photos = (tmp_path_factory.mktemp(name) for name in ("panoramas", "photos"))
    picture = Image.fromarray(data.astronaut())
    for i in range(5):
        turned = np.roll(np.asarray(picture.resize((384, 192))), 40 * i, 1)
        Image.fromarray(turned).save(panoramas / f"{i}.png")
        picture.crop((20 * i, 0, 20 * i + 300, 300)).save(photos / f"{i}.png")
    return panoramas, photos


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A model of a tiny network, not trained but for its quantization."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    network = quantized_network(0)
    tensors = {
        name: tensor.detach().half()
        for name, tensor in network.state_dict().items()
        if not name.startswith("entropy_model.")
    }
    entropy = export_entropy_model(network.entropy_model)
    tensors |= {f"entropy.{name}": tensor for name, tensor in entropy.items()}
    save_photo_model(folder, tensors, SMALL)
    return folder


@pytest.fixture
def make_trainer(folders, start, tmp_path, monkeypatch):
    monkeypatch.setattr(sphere, "VALIDATION_PIECES", 1)
    trainers = []

    def make(rate_only: bool = False, **options) -> SphereTrainer:
        trainers.append(
            SphereTrainer(
                folders[0],
                tmp_path / "run",
                TrainingOptions(**{**OPTIONS, **options}),
                start,
                SMALL,
                photos=folders[1],
                rate_only=rate_only,
            )
        )
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.batches.close()


def sampler(folders, **options) -> PieceSampler:
    return PieceSampler(*map(list_pictures, folders), 128, **options)


def test_pieces_are_what_the_codec_codes(folders, start):
    """Widths and qualities of a whole sphere are those of its encoder, and so are the tiles."""
    pixels = np.asarray(Image.open(folders[0] / "0.png"))
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    codec = SphereCodec(load_photo_model(start))
    piece = cut_piece(x, 3000, 0, 3)
    coded = codec.compress(pixels, 30)
    assert bytes(piece.grid.widths) == coded.streams[0][:3]
    assert piece.grid.north and piece.grid.south
    widths = piece.grid.widths
    assert piece.qualities == [tile_quality(3000, t, 3, w, 6) for t, w in enumerate(widths)]
    assert piece.grid.widths[1] == 6
    assert torch.equal(piece.x[1], x[0, :, UNIT : 2 * UNIT])
    part = cut_piece(x[:, :, : 2 * UNIT], 3000, 0, 3)
    assert part.grid == piece.grid.cut(0, 2)
    assert part.qualities == piece.qualities[:2]


def test_sectors_go_around(tmp_path):
    """Of smooth pictures: the step from the last column to the first is like those inside."""
    x, y = np.meshgrid(np.linspace(0, 4 * np.pi, 800), np.linspace(0, 6, 400))
    waves = np.stack([np.sin(x + y), np.cos(x - y), np.sin(2 * x)], 2)
    path = tmp_path / "waves.png"
    Image.fromarray(np.rint(127.5 + 100 * waves).astype(np.uint8)).save(path)
    pieces = PieceSampler([path], [path], 128, seed=3)
    for kind in (pieces.panorama, pieces.photo):
        for _ in range(6):
            piece = kind(9900)
            assert piece.x.shape[:3] == (2, 3, UNIT) and -0.1 < piece.x.min() < piece.x.max() < 1.1
            for tile, width in zip(piece.x, piece.grid.widths, strict=True):
                tile = tile[..., : UNIT * width]
                steps = (tile - tile.roll(1, -1)).square().mean((0, 1))
                assert steps[0] < 2 * steps[1:].max() + 1e-5


def test_pieces_repeat_and_span_the_qualities(folders):
    pieces = sampler(folders, seed=5).batch(4)
    again = sampler(folders, seed=5).batch(4)
    for a, b in zip(pieces, again, strict=True):
        assert torch.equal(a.x, b.x) and a.qualities == b.qualities
    assert sorted((p.quality_code - 100) * 4 // 9900 for p in pieces) == [0, 1, 2, 3]
    assert not sampler(folders, seed=5, panorama_share=1.0).batch(1)[0].x.isnan().any()


def test_small_pictures_and_crops_are_refused(folders):
    with pytest.raises(InputError, match="large enough"):
        PieceSampler(list_pictures(folders[0]), list_pictures(folders[1]), 512)
    with pytest.raises(InputError, match="multiples of 64"):
        PieceSampler(list_pictures(folders[0]), [], 100)


def test_loss_counts_own_columns_by_area(folders, make_trainer):
    trainer = make_trainer()
    trainer.network.eval()
    piece = sampler(folders, seed=2).panorama(3000)
    wide = PieceSampler([], list_pictures(folders[1]), 192, seed=4).photo(300)
    batch = PieceBatch.of([piece, wide], "native")
    spoiled = batch.x.clone()
    assert piece.grid.columns < batch.grid.columns
    for tile, width in zip(spoiled, piece.grid.widths + wide.grid.widths, strict=True):
        tile[..., UNIT * width :] = 5.0
    with torch.no_grad():
        losses = [trainer._loss(b)[0] for b in (batch, replace(batch, x=spoiled))]
    assert losses[0] == losses[1]
    loss, values = trainer._loss(PieceBatch.of([piece], "native"))
    # By hand: bits and squared errors, each tile under its own multiplier.
    quality = torch.tensor(piece.qualities) / 100
    with torch.no_grad(), sphere.on_sphere(piece.grid):
        x_hat, y_bits, z_bits = trainer.network(piece.x, quality)
    total = float((y_bits + z_bits).sum())
    for tile, width in enumerate(piece.grid.widths):
        difference = (x_hat.clamp(0, 1) - piece.x)[tile, ..., : UNIT * width]
        total += 255**2 * float(quality_lambda(quality[tile]) * difference.square().sum()) / 3
    middle = float(quality_lambda(torch.tensor(piece.quality_code / 100)))
    total /= UNIT**2 * sum(piece.grid.widths) * (middle / (0.0005 * 0.3) ** 0.5) ** 0.5
    assert loss.item() == pytest.approx(total, rel=1e-4)
    assert values["loss"] == loss


@pytest.mark.parametrize("rate_only", [False, True])
def test_pieces_in_a_batch_are_as_alone(folders, make_trainer, rate_only):
    """Padded by tables, of any shapes, they cost what each costs with the operation's kernels."""
    trainer = make_trainer(rate_only)
    network = trainer.network.eval()
    wide = PieceSampler([], list_pictures(folders[1]), 192, seed=4).photo(2000)
    pieces = [*sampler(folders, seed=4).batch(3), wide]
    names = [n for n, p in network.named_parameters() if p.requires_grad]

    weights = [network.get_parameter(name) for name in names]

    batch = PieceBatch.of(pieces)
    assert batch.grid._places.keys() == set(PADDINGS)
    together, values = trainer._loss(batch)
    assert batch.grid._places.keys() == set(PADDINGS)  # the network asked for no others
    alone = [trainer._loss(PieceBatch.of([piece], "native")) for piece in pieces]
    mean = torch.stack([loss for loss, _ in alone]).mean()
    torch.testing.assert_close(together, mean, rtol=1e-4, atol=0)
    for name, value in values.items():
        expected = torch.stack([found[name] for _, found in alone]).mean()
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)
    gradients = (
        torch.autograd.grad(total, weights, allow_unused=True) for total in (together, mean)
    )
    for name, a, b in zip(names, *gradients, strict=True):
        if a is not None:
            assert (a - b).norm() < 0.02 * b.norm() + 1e-6, name


def test_a_batch_travels_in_halves(folders):
    pieces = sampler(folders, seed=1).batch(2)
    batch, moved = PieceBatch.of(pieces), PieceBatch.of(pieces, dtype=torch.float16).to("cpu")
    assert moved.x.dtype == torch.float32
    assert 0 < (moved.x - batch.x).abs().max() < 0.14 / 255
    for name in ("quality_codes", "qualities", "areas", "piece"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))


def test_tilted_panoramas_show_the_same_sphere():
    """Of a picture whose colours are directions: they turn, at the poles and the border too."""
    height, width, tilt, axis = 64, 128, 50.0, 30.0
    longitude = (np.arange(width) + 0.5) * 2 * np.pi / width
    latitude = (0.5 - (np.arange(height)[:, None] + 0.5) / height) * np.pi

    def colours(turn: float, angle: float) -> np.ndarray:
        x, y = (np.cos(latitude) * f(longitude) for f in (np.cos, np.sin))
        z = np.broadcast_to(np.sin(latitude), x.shape)
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        y, z = c * y - s * z, s * y + c * z
        c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        return 127.5 + 120 * np.stack([c * x - s * y, s * x + c * y, z], 2)

    pixels = np.rint(colours(0, 0)).astype(np.uint8)
    assert np.array_equal(tilt_panorama(pixels, 0, 0), pixels)
    tilted = tilt_panorama(pixels, tilt, axis)
    assert np.abs(tilted - colours(axis, tilt)).max() < 1.6


def test_tilted_panoramas_are_used(folders):
    pieces = sampler(folders, seed=5, panorama_share=1.0, tilt=30.0).batch(4)
    flat = sampler(folders, seed=5, panorama_share=1.0).batch(4)
    assert any(not torch.equal(a.x, b.x) for a, b in zip(pieces, flat, strict=True))


def test_training_helps(make_trainer):
    trainer = make_trainer()
    assert trainer.network.entropy_model.quantized
    before = trainer.validate()
    for _ in range(25):
        values = trainer.train_step()
    assert np.isfinite(list(values.values())).all()
    after = trainer.validate()
    assert after["validation_loss"] < 0.9 * before["validation_loss"]
    assert after["psnr_panorama_q50"] > before["psnr_panorama_q50"]


def test_rate_only_leaves_transforms_and_steps(make_trainer):
    trainer = make_trainer(rate_only=True, steps=25)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    bits = trainer.validate()
    trainer.run(report_every=10)
    assert trainer.validate()["validation_loss"] < 0.98 * bits["validation_loss"]
    changed = {
        name.split(".")[0] if "log2_step" not in name else name
        for name, tensor in trainer.network.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"entropy_model", "hyper_analysis"}


def test_a_run_of_some_seconds_in_averages(make_trainer):
    """By the clock, with batches from a process: as on a GPU."""
    trainer = make_trainer(
        minutes=0.05, steps=10, decay=10, workers=1, average=0.9, save_minutes=1.0
    )
    trainer.run(report_every=10)
    assert trainer.seconds >= 3 and trainer.step >= 1 and trainer._left() == 0
    own = trainer.validate()["validation_loss"]
    with trainer.averaged():
        assert trainer.validate()["validation_loss"] != own
    assert trainer.validate()["validation_loss"] == own
    again = make_trainer(average=0.9)
    assert again.step == trainer.step
    assert all(map(torch.equal, again._average, trainer._average))


def test_weights_of_a_checkpoint_stay_quantized(folders, make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.save()
    other = SphereTrainer(
        folders[0],
        tmp_path / "other",
        TrainingOptions(**OPTIONS),
        trainer.out / "checkpoint.pt",
        SMALL,
        photos=folders[1],
        padding="tables",
    )
    other.batches.close()
    assert other.network.entropy_model.quantized
    expected = trainer.validate()["validation_loss"]
    assert other.validate()["validation_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_gpu_trains_as_the_cpu_does(make_trainer, workers):
    """The same losses before, lower ones after some steps, and everything else runs, too."""
    here = make_trainer().validate()
    trainer = make_trainer(device="cuda", workers=workers, average=0.9)
    there = trainer.validate()
    for name, value in here.items():  # convolutions may be in TF32
        assert there[name] == pytest.approx(value, rel=0.02), name
    for _ in range(25):
        values = trainer.train_step()
    assert np.isfinite(list(values.values())).all()
    assert trainer.validate()["validation_loss"] < 0.9 * there["validation_loss"]
    with trainer.averaged():
        assert trainer.validate()["validation_loss"] < there["validation_loss"]
    trainer.refit(2, passes=1)
    assert trainer.network.entropy_model.stages[0].head.weight.is_cuda
    trainer.save()
    assert make_trainer(device="cuda", average=0.9).step == 26


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_devices_and_backends_that_are_missing(folders, make_trainer, start, tmp_path):
    with pytest.raises(InputError, match="no training on 'cuda'"):
        make_trainer(device="cuda")
    with pytest.raises(InputError, match="no training on 'nonsense'"):
        make_trainer(device="nonsense")
    options = TrainingOptions(**OPTIONS)
    with pytest.raises(InputError, match="backend"):
        SphereTrainer(folders[0], tmp_path, options, start, SMALL, padding="nonsense")


def test_frozen_parts_stay(folders, start, tmp_path):
    trainer = SphereTrainer(
        folders[0],
        tmp_path,
        TrainingOptions(**OPTIONS),
        start,
        SMALL,
        photos=folders[1],
        freeze=["hyper_analysis", "synthesis"],
    )
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.train_step()
    trainer.batches.close()
    changed = {
        name.split(".")[0]
        for name, tensor in trainer.network.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"analysis", "entropy_model"}
    with pytest.raises(InputError, match="no part 'roof'"):
        SphereTrainer(
            folders[0], tmp_path / "b", TrainingOptions(**OPTIONS), start, SMALL, freeze=["roof"]
        )


def test_batches_of_one_shape_are_copied_into_one_another(folders, make_trainer):
    """What a captured pass does with them: all that the loss depends on is in their tensors."""
    trainer = make_trainer()
    trainer.network.eval()
    pieces = sampler(folders, seed=8)
    batches = [PieceBatch.of(pieces.batch(2)) for _ in range(2)]
    with torch.no_grad():
        expected = trainer._loss(batches[1])[0]
        assert trainer._loss(batches[0])[0] != expected
        for own, other in zip(*(batch.tensors() for batch in batches), strict=True):
            own.copy_(other)
        assert trainer._loss(batches[0])[0] == expected


def test_refitted_heads_save_bits(make_trainer):
    """Of an untrained network, whose scales are far off, and nothing else changes."""
    trainer = make_trainer(rate_only=True)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    bits = trainer.validate()
    trainer.refit(6)
    assert trainer.step == 2 and (trainer.out / "checkpoint.pt").exists()
    assert trainer.validate()["validation_loss"] < 0.95 * bits["validation_loss"]
    state = trainer.network.state_dict()
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}
    layers = {f"entropy_model.stages.{i}.head.{part}" for i in range(4) for part in HEAD}
    assert changed == layers
    trainer.network.entropy_model.quantized = False
    with pytest.raises(InputError, match="quantized"):
        trainer.refit(1)


def test_gradients_and_curvatures_of_a_head():
    """Sums over symbols of what autograd and the Fisher information of Gaussians say."""
    torch.manual_seed(0)
    network = quantized_network(0)
    fit = HeadFit(network)
    n, channels, inputs = 200_000, 8, 17
    x = torch.rand(n, inputs)
    zeros = torch.zeros(n, channels)
    residual = 3 * torch.randn(n, channels)  # of steps of 2, at a scale of 4 native units
    fit._add(1, 2, x, residual, zeros + 2, zeros + 1, 0.5)
    own = slice(2 * channels, 3 * channels)
    # Rounded residuals have a variance of (9 + 4 / 12) / 4 steps, where 4 are expected.
    spread = (9 / 4 + 1 / 12) / (4 + 1 / 12)
    expected = 0.5 * (1 - spread) * x.sum(0)
    torch.testing.assert_close(fit._scale_gradient[1, own].mean(0), expected, rtol=0.05, atol=0)
    assert fit._mean_gradient[1, own].abs().mean() < 0.01 * expected.mean()
    assert not fit._scale_gradient[0].any() and not fit._scale_gradient[1, : own.start].any()
    gram = x.T @ x
    torch.testing.assert_close(fit._scale_curvature[1, 2], math.log(2) * gram, rtol=1e-3, atol=0)
    per_symbol = 0.5 / (math.log(2) * (4 + 1 / 12) * 4)
    torch.testing.assert_close(
        fit._mean_curvature[1, own.start], per_symbol * gram, rtol=1e-3, atol=0
    )


def test_a_run_needs_weights(folders, tmp_path):
    with pytest.raises(InputError, match="starts from the weights"):
        SphereTrainer(folders[0], tmp_path, TrainingOptions(**OPTIONS), config=SMALL)


def test_command_line_writes_what_differs(folders, start, tmp_path, monkeypatch, capsys):
    """``pycodec train --projection erp --rate-only`` from a model of the package."""
    for module in (model_folder, photo, sphere):
        monkeypatch.setattr(module, "WEIGHTS", start.parent)
    monkeypatch.setattr(train, "PhotoConfig", lambda: SMALL)
    monkeypatch.setattr(sphere, "VALIDATION_PIECES", 1)
    finalize = sphere.finalize
    monkeypatch.setattr(
        sphere,
        "finalize",
        lambda network, pictures, *a, **k: finalize(network, pictures[:1], *a, **k),
    )
    out = tmp_path / "run"
    arguments = ["train", str(folders[0]), "--out", str(out), "--projection", "erp", "--rate-only"]
    arguments += ["--photos", str(folders[1]), "--start", str(start), "--float32", "--steps", "2"]
    assert cli.main([*arguments, "--crop", "128", "--batch", "1", "--refit", "1"]) == 0
    assert "tables fitted to" in capsys.readouterr().err
    assert json.loads((out / "model/model.json").read_text())["base"] == "tiny"
    sizes = [(f / "model.safetensors").stat().st_size for f in (start, out / "model")]
    assert sizes[1] < 0.75 * sizes[0]
    codec = SphereCodec(load_photo_model(out / "model"))
    pixels = np.asarray(Image.open(folders[0] / "0.png"))
    coded = codec.compress(pixels, 50)
    assert codec.decompress(coded.streams, 384, 192, coded.quality_code).shape == pixels.shape
    assert cli.main(["train", str(folders[0]), "--out", str(out), "--rate-only"]) == 1
    assert "need --projection erp" in capsys.readouterr().err
