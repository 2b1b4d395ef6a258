"""The integer entropy model of the photo codec: what encoder and decoder run.

It is the exported form of ``pycodec.models.entropy_model.EntropyModel``: int8 weights, uint8 and
int8 activations, int32 accumulators, tables for everything that is not piecewise linear. Nothing
between the stream and the latents is computed in floating point, so a stream decodes to the same
latents on every backend, machine and thread count.

Order of symbols in a stream: hyperlatents in raster order, channels innermost; then the stages of
the quadtree order (``pycodec.context.quadtree``). ``docs/photo_codec.md`` has the whole definition.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pycodec.coding import rans
from pycodec.coding.tables import TableSet
from pycodec.context.quadtree import STAGES
from pycodec.errors import CorruptStreamError, InputError
from pycodec.ops.quadtree_stage import (
    LATENT_FRACTION_BITS,
    LATENT_LIMIT,
    LOG2_SCALE_MIN,
    SCALE_LEVELS,
    quantize_residuals,
    reconstruct_stage,
    stage_parameters,
)
from pycodec.ops.quantized_conv2d import QuantizedConv2d

QUALITY_MIN, QUALITY_MAX = 100, 10_000
"""Quality codes: hundredths of the quality 1 to 100."""

HYPERLATENT_LIMIT = 127
HYPER_STRIDE = 4


def interpolate_nodes(nodes: Tensor, quality_code: int) -> Tensor:
    """A piecewise linear integer function of quality.

    Args:
        nodes: int32 [K, ...], values at K equidistant qualities.
        quality_code: 100 to 10000.

    Returns:
        int32 [...], rounded to nearest with halves up.
    """
    span = QUALITY_MAX - QUALITY_MIN
    position = (quality_code - QUALITY_MIN) * (nodes.shape[0] - 1)
    low = min(position // span, nodes.shape[0] - 2)
    fraction = position - low * span
    total = nodes[low].long() * (span - fraction) + nodes[low + 1].long() * fraction
    return torch.div(total + span // 2, span, rounding_mode="floor").int()


def pixel_shuffle(x: Tensor) -> Tensor:
    """``[N, H, W, 4 C]`` with channels in the order (dy, dx, c) to ``[N, 2 H, 2 W, C]``."""
    n, height, width, channels = x.shape
    x = x.view(n, height, width, 2, 2, channels // 4).transpose(2, 3)
    return x.reshape(n, 2 * height, 2 * width, channels // 4)


@dataclass(frozen=True)
class _AtQuality:
    """What depends on quality, made ready for one quality code."""

    hyper_layers: list[QuantizedConv2d]
    mix_layers: list[QuantizedConv2d]
    log2_step: Tensor
    step: Tensor
    hyper_index: Tensor


@dataclass
class CodedLatents:
    """What ``IntegerEntropyModel.encode`` returns.

    Attributes:
        stream: the rANS stream.
        latents: int32 [H, W, M] as the decoder will have them.
        symbols, indexes: all symbols in stream order and the table of each.
        seconds: time spent in the networks and steps (``entropy``) and in the coder (``rans``).
    """

    stream: bytes
    latents: Tensor
    symbols: np.ndarray
    indexes: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)


class IntegerEntropyModel:
    """Encodes and decodes the latents of one tile.

    Args:
        tensors: what ``pycodec.quantization.export`` wrote, without the ``entropy.`` prefix.
        backend: of the convolutions and steps: ``native`` or ``reference``.

    Raises:
        InputError: a tensor is missing or does not fit.
    """

    def __init__(self, tensors: Mapping[str, Tensor], backend: str = "native") -> None:
        self._tensors = tensors
        self.backend = backend
        try:
            self.tables = TableSet.from_arrays(
                {k.removeprefix("tables."): v for k, v in tensors.items() if k[:7] == "tables."}
            )
            self.latent_channels = tensors["log2_step"].shape[1]
            self.hyper_channels = tensors["hyper_log2_scale"].shape[1]
            self._rounding = torch.full((256,), 128, dtype=torch.int32)
            self._rounding[:SCALE_LEVELS] = tensors["rounding"]
            self._context_multiplier = tensors["context.multiplier"]
            self._context_shift = int(tensors["context.shift"])
            self._fixed_layers = {
                f"stage{s}.{part}": self._layer(f"stage{s}.{part}")
                for s in range(STAGES)
                for part in ("context", "hidden", "head")
                if not (s == 0 and part == "context")
            }
            self._prepare(QUALITY_MIN)  # so that a missing tensor is found here
        except KeyError as error:
            raise InputError(f"the entropy model lacks the tensor {error}") from None
        if self.tables.num_tables != 2 * SCALE_LEVELS:
            raise InputError(f"expected {2 * SCALE_LEVELS} tables, got {self.tables.num_tables}")
        self._at_quality = functools.lru_cache(maxsize=8)(self._prepare)

    def _layer(self, name: str, quality_code: int | None = None) -> QuantizedConv2d:
        bias = self._tensors[f"{name}.bias"]
        if bias.dim() == 2:
            bias = interpolate_nodes(bias, quality_code)
        head = name.endswith("head")
        return QuantizedConv2d(
            self._tensors[f"{name}.weight"],
            bias.contiguous(),
            self._tensors[f"{name}.multiplier"],
            int(self._tensors[f"{name}.shift"]),
            out_dtype=torch.int32 if head else torch.uint8,
            relu=not head,
            backend=self.backend,
        )

    def _prepare(self, quality_code: int) -> _AtQuality:
        tensors = self._tensors
        log2_step = interpolate_nodes(tensors["log2_step"], quality_code)
        first = int(tensors["exp2.first"])
        exp2 = tensors["exp2.values"]
        scale = interpolate_nodes(tensors["hyper_log2_scale"], quality_code)
        level = ((scale - LOG2_SCALE_MIN + 8) >> 4).clamp(0, SCALE_LEVELS - 1)
        return _AtQuality(
            hyper_layers=[self._layer(f"hyper.conv{i}", quality_code) for i in (1, 2, 3, 4)],
            mix_layers=[self._layer(f"stage{s}.mix", quality_code) for s in range(STAGES)],
            log2_step=log2_step,
            step=exp2[(log2_step.long() - first).clamp(0, len(exp2) - 1)].contiguous(),
            hyper_index=(SCALE_LEVELS + level).to(torch.uint8),
        )

    def _features(self, z: Tensor, height: int, width: int, at: _AtQuality, threads: int) -> Tensor:
        """Hyperlatents int8 [h, w, Z] to features uint8 [1, height, width, F]."""
        conv1, conv2, conv3, conv4 = at.hyper_layers
        x = conv2(conv1(z[None].contiguous(), threads), threads)
        x = conv4(conv3(pixel_shuffle(x), threads), threads)
        return pixel_shuffle(x)[:, :height, :width].contiguous()

    def _stage_head(
        self, stage: int, features: Tensor, context: Tensor, at: _AtQuality, threads: int
    ) -> Tensor:
        """Network of one stage: int32 [height, width, 2 M]."""
        x = features
        if stage:
            seen = self._fixed_layers[f"stage{stage}.context"](context[None], threads)
            x = torch.cat([features, seen], dim=3)
        x = self._fixed_layers[f"stage{stage}.hidden"](at.mix_layers[stage](x, threads), threads)
        return self._fixed_layers[f"stage{stage}.head"](x, threads)[0]

    def _hyper_indexes(self, at: _AtQuality, height: int, width: int) -> np.ndarray:
        return at.hyper_index.numpy()[None, None].repeat(height, axis=0).repeat(width, axis=1)

    def encode(
        self, latents: Tensor, hyperlatents: Tensor, quality_code: int, threads: int = 1
    ) -> CodedLatents:
        """Encode one tile.

        Args:
            latents: int32 [H, W, M] in units of 2**-LATENT_FRACTION_BITS.
            hyperlatents: int32 [ceil(H / 4), ceil(W / 4), Z].
            quality_code: 100 to 10000.
            threads: of the native kernels.
        """
        _check_quality(quality_code)
        began = time.perf_counter()
        at = self._at_quality(quality_code)
        latents = latents.clamp(-LATENT_LIMIT, LATENT_LIMIT).contiguous()
        z = hyperlatents.clamp(-HYPERLATENT_LIMIT, HYPERLATENT_LIMIT).int().contiguous()
        height, width, _ = latents.shape
        features = self._features(z.to(torch.int8), height, width, at, threads)
        decoded = torch.zeros_like(latents)
        context = torch.zeros(latents.shape, dtype=torch.int8)
        symbols = [z.numpy().reshape(-1)]
        indexes = [self._hyper_indexes(at, z.shape[0], z.shape[1]).reshape(-1)]
        for stage in range(STAGES):
            head = self._stage_head(stage, features, context, at, threads)
            options = {"threads": threads, "backend": self.backend}
            mean, index = stage_parameters(head, stage, at.log2_step, **options)
            symbol = quantize_residuals(
                latents, stage, mean, index, at.step, self._rounding, **options
            )
            reconstruct_stage(
                symbol,
                stage,
                mean,
                at.step,
                self._context_multiplier,
                self._context_shift,
                decoded,
                context,
                **options,
            )
            symbols.append(symbol.numpy().reshape(-1))
            indexes.append(index.numpy().reshape(-1))
        all_symbols, all_indexes = np.concatenate(symbols), np.concatenate(indexes)
        modelled = time.perf_counter()
        stream = rans.encode(all_symbols, all_indexes, self.tables)
        seconds = {"entropy": modelled - began, "rans": time.perf_counter() - modelled}
        return CodedLatents(stream, decoded, all_symbols, all_indexes, seconds)

    def decode(
        self,
        stream: bytes,
        height: int,
        width: int,
        quality_code: int,
        threads: int = 1,
        seconds: dict[str, float] | None = None,
    ) -> Tensor:
        """Decode one tile to latents, int32 [height, width, M].

        Args:
            stream: of ``encode``.
            height, width: of the latents.
            quality_code, threads: as in ``encode``.
            seconds: times are added to its items ``entropy`` and ``rans``.

        Raises:
            CorruptStreamError: the stream is damaged.
        """
        _check_quality(quality_code)
        began = time.perf_counter()
        coder = 0.0
        at = self._at_quality(quality_code)
        decoder = rans.RansDecoder(stream, self.tables)
        hyper_height, hyper_width = -(-height // HYPER_STRIDE), -(-width // HYPER_STRIDE)
        z = decoder.decode(self._hyper_indexes(at, hyper_height, hyper_width))
        if np.abs(z.astype(np.int64)).max() > HYPERLATENT_LIMIT:
            raise CorruptStreamError("a hyperlatent is out of range; the tile is damaged")
        features = self._features(torch.from_numpy(z).to(torch.int8), height, width, at, threads)
        shape = (height, width, self.latent_channels)
        decoded = torch.zeros(shape, dtype=torch.int32)
        context = torch.zeros(shape, dtype=torch.int8)
        for stage in range(STAGES):
            head = self._stage_head(stage, features, context, at, threads)
            options = {"threads": threads, "backend": self.backend}
            mean, index = stage_parameters(head, stage, at.log2_step, **options)
            started = time.perf_counter()
            symbols = torch.from_numpy(decoder.decode(index.numpy()))
            coder += time.perf_counter() - started
            reconstruct_stage(
                symbols,
                stage,
                mean,
                at.step,
                self._context_multiplier,
                self._context_shift,
                decoded,
                context,
                **options,
            )
        decoder.finish()
        if seconds is not None:
            total = time.perf_counter() - began
            seconds["entropy"] = seconds.get("entropy", 0.0) + total - coder
            seconds["rans"] = seconds.get("rans", 0.0) + coder
        return decoded


def to_fixed_point(latents: Tensor) -> Tensor:
    """Float latents to int32 in units of 2**-LATENT_FRACTION_BITS."""
    scaled = torch.round(latents.float() * (1 << LATENT_FRACTION_BITS))
    return scaled.clamp(-LATENT_LIMIT, LATENT_LIMIT).int()


def _check_quality(quality_code: int) -> None:
    if not QUALITY_MIN <= quality_code <= QUALITY_MAX:
        raise InputError(f"quality must be 1 to 100, not {quality_code / 100:g}")
