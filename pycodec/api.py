"""Encoding pictures to files and back."""

from __future__ import annotations

import numbers
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pycodec.coding.alpha import decode_alpha, encode_alpha
from pycodec.coding.container import Codec, Container, Header, pack, peek, unpack
from pycodec.errors import CorruptStreamError, InputError, UnsupportedError
from pycodec.images import Picture, from_any
from pycodec.models.hyperprior_codec import KIND as HYPERPRIOR
from pycodec.models.hyperprior_codec import HyperpriorCodec
from pycodec.models.lossless import LosslessCodec
from pycodec.models.photo import DEFAULT_TILE_LOG2, INTEGER_PRECISIONS, PhotoCodec
from pycodec.models.sphere import DEFAULT_BAND_LOG2, SphereCodec, grid_size
from pycodec.models.tiling import end_stage
from pycodec.models.zoo import (
    DEFAULT_LOSSLESS_MODEL,
    DEFAULT_MODEL,
    DEFAULT_SPHERE_MODEL,
    find_model,
    load_model,
    model_kind,
)
from pycodec.projection.metadata import PROJECTIONS, is_equirectangular
from pycodec.projection.viewport import Viewport
from pycodec.projection.widths import TileWidths

CODECS = (PhotoCodec, LosslessCodec, HyperpriorCodec)
LoadedModel = PhotoCodec | LosslessCodec | HyperpriorCodec
Model = str | Path | LoadedModel
Widths = str | Path | TileWidths

_CODEC_OF = {
    PhotoCodec: Codec.PHOTO,
    LosslessCodec: Codec.LOSSLESS,
    HyperpriorCodec: Codec.HYPERPRIOR,
}

__all__ = [
    "decode",
    "decode_picture",
    "encode",
    "encode_picture",
    "encoding_model",
    "find_model",
    "load_model",
    "view",
]


@dataclass
class EncodeStats:
    """What an encoding took.

    Attributes:
        seconds: by stage: ``analysis``, ``entropy``, ``rans``, ``container``; lossless:
            ``adaptation`` and ``context`` instead of the first two.
        symbols: number of symbols coded.
        code_length_bits: what an ideal coder would need with the model's tables; None unless asked
            for.
    """

    seconds: dict[str, float]
    symbols: int
    code_length_bits: float | None = None


