"""Pictures in and out: everything that Pillow reads becomes 8-bit gray or RGB, perhaps with alpha.

Pixels are never rotated: an orientation stays in the EXIF data, as it does in the ``.lci`` file.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, UnidentifiedImageError, features

from pycodec.coding.container import refuse_more_pixels
from pycodec.errors import CodecError, InputError
from pycodec.sample_depth import sample_bits

# fmt: off
PICTURE_SUFFIXES = frozenset((
    ".apng", ".avif", ".bmp", ".gif", ".j2k", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on
"""Of files that are taken for pictures in folders, in lower case."""

DEFAULT_MAX_PIXELS = 178_956_970
"""Pillow's limit for pictures, applied to files of our own too."""

EXIF_PREFIX = b"Exif\0\0"
# Pillow keeps 4 bytes a pixel, NumPy 3: copying in bands avoids a third whole copy between them.
_BAND_ROWS = 256
# What becomes gray or RGB by rounding; the last two have their alpha multiplied in.
_INEXACT_MODES = ("CMYK", "YCbCr", "HSV", "La", "RGBa")


@dataclass(eq=False)
class Picture:
    """A picture as the codecs see it.

    Attributes:
        pixels: uint8 [H, W] (gray) or [H, W, 3] (RGB).
        alpha: uint8 [H, W], or None.
        icc: ICC profile of the pixels, or None.
        exif: EXIF data, starting with the TIFF header, or None.
        xmp: XMP packet, or None.
        warnings: one line for each thing that was lost on the way here.
        exact: whether the pixels are the samples that the source had, not rounded or converted.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    warnings: list[str] = field(default_factory=list)
    exact: bool = True

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def gray(self) -> bool:
        return self.pixels.ndim == 2


# Reading


def load_image(source: str | os.PathLike | BinaryIO, *, max_pixels: int | None = None) -> Picture:
    """Read a picture file.

    Gray, RGB, palette and 1-bit pictures, with or without transparency, are exact. Samples of more
    than 8 bits are reduced to 8, CMYK is converted to RGB (through its ICC profile if it has
    one), and of an animation the first frame is taken: each with a line in ``Picture.warnings``.
    ``Picture.exact`` tells the first two.

    Args:
        source: a path, or a seekable binary file.
        max_pixels: refuse larger pictures; None keeps Pillow's guard against decompression bombs
            (about 179 million pixels).

    Raises:
        InputError: the file is missing or unreadable, not a picture, damaged, or too large.
    """
    prefix = f"{os.fspath(source)}: " if isinstance(source, str | os.PathLike) else ""
    try:
        with _pillows_guard(max_pixels), Image.open(source) as image:
            if max_pixels is not None:
                refuse_more_pixels(*image.size, max_pixels)
            return _from_pillow(image)
    except InputError as error:
        raise InputError(f"{prefix}{error}") from error
    except UnidentifiedImageError:
        fault = "not a picture, or of a kind that Pillow cannot read"
        raise InputError(
            prefix + (fault if _has_content(source) else "the file is empty")
        ) from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{prefix}{error}: raise the limit if you trust the file") from None
    except MemoryError:
        raise InputError(f"{prefix}not enough memory for this picture") from None
    except OSError as error:
        reason = error.strerror.lower() if error.errno and error.strerror else error
        raise InputError(f"{prefix}cannot be read: {reason}") from error
    except Exception as error:  # on damaged files Pillow's readers raise whatever they stumble on
        raise InputError(f"{prefix}damaged picture: {error}") from error


def from_any(image: Any) -> Picture:
    """Take a picture that is already in memory.

    Args:
        image: a :class:`Picture`; a PIL image; a uint8 array [H, W] or [H, W, C] with 1
            channel (gray), 2 (and alpha), 3 (RGB) or 4 (and alpha); or a torch tensor [H, W] or
            [C, H, W] of the same, uint8 or floating point in [0, 1].

    Raises:
        InputError: another type, shape, dtype or range.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, Image.Image):
        try:
            return _from_pillow(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"the PIL image cannot be read: {error}") from error
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported torch
    if torch is not None and isinstance(image, torch.Tensor):
        image = _tensor_to_array(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise InputError(
        "a picture must be a NumPy array, a PIL image or a torch tensor, "
        f"not {type(image).__name__} (pycodec.images.load_image reads files)"
    )


_guard_lock = threading.Lock()
_guards_off = 0
_guard: int | None = None


@contextlib.contextmanager
def _pillows_guard(max_pixels: int | None) -> Iterator[None]:
    """Puts Pillow's guard against decompression bombs out of the way of a higher limit.

    It is one for all threads: the last one to leave sets it again.
    """
    global _guards_off, _guard
    if max_pixels is None:
        yield
        return
    with _guard_lock:
        if _guards_off == 0:
            _guard, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _guards_off += 1
    try:
        yield
    finally:
        with _guard_lock:
            _guards_off -= 1
            if _guards_off == 0:
                Image.MAX_IMAGE_PIXELS = _guard


def _has_content(source: str | os.PathLike | BinaryIO) -> bool:
    if isinstance(source, str | os.PathLike):
        return os.path.getsize(source) > 0
    return source.seek(0, io.SEEK_END) > 0


def _from_pillow(image: Image.Image) -> Picture:
    if 0 in image.size:
        raise InputError(f"an empty picture ({image.width}x{image.height} pixels)")
    notes: list[str] = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        which = "the first" if image.tell() == 0 else f"number {image.tell() + 1}"
        notes.append(f"{which} of {frames} frames is taken")
    # The raw mode tells what the samples were in the file; it is forgotten when they are loaded.
    raw_mode = _raw_mode(image)
    bits = 16 if "16" in raw_mode and not raw_mode.startswith("BGR;") else sample_bits(image)
    image.load()
    icc = image.info.get("icc_profile") or None
    exif, xmp = _exif_of(image), _xmp_of(image)

    if raw_mode.startswith("LA;16") and image.mode == "RGBA":
        image = image.convert("LA")
    deep = image.mode == "F" or image.mode.startswith("I")
    exact = not deep and bits <= 8 and image.mode not in _INEXACT_MODES
    if deep:
        pixels, alpha = _reduce_to_8_bits(image, notes)
    else:
        if bits > 8:
            notes.append(f"{bits}-bit samples are reduced to 8 bits")
        if image.mode == "CMYK":
            image, icc = _cmyk_to_rgb(image, icc, notes), None
        mode = _target_mode(image)
        if image.mode in _INEXACT_MODES:
            notes.append(f"{image.mode} is converted to {mode}")
        # convert() copies even where there is nothing to convert.
        pixels, alpha = _to_arrays(image if image.mode == mode else image.convert(mode))
    if icc is not None and not _icc_fits(icc, gray=pixels.ndim == 2):
        notes.append("the ICC profile is for another kind of colour and is dropped")
        icc = None
    return Picture(pixels, alpha, icc, exif, xmp, notes, exact)


def _raw_mode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _target_mode(image: Image.Image) -> str:
    """The one of L, LA, RGB, RGBA that holds all of the picture."""
    mode = image.mode
    transparent = image.has_transparency_data
    if mode in ("1", "L", "LA", "La"):
        return "LA" if transparent or mode == "La" else "L"
    if mode in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "HSV"):
        return "RGBA" if transparent or mode == "RGBa" else "RGB"
    raise InputError(f"colour mode {mode} is not supported: convert the picture to RGB first")


