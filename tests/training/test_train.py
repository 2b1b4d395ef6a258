"""The training loop on a few small pictures, its data, its start and its end."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from pycodec import cli
from pycodec.errors import InputError
from pycodec.models.photo import load_photo_model
from pycodec.models.photo_network import LAMBDA_MAX, LAMBDA_MIN, PhotoNetwork, quality_lambda
from pycodec.ops.quadtree_stage import LOG2_SCALE_MIN, LOG2_UNITS, SCALE_LEVELS
from pycodec.training import train
from pycodec.training.data import (
    CropSampler,
    Prefetcher,
    list_pictures,
    split_pictures,
    stream,
)
from pycodec.training.finalize import PRECISION, dead_zone, fit_tables
from pycodec.training.klt_start import start_from_klt
from pycodec.training.train import Trainer, TrainingOptions, rate_distortion_loss

from ..networks import SMALL

OPTIONS = {
    "steps": 8,
    "decay": 4,
    "quantize": 4,
    "warmup": 2,
    "batch": 2,
    "crop": 64,
    "bfloat16": False,
    "validate_every": 4,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """26 pieces of a photograph, the first number of which one is held out."""
    folder = tmp_path_factory.mktemp("pictures")
    photograph = data.chelsea()
    rng = np.random.default_rng(0)
    for i in range(26):
        top, left = rng.integers(0, 180), rng.integers(0, 320)
        piece = photograph[top : top + 110, left : left + 120]
        Image.fromarray(piece).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(autouse=True)
def short_observation(monkeypatch):
    monkeypatch.setattr(train, "OBSERVE_STEPS", 2)


@pytest.fixture
def make_trainer(pictures, tmp_path):
    """Trainers of one run folder; their threads end with the test."""
    trainers = []

    def make(**options) -> Trainer:
        options = TrainingOptions(**{**OPTIONS, **options})
        trainers.append(Trainer(pictures, tmp_path / "run", options, config=SMALL))
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.batches.close()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of values in [0, 255]."""
    mse = np.square(a.astype(np.float64) - b.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / mse))


def scales(trainer: Trainer) -> torch.Tensor:
    parameters = trainer.network.entropy_model.named_parameters()
    return torch.cat([p.detach().clone() for n, p in parameters if n.endswith("log_scale")])


