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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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
from pycodec.profiling.spans import spanned
from pycodec.projection.grid import SphereGrid

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


@dataclass(frozen=True)
class _Plan:
    """What is coded together: one tile of a picture, or several of a sphere, which share a stream.

    ``widths`` and ``hyper_widths`` are the columns of each that are coded; tensors have
    ``height`` by ``width`` latents for each.
    """

    at: list[_AtQuality]
    height: int
    width: int
    widths: tuple[int, ...]
    hyper_widths: tuple[int, ...]
    grid: SphereGrid | None


@dataclass
class CodedLatents:
    """What ``IntegerEntropyModel.encode`` returns.

    Attributes:
        stream: the rANS stream.
        latents: int32 [H, W, M] (of a sphere [T, H, W, M]) as the decoder will have them.
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
        self._at_quality = functools.lru_cache(maxsize=32)(self._prepare)

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
            name=name,
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

    def _plan(
        self, quality_codes: Sequence[int], height: int, width: int, grid: SphereGrid | None
    ) -> _Plan:
        for code in quality_codes:
            _check_quality(code)
        at = [self._at_quality(code) for code in quality_codes]
        if grid is None:
            hyper = -(-width // HYPER_STRIDE)
            return _Plan(at, height, width, (width,), (hyper,), None)
        if len(at) != grid.tiles:
            raise InputError(f"{grid.tiles} tiles, but {len(at)} qualities")
        widths = tuple(HYPER_STRIDE * w for w in grid.widths)
        return _Plan(at, HYPER_STRIDE, max(widths), widths, grid.widths, grid)

    def _convolve3x3(self, layer: QuantizedConv2d, x: Tensor, plan: _Plan, threads: int) -> Tensor:
        if plan.grid is None:
            return layer(x, threads)
        # The layer pads with zeros once more: what they touch is cut off.
        padded = plan.grid.pad(x, 1, backend=self.backend)
        return layer(padded, threads)[:, 1:-1, 1:-1].contiguous()

    @staticmethod
    def _by_tile(layers: list[QuantizedConv2d], x: Tensor, threads: int) -> Tensor:
        """A pointwise layer whose bias depends on the tile's quality."""
        if len(layers) == 1 or all(layer is layers[0] for layer in layers):
            return layers[0](x, threads)
        tiles = [layer(x[i : i + 1], threads) for i, layer in enumerate(layers)]
        return torch.cat(tiles)

    def _features(self, z: Tensor, plan: _Plan, threads: int) -> Tensor:
        """Hyperlatents int8 [B, h, w, Z] to features uint8 [B, height, width, F]."""
        conv1, conv2, conv3, _ = plan.at[0].hyper_layers  # the last alone depends on quality
        x = conv2(self._convolve3x3(conv1, z, plan, threads), threads)
        x = self._convolve3x3(conv3, pixel_shuffle(x), plan, threads)
        x = self._by_tile([at.hyper_layers[3] for at in plan.at], x, threads)
        return pixel_shuffle(x)[:, : plan.height, : plan.width].contiguous()

    def _stage_head(
        self, stage: int, features: Tensor, context: Tensor, plan: _Plan, threads: int
    ) -> Tensor:
        """Network of one stage: int32 [B, height, width, 2 M]."""
        x = features
        if stage:
            layer = self._fixed_layers[f"stage{stage}.context"]
            seen = self._convolve3x3(layer, context, plan, threads)
            x = torch.cat([features, seen], dim=3)
        x = self._by_tile([at.mix_layers[stage] for at in plan.at], x, threads)
        x = self._fixed_layers[f"stage{stage}.hidden"](x, threads)
        return self._fixed_layers[f"stage{stage}.head"](x, threads)

    @staticmethod
    def _hyper_indexes(plan: _Plan) -> list[np.ndarray]:
        height = -(-plan.height // HYPER_STRIDE)
        return [
            at.hyper_index.numpy()[None, None].repeat(height, axis=0).repeat(width, axis=1)
            for at, width in zip(plan.at, plan.hyper_widths, strict=True)
        ]

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
        plan = self._plan([quality_code], latents.shape[0], latents.shape[1], None)
        coded = self._encode(latents[None], hyperlatents[None], plan, threads)
        return replace(coded, latents=coded.latents[0])

    def encode_sphere(
        self,
        latents: Tensor,
        hyperlatents: Tensor,
        grid: SphereGrid,
        quality_codes: Sequence[int],
        threads: int = 1,
    ) -> CodedLatents:
        """Encode the tiles of a pseudocylindrical representation together, in one stream.

        Every convolution pads on the sphere: each stage sees all of the earlier ones around a
        position, across the borders of tiles and of the picture. The order of symbols is that of
        :meth:`encode`, in each stage tile by tile.

        Args:
            latents: int32 [T, 4, 4 grid.columns, M], in units of 2**-LATENT_FRACTION_BITS.
            hyperlatents: int32 [T, 1, grid.columns, Z].
            grid: of T tiles.
            quality_codes: of each tile.
            threads: of the native kernels.
        """
        plan = self._plan(quality_codes, latents.shape[1], latents.shape[2], grid)
        return self._encode(latents, hyperlatents, plan, threads)

    @spanned("entropy")
    def _encode(
        self, latents: Tensor, hyperlatents: Tensor, plan: _Plan, threads: int
    ) -> CodedLatents:
        began = time.perf_counter()
        latents = latents.clamp(-LATENT_LIMIT, LATENT_LIMIT).contiguous()
        z = hyperlatents.clamp(-HYPERLATENT_LIMIT, HYPERLATENT_LIMIT).int().contiguous()
        features = self._features(z.to(torch.int8), plan, threads)
        decoded = torch.zeros_like(latents)
        context = torch.zeros(latents.shape, dtype=torch.int8)
        symbols = [t[:, :w].numpy().ravel() for t, w in zip(z, plan.hyper_widths, strict=True)]
        indexes = [index.reshape(-1) for index in self._hyper_indexes(plan)]
        options = {"threads": threads, "backend": self.backend}
        for stage in range(STAGES):
            heads = self._stage_head(stage, features, context, plan, threads)
            for tile, (at, width) in enumerate(zip(plan.at, plan.widths, strict=True)):
                mean, index = stage_parameters(heads[tile], stage, at.log2_step, **options)
                symbol = quantize_residuals(
                    latents[tile], stage, mean, index, at.step, self._rounding, **options
                )
                self._reconstruct(symbol, stage, mean, at, decoded[tile], context[tile], threads)
                symbols.append(symbol[:, :width].numpy().ravel())
                indexes.append(index[:, :width].numpy().ravel())
        all_symbols, all_indexes = np.concatenate(symbols), np.concatenate(indexes)
        modelled = time.perf_counter()
        stream = rans.encode(all_symbols, all_indexes, self.tables)
        seconds = {"entropy": modelled - began, "rans": time.perf_counter() - modelled}
        return CodedLatents(stream, decoded, all_symbols, all_indexes, seconds)

    def _reconstruct(
        self,
        symbols: Tensor,
        stage: int,
        mean: Tensor,
        at: _AtQuality,
        decoded: Tensor,
        context: Tensor,
        threads: int,
    ) -> None:
        reconstruct_stage(
            symbols,
            stage,
            mean,
            at.step,
            self._context_multiplier,
            self._context_shift,
            decoded,
            context,
            threads=threads,
            backend=self.backend,
        )

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
        plan = self._plan([quality_code], height, width, None)
        return self._decode(stream, plan, threads, seconds)[0]

    def decode_sphere(
        self,
        stream: bytes,
        grid: SphereGrid,
        quality_codes: Sequence[int],
        threads: int = 1,
        seconds: dict[str, float] | None = None,
    ) -> Tensor:
        """Inverse of :meth:`encode_sphere`: latents, int32 [T, 4, 4 grid.columns, M].

        Columns to the right of a tile's own have no meaning. Arguments and errors are those of
        :meth:`decode`.
        """
        plan = self._plan(quality_codes, HYPER_STRIDE, HYPER_STRIDE * grid.columns, grid)
        return self._decode(stream, plan, threads, seconds)

    @spanned("entropy")
    def _decode(
        self, stream: bytes, plan: _Plan, threads: int, seconds: dict[str, float] | None
    ) -> Tensor:
        began = time.perf_counter()
        coder = 0.0
        decoder = rans.RansDecoder(stream, self.tables)

        def read(indexes: list[np.ndarray], width: int) -> Tensor:
            """Symbols [B, height, width, channels] of the indexes of each tile's own columns."""
            nonlocal coder
            started = time.perf_counter()
            values = decoder.decode(np.concatenate([index.reshape(-1) for index in indexes]))
            coder += time.perf_counter() - started
            if len(indexes) == 1:
                return torch.from_numpy(values.reshape(1, *indexes[0].shape))
            height, _, channels = indexes[0].shape
            out = torch.zeros((len(indexes), height, width, channels), dtype=torch.int32)
            ends = np.cumsum([index.size for index in indexes])
            for tile, (index, part) in enumerate(
                zip(indexes, np.split(values, ends[:-1]), strict=True)
            ):
                out[tile, :, : index.shape[1]] = torch.from_numpy(part.reshape(index.shape))
            return out

        z = read(self._hyper_indexes(plan), max(plan.hyper_widths))
        # In 64 bits: the least int32 has no magnitude in 32.
        if z.long().abs().max() > HYPERLATENT_LIMIT:
            raise CorruptStreamError("a hyperlatent is out of range; the tile is damaged")
        features = self._features(z.to(torch.int8), plan, threads)
        shape = (len(plan.at), plan.height, plan.width, self.latent_channels)
        decoded = torch.zeros(shape, dtype=torch.int32)
        context = torch.zeros(shape, dtype=torch.int8)
        options = {"threads": threads, "backend": self.backend}
        for stage in range(STAGES):
            heads = self._stage_head(stage, features, context, plan, threads)
            parameters = [
                stage_parameters(heads[tile], stage, at.log2_step, **options)
                for tile, at in enumerate(plan.at)
            ]
            indexes = [
                index[:, :width].numpy()
                for (_, index), width in zip(parameters, plan.widths, strict=True)
            ]
            symbols = read(indexes, plan.width)
            for tile, (at, (mean, _)) in enumerate(zip(plan.at, parameters, strict=True)):
                self._reconstruct(
                    symbols[tile], stage, mean, at, decoded[tile], context[tile], threads
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
