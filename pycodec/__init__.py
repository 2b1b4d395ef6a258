"""pycodec: a codec engine for learned image compression.

>>> import numpy as np, pycodec
>>> picture = np.zeros((48, 64, 3), np.uint8)
>>> data = pycodec.encode(picture, quality=50)
>>> pycodec.decode(data).shape
(48, 64, 3)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pycodec.errors import CodecError, CorruptStreamError, InputError, UnsupportedError

if TYPE_CHECKING:
    from pycodec.api import decode, encode, load_model

__version__ = "0.1.0"
__all__ = [
    "CodecError",
    "CorruptStreamError",
    "InputError",
    "UnsupportedError",
    "decode",
    "encode",
    "load_model",
]


def __getattr__(name: str):
    # Imported on first use: torch takes a second, and `pycodec --help` needs none of it.
    if name in ("decode", "encode", "load_model"):
        return getattr(importlib.import_module("pycodec.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