@dataclass
class DecodeStats:
    """What a decoding took: seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)


def encode(
    image: Any,
    quality: float = 50,
    *,
    lossless: bool = False,
    model: Model | None = None,
    device: str | None = None,
    threads: int | None = None,
    projection: str = "auto",
    widths: Widths | None = None,
    precision: str | None = None,
    exact_pixels: bool = False,
) -> bytes | list[bytes]:
    """Encode a picture to the bytes of an ``.lci`` file.

    Args:
        image: uint8 array [H, W] or [H, W, C] with C 1 to 4, of which 2 and 4 end with alpha; a PIL
            image; a tensor [C, H, W] or [H, W], uint8 or float in [0, 1]; or a list of them.
        quality: 1 (smallest file) to 100 (best picture), any number between.
        lossless: keep every pixel as it is; ``quality`` has no meaning then.
        model: name, folder, or a loaded model; None for the package's own: ``photo``,
            ``photo-sphere`` on the sphere, and ``tcae-fast`` for lossless coding.
        device: of the transforms, or of a lossless codec's networks, such as ``"cuda"``; None for
            the CPU.
        threads: of the CPU; None for all.
        projection: ``erp`` for an equirectangular picture of the whole sphere, ``none`` for any
            other; ``auto`` believes the picture's XMP metadata. Lossless coding knows none.
        widths: of the tiles of a sphere: a preset or a file, see
            :meth:`pycodec.projection.widths.TileWidths.load`, or a ``TileWidths``; None for those
            that suit the picture and the quality.
        precision: of the transforms: ``fp32``, ``bf16`` (in residual branches), ``int8`` or
            ``mixed``; None for the faster of the first two. Every file decodes in each. Converted
            models have ``fp32`` and ``int8``, None is ``fp32``.
        exact_pixels: analyse in integers, and tell decoders to synthesize in integers: all get the
            same pixels. ``precision`` is ``int8`` unless ``mixed`` is asked for.

    Returns:
        The file; a list of files for a list.

    Raises:
        CodecError: the picture or an argument cannot be used.
    """
    options = {
        "lossless": lossless,
        "model": model,
        "device": device,
        "threads": threads,
        "projection": projection,
        "widths": widths,
        "precision": precision,
        "exact_pixels": exact_pixels,
    }
    if isinstance(image, list):
        return [encode(i, quality, **options) for i in image]
    data, _ = encode_picture(from_any(image), quality, **options)
    return data


def decode(
    data: bytes | list[bytes],
    *,
    device: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    exact_pixels: bool = False,
) -> np.ndarray | list[np.ndarray]:
    """Decode an ``.lci`` file.

    Args:
        data: the bytes of a file, or a list of files.
        device, threads: as in :func:`encode`.
        precision: of the synthesis; None for what the file asks for, mostly nothing: see
            :func:`encode`.
        exact_pixels: synthesize in integers, so that every machine gets the same pixels; those of
            lossless files are so anyway.

    Returns:
        uint8 [H, W] for a gray picture, [H, W, 3] for colour, [H, W, 2] and [H, W, 4] with alpha;
        a list for a list.

    Raises:
        CorruptStreamError: the file is damaged or truncated.
        UnsupportedError: the file needs another version or model.
    """
    if isinstance(data, list):
        return [
            decode(
                item,
                device=device,
                threads=threads,
                precision=precision,
                exact_pixels=exact_pixels,
            )
            for item in data
        ]
    picture, _ = decode_picture(
        data, device=device, threads=threads, precision=precision, exact_pixels=exact_pixels
    )
    if picture.alpha is None:
        return picture.pixels
    pixels = picture.pixels if picture.pixels.ndim == 3 else picture.pixels[..., None]
    return np.concatenate([pixels, picture.alpha[..., None]], axis=2)


def encode_picture(
    picture: Picture,
    quality: float,
    *,
    lossless: bool = False,
    model: Model | None = None,
    device: str | None = None,
    threads: int | None = None,
    tile: int | None = None,
    code_length: bool = False,
    projection: str = "auto",
    widths: Widths | None = None,
    precision: str | None = None,
    exact_pixels: bool = False,
) -> tuple[bytes, EncodeStats]:
    """Encode a picture with its metadata; see :func:`encode` for the other arguments.

    Args:
        tile: side of the tiles in pixels, a power of two of at least 64 (lossless: to 1024); None
            for 1024. Of a sphere: rows of a band, 64 to 4096; None for 512.
        code_length: compute ``EncodeStats.code_length_bits``, which takes a few milliseconds.
    """
    precision = _exact_precision(model, precision, exact_pixels)
    codec = encoding_model(model, lossless, device, precision)
    pixels = picture.pixels
    sphere = is_sphere(picture, projection, codec)
    if sphere and model is None:
        codec = load_model(DEFAULT_SPHERE_MODEL, device, precision)
    if widths is not None and not sphere:
        raise InputError("widths are those of a sphere's tiles: add projection erp")
    tile_log2 = _tile_log2(tile, DEFAULT_BAND_LOG2 if sphere else DEFAULT_TILE_LOG2)
    if lossless:
        if not picture.exact:
            raise InputError(
                "lossless coding keeps samples of 8 bits, gray or RGB, and this picture's are "
                "others: convert it first (" + "; ".join(picture.warnings) + ")"
            )
        coded = codec.compress(
            pixels, tile_log2=tile_log2, threads=threads, code_length=code_length
        )
    else:
        if picture.gray:
            pixels = np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
        coder, options = codec, {}
        if sphere:
            coder = SphereCodec(codec)
            if widths is not None:
                widths = widths if isinstance(widths, TileWidths) else TileWidths.load(widths)
                options["widths"] = widths.in_units(*grid_size(*pixels.shape[:2]))
        coded = coder.compress(
            pixels,
            quality,
            tile_log2=tile_log2,
            threads=threads,
            code_length=code_length,
            **options,
        )
    began = time.perf_counter()
    header = Header(
        codec=Codec.SPHERE if sphere else _CODEC_OF[type(codec)],
        fingerprint=codec.fingerprint,
        width=picture.width,
        height=picture.height,
        gray=picture.gray,
        alpha=picture.alpha is not None,
        bit_depth=8,
        quality=coded.quality_code,
        tile_log2=coded.tile_log2,
    )
    alpha = None if picture.alpha is None else encode_alpha(picture.alpha)
    data = pack(
        Container(
            header,
            coded.streams,
            icc=picture.icc,
            exif=picture.exif,
            xmp=picture.xmp,
            alpha=alpha,
            precision=_pack_precision(codec.precision, coded.widths) if exact_pixels else None,
        )
    )
    end_stage(coded.seconds, "container", began)
    return data, EncodeStats(coded.seconds, coded.num_symbols, coded.code_length_bits)


def decode_picture(
    data: bytes,
    *,
    model: Model | None = None,
    device: str | None = None,
    threads: int | None = None,
    rows: tuple[int, int] | None = None,
    precision: str | None = None,
    exact_pixels: bool = False,
) -> tuple[Picture, DecodeStats]:
    """Decode a file to a picture with its metadata.

    Args:
        data: the bytes of a file.
        model: where the file's model is, if it is none of the package's.
        device, threads: as in :func:`encode`.
        precision, exact_pixels: as in :func:`decode`.
        rows: return these rows only, the first and the one after the last. Of a sphere only what
            they need is decoded.
    """
    began = time.perf_counter()
    try:
        view = memoryview(data).cast("B")
    except TypeError as error:
        raise InputError(f"expected the bytes of a file, got {type(data).__name__}") from error
    container = unpack(view)
    header = container.header
    if header.bit_depth != 8:
        raise UnsupportedError(
            f"the file has {header.bit_depth} bits a sample, which this version cannot decode; "
            "update pycodec"
        )
    stats = DecodeStats()
    end_stage(stats.seconds, "container", began)
    options = {}
    if container.precision is not None and precision in (None, *INTEGER_PRECISIONS):
        asked, widths = unpack_precision(container.precision)
        precision = precision or asked
        if precision == asked and widths:
            options["widths"] = widths
    if header.codec != Codec.LOSSLESS:  # whose pixels are exact in any case
        precision = _exact_precision(model, precision, exact_pixels)
    codec = _decoding_model(header, model, device, precision)
    if rows is not None and not 0 <= rows[0] < rows[1] <= header.height:
        raise InputError(f"the picture has {header.height} rows, not {rows[0]} to {rows[1] - 1}")
    own = slice(None) if rows is None else slice(*rows)
    if header.codec == Codec.LOSSLESS:
        pixels = codec.decompress(
            container.streams,
            header.width,
            header.height,
            gray=header.gray,
            tile_log2=header.tile_log2,
            threads=threads,
            seconds=stats.seconds,
        )[own]
    else:
        sizes = (header.width, header.height, header.quality)
        options |= {"tile_log2": header.tile_log2, "threads": threads, "seconds": stats.seconds}
        if header.codec == Codec.SPHERE:
            sphere = SphereCodec(codec)
            pixels = sphere.decompress(container.streams, *sizes, rows=rows, **options)
        else:
            pixels = codec.decompress(container.streams, *sizes, **options)[own]
        if header.gray:
            pixels = _mean_of_channels(pixels)
    alpha = None
    if header.alpha:
        alpha = decode_alpha(container.alpha, header.width, header.height)[own]
    picture = Picture(pixels, alpha, icc=container.icc, exif=container.exif, xmp=container.xmp)
    return picture, stats


def view(
    source: bytes | Picture,
    viewport: Viewport,
    *,
    model: Model | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> tuple[Picture, DecodeStats]:
    """What a camera in the middle of the sphere sees of an equirectangular picture.

    Args:
        source: the bytes of an ``.lci`` file, of which only what the view needs is decoded if it
            was coded as a sphere; or a picture.
        viewport: the camera.
        model, device, threads: as in :func:`decode_picture`.

    Returns:
        The view, with the picture's alpha and ICC profile, and what decoding took.
    """
    stats = DecodeStats()
    first, height = 0, None
    if not isinstance(source, Picture):
        height = peek(source).height
        rows = viewport.rows(height)
        source, stats = decode_picture(
            source, model=model, device=device, threads=threads, rows=rows
        )
        first = rows[0]
    began = time.perf_counter()
    pixels, alpha = (
        None if plane is None else viewport.render(plane, first_row=first, height=height)
        for plane in (source.pixels, source.alpha)
    )
    stats.seconds["view"] = time.perf_counter() - began
    return Picture(pixels, alpha, icc=source.icc), stats


def _mean_of_channels(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to uint8 [H, W], rounded; the sums are no larger than the pixels."""
    total = pixels[..., 0].astype(np.uint16)
    total += pixels[..., 1]
    total += pixels[..., 2]
    total += 1  # no sum of three lies halfway, so this rounds to nearest
    total //= 3
    return total.astype(np.uint8)


