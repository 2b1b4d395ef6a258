"""The GPU kernels of the trimmed convolutions, on a GPU where there is one, and on the host."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pycodec.ops import trimmed_kernels
from pycodec.ops.masked_conv2d import masked_conv2d
from pycodec.ops.trimmed_conv2d import trimmed_conv2d

from . import trimmed_cases
from .test_trimmed_conv2d import make_layer

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.tuples(st.integers(1, 6), st.integers(1, 3)),
    width=st.integers(1, 40),
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    block_in=st.sampled_from([1, 4, 16, 32]),
)
@settings(max_examples=50)
def test_block_lists(seed, groups, width, kernel, block_in):
    """A block is in a group's list if, and only if, the group sees one of its channels."""
    mask = torch.from_numpy(np.random.default_rng(seed).random((*groups[::-1], *kernel)) < 0.3)
    in_channels = groups[0] * width
    counts, blocks = trimmed_kernels.block_lists(mask, in_channels, block_in)
    blocks_per_tap = -(-in_channels // block_in)
    assert blocks.shape == (groups[1], kernel[0] * kernel[1] * blocks_per_tap)
    for group in range(groups[1]):
        expected = [
            tap * blocks_per_tap + block
            for tap, (i, j) in enumerate(np.ndindex(kernel))
            for block in range(blocks_per_tap)
            if any(
                mask[group, channel // width, i, j]
                for channel in range(block * block_in, min(in_channels, (block + 1) * block_in))
            )
        ]
        assert blocks[group, : counts[group]].tolist() == expected


def test_triton_interpreter_equals_reference():
    """In a process of its own: Triton decides at import whether it interprets."""
    pytest.importorskip("triton")
    script = os.path.join(os.path.dirname(__file__), "trimmed_triton_check.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert "cases are equal" in result.stdout
