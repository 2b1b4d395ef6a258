"""The photo codec: transforms, in float or in integers, around the integer entropy model."""

from __future__ import annotations

import dataclasses
import hashlib
import numbers
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pycodec.coding.tables import TableSet
from pycodec.context.integer_entropy_model import (
    HYPER_STRIDE,
    CodedLatents,
    IntegerEntropyModel,
    to_fixed_point,
)
from pycodec.errors import CodecError, InputError, UnsupportedError
from pycodec.models.blocks import set_branch_dtype
from pycodec.models.integer_transforms import pad_to_multiple
from pycodec.models.integer_variants import Bits, VariantTransform, choose, load_selectors
from pycodec.models.model_folder import (
    WEIGHTS,
    add_weights_file,
    read_description,
    read_model_folder,
    read_weights_file,
    write_model_folder,
)
from pycodec.models.photo_network import PhotoConfig
from pycodec.models.tiling import Tile, add_seconds, cut_tiles, end_stage, thread_count, tiles_of
from pycodec.models.transforms import LATENT_STRIDE, Analysis, HyperAnalysis, Synthesis
from pycodec.ops.quadtree_stage import LATENT_FRACTION_BITS
from pycodec.quantization.bit_width import BitWidthSelector, channel_activity

ANALYSIS_HALO = 96
"""Pixels around a tile that its latents depend on (72), rounded up to whole latents, plus one."""

SYNTHESIS_HALO = 6
"""Latents around a tile that its pixels depend on (5), plus one."""

MIN_TILE_LOG2, DEFAULT_TILE_LOG2, MAX_TILE_LOG2 = 6, 10, 12
"""The largest tile bounds what a decoder must hold at once, whatever a file says."""

KIND = "photo"

FLOAT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
INTEGER_PRECISIONS = ("int8", "mixed")
PRECISIONS = (*FLOAT_DTYPES, *INTEGER_PRECISIONS)
"""What the transforms compute in. Latents that are coded decode alike in each."""

TRANSFORMS = ("analysis", "hyper_analysis", "synthesis")

BASE_SHA256 = "base.sha256"
"""Tensor of a model that is stored as what differs from another one: the SHA-256 of that."""


@dataclass
class CodedPicture:
    """What ``PhotoCodec.compress`` returns.

    Attributes:
        streams: one rANS stream a tile, tiles in raster order.
        quality_code: quality in hundredths, as the decoder needs it.
        tile_log2: log2 of the tiles' side in pixels.
        num_symbols: how many symbols the streams hold.
        code_length_bits: what an ideal coder would need for them; None unless asked for.
        symbols, indexes: one array a tile: its symbols in stream order, and the table of each;
            empty unless asked for: they take more memory than the picture.
        seconds: time by stage: ``analysis``, ``entropy``, ``rans``.
        widths: of the synthesis' weights, for ``decompress``; empty unless the model is dynamic.
    """

    streams: list[bytes]
    quality_code: int
    tile_log2: int
    num_symbols: int = 0
    code_length_bits: float | None = None
    symbols: list[np.ndarray] = field(default_factory=list)
    indexes: list[np.ndarray] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    widths: bytes = b""

    def add(self, result: CodedLatents, tables: TableSet | None = None, head: bytes = b"") -> None:
        """Take up what was coded together, as a stream that begins with ``head``.

        With ``tables``, its code length counts too.
        """
        for stage, amount in result.seconds.items():
            add_seconds(self.seconds, stage, amount)
        self.streams.append(head + result.stream)
        self.num_symbols += len(result.symbols)
        if tables is not None:
            bits = tables.cost_bits(result.symbols, result.indexes)
            self.code_length_bits = (self.code_length_bits or 0.0) + bits