def _exact_precision(model: Model | None, precision: str | None, exact_pixels: bool) -> str | None:
    if exact_pixels and _is_converted(model):
        raise InputError(
            f"the model {getattr(model, 'name', model)} has layers in floating point in every "
            "precision (GDN, attention): its pixels may differ from machine to machine in the "
            "last bit and cannot be exact"
        )
    if not exact_pixels or precision in INTEGER_PRECISIONS:
        return precision
    if precision is not None:
        raise InputError(f"exact pixels need integers, not {precision}: leave the precision out")
    return INTEGER_PRECISIONS[0]


def _is_converted(model: Model | None) -> bool:
    if model is None or isinstance(model, CODECS):
        return isinstance(model, HyperpriorCodec)
    return model_kind(model) == HYPERPRIOR


def _pack_precision(precision: str, widths: bytes) -> bytes:
    return bytes([1 + INTEGER_PRECISIONS.index(precision)]) + widths


def unpack_precision(section: bytes) -> tuple[str, bytes]:
    """What ``Container.precision`` says: it, and the widths of a dynamic model's synthesis.

    Raises:
        UnsupportedError: it is none that this version knows.
    """
    if not section or not 1 <= section[0] <= len(INTEGER_PRECISIONS):
        raise UnsupportedError(
            "the file asks for a precision that this version does not know: update pycodec, or "
            "name one, and its pixels may differ in the last bits",
            section="precision",
        )
    return INTEGER_PRECISIONS[section[0] - 1], section[1:]


