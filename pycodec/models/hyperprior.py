"""Entropy models of the published hyperprior family, in integers.

Factorized prior and scale hyperprior (Balle et al., ICLR 2018), mean and scale hyperprior and joint
autoregressive model (Minnen et al., NeurIPS 2018), Cheng et al. (CVPR 2020), checkerboard and ELIC
(He et al., CVPR 2021 and 2022): networks that were trained in floating point, exported by
:func:`export_entropy_model` and run by :class:`HyperpriorEntropyModel`. Nothing between a stream
and its symbols is computed in floating point, and neither are the means: a stream decodes to the
same latents on every machine.

Numbers: latents and means in units of 2**-LATENT_BITS, hyperlatents of 2**-HYPER_BITS, scales of
2**-SCALE_BITS; a scale's table is the number of thresholds below it (CompressAI's
``build_indexes``). Order of symbols: hyperlatents in raster order, channels innermost; latents
likewise, or where there is a context in the order of :mod:`pycodec.context.gaussian_waves` or
:mod:`pycodec.context.gaussian_groups`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pycodec.coding import rans
from pycodec.coding.tables import TableSet, quantize_pmf
from pycodec.context.gaussian_groups import GaussianGroups
from pycodec.context.gaussian_waves import (
    MAX_LATENT,
    MAX_SYMBOL,
    GaussianWaves,
    quantize,
    reconstruct,
    table_of,
)
from pycodec.context.integer_entropy_model import pixel_shuffle
from pycodec.errors import CorruptStreamError, InputError, UnsupportedError
from pycodec.models.latent_codecs import entropy_parts, export_groups, load_groups
from pycodec.models.tiling import add_seconds
from pycodec.quantization.int16 import (
    ACTIVATION_LIMIT,
    float_layers,
    integer_network,
    load_layer,
    load_stack,
    save_stack,
    under,
)

LATENT_BITS, HYPER_BITS, SCALE_BITS = 8, 6, 12
PARAMETER_LIMIT = 1 << 26
"""Of scales and means."""

HYPER_STRIDE = 4
"""Latents along a hyperlatent."""

PRECISION = 14
"""Of the tables."""

LANES = 2
"""More would decode faster, and show in the size of a small picture's stream."""

DEFAULT_SCALES = tuple(math.exp(s) for s in np.linspace(math.log(0.11), math.log(256), 64))
"""CompressAI's."""

MAX_TABLE_VALUES = 1 << 12


@dataclass
class CodedLatents:
    """What ``HyperpriorEntropyModel.encode`` returns.

    Attributes:
        streams: the latents' rANS stream, and the hyperlatents' if there are any.
        latents: int32 [H, W, M], as they will be decoded.
        symbols, indexes: of the latents, in stream order.
        num_symbols: of all streams.
        seconds: time in the networks (``entropy``) and in the coder (``rans``).
    """

    streams: list[bytes]
    latents: Tensor
    symbols: np.ndarray
    indexes: np.ndarray
    num_symbols: int
    seconds: dict[str, float] = field(default_factory=dict)