def _to_arrays(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels and alpha of an L, LA, RGB or RGBA image."""
    width, height = image.size
    bands = len(image.getbands())
    has_alpha = bands in (2, 4)
    colours = bands - has_alpha
    pixels = np.empty((height, width, colours), np.uint8)
    alpha = np.empty((height, width), np.uint8) if has_alpha else None
    for top in range(0, height, _BAND_ROWS):
        rows = slice(top, min(top + _BAND_ROWS, height))
        band = np.asarray(image.crop((0, top, width, rows.stop)))
        band = band.reshape(-1, width, bands)
        pixels[rows] = band[..., :colours]
        if alpha is not None:
            alpha[rows] = band[..., -1]
    return (pixels[..., 0] if colours == 1 else pixels), alpha


def _reduce_to_8_bits(image: Image.Image, notes: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Gray images of 16-bit, 32-bit or float samples, rounded to the nearest of 256 levels."""
    samples = np.asarray(image)
    if image.mode == "F":
        # A NaN fails both comparisons.
        if not (samples.min() >= 0 and samples.max() <= 1):
            raise InputError("float samples outside [0, 1]: rescale the picture first")
        notes.append("float samples are rounded to 8 bits")
        return np.rint(samples * 255).astype(np.uint8), None
    if samples.min() < 0 or samples.max() > 0xFFFF:
        raise InputError("32-bit samples outside 0..65535: rescale the picture first")
    notes.append("16-bit samples are rounded to 8 bits")
    pixels = ((samples.astype(np.uint32) * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)
    key = image.info.get("transparency")
    alpha = np.where(samples == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
    return pixels, alpha


def _cmyk_to_rgb(image: Image.Image, icc: bytes | None, notes: list[str]) -> Image.Image:
    if icc is not None and icc[16:20] == b"CMYK" and features.check("littlecms2"):
        try:
            converted = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(icc)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except (OSError, ImageCms.PyCMSError):
            notes.append("the CMYK profile is damaged and is ignored")
        else:
            notes.append("CMYK is converted to sRGB with its ICC profile")
            return converted
    notes.append("CMYK is converted to RGB without an ICC profile")
    return image.convert("RGB")


def _icc_fits(icc: bytes, *, gray: bool) -> bool:
    """Whether the profile's colour space (bytes 16-19 of its header) is that of the pixels."""
    return icc[16:20] == (b"GRAY" if gray else b"RGB ")


def _exif_of(image: Image.Image) -> bytes | None:
    # A TIFF file's own tags describe its strips, and Pillow has applied its orientation: only
    # formats that carry EXIF data as such have some to keep.
    exif = image.info.get("exif")
    if not exif:
        return None
    return exif.removeprefix(EXIF_PREFIX)


def _xmp_of(image: Image.Image) -> bytes | None:
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if not xmp:
        return None
    return xmp.encode() if isinstance(xmp, str) else bytes(xmp)


def _tensor_to_array(tensor: Any) -> np.ndarray:
    """[H, W] or [C, H, W] tensor to a uint8 array [H, W] or [H, W, C]."""
    if tensor.ndim == 3:
        if not 1 <= tensor.shape[0] <= 4:
            raise InputError(
                f"a tensor must be [H, W] or [C, H, W] with C 1 to 4, not {list(tensor.shape)}"
            )
        tensor = tensor.permute(1, 2, 0)
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()
        if tensor.numel() and not (tensor.min() >= 0 and tensor.max() <= 1):
            raise InputError("a floating point tensor must lie in [0, 1]")
        tensor = (tensor * 255).round().byte()
    return tensor.numpy()


def _from_array(array: np.ndarray) -> Picture:
    if array.dtype != np.uint8:
        raise InputError(f"an array must be uint8, not {array.dtype}: scale it to 0..255 and cast")
    if array.ndim not in (2, 3) or (array.ndim == 3 and not 1 <= array.shape[2] <= 4):
        raise InputError(
            f"an array must be [H, W] or [H, W, C] with C 1 to 4, not {list(array.shape)}"
        )
    if array.size == 0:
        raise InputError(f"an empty picture {list(array.shape)}")
    alpha = None
    if array.ndim == 3 and array.shape[2] in (2, 4):
        alpha = np.ascontiguousarray(array[..., -1])
        array = array[..., :-1]
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return Picture(np.ascontiguousarray(array), alpha)


# Writing


@dataclass(frozen=True)
class _Format:
    """How Pillow writes a format, and what the format can hold."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    alpha: bool = True
    icc: bool = True
    exif: bool = True
    xmp: bool = True


_PNG = _Format("PNG")
_JPEG = _Format("JPEG", {"quality": 95, "subsampling": 0}, alpha=False)
_TIFF = _Format("TIFF", {"compression": "tiff_adobe_deflate"}, exif=False)
_WEBP = _Format("WEBP", {"lossless": True, "exact": True})
_BMP = _Format("BMP", alpha=False, icc=False, exif=False, xmp=False)
_PPM = _Format("PPM", alpha=False, icc=False, exif=False, xmp=False)
_FORMATS = {
    "png": _PNG,
    "jpg": _JPEG,
    "jpeg": _JPEG,
    "tif": _TIFF,
    "tiff": _TIFF,
    "webp": _WEBP,
    "bmp": _BMP,
    "ppm": _PPM,
    "pgm": _PPM,
    "pnm": _PPM,
}
WRITABLE_FORMATS = tuple(_FORMATS)


def format_of(path: str | os.PathLike) -> str:
    """The picture format that a file name asks for, one of ``WRITABLE_FORMATS``.

    Raises:
        InputError: the name has no suffix, or an unknown one.
    """
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in _FORMATS:
        raise InputError(
            f"{os.fspath(path)}: cannot write pictures of kind {suffix!r}, "
            f"use one of {', '.join(_FORMATS)}"
        )
    return suffix


def write_image(picture: Picture, file: BinaryIO, format: str) -> list[str]:
    """Write a picture to an open, seekable binary file.

    All formats are lossless except JPEG, which is written at quality 95 without chroma subsampling.

    Args:
        picture: the picture.
        file: where to.
        format: one of ``WRITABLE_FORMATS``.

    Returns:
        One line for each kind of metadata that the format cannot hold.

    Raises:
        InputError: the format is unknown or cannot hold the picture.
    """
    if format not in _FORMATS:
        raise InputError(f"unknown picture format {format!r}, use one of {', '.join(_FORMATS)}")
    spec = _FORMATS[format]
    if picture.alpha is not None and not spec.alpha:
        raise InputError(f"{spec.name} has no transparency: write PNG, WebP or TIFF")
    image = Image.fromarray(picture.pixels)
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(picture.alpha))

    options = dict(spec.options)
    lost = []
    for name in ("icc", "exif", "xmp"):
        data = getattr(picture, name)
        if data is None:
            continue
        if not getattr(spec, name):
            lost.append(f"{spec.name} cannot hold the {name.upper()} data, they are dropped")
        else:
            _add_metadata(options, spec.name, name, data)
    try:
        image.save(file, spec.name, **options)
    except (ValueError, SyntaxError) as error:
        raise InputError(f"{spec.name} cannot hold this picture: {error}") from error
    except OSError as error:
        if error.errno:
            raise
        # Pillow's encoders report their limits (size, length of metadata) without an errno.
        raise InputError(f"{spec.name} cannot hold this picture: {error}") from error
    return lost


def _add_metadata(options: dict[str, Any], format: str, name: str, data: bytes) -> None:
    if name == "icc":
        options["icc_profile"] = data
    elif name == "exif":
        options["exif"] = EXIF_PREFIX + data
    elif format == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", data.decode("utf-8", "replace"))
        options["pnginfo"] = text
    elif format == "TIFF":
        options["tiffinfo"] = {ExifTags.Base.XMLPacket: data}
    else:
        options["xmp"] = data


def save_image(picture: Picture, path: str | os.PathLike, format: str | None = None) -> list[str]:
    """Write a picture to a file, whole or not at all.

    Args:
        picture: the picture.
        path: where to; an existing file is replaced.
        format: one of ``WRITABLE_FORMATS``; by default what the name ends with.

    Returns:
        One line for each kind of metadata that the format cannot hold.

    Raises:
        InputError: the format is unknown or cannot hold the picture.
        CodecError: the file cannot be written.
    """
    chosen = format or format_of(path)
    return _write_atomically(path, lambda file: write_image(picture, file, chosen))


def atomic_write(
    path: str | os.PathLike, data: bytes, *, temporary_folder: str | os.PathLike | None = None
) -> None:
    """Write a file whole or not at all: readers see the old content or the new one.

    The data go to a temporary name, to the disk, and then to their name. On any failure, Ctrl-C
    included, the temporary file is removed and an old file stays as it was. What cannot be replaced
    (a device, a pipe) is written to directly.

    Args:
        path: where to.
        data: the content.
        temporary_folder: of the temporary name, on the same disk; by default the file's own.

    Raises:
        CodecError: the file cannot be written.
    """
    _write_atomically(path, lambda file: file.write(data), temporary_folder)


def _write_atomically(
    path: str | os.PathLike,
    write: Callable[[BinaryIO], Any],
    temporary_folder: str | os.PathLike | None = None,
) -> Any:
    try:
        with _replacing(os.path.realpath(path), temporary_folder) as file:
            return write(file)
    except OSError as error:
        raise CodecError(f"{os.fspath(path)}: cannot be written: {_write_fault(error)}") from error


_NO_FOLDER = "its folder does not exist"


def require_folder(path: str | os.PathLike) -> None:
    """To know before long work that its result has a place.

    Raises:
        CodecError: the folder that ``path`` is to be in does not exist.
    """
    if not os.path.isdir(os.path.dirname(os.path.realpath(path))):
        raise CodecError(f"{os.fspath(path)}: cannot be written: {_NO_FOLDER}")


def _write_fault(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return _NO_FOLDER
    return (error.strerror or str(error)).lower()


@contextlib.contextmanager
def _replacing(path: str, temporary_folder: str | os.PathLike | None) -> Iterator[BinaryIO]:
    """A file whose content takes the place of ``path`` when the block ends well."""
    old_mode = os.stat(path).st_mode if os.path.exists(path) else None
    if old_mode is not None and not stat.S_ISREG(old_mode):
        if stat.S_ISDIR(old_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        buffer = io.BytesIO()  # encoders seek, devices and pipes cannot
        yield buffer
        with open(path, "wb") as device:
            device.write(buffer.getbuffer())
        return
    # Not tempfile: its files are private, while 0o666 lets the kernel apply the user's umask.
    folder = os.path.dirname(path) if temporary_folder is None else temporary_folder
    temporary = os.path.join(folder, f".pycodec-{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "w+b") as file:
            if old_mode is not None:
                os.chmod(temporary, stat.S_IMODE(old_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
