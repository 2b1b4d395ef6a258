"""A codec from a published hyperprior model: float transforms around the integer entropy model.

Model folders come from CompressAI checkpoints (``pycodec convert-compressai``). Such a model has
one quality, that which it was trained for.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from pycodec.coding.container import join_streams, split_streams
from pycodec.errors import InputError, UnsupportedError
from pycodec.models.hyperprior import (
    HYPER_STRIDE,
    LATENT_BITS,
    HyperpriorEntropyModel,
    hyperlatents,
)
from pycodec.models.hyperprior_network import HyperpriorNetwork
from pycodec.models.integer_layers import use_integers
from pycodec.models.model_folder import (
    read_model_folder,
    read_weights_file,
    write_model_folder,
)
from pycodec.models.photo import (
    DEFAULT_TILE_LOG2,
    MAX_TILE_LOG2,
    MIN_TILE_LOG2,
    CodedPicture,
    check_picture,
)
from pycodec.models.tiling import Tile, add_seconds, cut_tiles, end_stage, thread_count, tiles_of

KIND = "hyperprior"

LATENT_STRIDE = 16
"""Pixels along a latent."""

PRECISIONS = ("fp32", "int8")

NETWORK, ENTROPY = "network.", "entropy."
"""What the names of tensors in a model folder begin with."""


class HyperpriorCodec:
    """One picture, one quality: that of the weights.

    Args:
        tensors: as ``save_hyperprior_model`` writes them.
        config: ``architecture``, ``n``, ``m`` and ``groups`` of ``HyperpriorNetwork``.
        fingerprint: 8 bytes that name these weights in files.
        name: of the model.
        device: of the transforms; the entropy model runs on the CPU.
        precision: of the transforms, one of :data:`PRECISIONS`. Latents that are coded decode
            alike in each; pixels may differ.
        integers: for ``int8``: tensors of ``HyperpriorCalibration.export``.

    Raises:
        InputError: tensors are missing or do not fit the configuration.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: Mapping[str, object],
        fingerprint: bytes,
        *,
        name: str = "hyperprior",
        device: str | torch.device | None = None,
        precision: str = "fp32",
        integers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.name, self.fingerprint, self.precision = name, fingerprint, precision
        self.device = torch.device(device or "cpu")
        network = HyperpriorNetwork(
            config["architecture"], config["n"], config["m"], config.get("groups")
        )
        network.drop_entropy_model()  # what became integers is not in the folder
        try:
            network.load_state_dict(
                {k.removeprefix(NETWORK): v for k, v in tensors.items() if k.startswith(NETWORK)}
            )
        except RuntimeError as error:
            raise InputError("the weights do not fit the model's configuration") from error
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.entropy_model = HyperpriorEntropyModel(
            {k.removeprefix(ENTROPY): v for k, v in tensors.items() if k.startswith(ENTROPY)}
        )
        if self.entropy_model.channels != network.m:
            raise InputError("the weights do not fit the model's configuration")
        self.halo = network.halo
        if integers is not None:
            use_integers(self.network, {k: v.to(self.device) for k, v in integers.items()})

    @property
    def _stride(self) -> int:
        """Latents along what the lowest stream is a picture of."""
        return HYPER_STRIDE if self.entropy_model.has_hyperprior else 1

    def _units(self, pixels: int) -> int:
        """Hyperlatents (latents, if there are none) along so many pixels."""
        return -(-pixels // (LATENT_STRIDE * self._stride))

    def compress(
        self,
        pixels: np.ndarray,
        quality: float = 50.0,
        *,
        tile_log2: int = DEFAULT_TILE_LOG2,
        threads: int | None = None,
        code_length: bool = False,
        keep_symbols: bool = False,
    ) -> CodedPicture:
        """Encode a picture.

        Args:
            pixels: uint8 [H, W, 3].
            quality: 1 to 100; stored, but without meaning.
            tile_log2: tiles have a side of 2**tile_log2 pixels, at least 64. The context does not
                reach across their borders, the transforms do, so there is no seam.
            threads: of the CPU; None for all.
            code_length: sum up ``CodedPicture.code_length_bits``, of the latents.
            keep_symbols: return the latents' ``CodedPicture.symbols`` and ``indexes``.

        Raises:
            InputError: an argument is out of its range.
        """
        pixels = check_picture(pixels, quality)
        if not MIN_TILE_LOG2 <= tile_log2 <= MAX_TILE_LOG2:
            raise InputError(
                f"tiles must have a side of {1 << MIN_TILE_LOG2} to {1 << MAX_TILE_LOG2} pixels"
            )
        coded = CodedPicture([], round(quality * 100), tile_log2)
        with thread_count(threads) as count, torch.inference_mode():
            for tile in cut_tiles(pixels.shape[0], pixels.shape[1], 1 << tile_log2):
                began = time.perf_counter()
                y, z = self._analyse(pixels, tile)
                end_stage(coded.seconds, "analysis", began)
                result = self.entropy_model.encode(y, z, count)
                for stage, amount in result.seconds.items():
                    add_seconds(coded.seconds, stage, amount)
                coded.streams.append(join_streams(result.streams))
                coded.num_symbols += result.num_symbols
                if code_length:
                    bits = self.entropy_model.code_length_bits(result)
                    coded.code_length_bits = (coded.code_length_bits or 0.0) + bits
                if keep_symbols:
                    coded.symbols.append(result.symbols)
                    coded.indexes.append(result.indexes)
        return coded

    def _analyse(self, pixels: np.ndarray, tile: Tile) -> tuple[Tensor, Tensor | None]:
        """Latents, float [M, h, w], and hyperlatents, [N, h / 4, w / 4]."""
        halo = self.halo * LATENT_STRIDE
        top, left = max(0, tile.top - halo), max(0, tile.left - halo)
        window = pixels[top : tile.bottom + halo, left : tile.right + halo]
        x = torch.tensor(window, device=self.device).permute(2, 0, 1)[None].float() / 255
        multiple = LATENT_STRIDE * self._stride
        # Tiles begin at multiples, so what is missing is missing at the picture's end.
        bottom, right = -x.shape[2] % multiple, -x.shape[3] % multiple
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        y = self.network.g_a(x)
        row, column = (tile.top - top) // LATENT_STRIDE, (tile.left - left) // LATENT_STRIDE
        height, width = (self._stride * self._units(s) for s in (tile.height, tile.width))
        y = y[:, :, row : row + height, column : column + width]
        if not self.entropy_model.has_hyperprior:
            return y[0], None
        z = hyperlatents(self.network, y, abs_latents=not self.entropy_model.has_means)
        return y[0], z[0]

    def decompress(
        self,
        streams: list[bytes],
        width: int,
        height: int,
        quality_code: int,
        *,
        tile_log2: int = DEFAULT_TILE_LOG2,
        threads: int | None = None,
        seconds: dict[str, float] | None = None,
    ) -> np.ndarray:
        """Decode a picture: uint8 [height, width, 3].

        Args:
            streams: one a tile, in raster order.
            width, height: in pixels.
            quality_code: without meaning.
            tile_log2, threads: as in ``compress``.
            seconds: times are added to its items ``entropy`` and ``synthesis``.

        Raises:
            CorruptStreamError: the number of streams is wrong or a stream is damaged.
        """
        sides = range(MIN_TILE_LOG2, MAX_TILE_LOG2 + 1)
        tiles = tiles_of(streams, height, width, tile_log2, sides)
        seconds = {} if seconds is None else seconds
        with thread_count(threads) as count, torch.inference_mode():
            latents: Tensor | None = None
            for tile, stream in zip(tiles, streams, strict=True):
                parts = split_streams(memoryview(stream), 1 + self.entropy_model.has_hyperprior)
                size = self._units(tile.height), self._units(tile.width)
                part = self.entropy_model.decode(parts, *size, count, seconds)
                if latents is None:  # not before a stream has made sense
                    whole = (self._stride * self._units(s) for s in (height, width))
                    latents = part.new_zeros((*whole, part.shape[2]))
                row, column = tile.top // LATENT_STRIDE, tile.left // LATENT_STRIDE
                latents[row : row + part.shape[0], column : column + part.shape[1]] = part
            began = time.perf_counter()
            pixels = np.empty((height, width, 3), np.uint8)
            for tile in tiles:
                self._synthesize(latents, tile, pixels)
            end_stage(seconds, "synthesis", began)
        return pixels

    def _synthesize(self, latents: Tensor, tile: Tile, pixels: np.ndarray) -> None:
        """Write the pixels of one tile; latents: int32 [h, w, M] of the whole picture."""
        row, column = tile.top // LATENT_STRIDE, tile.left // LATENT_STRIDE
        end_row, end_column = (-(-end // LATENT_STRIDE) for end in (tile.bottom, tile.right))
        top, left = max(0, row - self.halo), max(0, column - self.halo)
        window = latents[top : end_row + self.halo, left : end_column + self.halo]
        y = window.to(self.device).float().permute(2, 0, 1)[None] / (1 << LATENT_BITS)
        x = self.network.g_s(y)[0]
        y0, x0 = (row - top) * LATENT_STRIDE, (column - left) * LATENT_STRIDE
        x = x[:, y0 : y0 + tile.height, x0 : x0 + tile.width]
        x = (x * 255).round_().clamp_(0, 255).to(torch.uint8)
        pixels[tile.slices] = x.permute(1, 2, 0).cpu().numpy()


def save_hyperprior_model(
    folder: Path, network: HyperpriorNetwork, entropy: Mapping[str, Tensor]
) -> None:
    """Write a model folder: ``model.safetensors`` and ``model.json``.

    Args:
        folder: made where it does not exist.
        network: its transforms are stored.
        entropy: of ``export_entropy_model``.
    """
    parts = ("g_a.", "g_s.", "h_a.", "latent_codec.hyper.h_a.")
    tensors = {NETWORK + k: v for k, v in network.state_dict().items() if k.startswith(parts)}
    tensors |= {ENTROPY + k: v for k, v in entropy.items()}
    weights = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
    config = {"architecture": network.architecture, "n": network.n, "m": network.m}
    if network.groups is not None:
        config["groups"] = network.groups
    write_model_folder(folder, KIND, weights, config)


def load_hyperprior_model(
    folder: Path,
    *,
    device: str | torch.device | None = None,
    precision: str | None = None,
) -> HyperpriorCodec:
    """Load a model folder; ``precision`` is ``fp32`` if it is None.

    Raises:
        InputError: the folder holds no model, or its weights are not those that were saved.
        UnsupportedError: it holds a model of another kind, or no integers of this precision.
    """
    description, weights = read_model_folder(folder, KIND)
    precision = precision or "fp32"
    if precision not in PRECISIONS:
        raise UnsupportedError(
            f"the model {folder.name} runs in {' or '.join(PRECISIONS)}, not in {precision}"
        )
    fingerprint = hashlib.sha256(weights).digest()[:8]
    try:
        integers = None
        if precision == "int8":
            integers = safetensors.torch.load(read_weights_file(folder, precision, description))
        return HyperpriorCodec(
            safetensors.torch.load(weights),
            description["config"],
            fingerprint,
            name=folder.name,
            device=device,
            precision=precision,
            integers=integers,
        )
    except (safetensors.SafetensorError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no valid model: {error}") from error
