"""Crops that are cut on a device: as Pillow would cut them, and drawn as on the processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pycodec.models.mirroring import want_mirror, wants_mirror
from pycodec.training.data import CropSampler
from pycodec.training.device_crops import DeviceCrops
from pycodec.training.lossless import FILTERS, LosslessCrops, LosslessOptions, to_gray

CROP = 32
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number, shape in enumerate([(70, 90, 3), (64, 64, 3), (120, 65, 3)]):
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def make_sampler(folder, low=0.5, high=1.25, kind=CropSampler, **options):
    return kind(sorted(folder.iterdir()), CROP, high, low, **options)


@pytest.mark.parametrize("name", FILTERS, ids=lambda name: name.name)
@pytest.mark.parametrize("scale", [0.5, 0.71, 1.0, 1.25])
@pytest.mark.parametrize("device", DEVICES)
def test_pixels_are_those_of_pillow(folder, name, scale, device):
    sampler = make_sampler(folder, filters=FILTERS)
    crops = DeviceCrops(sampler, 1, device)
    rng = np.random.default_rng(1)
    side = CROP / scale - 0.01234  # nothing lies halfway between two pixels
    boxes = []
    for number, picture in enumerate(sampler.pictures):
        top, left = (rng.uniform(0, length - side) for length in (picture.height, picture.width))
        boxes += [(number, top, left), (number, 0.0, picture.width - side)]
        boxes += [(number, picture.height - side, 0.0)]
    numbers, tops, lefts = torch.tensor(boxes, dtype=torch.float64, device=device).T
    sides = torch.full_like(tops, side)
    filters = torch.full_like(numbers.long(), FILTERS.index(name))
    found = crops.resized(numbers.long(), tops, lefts, sides, filters).cpu()
    for (number, top, left), pixels in zip(boxes, found, strict=True):
        picture = sampler.pictures[number]
        box = left, 0, left + side, picture.height  # an axis at a time: Pillow chooses the first
        narrow = picture.resize((CROP, picture.height), name, box=box)
        wanted = np.asarray(narrow.resize((CROP, CROP), name, box=(0, top, CROP, top + side)))
        error = np.abs(pixels.permute(1, 2, 0).numpy() - wanted)
        assert error.max() <= 1  # Pillow's weights are rounded to some 20 bits
        assert (error > 0).mean() < 0.01


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    """A pixel of a picture is one brighter than its left neighbour."""
    folder = tmp_path_factory.mktemp("ramp")
    pixels = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    Image.fromarray(np.ascontiguousarray(pixels)).save(folder / "ramp.png")
    return folder


def test_crops_are_scaled_flipped_and_turned(ramp):
    sampler = make_sampler(ramp, filters=(Image.Resampling.BILINEAR,))
    rgb = next(DeviceCrops(sampler, 2000, "cpu"))
    assert rgb.dtype == torch.uint8 and rgb.shape == (2000, 3, CROP, CROP)
    gray = rgb[:, 0].float()
    across = (gray[:, 0, -1] - gray[:, 0, 0]) / (CROP - 1)
    down = (gray[:, -1, 0] - gray[:, 0, 0]) / (CROP - 1)
    steps = torch.maximum(across.abs(), down.abs())  # pixels of the picture for one of the crop
    assert 0.75 < steps.min() < 0.85 and 1.9 < steps.max() < 2.05
    assert abs(steps.log().mean() - np.log(0.8 * 2) / 2) < 0.03
    turned = down.abs() > across.abs()
    assert 0.12 < turned.float().mean() < 0.18  # of 30 % half by one quarter or three
    for part in (across[~turned], down[turned]):
        assert 0.4 < (part > 0).float().mean() < 0.6
    brightness = gray.mean((1, 2))
    assert brightness.min() < 35 and brightness.max() > 165  # from all over the picture


def test_a_quarter_is_noisy(tmp_path):
    Image.new("RGB", (200, 200), (100, 100, 100)).save(tmp_path / "flat.png")
    sampler = make_sampler(tmp_path, noise=3.0)
    deviation = next(DeviceCrops(sampler, 2000, "cpu")).float().std((1, 2, 3))
    assert 0.2 < (deviation > 0).float().mean() < 0.26  # the least noise rounds to none
    assert 2.7 < deviation.max() < 3.3


def test_pictures_are_drawn_by_their_pixels(tmp_path):
    for value, size in ((50, (100, 100)), (200, (100, 300))):
        Image.new("RGB", size, (value,) * 3).save(tmp_path / f"{value}.png")
    values = next(DeviceCrops(make_sampler(tmp_path), 2000, "cpu")).float().mean((1, 2, 3))
    assert 0.71 < (values > 100).float().mean() < 0.79


def test_batches_differ_and_seeds_repeat_them(folder):
    first, again, other = (
        DeviceCrops(make_sampler(folder, seed=seed), 3, "cpu") for seed in (1, 1, 2)
    )
    batches = [next(first), next(first), next(again), next(other)]
    assert torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[3])


@pytest.mark.parametrize("chroma", [False, True], ids=["gray", "chroma"])
def test_mirrored_as_the_encoder_would(folder, chroma):
    options = LosslessOptions(chroma=chroma)

    class Lossless(LosslessCrops):
        def __init__(self, paths, crop, *_, **__):
            super().__init__(paths, crop, 1, options)

    sampler = make_sampler(folder, kind=Lossless)
    plain = make_sampler(folder, seed=1, filters=sampler.filters, noise=sampler.noise)
    mirrored, before = (next(DeviceCrops(each, 40, "cpu")) for each in (sampler, plain))
    turned = [not torch.equal(*pair) for pair in zip(mirrored, before, strict=True)]
    assert 0 < sum(turned) < 40
    component = before[:, 1] if chroma else to_gray(before)
    assert turned == [wants_mirror(picture.numpy()) for picture in component]
    assert turned == want_mirror(component).tolist()
    for now, was, turn in zip(mirrored, before, turned, strict=True):
        assert torch.equal(now, was.flip(2) if turn else was)
