"""The search for widths: its proxy against direct definitions, and what it finds."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from pycodec import api, cli
from pycodec.coding.container import unpack, unpack_numbers
from pycodec.errors import InputError
from pycodec.evaluation.sphere import row_weights
from pycodec.images import Picture
from pycodec.models import width_search
from pycodec.models.photo_network import quality_lambda
from pycodec.models.width_search import objectives, search_widths
from pycodec.projection.widths import PRESETS, TileWidths


def picture(height: int, width: int, finest: np.ndarray) -> np.ndarray:
    """Random rows; row i has no wave of more than ``finest[i]`` periods."""
    rng = np.random.default_rng(5)
    waves = rng.normal(size=(height, width // 2 + 1, 3)) + 1j * rng.normal(
        size=(height, width // 2 + 1, 3)
    )
    waves[np.arange(width // 2 + 1) > finest[:, None]] = 0
    waves[:, 0] = 0
    rows = np.fft.irfft(waves, width, axis=1)
    rows /= rows.std(axis=1, keepdims=True)
    return (128 + 30 * rows).clip(0, 255).astype(np.uint8)


def test_what_is_found_is_as_wide_as_the_content():
    """Rows that a quarter and half of the columns can hold, in both hemispheres."""
    finest = np.repeat([120, 240, 510, 510, 240, 120], 32)
    found = search_widths([picture(192, 1024, finest)], [60.0], tiles=6, step=8)
    north = found.widths.sixty_fourths[:3]
    assert found.widths.sixty_fourths == north + north[::-1]
    # The kernel needs some columns more than the sampling theorem.
    assert 16 <= north[0] <= 32 < north[1] <= 48 and north[2] == 64
    assert found.steps >= 2 and 0.5 < found.objective < 0.95
    noise = picture(192, 1024, np.full(192, 510))
    nothing = search_widths([noise], [95.0], tiles=6, step=8)
    assert nothing.widths == TileWidths.erp(6)
    assert (nothing.objective, nothing.steps) == (pytest.approx(1), 0)


def test_pictures_and_qualities_count_the_same():
    a = picture(64, 1024, np.full(64, 60))
    b = picture(64, 1024, np.full(64, 510))
    parts = [
        table / table[-1].sum()
        for p in (a, b)
        for table in objectives(p, [30, 80], tiles=4, step=16)
    ]
    total = np.mean(parts, axis=0)
    total += total[:, ::-1]
    best = min(
        itertools.combinations_with_replacement(range(4), 2),
        key=lambda c: total[c[0], 0] + total[c[1], 1],
    )
    found = search_widths([a, b], [30, 80], tiles=4, step=16)
    assert found.widths.sixty_fourths[:2] == tuple(16 * (c + 1) for c in best)
    assert found.objective == pytest.approx(total[best[0], 0] + total[best[1], 1])


def test_the_greedy_search_takes_the_largest_gains_and_keeps_the_order():
    table = np.array([[9.0, 1, 7], [5, 6, 5], [4, 8, 6], [7, 9, 8]])
    table = np.concatenate([table, table[:, ::-1]], axis=1)
    # Alone, the second tile would be narrowest; but it stays behind the first.
    assert width_search._greedy(table) == ([2, 2, 2], 3)


def test_the_transform_is_orthonormal():
    x = torch.rand(2, 3, 32, 48)
    coefficients = width_search._transform(x)
    assert coefficients.shape == (2, 3, 2, 16, 3, 16)
    torch.testing.assert_close(width_search._inverse(coefficients), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(coefficients.square().sum(), x.square().sum())
    flat = width_search._transform(torch.full((1, 3, 16, 16), 0.5))
    assert flat[0, 0, 0, 0, 0, 0] == pytest.approx(0.5 * math.sqrt(3 * 256), rel=1e-5)
    assert flat.abs().sum() == pytest.approx(0.5 * math.sqrt(3 * 256), rel=1e-4)


def test_bits_are_those_of_geometric_distributions():
    levels = torch.randint(-2, 3, (1, 1, 1, 16, 6, 16)).float()
    levels[..., 8:] = 0
    total = 0.0
    for block in range(6):
        around = [(block + shift) % 6 for shift in (-2, -1, 0, 1, 2)]
        for f in range(16):
            for g in range(16):
                diagonal = [(u, f + g - u) for u in range(16) if 0 <= f + g - u < 16]
                near = [abs(levels[0, 0, 0, u, b, v].item()) for u, v in diagonal for b in around]
                mean = sum(near) / len(near)
                level = abs(levels[0, 0, 0, f, block, g].item())
                if mean:
                    ratio = (math.sqrt(1 + mean**2) - 1) / mean
                    assert 2 * ratio / (1 - ratio**2) == pytest.approx(mean)
                    total -= math.log2((1 - ratio) / (1 + ratio) * ratio**level)
    assert width_search._bits(levels).item() == pytest.approx(total, rel=1e-6)


def test_the_objective_at_full_width():
    pixels = picture(64, 1024, np.full(64, 200))
    found = objectives(pixels, [50.0], tiles=2, step=32)[0, -1]
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    weight = float(quality_lambda(torch.tensor(50.0))) * 255**2 / 3
    areas = row_weights(64)
    for tile in range(2):
        rows = slice(32 * tile, 32 * tile + 32)
        quantum = math.sqrt(6 / (math.log(2) * weight * areas[rows].mean()))
        levels = (width_search._transform(x[:, :, rows]) / quantum).round()
        errors = (width_search._inverse(levels * quantum) - x[:, :, rows])[0].double().square()
        distortion = (errors.sum((0, 2)).numpy() * areas[rows]).sum()
        expected = width_search._bits(levels).item() + weight * distortion
        assert found[tile] == pytest.approx(expected / (64 * 1024), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tiles": 3}, "even number"),
        ({"step": 5}, "divide 64"),
        ({"qualities": []}, "qualities"),
        ({"qualities": [0]}, "qualities"),
        ({}, "a picture"),
    ],
)
def test_bad_arguments(options, word):
    with pytest.raises(InputError, match=word):
        search_widths(iter(()), **{"qualities": [50], **options})


def test_command_and_encoding(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pixels = picture(128, 256, np.repeat([20, 125, 125, 20], 32))
    Image.fromarray(pixels).save("a.png")
    search = ["sphere-search", "a.png", "--out", "w.json", "--tiles", "4", "--step", "16"]
    assert cli.main([*search, "--qualities", "50,80"]) == 0
    captured = capsys.readouterr()
    widths = TileWidths.load("w.json")
    assert captured.out.split() == [str(w) for w in widths.sixty_fourths]
    assert "objective falls by" in captured.err
    content = json.loads((tmp_path / "w.json").read_text())
    assert content["pictures"] == ["a.png"] and content["qualities"] == [50, 80]
    assert widths.sixty_fourths[0] < widths.sixty_fourths[1]
    assert cli.main(search) == 1
    assert "exists already" in capsys.readouterr().err

    encode = ["encode", "a.png", "--projection", "erp", "--quiet", "-f"]
    assert cli.main([*encode, "a.lci", "--widths", "w.json"]) == 0
    data = (tmp_path / "a.lci").read_bytes()
    assert data == api.encode(pixels, projection="erp", widths=widths)
    assert data != api.encode(pixels, projection="erp", widths="erp")
    assert api.decode(data).shape == pixels.shape
    assert cli.main([*encode, "a.lci", "--widths", "cube"]) == 1
    assert "cube: neither one of erp, sinusoidal, optimized nor a file" in capsys.readouterr().err
    assert cli.main(["encode", "a.png", "b.lci", "--widths", "erp"]) == 1
    assert "add projection erp" in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_presets_encode(name):
    pixels = picture(512, 256, np.full(512, 20))
    data = api.encode(Picture(pixels), projection="erp", widths=name)
    widths, _ = unpack_numbers(unpack(data).streams[0], 8)
    assert tuple(widths) == TileWidths.preset(name).in_units(8, 4)
    assert min(widths) == {"erp": 4, "sinusoidal": 2, "optimized": 3}[name]
