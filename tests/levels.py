"""The SIMD levels of this processor, for tests that hold all of them to the same results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pycodec import _cpu

LEVELS = _cpu.supported_simd_levels()


@contextlib.contextmanager
def simd_level(name: str) -> Iterator[None]:
    """Kernels made, and coders used, inside run at this level."""
    before = _cpu.simd_level()
    _cpu.set_simd_level(name)
    try:
        yield
    finally:
        _cpu.set_simd_level(before)