class PhotoCodec:
    """A codec for photographs whose one set of weights serves every quality from 1 to 100.

    Args:
        tensors: weights, as ``save_photo_model`` writes them.
        config: widths of the networks.
        fingerprint: 8 bytes that name these weights in files.
        name: of the model.
        device: of the transforms; the entropy model runs on the CPU.
        backend: of the entropy model, ``native`` or ``reference``.
        precision: of the transforms, one of :data:`PRECISIONS`. ``bf16`` is for the residual
            branches alone; None takes it where the processor computes in it natively, else
            ``fp32``.
        integers: for ``int8`` and ``mixed``: tensors of ``export_transform``, each after the
            transform's name and a dot. The attribute holds the transforms made of them; None for
            the other precisions.

    Precision may change a decoded pixel, never a symbol. Those in integers give the same pixels on
    every machine.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: PhotoConfig,
        fingerprint: bytes,
        *,
        name: str = "photo",
        device: str | torch.device | None = None,
        backend: str = "native",
        precision: str | None = None,
        integers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.config = config
        self.device = torch.device(device or "cpu")
        self.precision = check_precision(precision)
        self.dtype = FLOAT_DTYPES.get(precision, branch_dtype(self.device))
        latents = config.latent_channels
        self.analysis = self._transform(Analysis(config.widths, latents), tensors, "analysis.")
        self.hyper_analysis = self._transform(
            HyperAnalysis(latents, config.hyper_hidden, config.hyper_channels),
            tensors,
            "hyper_analysis.",
        )
        self.synthesis = self._transform(Synthesis(config.widths, latents), tensors, "synthesis.")
        self.entropy_model = IntegerEntropyModel(_strip(tensors, "entropy."), backend)
        if self.entropy_model.latent_channels != latents:
            raise InputError("the weights do not fit the model's configuration")
        self.integers: dict[str, VariantTransform] | None = None
        self._selectors: dict[str, BitWidthSelector] = {}
        if precision in INTEGER_PRECISIONS:
            if integers is None:
                raise InputError(f"precision {precision} needs the model's integers")
            backend = None if backend == "native" else backend
            on_device = {k: v.to(self.device) for k, v in integers.items()}
            self.integers = {
                part: VariantTransform(part, _strip(on_device, f"{part}."), backend)
                for part in TRANSFORMS
            }
            self._selectors = load_selectors(integers)

    def _transform(
        self, module: nn.Module, tensors: Mapping[str, Tensor], prefix: str
    ) -> nn.Module:
        try:
            module.load_state_dict({k: v.float() for k, v in _strip(tensors, prefix).items()})
        except RuntimeError as error:  # a tensor is missing, surplus, or of another shape
            raise InputError("the weights do not fit the model's configuration") from error
        module = module.eval().requires_grad_(False)
        module = module.to(self.device, memory_format=torch.channels_last)
        set_branch_dtype(module, self.dtype, cast_weights=True)
        return module

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
            quality: 1 to 100, in steps of a hundredth.
            tile_log2: tiles have a side of 2**tile_log2 pixels, at least 64. Tiles bound the memory
                and can be decoded alone; the context does not reach across their borders, the
                transforms do, so there is no seam.
            threads: of the CPU; None for all.
            code_length: sum up ``CodedPicture.code_length_bits``.
            keep_symbols: return ``CodedPicture.symbols`` and ``indexes``.

        Raises:
            InputError: an argument is out of its range.
        """
        pixels = check_picture(pixels, quality)
        if not MIN_TILE_LOG2 <= tile_log2 <= MAX_TILE_LOG2:
            raise InputError(
                f"tiles must have a side of {1 << MIN_TILE_LOG2} to {1 << MAX_TILE_LOG2} pixels"
            )
        coded = CodedPicture([], round(quality * 100), tile_log2)
        activities = []
        with thread_count(threads) as count, torch.inference_mode():
            for tile in cut_tiles(pixels.shape[0], pixels.shape[1], 1 << tile_log2):
                result = self._compress_tile(pixels, tile, coded, count)
                if "synthesis" in self._selectors:
                    activities.append(self._synthesis_activity(result.latents, coded.quality_code))
                coded.add(result, self.entropy_model.tables if code_length else None)
                if keep_symbols:
                    coded.symbols.append(result.symbols)
                    coded.indexes.append(result.indexes)
            if activities:
                activity = sum(sums for sums, _ in activities) / sum(n for _, n in activities)
                coded.widths = self._choose_widths(activity, coded.quality_code)
        return coded

    def _synthesis_activity(self, latents: Tensor, quality_code: int) -> tuple[Tensor, int]:
        """Of what the synthesis' first layer writes: sums of magnitudes [C], and positions."""
        y = (latents.float() / (1 << LATENT_FRACTION_BITS))[None].permute(0, 3, 1, 2)
        quality = torch.tensor([quality_code / 100], device=self.device)
        x = self.synthesis.head(self.synthesis.affine_latent(y.to(self.device), quality))
        count = latents.shape[0] * latents.shape[1]
        return channel_activity(x)[0].cpu() * count, count

    def _choose_widths(self, activity: Tensor, quality_code: int) -> bytes:
        synthesis = self.integers["synthesis"]
        bits = choose(self._selectors["synthesis"], activity, quality_code)
        return synthesis.pack(synthesis.available(bits))

    def _compress_tile(
        self, pixels: np.ndarray, tile: Tile, coded: CodedPicture, threads: int
    ) -> CodedLatents:
        """Encode a tile; the time of its analysis is added to ``coded``."""
        began = time.perf_counter()
        latents, hyperlatents = self._analyse(pixels, tile, coded.quality_code)
        end_stage(coded.seconds, "analysis", began)
        return self.entropy_model.encode(latents, hyperlatents, coded.quality_code, threads)

    def _analyse(self, pixels: np.ndarray, tile: Tile, quality_code: int) -> tuple[Tensor, Tensor]:
        """Fixed-point latents, int32 [h, w, M], and hyperlatents, int32 [h / 4, w / 4, Z]."""
        top, left = max(0, tile.top - ANALYSIS_HALO), max(0, tile.left - ANALYSIS_HALO)
        window = pixels[top : tile.bottom + ANALYSIS_HALO, left : tile.right + ANALYSIS_HALO]
        if self.integers is not None:
            return self._analyse_in_integers(window, tile, (top, left), quality_code)
        x = torch.tensor(window, device=self.device)
        # [1, 3, H, W] in channels-last memory: a view of the interleaved pixels.
        x = (x.float() / 255)[None].permute(0, 3, 1, 2)
        x = _pad_to_multiple(x, LATENT_STRIDE)
        quality = torch.tensor([quality_code / 100], device=self.device)
        y = self.analysis(x, quality)
        row, column = (tile.top - top) // LATENT_STRIDE, (tile.left - left) // LATENT_STRIDE
        height, width = latents_along(tile.height), latents_along(tile.width)
        y = y[:, :, row : row + height, column : column + width]
        z = self.hyper_analysis(_pad_to_multiple(y, HYPER_STRIDE), quality)
        latents = to_fixed_point(y[0].permute(1, 2, 0)).cpu()
        return latents, torch.round(z[0].permute(1, 2, 0).float()).int().cpu()

    def _analyse_in_integers(
        self, window: np.ndarray, tile: Tile, start: tuple[int, int], quality_code: int
    ) -> tuple[Tensor, Tensor]:
        """As ``_analyse``; the window of pixels begins at ``start``."""
        # A copy: the pixels may be read-only.
        x = torch.tensor(pad_to_multiple(window, LATENT_STRIDE), device=self.device)
        analysis, bits = self.integers["analysis"], None
        if "analysis" in self._selectors:  # by tile: what is chosen here is nobody else's business
            patches = F.pixel_unshuffle(x.permute(2, 0, 1)[None].float() / 255 - 0.5, 4)
            activity = channel_activity(self.analysis.stem(patches))[0].cpu()
            chosen = choose(self._selectors["analysis"], activity, quality_code)
            bits = analysis.available(chosen)
        y = analysis(x, quality_code, bits=bits)
        row, column = (
            (tile.top - start[0]) // LATENT_STRIDE,
            (tile.left - start[1]) // LATENT_STRIDE,
        )
        height, width = latents_along(tile.height), latents_along(tile.width)
        y = y[row : row + height, column : column + width].cpu()
        padded = torch.from_numpy(pad_to_multiple(y.numpy(), HYPER_STRIDE)).to(self.device)
        z = self.integers["hyper_analysis"](padded, quality_code)
        return y.contiguous(), z.int().cpu()

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
        widths: bytes = b"",
    ) -> np.ndarray:
        """Decode a picture: uint8 [height, width, 3].

        Args:
            streams: one a tile, in raster order.
            width, height: in pixels.
            quality_code: quality in hundredths.
            tile_log2, threads: as in ``compress``.
            seconds: times are added to its items ``entropy``, ``rans`` and ``synthesis``.
            widths: ``CodedPicture.widths``, for integers; 8 bits everywhere if empty.

        Raises:
            CorruptStreamError: the number of streams is wrong or a stream is damaged.
        """
        bits = None if self.integers is None else self.integers["synthesis"].unpack(widths)
        sides = range(MIN_TILE_LOG2, MAX_TILE_LOG2 + 1)
        tiles = tiles_of(streams, height, width, tile_log2, sides)
        seconds = {} if seconds is None else seconds
        columns = -(-width // (1 << tile_log2))
        rows = len(tiles) // columns
        with thread_count(threads) as count, torch.inference_mode():

            def decode_row(row: int) -> Tensor:
                part = slice(row * columns, (row + 1) * columns)
                return self._decode_band(tiles[part], streams[part], quality_code, count, seconds)

            # Two rows of tiles at most are held, and the last latents of the one before.
            band = decode_row(0)
            above = band[:0]
            pixels = np.empty((height, width, 3), np.uint8)  # not before a stream has made sense
            for row in range(rows):
                following = decode_row(row + 1) if row + 1 < rows else band[:0]
                began = time.perf_counter()
                for tile in tiles[row * columns : (row + 1) * columns]:
                    self._synthesize((above, band, following), tile, quality_code, pixels, bits)
                end_stage(seconds, "synthesis", began)
                above, band = band[-SYNTHESIS_HALO:].clone(), following
        return pixels

    def _decode_band(
        self,
        band: list[Tile],
        streams: list[bytes],
        quality_code: int,
        threads: int,
        seconds: dict[str, float],
    ) -> Tensor:
        """Latents of one row of tiles, int32 [h, w, M]."""
        latents: Tensor | None = None
        for tile, stream in zip(band, streams, strict=True):
            height, width = latents_along(tile.height), latents_along(tile.width)
            part = self.entropy_model.decode(stream, height, width, quality_code, threads, seconds)
            if len(band) == 1:
                return part
            if latents is None:  # not before a stream has made sense
                width = sum(latents_along(tile.width) for tile in band)
                latents = part.new_empty((part.shape[0], width, part.shape[2]))
            left = tile.left // LATENT_STRIDE
            latents[:, left : left + latents_along(tile.width)] = part
        assert latents is not None
        return latents

    def _synthesize(
        self,
        bands: tuple[Tensor, Tensor, Tensor],
        tile: Tile,
        quality_code: int,
        pixels: np.ndarray,
        bits: Bits | None,
    ) -> None:
        """Write the pixels of one tile.

        ``bands`` are the latents above, of, and below its row of tiles, each [h, w, M]. Those above
        are the halo, those below at least that.
        """
        above, band, below = bands
        below = below[:SYNTHESIS_HALO]
        start = tile.left // LATENT_STRIDE
        left = max(0, start - SYNTHESIS_HALO)
        right = start + latents_along(tile.width) + SYNTHESIS_HALO
        window = torch.cat([rows[:, left:right] for rows in (above, band, below)]).to(self.device)
        row, column = above.shape[0] * LATENT_STRIDE, (start - left) * LATENT_STRIDE
        if self.integers is not None:
            x = self.integers["synthesis"](window.contiguous(), quality_code, bits=bits)
            x = x[row : row + tile.height, column : column + tile.width]
            pixels[tile.slices] = x.cpu().numpy()
            return
        y = (window.float() / (1 << LATENT_FRACTION_BITS))[None].permute(0, 3, 1, 2)
        quality = torch.tensor([quality_code / 100], device=self.device)
        x = self.synthesis(y, quality)
        x = x[0, :, row : row + tile.height, column : column + tile.width]
        x = (x.float() * 255).round_().clamp_(0, 255).to(torch.uint8)
        pixels[tile.slices] = x.permute(1, 2, 0).cpu().numpy()


def check_precision(precision: str | None) -> str | None:
    """Of a codec.

    Raises:
        InputError: there is no such precision.
    """
    if precision is not None and precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    return precision


def check_picture(pixels: np.ndarray, quality: float) -> np.ndarray:
    """The pixels of ``compress``, perhaps in other memory: PyTorch takes no negative strides.

    Raises:
        InputError: ``pixels`` are not uint8 [H, W, 3], or ``quality`` is not in 1 to 100.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputError(f"expected uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    if not isinstance(quality, numbers.Real) or not 1 <= quality <= 100:
        raise InputError(f"quality must be 1 to 100, not {quality!r}")
    return np.ascontiguousarray(pixels) if min(pixels.strides) < 0 else pixels


def latents_along(pixels: int) -> int:
    """Latents for so many pixels in a row or column."""
    return -(-pixels // LATENT_STRIDE)


def _pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the right and bottom edges of ``[1, C, H, W]`` up to a multiple."""
    bottom, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    if bottom or right:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    return x.contiguous(memory_format=torch.channels_last)


def _strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def branch_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is computed natively: elsewhere it is slower than float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and _cpu_has_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def _cpu_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def save_photo_model(
    folder: Path, tensors: Mapping[str, Tensor], config: PhotoConfig, base: str | None = None
) -> None:
    """Write a model folder: ``model.safetensors`` and ``model.json``.

    Args:
        folder: of the model.
        tensors: all of it.
        config: of the networks.
        base: a model of the package: only the tensors that differ from its own are written, and the
            SHA-256 of its weights, so that the fingerprint stands for all of them.
    """
    if base is not None:
        description, weights = read_model_folder(WEIGHTS / base, KIND)
        theirs = safetensors.torch.load(weights)
        tensors = {k: v for k, v in tensors.items() if k not in theirs or not _same(v, theirs[k])}
        tensors[BASE_SHA256] = torch.tensor(list(bytes.fromhex(description["sha256"]))).byte()
    weights = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
    write_model_folder(folder, KIND, weights, dataclasses.asdict(config), base)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def read_photo_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], bytes]:
    """All tensors of a model folder, its configuration, and its fingerprint.

    Raises:
        InputError: the folder holds no model, or its weights are not those that were saved.
        UnsupportedError: it holds a model of another kind, or one whose base this version of the
            package does not have.
    """
    description, weights = read_model_folder(folder, KIND)
    try:
        tensors = safetensors.torch.load(weights)
        config = description["config"]
    except (safetensors.SafetensorError, KeyError) as error:
        raise InputError(f"{folder} holds no valid model: {error}") from error
    if description.get("base") is not None:
        tensors = (
            _base_tensors(folder, description["base"], tensors.pop(BASE_SHA256, None)) | tensors
        )
    return tensors, config, hashlib.sha256(weights).digest()[:8]


