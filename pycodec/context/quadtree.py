"""The quadtree order: latents in four stages, each a quarter of the symbols at every position.

Channels fall into four equal groups g = 0..3; positions into four parities p = 2 (h mod 2) +
(w mod 2). Stage t holds group g at the positions whose parity is ``g ^ STAGE_XOR[t]``: each stage
visits every position once and every group once in each 2x2 block, and stage 1 lies diagonally
opposite to stage 0 (after the quadtree partition of DCVC-DC, arXiv 2302.14402, section 3.3).
Within a stage symbols go in raster order of positions, channels innermost. Every stage is a wave:
its symbols are independent given the earlier stages.
"""

from __future__ import annotations

import numpy as np

from pycodec.ops.quadtree_stage import STAGE_XOR, stage_group

STAGES = len(STAGE_XOR)


def stage_mask(stage: int, channels: int, height: int, width: int) -> np.ndarray:
    """Where ``stage`` has its symbols: ``bool [channels, height, width]``."""
    if channels % STAGES:
        raise ValueError(f"channels must be a multiple of {STAGES}, got {channels}")
    group_of_channel = np.arange(channels) // (channels // STAGES)
    return group_of_channel[:, None, None] == stage_group(stage, height, width)[None]