def encoding_model(
    model: Model | None, lossless: bool, device: str | None, precision: str | None = None
) -> LoadedModel:
    """The model that :func:`encode` takes for these arguments.

    Raises:
        InputError: there is none, it is of the other kind, or the device cannot be used.
    """
    if model is None:
        model = DEFAULT_LOSSLESS_MODEL if lossless else DEFAULT_MODEL
    codec = _loaded(model, device, precision)
    if lossless != isinstance(codec, LosslessCodec):
        raise InputError(
            f"the model {codec.name} is not lossless"
            if lossless
            else f"the model {codec.name} is lossless: ask for lossless coding to use it"
        )
    return codec


def _loaded(model: Model, device: str | None, precision: str | None) -> LoadedModel:
    if not isinstance(model, CODECS):
        return load_model(model, device, precision)
    if precision is not None and precision != getattr(model, "precision", None):
        raise InputError(f"the model {model.name} was loaded with another precision")
    if device is not None and not _is_device(device, model.device):
        raise InputError(f"the model {model.name} is on {model.device}, not on {device!r}")
    return model


def _is_device(name: str, device: torch.device) -> bool:
    """Whether a device goes by this name; one without a number stands for all of its type."""
    try:
        asked = torch.device(name)
    except RuntimeError:
        return False
    return asked.type == device.type and asked.index in (None, device.index or 0)


def _decoding_model(
    header: Header, model: Model | None, device: str | None, precision: str | None
) -> LoadedModel:
    if model is None:
        codec = find_model(header.fingerprint, device, precision)
    else:
        codec = _loaded(model, device, precision)
    if codec.fingerprint != header.fingerprint:
        raise UnsupportedError(
            f"the file was made with model {header.fingerprint.hex()}, not with {codec.name} "
            f"({codec.fingerprint.hex()})"
        )
    own = Codec.PHOTO if header.codec == Codec.SPHERE else header.codec
    if own != _CODEC_OF[type(codec)]:
        raise CorruptStreamError(
            f"the file names another codec than that of its model {codec.name}", section="header"
        )
    return codec


def is_sphere(picture: Picture, projection: str, codec: LoadedModel) -> bool:
    """Whether :func:`encode_picture` codes a picture as a sphere.

    Raises:
        InputError: there is no such projection, or the model knows none.
    """
    if projection not in PROJECTIONS:
        raise InputError(f"projection must be one of {', '.join(PROJECTIONS)}, not {projection!r}")
    is_photo = isinstance(codec, PhotoCodec)
    if projection == "erp" and not is_photo:
        kind = "lossless coding" if isinstance(codec, LosslessCodec) else f"the model {codec.name}"
        raise InputError(f"{kind} knows no projection: leave it out")
    if projection == "auto":
        return is_photo and is_equirectangular(picture.xmp)
    return projection == "erp"


def _tile_log2(tile: int | None, default: int) -> int:
    if tile is None:
        return default
    if not isinstance(tile, numbers.Integral) or tile < 64 or tile & (tile - 1):
        raise InputError(f"the tile size must be a power of two of at least 64, not {tile!r}")
    return int(tile).bit_length() - 1