def _base_tensors(folder: Path, base: str, sha256: Tensor | None) -> dict[str, Tensor]:
    try:
        description, weights = read_model_folder(WEIGHTS / base, KIND)
        if sha256 is None or bytes(sha256.tolist()).hex() != description["sha256"]:
            raise InputError("these are other weights")
    except (CodecError, TypeError, ValueError) as error:
        raise UnsupportedError(
            f"{folder} completes the model {base!r}, which this version of pycodec lacks: {error}"
        ) from error
    return safetensors.torch.load(weights)


def save_integers(folder: Path, precision: str, tensors: Mapping[str, Tensor]) -> None:
    """Add the integers of a precision to a model folder: ``PRECISION.safetensors``."""
    weights = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
    add_weights_file(folder, precision, weights)


def load_photo_model(
    folder: Path,
    *,
    device: str | torch.device | None = None,
    backend: str = "native",
    precision: str | None = None,
) -> PhotoCodec:
    """Load a model folder.

    Raises:
        InputError: the folder holds no model, or its weights are not those that were saved.
        UnsupportedError: it holds a model of another kind, no integers of this precision, or only
            what differs from a model that this version of the package does not have.
    """
    check_precision(precision)
    tensors, widths, fingerprint = read_photo_tensors(folder)
    try:
        config = PhotoConfig(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in widths.items()}
        )
        integers = None
        if precision in INTEGER_PRECISIONS:
            integers = safetensors.torch.load(
                read_weights_file(folder, precision, read_description(folder))
            )
    except (safetensors.SafetensorError, AttributeError, TypeError) as error:
        raise InputError(f"{folder} holds no valid model: {error}") from error
    return PhotoCodec(
        tensors,
        config,
        fingerprint,
        name=folder.name,
        device=device,
        backend=backend,
        precision=precision,
        integers=integers,
    )