class HyperpriorEntropyModel:
    """Encodes and decodes the latents of a picture.

    Args:
        tensors: of :func:`export_entropy_model`.
        backend: ``native`` or ``reference``.

    Raises:
        InputError: a tensor is missing or does not fit.
    """

    def __init__(self, tensors: Mapping[str, Tensor], backend: str = "native") -> None:
        try:
            self._medians = tensors["medians"]
            self.bottleneck_tables = _load_tables(tensors, "bottleneck_tables.")
            self.hyper_synthesis = load_stack(tensors, "hyper", backend)
            self.has_hyperprior = bool(self.hyper_synthesis)
            self.context_model: GaussianWaves | GaussianGroups | None = None
            if not self.has_hyperprior:
                self.channels, self.has_means = len(self._medians), False
            else:
                self.latent_tables = _load_tables(tensors, "latent_tables.")
                self._thresholds = tensors["thresholds"].tolist()
                self._load_hyperprior(tensors, backend)
        except KeyError as error:
            raise InputError(f"the entropy model lacks the tensor {error}") from None
        if self.bottleneck_tables.num_tables != len(self._medians):
            raise InputError("the entropy model needs a median and a table for each channel")

    def _load_hyperprior(self, tensors: Mapping[str, Tensor], backend: str) -> None:
        side_channels = len(self.hyper_synthesis[-1][0].bias)
        self.channels = int(tensors["channels"])
        heads = load_stack(tensors, "head", backend)
        groups = load_groups(tensors, backend)
        if heads:
            context, _ = load_layer(under(tensors, "context."), backend)
            self.context_model = GaussianWaves(
                context=context,
                heads=[head for head, _ in heads],
                side_channels=side_channels,
                context_shift=int(tensors["context_shift"]),
                context_limit=ACTIVATION_LIMIT,
                fraction_bits=LATENT_BITS,
                thresholds=self._thresholds,
                backend=backend,
            )
        elif groups:
            self.context_model = GaussianGroups(
                groups=groups,
                side_channels=side_channels,
                context_shift=int(tensors["context_shift"]),
                context_limit=ACTIVATION_LIMIT,
                fraction_bits=LATENT_BITS,
                thresholds=self._thresholds,
            )
        elif side_channels not in (self.channels, 2 * self.channels):
            raise InputError("the hyperprior does not fit the latents")
        if self.context_model is not None and self.context_model.channels != self.channels:
            raise InputError("the context does not fit the latents")
        self.has_means = self.context_model is not None or side_channels == 2 * self.channels
        if self.latent_tables.num_tables <= len(self._thresholds):
            raise InputError("the entropy model has too few tables")

    @property
    def hyper_channels(self) -> int:
        """Of the hyperlatents."""
        return len(self._medians)

    def encode(
        self, latents: Tensor, hyperlatents: Tensor | None, threads: int = 1
    ) -> CodedLatents:
        """Encode a picture's latents.

        Args:
            latents: float [M, H, W].
            hyperlatents: float [N, H / 4, W / 4]; None without a hyperprior.
            threads: of the native kernels.

        Raises:
            InputError: shapes do not fit, or something is not a finite number.
        """
        self._check(latents, hyperlatents)
        began = time.perf_counter()
        bottom = (hyperlatents if self.has_hyperprior else latents).detach().cpu().float()
        bits = HYPER_BITS if self.has_hyperprior else LATENT_BITS
        medians = self._medians.float() / (1 << bits)
        bottom_symbols = (
            torch.round(bottom.permute(1, 2, 0) - medians)
            .clamp(-MAX_SYMBOL, MAX_SYMBOL)
            .to(torch.int32)
            .numpy()
        )
        bottom_indexes = self._bottleneck_indexes(*bottom.shape[1:])
        decoded = reconstruct(bottom_symbols, self._medians.numpy(), bits)
        if not self.has_hyperprior:
            symbols, indexes = bottom_symbols.ravel(), bottom_indexes.ravel()
        else:
            fixed = torch.round(
                latents.detach().cpu().double().permute(1, 2, 0) * (1 << LATENT_BITS)
            )
            fixed = fixed.clamp(-MAX_LATENT, MAX_LATENT).to(torch.int32).contiguous().numpy()
            side = self._synthesize(decoded, threads)
            if self.context_model is not None:
                symbols, indexes, decoded = self.context_model.encode(fixed, side, threads)
            else:
                indexes, means = self._parameters(side)
                symbols = quantize(fixed, means, LATENT_BITS)
                decoded = reconstruct(symbols, means, LATENT_BITS)
                symbols, indexes = symbols.ravel(), indexes.ravel()
        modelled = time.perf_counter()
        bottom_stream = rans.encode(
            bottom_symbols, bottom_indexes, self.bottleneck_tables, lanes=self._bottom_lanes
        )
        streams = [bottom_stream]
        if self.has_hyperprior:
            streams.insert(0, rans.encode(symbols, indexes, self.latent_tables, lanes=LANES))
        seconds = {"entropy": modelled - began, "rans": time.perf_counter() - modelled}
        count = symbols.size + (bottom_symbols.size if self.has_hyperprior else 0)
        return CodedLatents(streams, torch.from_numpy(decoded), symbols, indexes, count, seconds)

    def decode(
        self,
        streams: Sequence[bytes],
        height: int,
        width: int,
        threads: int = 1,
        seconds: dict[str, float] | None = None,
    ) -> Tensor:
        """Decode a picture's latents to int32 [H, W, M].

        Args:
            streams: of ``encode``.
            height, width: of the hyperlatents; of the latents if there are none.
            threads: of the native kernels.
            seconds: the time is added to its item ``entropy``.

        Raises:
            InputError: a size is negative.
            CorruptStreamError: a stream is damaged, or their number is wrong.
        """
        if height < 0 or width < 0:
            raise InputError(f"there are no {height} x {width} latents")
        if len(streams) != 1 + self.has_hyperprior:
            raise CorruptStreamError(f"{1 + self.has_hyperprior} streams, but got {len(streams)}")
        began = time.perf_counter()
        decoder = rans.RansDecoder(streams[-1], self.bottleneck_tables)
        symbols = decoder.decode(self._bottleneck_indexes(height, width))
        decoder.finish()
        bits = HYPER_BITS if self.has_hyperprior else LATENT_BITS
        decoded = reconstruct(symbols, self._medians.numpy(), bits)
        if self.has_hyperprior:
            side = self._synthesize(decoded, threads)
            if self.context_model is not None:
                tables = self.latent_tables
                decoded = self.context_model.decode(streams[0], tables, side, threads)
            else:
                indexes, means = self._parameters(side)
                decoder = rans.RansDecoder(streams[0], self.latent_tables)
                symbols = decoder.decode(indexes)
                decoder.finish()
                decoded = reconstruct(symbols, means, LATENT_BITS)
        if seconds is not None:
            add_seconds(seconds, "entropy", time.perf_counter() - began)
        return torch.from_numpy(decoded)

    def code_length_bits(self, coded: CodedLatents) -> float:
        """What an ideal coder would need for the latents with the model's tables."""
        tables = self.latent_tables if self.has_hyperprior else self.bottleneck_tables
        return tables.cost_bits(coded.symbols, coded.indexes)

    @property
    def _bottom_lanes(self) -> int:
        return 1 if self.has_hyperprior else LANES

    def _bottleneck_indexes(self, height: int, width: int) -> np.ndarray:
        channels = self.bottleneck_tables.num_tables
        dtype = np.uint8 if channels <= 256 else np.uint16
        index = np.arange(channels, dtype=dtype)
        return np.ascontiguousarray(np.broadcast_to(index, (height, width, channels)))

    def _synthesize(self, hyperlatents: np.ndarray, threads: int) -> np.ndarray:
        """Hyperlatents, int32 [h, w, N], to [4 h, 4 w, C] of the last layer's type."""
        x = np.clip(hyperlatents, -ACTIVATION_LIMIT, ACTIVATION_LIMIT).astype(np.int16)
        x = torch.from_numpy(x)[None]
        for layer, shuffle in self.hyper_synthesis:
            x = layer(x, threads)
            if shuffle:
                x = pixel_shuffle(x)
        return x[0].contiguous().numpy()

    def _parameters(self, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Table indexes and means, [H, W, M], of a model without a context."""
        scale = np.ascontiguousarray(side[..., : self.channels])
        indexes = table_of(torch.from_numpy(scale), self._thresholds)
        means = side[..., self.channels :] if self.has_means else np.zeros(1, np.int32)
        return indexes, means

    def _check(self, latents: Tensor, hyperlatents: Tensor | None) -> None:
        if latents.dim() != 3 or latents.shape[0] != self.channels:
            raise InputError(f"latents must be [{self.channels}, H, W], not {list(latents.shape)}")
        if (hyperlatents is not None) != self.has_hyperprior:
            raise InputError("hyperlatents are for models with a hyperprior, and those need them")
        if hyperlatents is not None:
            height, width = (size // HYPER_STRIDE for size in latents.shape[1:])
            wanted = (self.hyper_channels, height, width)
            exact = all(size % HYPER_STRIDE == 0 for size in latents.shape[1:])
            if not exact or tuple(hyperlatents.shape) != wanted:
                raise InputError(
                    f"{list(hyperlatents.shape)} hyperlatents do not fit {list(latents.shape)} "
                    "latents: pad the picture to a multiple of 64 pixels"
                )
            if not bool(torch.isfinite(hyperlatents).all()):
                raise InputError("the hyperlatents are not all finite")
        if not bool(torch.isfinite(latents).all()):
            raise InputError("the latents are not all finite")


def _load_tables(tensors: Mapping[str, Tensor], prefix: str) -> TableSet:
    return TableSet.from_arrays(under(tensors, prefix))


def _save_tables(tables: TableSet, prefix: str) -> dict[str, Tensor]:
    arrays = tables.to_arrays().items()
    return {prefix + name: torch.from_numpy(array.astype(np.int32)) for name, array in arrays}


@torch.no_grad()
def export_entropy_model(model: nn.Module, pictures: Tensor) -> dict[str, Tensor]:
    """The integer tensors of :class:`HyperpriorEntropyModel`.

    Args:
        model: on the CPU, with ``g_a`` and what :func:`entropy_parts` looks for.
        pictures: float [B, 3, H, W] in 0..1, H and W multiples of 64: what the scales of
            activations are chosen by.

    Raises:
        UnsupportedError: the model has something that no integer form is known for.
    """
    parts = entropy_parts(model)
    y = model.g_a(pictures).float()
    channels = y.shape[1]
    tables, medians = bottleneck_tables(parts.entropy_bottleneck.state_dict())
    tensors = _save_tables(tables, "bottleneck_tables.")
    bits = HYPER_BITS if parts.h_s is not None else LATENT_BITS
    tensors["medians"] = torch.round(medians * (1 << bits)).to(torch.int32)
    if parts.h_s is None:
        return tensors
    tensors["channels"] = torch.tensor(channels, dtype=torch.int32)
    scales = parts.scale_table or list(DEFAULT_SCALES)
    tensors["thresholds"] = torch.tensor(
        [math.floor(s * (1 << SCALE_BITS)) for s in scales[:-1]], dtype=torch.int32
    )
    tensors |= _save_tables(TableSet.gaussian(scales, PRECISION), "latent_tables.")

    layers = float_layers(parts.h_s)
    outputs = len(layers[-1].bias) // (4 if layers[-1].shuffle else 1)
    has_context = parts.context is not None or bool(parts.groups)
    if not has_context and outputs not in (channels, 2 * channels):
        raise UnsupportedError(f"a hyperprior of {outputs} channels for {channels} latents")
    z = hyperlatents(model, y, abs_latents=not has_context and outputs == channels)
    if tuple(HYPER_STRIDE * size for size in z.shape[2:]) != tuple(y.shape[2:]):
        raise UnsupportedError("hyperlatents must be a quarter of the latents in height and width")
    medians = medians.float().view(1, -1, 1, 1)
    z = torch.round(z - medians) + medians
    z_scale = torch.full((z.shape[1],), 2.0**-HYPER_BITS, dtype=torch.float64)
    mean_scale = torch.full((channels,), 2.0**-LATENT_BITS, dtype=torch.float64)
    scale_scale = torch.full((channels,), 2.0**-SCALE_BITS, dtype=torch.float64)
    both = torch.cat([scale_scale, mean_scale])
    if not has_context:
        integers, _, _ = integer_network(
            layers, z, z_scale, both[:outputs], last_limit=PARAMETER_LIMIT
        )
        return tensors | save_stack(integers, "hyper")
    integers, side, side_scale = integer_network(layers, z, z_scale)
    tensors |= save_stack(integers, "hyper")

    y_hat = torch.round(y)
    peak = 2 * float(y_hat.abs().max()) * (1 << LATENT_BITS)
    shift = max(0, math.ceil(math.log2(max(peak, 1) / ACTIVATION_LIMIT)))
    tensors["context_shift"] = torch.tensor(shift, dtype=torch.int32)
    seen_scale = mean_scale * (1 << shift)
    if parts.groups:
        return tensors | export_groups(
            parts.groups, y_hat, side, side_scale, seen_scale, both, PARAMETER_LIMIT
        )
    (layer,) = float_layers(parts.context)
    context_integers, seen, context_scale = integer_network([layer], y_hat, seen_scale)
    tensors |= {f"context.{k}": v for k, v in context_integers[0].items()}
    heads, _, _ = integer_network(
        float_layers(parts.entropy_parameters),
        torch.cat([side, seen], 1),
        torch.cat([side_scale, context_scale]),
        both,
        last_limit=PARAMETER_LIMIT,
    )
    return tensors | save_stack(heads, "head")


def hyperlatents(model: nn.Module, latents: Tensor, *, abs_latents: bool) -> Tensor:
    """What the hyperprior makes of latents; models without means look at their size alone."""
    owner = model.latent_codec.hyper if hasattr(model, "latent_codec") else model
    return owner.h_a(torch.abs(latents) if abs_latents else latents).float()


def bottleneck_tables(state: Mapping[str, Tensor]) -> tuple[TableSet, Tensor]:
    """Tables and medians of a factorized prior, from its parameters.

    The distribution is that of Balle et al. 2018, appendix 6.1: a small monotonic network gives
    each channel's cumulative.

    Args:
        state: state dict of CompressAI's ``EntropyBottleneck``, of any of its versions.

    Returns:
        A table for each channel, values relative to its median; medians, float64 [C].

    Raises:
        UnsupportedError: a parameter is missing.
    """

    def find(kind: str, old: str, index: int) -> Tensor | None:
        value = state.get(f"{kind}.{index}", state.get(f"_{old}{index}"))
        return None if value is None else value.detach().cpu().double()

    def cumulative(x: Tensor) -> Tensor:
        """[C, 1, n] to logits."""
        index = 0
        while (matrix := find("matrices", "matrix", index)) is not None:
            x = F.softplus(matrix) @ x + find("biases", "bias", index)
            factor = find("factors", "factor", index)
            if factor is not None:
                x = x + torch.tanh(factor) * torch.tanh(x)
            index += 1
        return x

    if "quantiles" not in state or find("matrices", "matrix", 0) is None:
        raise UnsupportedError("the entropy bottleneck lacks its parameters")
    quantiles = state["quantiles"].detach().cpu().double()[:, 0]
    medians = quantiles[:, 1]
    below = torch.ceil(medians - quantiles[:, 0]).clamp(0, MAX_TABLE_VALUES / 2 - 1).long()
    above = torch.ceil(quantiles[:, 2] - medians).clamp(0, MAX_TABLE_VALUES / 2 - 1).long()
    reach = int(torch.maximum(below, above).max())
    edges = torch.arange(-reach, reach + 2, dtype=torch.float64) - 0.5
    logits = cumulative((edges + medians[:, None])[:, None])[:, 0]
    # Far from the median the difference of two sigmoids near 1 would be all rounding error.
    sign = -torch.sign(logits[:, 1:] + logits[:, :-1])
    pmf = (torch.sigmoid(sign * logits[:, 1:]) - torch.sigmoid(sign * logits[:, :-1])).abs()
    lower, upper = torch.sigmoid(logits), torch.sigmoid(-logits)
    frequencies = []
    for channel, (first, last) in enumerate(zip(reach - below, reach + above, strict=True)):
        outside = lower[channel, first] + upper[channel, last + 1]
        values = torch.cat([pmf[channel, first : last + 1], outside[None]])
        frequencies.append(quantize_pmf(values.numpy(), PRECISION))
    return TableSet(frequencies, (-below).tolist(), PRECISION, escape=True), medians
