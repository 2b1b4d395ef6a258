"""Widths of tiles: the presets, pixels at any resolution, and what is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycodec.errors import InputError
from pycodec.projection.widths import FULL, PRESETS, TileWidths


def test_the_published_widths():
    assert TileWidths.optimized().sixty_fourths == (
        *(9, 19, 25, 37, 47, 59, 63, 63, 63, 63),
        *(64,) * 12,
        *(63, 63, 63, 63, 59, 47, 37, 25, 19, 9),
    )
    assert TileWidths.optimized(64).sixty_fourths[::2] == TileWidths.optimized().sixty_fourths
    assert TileWidths.optimized(64).sixty_fourths[1::2] == TileWidths.optimized().sixty_fourths


@pytest.mark.parametrize("tiles", [1, 2, 3, 16, 32])
def test_sinusoidal_widths_have_the_density_of_the_equator(tiles):
    widths = TileWidths.sinusoidal(tiles).sixty_fourths
    for tile, width in enumerate(widths):
        colatitude = (tile + 0.5) / tiles * math.pi
        assert -1e-9 <= width - FULL * math.sin(colatitude) < 1
    assert widths == widths[::-1]


@pytest.mark.parametrize("tiles", [1, 7, 32])
def test_erp_widths_are_the_pictures(tiles):
    widths = TileWidths.erp(tiles)
    assert widths.multiple == 1
    assert widths.pixels(13) == (13,) * tiles


@pytest.mark.parametrize("name", PRESETS)
def test_presets_by_name(name):
    widths = TileWidths.preset(name)
    assert widths == getattr(TileWidths, name)()
    assert widths.tiles == 32
    assert TileWidths.preset(name, 64).tiles == 64
    assert FULL % widths.multiple == 0


@given(st.lists(st.integers(1, FULL), min_size=1, max_size=40), st.integers(1, 2000))
def test_pixels_are_whole_or_refused(sixty_fourths, width):
    widths = TileWidths(tuple(sixty_fourths))
    if all(width * w % FULL == 0 for w in sixty_fourths):
        pixels = widths.pixels(width)
        assert [FULL * p for p in pixels] == [width * w for w in sixty_fourths]
        half = widths.pixels(2 * width)
        assert [2 * p for p in pixels] == list(half)
    else:
        with pytest.raises(InputError, match=f"multiple of {widths.multiple}, not {width}"):
            widths.pixels(width)


def test_is_a_value():
    assert TileWidths([64, 32]) == TileWidths((64, 32))
    assert hash(TileWidths((64, 32))) == hash(TileWidths((64, 32)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        TileWidths.erp().sixty_fourths = ()


@pytest.mark.parametrize("widths", [(), (0,), (65,), (64, -1), (31.5,), ("9",)])
def test_refuses_widths_out_of_range(widths):
    with pytest.raises(InputError, match="tile"):
        TileWidths(widths)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TileWidths.preset("mercator"), "erp, sinusoidal, optimized"),
        (lambda: TileWidths.optimized(16), "multiples of 32"),
        (lambda: TileWidths.erp(0), "at least one tile"),
        (lambda: TileWidths.sinusoidal(-1), "at least one tile"),
        (lambda: TileWidths.erp().pixels(0), "multiple of 1, not 0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(InputError, match=message):
        make()


@given(st.lists(st.integers(1, FULL), min_size=1, max_size=9), st.integers(1, 9), st.integers(1, 9))
def test_in_units_nothing_gets_narrower(sixty_fourths, tiles, full):
    widths = TileWidths(tuple(sixty_fourths)).in_units(tiles, full)
    assert len(widths) == tiles
    for tile, width in enumerate(widths):
        overlapped = [
            own
            for number, own in enumerate(sixty_fourths)
            if number * tiles < (tile + 1) * len(sixty_fourths)
            and (number + 1) * tiles > tile * len(sixty_fourths)
        ]
        assert width == math.ceil(full * max(overlapped) / FULL)


def test_files(tmp_path):
    widths = TileWidths((1, 64, 30))
    widths.save(tmp_path / "w.json", note="three")
    assert TileWidths.load(tmp_path / "w.json") == widths
    assert '"note": "three"' in (tmp_path / "w.json").read_text()
    assert TileWidths.load("sinusoidal") == TileWidths.sinusoidal()
    for content in ("", "[]", "{}", '{"sixty_fourths": 3}', '{"sixty_fourths": [65]}', "\xff"):
        (tmp_path / "bad.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(InputError, match=r"bad\.json: "):
            TileWidths.load(tmp_path / "bad.json")
    with pytest.raises(InputError, match="neither one of erp"):
        TileWidths.load(tmp_path / "none")
