"""Post-training quantization of a photo model: calibration, rounding and export in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pycodec.errors import InputError
from pycodec.models.photo import TRANSFORMS, PhotoCodec
from pycodec.models.transforms import HYPER_STRIDE, LATENT_STRIDE
from pycodec.ops.quadtree_stage import LATENT_FRACTION_BITS
from pycodec.quantization.calibration import (
    Observer,
    default_weight_bits,
    plan_transform,
    round_weights,
    stream_peaks,
)
from pycodec.quantization.transforms import TransformPlan, export_transform

MAX_CROP = 384
"""Of the middle of each calibration picture: 20 of them are seen in half a minute."""


def mixed_weight_bits(layer: str) -> int:
    """4 in the bottleneck branches at 1/16, where the most weights are and errors cost least."""
    return 4 if layer.startswith("blocks16.") else default_weight_bits(layer)


WEIGHT_BITS = {"int8": default_weight_bits, "mixed": mixed_weight_bits}
"""Of a layer, for each precision."""


class Calibration:
    """What the float transforms of a codec saw on calibration pictures.

    Args:
        codec: in ``fp32``.
        pictures: uint8 [H, W, 3], of at least 64 by 64; qualities are spread evenly over them.

    Raises:
        InputError: there are no pictures, or the codec has another precision.
    """

    def __init__(self, codec: PhotoCodec, pictures: Sequence[np.ndarray]) -> None:
        if codec.precision != "fp32":
            raise InputError("calibration needs a codec loaded with precision fp32")
        if not pictures:
            raise InputError("calibration needs pictures")
        self.modules: dict[str, nn.Module] = {t: getattr(codec, t) for t in TRANSFORMS}
        self.observers = {
            name: Observer(module, len(pictures)) for name, module in self.modules.items()
        }
        self.streams: dict[str, dict[str, Tensor]] = {name: {} for name in TRANSFORMS}
        for i, picture in enumerate(pictures):
            self._watch(codec, _middle(picture), 1 + 99 * (i + 0.5) / len(pictures))

    def _watch(self, codec: PhotoCodec, pixels: np.ndarray, quality: float) -> None:
        coded = codec.compress(pixels, quality)
        at = torch.tensor([coded.quality_code / 100])
        with torch.inference_mode():
            x = (torch.tensor(pixels).float() / 255)[None].permute(0, 3, 1, 2)
            self._run("analysis", x, at)
            y = codec.analysis(x, at)
            self._run("hyper_analysis", y, at)
            latents = codec.entropy_model.decode(
                coded.streams[0], y.shape[2], y.shape[3], coded.quality_code
            )
            y = (latents.float() / (1 << LATENT_FRACTION_BITS))[None].permute(0, 3, 1, 2)
            self._run("synthesis", y, at)

    def _run(self, name: str, x: Tensor, quality: Tensor) -> None:
        with self.observers[name].watching():
            peaks = stream_peaks(name, self.modules[name], [(x, quality)])
        for stream, peak in peaks.items():
            before = self.streams[name].get(stream, peak)
            self.streams[name][stream] = before.maximum(peak)

    def plan(self, name: str, weight_bits: Callable[[str], int], method: str) -> TransformPlan:
        """The plan of a transform, weights rounded."""
        observer = self.observers[name]
        plan = plan_transform(
            name, observer, self.streams[name], method=method, weight_bits=weight_bits
        )
        round_weights(name, self.modules[name], observer, plan)
        return plan

    def export(self, precision: str, method: str = "mse") -> dict[str, Tensor]:
        """The integers of ``int8`` or ``mixed``, as ``save_integers`` takes them."""
        tensors = {}
        for name, module in self.modules.items():
            plan = self.plan(name, WEIGHT_BITS[precision], method)
            made = export_transform(name, module, plan)
            tensors |= {f"{name}.{key}": tensor for key, tensor in made.items()}
        return tensors


def _middle(picture: np.ndarray) -> np.ndarray:
    """The middle of a picture, up to MAX_CROP, sides multiples of a hyperlatent's pixels."""
    unit = LATENT_STRIDE * HYPER_STRIDE
    height, width = (min(MAX_CROP, side) // unit * unit for side in picture.shape[:2])
    if not height or not width:
        raise InputError(f"calibration pictures must have sides of at least {unit} pixels")
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return np.ascontiguousarray(picture[top : top + height, left : left + width])
