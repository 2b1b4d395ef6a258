"""Packages that only measuring needs, and that a plain installation does not bring."""

from __future__ import annotations

import importlib
from types import ModuleType

from pycodec.errors import CodecError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Raises:
        CodecError: it is not installed; the message says which extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CodecError(
            f"this needs the package {module.partition('.')[0]}: pip install 'pycodec[{extra}]'"
        ) from error