def read_log(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# The loop


def test_schedule(make_trainer):
    """Warm-up, decay, two observed steps, and quantization in the last four of eight."""
    trainer = make_trainer()
    rates, quantized, observed = [], [], []
    activation = trainer.network.entropy_model.latent_input
    for _ in range(8):
        values = trainer.train_step()
        assert all(np.isfinite(value) for value in values.values())
        rates.append(trainer.optimizer.param_groups[0]["lr"] / trainer.options.learning_rate)
        quantized.append(trainer.network.entropy_model.quantized)
        observed.append(bool(activation.peak.all()))
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert quantized == [False] * 4 + [True] * 4
    assert observed == [False] * 2 + [True] * 6


def test_peaks_are_observed_before_quantization(make_trainer):
    """Even where quantization is asked for from the first step."""
    trainer = make_trainer(steps=4)
    quantized = []
    for _ in range(4):
        trainer.train_step()
        quantized.append(trainer.network.entropy_model.quantized)
    assert quantized == [False, False, True, True]


def test_training_helps(make_trainer):
    trainer = make_trainer(steps=1000, quantize=0, learning_rate=3e-4)
    before = trainer.validate()
    for _ in range(30):
        trainer.train_step()
    after = trainer.validate()
    assert after["validation_loss"] < 0.98 * before["validation_loss"]
    assert after["psnr_q95"] > after["psnr_q50"] > after["psnr_q5"]
    assert after["bpp_q95"] > after["bpp_q50"] > after["bpp_q5"]


def test_mixed_precision(make_trainer):
    trainer = make_trainer(bfloat16=True)
    assert np.isfinite(trainer.train_step()["loss"])
    assert all(p.dtype == torch.float32 for p in trainer.network.parameters())


def test_resume(make_trainer, tmp_path):
    first = make_trainer()
    first.run(report_every=2)
    assert first.step == 8 and first.network.entropy_model.quantized

    resumed = make_trainer(steps=10)
    assert (resumed.step, resumed.seconds) == (8, first.seconds)
    assert resumed.network.entropy_model.quantized
    state = first.network.state_dict()
    for name, tensor in resumed.network.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    moments = first.optimizer.state_dict()["state"]
    resumed_moments = resumed.optimizer.state_dict()["state"]
    assert moments and resumed_moments.keys() == moments.keys()
    for index, moment in resumed_moments.items():
        assert torch.equal(moment["exp_avg_sq"], moments[index]["exp_avg_sq"])
    beginning = CropSampler(resumed.training, 64, seed=resumed.options.seed)
    assert not torch.equal(next(resumed.batches), beginning.batch(2))  # its crops are new

    # Scales were trained: quantization that starts anew from the peaks would lose that.
    kept = scales(resumed)
    resumed.network.entropy_model.set_quantization(False)
    resumed.network.entropy_model.set_quantization(True)
    assert not torch.equal(kept, scales(resumed))

    resumed = make_trainer(steps=10)
    resumed.run(report_every=2)
    assert resumed.step == 10
    log = read_log(tmp_path / "run/log.csv")
    steps = {n: [int(r["step"]) for r in log if r["name"] == n] for n in ("loss", "bpp_q50")}
    assert steps == {"loss": [2, 4, 6, 8, 10], "bpp_q50": [4, 8, 10]}


@pytest.mark.parametrize("quantize", [4, 6])
def test_interrupt_saves(make_trainer, monkeypatch, quantize):
    """In the third step: before quantization, and in its first step."""
    trainer = make_trainer(quantize=quantize)
    step = Trainer.train_step

    def interrupted(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert not trainer.batches._thread.is_alive()
    resumed = make_trainer(quantize=quantize)
    assert resumed.step == 3
    assert resumed.network.entropy_model.quantized == (quantize == 6)
    assert torch.equal(scales(resumed), scales(trainer))


def test_start_takes_weights_only(make_trainer, pictures, tmp_path):
    first = make_trainer(steps=2)
    first.run()
    checkpoint = tmp_path / "run/checkpoint.pt"
    options = TrainingOptions(**OPTIONS)
    fresh = Trainer(pictures, tmp_path / "other", options, start=checkpoint, config=SMALL)
    fresh.batches.close()
    assert fresh.step == 0 and not fresh.optimizer.state
    for name, tensor in fresh.network.state_dict().items():
        assert torch.equal(tensor, first.network.state_dict()[name])


def test_without_validation_pictures(pictures, tmp_path):
    """Too few pictures to hold one out, or the one held out is too small."""
    for i, path in enumerate(list_pictures(pictures)):
        with Image.open(path) as image:
            size = (60, 60) if i == 25 else image.size
            image.resize(size).save(tmp_path / path.name)
    trainer = Trainer(tmp_path, tmp_path / "run", TrainingOptions(**OPTIONS), config=SMALL)
    trainer.batches.close()
    assert trainer.held_out == [] and trainer.validate() == {}


def test_command_line_trains_and_exports(pictures, tmp_path, monkeypatch, capsys):
    """``pycodec train`` ends in a model folder that encodes and decodes."""
    monkeypatch.setattr(train, "PhotoConfig", lambda: SMALL)
    out = tmp_path / "run"
    arguments = ["train", str(pictures), "--out", str(out), "--float32"]
    for name in ("steps", "decay", "quantize", "warmup", "batch", "crop"):
        arguments += [f"--{name}", str(OPTIONS[name])]
    # Two pictures to fit to are enough here.
    read, calls = train.read_scaled, []
    monkeypatch.setattr(train, "read_scaled", lambda path: calls.append(path) or read(path))
    monkeypatch.setattr(train, "finalize", _finalize_with_two(train.finalize))
    assert cli.main(arguments) == 0
    assert "tables fitted to" in capsys.readouterr().err
    assert len(set(calls)) == 26

    codec = load_photo_model(out / "model")
    assert codec.config == SMALL and codec.entropy_model.tables.num_tables == 2 * SCALE_LEVELS
    picture = np.ascontiguousarray(data.chelsea()[100:228, 100:260])
    sizes, qualities = [], []
    for quality in (10, 90):
        coded = codec.compress(picture, quality)
        decoded = codec.decompress(coded.streams, 160, 128, coded.quality_code)
        sizes.append(len(coded.streams[0]))
        qualities.append(psnr(picture, decoded))
    assert sizes[0] < sizes[1] < picture.size / 4
    assert 20 < qualities[0] < qualities[1]

    # A model folder can be trained further: weights are those of the run but for their rounding.
    options = TrainingOptions(**OPTIONS)
    checkpoint, folder = (
        Trainer(pictures, tmp_path / name, options, start=out / name)
        for name in ("checkpoint.pt", "model")
    )
    losses = [trainer.validate()["validation_loss"] for trainer in (checkpoint, folder)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    checkpoint.batches.close()
    folder.batches.close()

    again = tmp_path / "run/model/model.safetensors"
    weights = again.read_bytes()
    again.unlink()
    assert cli.main([*arguments, "--export-only"]) == 0
    assert again.read_bytes() == weights


def _finalize_with_two(finalize):
    return lambda network, pictures, *rest: finalize(network, pictures[:2], *rest)


def test_command_line_reports_missing_pictures(pictures, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "empty", "no pictures"), (pictures, "1205 pixels")):
        arguments = ["train", str(folder), "--out", str(tmp_path / "run"), "--crop", "1024"]
        assert cli.main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error


def test_rate_distortion_loss():
    x = torch.rand(2, 3, 16, 32)
    x_hat = x + torch.tensor([0.1, 0.2]).view(2, 1, 1, 1)
    bits, quality = torch.tensor([512.0, 1024.0]), torch.tensor([1.0, 100.0])
    loss, bpp, mse = rate_distortion_loss(x, x_hat, bits, quality)
    assert torch.allclose(bpp, torch.tensor([1.0, 2.0]))
    assert torch.allclose(mse, torch.tensor([0.01, 0.04]))
    middle = (LAMBDA_MIN * LAMBDA_MAX) ** 0.5
    expected = (middle / LAMBDA_MIN) ** 0.5 * (1 + LAMBDA_MIN * 255**2 * 0.01)
    expected += (middle / LAMBDA_MAX) ** 0.5 * (2 + LAMBDA_MAX * 255**2 * 0.04)
    assert loss.item() == pytest.approx(expected / 2, rel=1e-5)
    assert torch.allclose(quality_lambda(quality), torch.tensor([LAMBDA_MIN, LAMBDA_MAX]))


# Its data


def write_plain(folder: Path, sides: dict[str, int]) -> list[Path]:
    """Pictures of one colour, which is their side, and names in the order given."""
    for name, side in sides.items():
        Image.new("RGB", (side, side), (side, side // 2, 0)).save(folder / f"{name}.png")
    return list_pictures(folder)


def test_crops(pictures):
    paths = list_pictures(pictures)
    batch = CropSampler(paths, 48, seed=5).batch(4)
    assert batch.shape == (4, 3, 48, 48) and batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, CropSampler(paths, 48, seed=5).batch(4))
    assert not torch.equal(batch, CropSampler(paths, 48, seed=6).batch(4))
    assert not torch.equal(batch[0], batch[1])


def test_crops_keep_to_large_pictures_by_area(tmp_path):
    # 32 / 0.85 = 37.6 pixels are needed.
    sampler = CropSampler(write_plain(tmp_path, {"a": 37, "b": 60, "c": 180}), 32)
    crops = sampler.batch(200)
    colours = crops[:, 0].flatten(1)
    assert (colours == colours[:, :1]).all()  # nothing from beyond a border
    values, counts = colours[:, 0].unique(return_counts=True)
    assert values.tolist() == [60, 180]
    assert 5 <= counts[0] <= 40  # a tenth of the area; this is fixed by the seed


def test_crops_are_flipped_and_turned(tmp_path):
    """A ramp from left to right is seen rising and falling, and sometimes from top to bottom."""
    ramp = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None], 120, axis=0)
    Image.fromarray(np.stack([ramp] * 3, axis=2)).save(tmp_path / "ramp.png")
    crops = CropSampler(list_pictures(tmp_path), 32).batch(60)[:, 0].float()
    across = (crops[:, 16, -1] - crops[:, 16, 0]).sign()
    down = (crops[:, -1, 16] - crops[:, 0, 16]).sign()
    assert ((across != 0) ^ (down != 0)).all()
    assert 15 < (across > 0).sum() < 45 and 15 < (across < 0).sum() < 45
    assert 1 <= (down > 0).sum() < 20 and 1 <= (down < 0).sum() < 20


def test_no_picture_is_large_enough(tmp_path):
    paths = write_plain(tmp_path, {"a": 75})
    assert CropSampler(paths, 63).batch(1).shape == (1, 3, 63, 63)
    with pytest.raises(InputError, match="no training picture has 76 pixels"):
        CropSampler(paths, 64)


def test_pictures_are_split_once_and_for_all(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "deep/a.jpg", "c.txt", "a.webp"):
        (tmp_path / name).touch()
    names = [p.relative_to(tmp_path).as_posix() for p in list_pictures(tmp_path)]
    assert names == ["a.webp", "b.PNG", "deep/a.jpg"]
    paths = [Path(f"{i:03}") for i in range(120)]
    training, held_out = split_pictures(paths)
    assert held_out == [paths[25], paths[75]]
    assert sorted(training + held_out) == paths


def test_prefetcher_hands_errors_on():
    class Broken:
        def batch(self, size):
            raise ZeroDivisionError(f"of {size}")

    prefetcher = Prefetcher(Broken(), 3)
    with pytest.raises(ZeroDivisionError, match="of 3"):
        next(prefetcher)
    prefetcher.close()
    assert not prefetcher._thread.is_alive()


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_make_different_batches(pictures, workers):
    batches = stream(CropSampler(list_pictures(pictures), 32), 3, workers)
    drawn = [next(batches) for _ in range(6)]
    batches.close()
    assert all(batch.shape == (3, 3, 32, 32) and batch.dtype == torch.uint8 for batch in drawn)
    assert all((a != b).any() for i, a in enumerate(drawn) for b in drawn[:i])


def test_workers_hand_errors_on():
    class Broken:
        random = np.random.default_rng(0)

        def batch(self, size):
            raise ZeroDivisionError(f"of {size}")

    batches = stream(Broken(), 3, workers=1)
    with pytest.raises(ZeroDivisionError, match="of 3"):
        next(batches)
    batches.close()


# Its start


def test_klt_start_is_a_transform_codec():
    torch.manual_seed(0)
    network = PhotoNetwork()
    photograph = data.chelsea()[:288, :448].copy()
    x = torch.from_numpy(photograph).permute(2, 0, 1)[None].float() / 255
    quality = torch.tensor([50.0])

    def reconstruction() -> float:
        with torch.no_grad():
            x_hat = network.synthesis(network.analysis(x, quality), quality)
        return psnr(255 * x.numpy(), 255 * x_hat.numpy())

    assert reconstruction() < 20
    start_from_klt(network, x)
    assert reconstruction() > 30


# Its end


def gaussian_levels() -> np.ndarray:
    return 2.0 ** ((LOG2_SCALE_MIN + 16 * np.arange(SCALE_LEVELS)) / LOG2_UNITS)


def tables_of(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    ends = np.cumsum(arrays["sizes"].astype(np.int64))
    return np.split(arrays["frequencies"].astype(np.int64), ends[:-1])


def test_tables_are_whole_symmetric_and_certain_where_told():
    rng = np.random.default_rng(0)
    histograms = rng.integers(0, 50, (2 * SCALE_LEVELS, 101)) * (rng.random(101) < 0.5)
    certain = np.zeros(2 * SCALE_LEVELS, bool)
    certain[:3] = True
    tables = tables_of(fit_tables(histograms, certain).to_arrays())
    assert len(tables) == 2 * SCALE_LEVELS
    for table, frequencies in enumerate(tables):
        assert frequencies.sum() == 1 << PRECISION and frequencies.min() >= 1
        assert (len(frequencies) == 1) == certain[table]
        values = frequencies[:-1] if len(frequencies) > 1 else frequencies  # without the escape
        assert len(values) % 2 == 1
        assert np.abs(values - values[::-1]).max() <= 1  # a whole count cannot be halved


def test_certain_tables_cost_nothing():
    certain = np.ones(2 * SCALE_LEVELS, bool)
    tables = fit_tables(np.zeros((2 * SCALE_LEVELS, 101), np.int64), certain)
    assert tables.cost_bits(np.zeros(1000, np.int32), np.zeros(1000, np.uint8)) == 0
    with pytest.raises(InputError):
        tables.cost_bits(np.ones(1, np.int32), np.zeros(1, np.uint8))


def test_tables_follow_what_was_seen():
    """Laplacian symbols: within 1 % of their entropy, and well below the Gaussian's cost."""
    rng = np.random.default_rng(1)
    level = SCALE_LEVELS // 2
    scale = gaussian_levels()[level]
    symbols = np.rint(rng.laplace(0, scale / 2**0.5, 200_000)).astype(np.int32).clip(-50, 50)
    histograms = np.zeros((2 * SCALE_LEVELS, 101), np.int64)
    nothing = np.zeros(2 * SCALE_LEVELS, bool)
    indexes = np.full(symbols.size, level, np.uint8)
    gaussian = fit_tables(histograms, nothing).cost_bits(symbols, indexes)
    histograms[level] = np.bincount(symbols + 50, minlength=101)
    share = histograms[level][histograms[level] > 0] / symbols.size
    entropy = -symbols.size * (share * np.log2(share)).sum()
    fitted = fit_tables(histograms, nothing).cost_bits(symbols, indexes)
    assert entropy < fitted < 1.01 * entropy
    assert gaussian > 1.02 * entropy


@pytest.mark.parametrize("level", [20, 35, SCALE_LEVELS + 35])
def test_tables_of_what_was_not_seen_are_gaussian(level):
    nothing = np.zeros(2 * SCALE_LEVELS, bool)
    tables = fit_tables(np.zeros((2 * SCALE_LEVELS, 1001), np.int64), nothing)
    values = tables_of(tables.to_arrays())[level][:-1]
    k = np.arange(len(values)) - len(values) // 2
    variance = (values * k**2).sum() / values.sum()
    # Rounding adds 1/12; cutting rare tails takes a little.
    expected = gaussian_levels()[level % SCALE_LEVELS] ** 2 + 1 / 12
    assert variance == pytest.approx(expected, rel=0.05)


def test_dead_zone():
    offsets = dead_zone(64, 112)
    assert offsets.shape == (SCALE_LEVELS,) and offsets.dtype == torch.int32
    assert (offsets.diff() >= 0).all()
    scale = torch.from_numpy(gaussian_levels())
    assert (offsets[scale <= 1] == 64).all() and (offsets[scale >= 8] == 112).all()
    between = offsets[(scale > 1.2) & (scale < 7)]
    assert len(between) and ((between > 64) & (between < 112)).all()
    assert (dead_zone(128, 128) == 128).all()
