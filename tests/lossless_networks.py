"""Small untrained lossless networks, exported, for tests that need a codec but not compression."""

from __future__ import annotations

import torch

from pycodec.models.lossless import SIDES, LosslessCodec
from pycodec.models.lossless_network import PLANES, LosslessConfig, LosslessNetwork
from pycodec.quantization.context import QuantizedNetwork, bit_tables
from pycodec.training.lossless import to_component


def quantized_network(
    seed: int, order: str = "slope", *, width: int = 2, side: int = 0
) -> QuantizedNetwork:
    """Random weights, scales set from random bits, rounding on."""
    torch.manual_seed(seed)
    config = LosslessConfig(order, width, first=5, hidden=(3,), blocks=((3, 1),), head=3, side=side)
    network = LosslessNetwork(config)
    network.start_from_differences()
    quantized = QuantizedNetwork(network)
    bits = torch.randint(0, 2, (2, PLANES, 24, 24)).float()
    known = torch.randint(0, 2, (2, PLANES * side, 24, 24)).float() if side else None
    quantized.calibrate(bits, known)
    return quantized.eval()


def random_codec(seed: int, order: str = "slope", backend: str = "native") -> LosslessCodec:
    """The same weights for every backend."""
    gray = to_component(quantized_network(seed, order))
    chroma = to_component(quantized_network(seed + 1000, order, side=SIDES))
    return LosslessCodec(gray, chroma, bit_tables(), b"lossless", backend=backend)
