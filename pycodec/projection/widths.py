"""How wide the tiles of the pseudocylindrical representation are (arXiv 2112.13227).

An equirectangular picture is cut into horizontal tiles of equal height, the northernmost first, and
each is resampled along its rows to a width of its own: ``pycodec.ops.pseudocylindrical_slice``.
Widths are kept in 64ths of the picture's, so one choice serves every resolution and every level of
a network that halves widths.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycodec.errors import InputError

FULL = 64
"""The width of a tile as wide as the picture."""

PRESETS = ("erp", "sinusoidal", "optimized")

# Published, from a greedy search over 32 tiles for the least rate at equal WS-PSNR.
_NORTH = (9, 19, 25, 37, 47, 59, 63, 63, 63, 63, *[64] * 6)
_OPTIMIZED = _NORTH + _NORTH[::-1]


@dataclass(frozen=True)
class TileWidths:
    """A width for each tile, north to south.

    Attributes:
        sixty_fourths: 1 to 64 each, of the picture's width.

    Raises:
        InputError: there are no tiles, or a width is out of range.
    """

    sixty_fourths: tuple[int, ...]

    def __post_init__(self) -> None:
        widths = tuple(self.sixty_fourths)
        if not widths:
            raise InputError("a pseudocylindrical representation needs at least one tile")
        for tile, width in enumerate(widths):
            if not isinstance(width, int) or not 1 <= width <= FULL:
                raise InputError(
                    f"the width of tile {tile} must be an integer from 1 to {FULL}, not {width!r}"
                )
        object.__setattr__(self, "sixty_fourths", widths)

    @classmethod
    def erp(cls, tiles: int = 32) -> TileWidths:
        """All as wide as the picture: equirectangular, but with padding on the sphere."""
        _check_tiles(tiles)
        return cls((FULL,) * tiles)

    @classmethod
    def sinusoidal(cls, tiles: int = 32) -> TileWidths:
        """Pixels of equal area: 64 times the cosine of the latitude of a tile's middle, rounded up.

        The picture is not sampled less densely than on the equator anywhere near that latitude.
        """
        _check_tiles(tiles)
        latitudes = [(t + 0.5 - tiles / 2) * math.pi / tiles for t in range(tiles)]
        # Where 64 cos is an integer, as at 60 degrees, rounding must not add a pixel.
        exact = [FULL * math.cos(latitude) for latitude in latitudes]
        return cls(tuple(math.ceil(width - 1e-9) for width in exact))

    @classmethod
    def optimized(cls, tiles: int = 32) -> TileWidths:
        """The published widths for 32 tiles; for a multiple of 32 the same, in thinner tiles.

        Raises:
            InputError: ``tiles`` is no multiple of 32.
        """
        _check_tiles(tiles)
        times, rest = divmod(tiles, len(_OPTIMIZED))
        if rest:
            raise InputError(
                f"optimized widths are known for multiples of {len(_OPTIMIZED)} tiles, "
                f"not for {tiles}; take sinusoidal ones"
            )
        return cls(tuple(width for width in _OPTIMIZED for _ in range(times)))

    @classmethod
    def preset(cls, name: str, tiles: int = 32) -> TileWidths:
        """One of ``PRESETS`` by its name.

        Raises:
            InputError: there is no such preset, or not for so many tiles.
        """
        if name not in PRESETS:
            raise InputError(f"unknown widths {name!r}; there are {', '.join(PRESETS)}")
        return getattr(cls, name)(tiles)

    @classmethod
    def load(cls, source: str | os.PathLike) -> TileWidths:
        """A preset of 32 tiles by its name, or what :meth:`save` wrote.

        Raises:
            InputError: there is no such preset, and no such file, or it holds no widths.
        """
        if source in PRESETS:
            return cls.preset(str(source))
        name = os.fspath(source)
        try:
            content = json.loads(Path(source).read_text(encoding="utf-8"))
            return cls(tuple(content["sixty_fourths"]))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            presets = ", ".join(PRESETS)
            raise InputError(f"{name}: neither one of {presets} nor a file: {reason}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{name}: holds no widths of tiles") from error

    def save(self, path: str | os.PathLike, **facts: Any) -> None:
        """Write a JSON file with the widths and, beside them, what else may be of interest."""
        from pycodec.images import atomic_write

        content = {"sixty_fourths": list(self.sixty_fourths), **facts}
        atomic_write(path, (json.dumps(content, indent=1) + "\n").encode())

    @property
    def tiles(self) -> int:
        """How many there are."""
        return len(self.sixty_fourths)

    @property
    def multiple(self) -> int:
        """What a picture's width must be a multiple of, so that all tiles have whole pixels."""
        return FULL // math.gcd(FULL, *self.sixty_fourths)

    def pixels(self, width: int) -> tuple[int, ...]:
        """Widths in pixels, where the picture, or a level of a network, is ``width`` wide.

        Raises:
            InputError: ``width`` is no multiple of :attr:`multiple`.
        """
        if width < 1 or width % self.multiple:
            raise InputError(
                f"these tiles need a width that is a multiple of {self.multiple}, not {width}"
            )
        return tuple(width * w // FULL for w in self.sixty_fourths)

    def in_units(self, tiles: int, full: int) -> tuple[int, ...]:
        """The same for another number of tiles, whose widths are multiples of a unit.

        A tile is as wide as the widest of these that it overlaps, rounded up.

        Args:
            tiles: how many.
            full: units in the width of the picture.
        """
        _check_tiles(tiles)
        widths = []
        for tile in range(tiles):
            first, end = tile * self.tiles // tiles, -(-(tile + 1) * self.tiles // tiles)
            widths.append(-(-full * max(self.sixty_fourths[first:end]) // FULL))
        return tuple(widths)


def _check_tiles(tiles: int) -> None:
    if tiles < 1:
        raise InputError(f"there must be at least one tile, not {tiles}")
