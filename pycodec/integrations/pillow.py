"""The ``.lci`` format for Pillow: ``import pycodec.integrations.pillow``, then as any other.

>>> import pycodec.integrations.pillow
>>> from PIL import Image
>>> Image.new("RGB", (64, 48), "teal").save("teal.lci", quality=60)  # doctest: +SKIP
>>> Image.open("teal.lci").size  # doctest: +SKIP
(64, 48)

Opening reads the header and the metadata; the tiles are read, checked and decoded when the pixels
are asked for. What goes wrong with a file is an ``OSError``, as Pillow's users expect; its cause is
the :class:`~pycodec.errors.CodecError`.
"""

from __future__ import annotations

import warnings
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile

from pycodec.coding.container import MAGIC, SUFFIX, Header, read_metadata, unpack
from pycodec.errors import CodecError, CorruptStreamError
from pycodec.images import EXIF_PREFIX, from_any

FORMAT = "LCI"
MIME_TYPE = "image/x-lci"

# Module globals, since Image.open takes no options (Pillow issue 569).
DEVICE: str | None = None
"""Of the decoder's transforms, such as ``"cuda"``; None for the CPU."""
THREADS: int | None = None
"""Of the decoder; None for all."""

_DEFAULT_QUALITY = 50


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


class LciImageFile(ImageFile.ImageFile):
    """A picture from an ``.lci`` file: mode L, LA, RGB or RGBA."""

    format = FORMAT
    format_description = "pycodec learned image compression"

    def _open(self) -> None:
        try:
            header, metadata = read_metadata(self.fp)
        except CorruptStreamError as error:
            raise SyntaxError(str(error)) from error  # Pillow: "cannot identify image file"
        except CodecError as error:
            raise OSError(str(error)) from error
        self._size = header.width, header.height
        self._mode = _mode(header)
        if metadata["icc"]:
            self.info["icc_profile"] = metadata["icc"]
        if metadata["exif"]:
            self.info["exif"] = EXIF_PREFIX + metadata["exif"]
        if metadata["xmp"]:
            self.info["xmp"] = metadata["xmp"]
        self.tile = [ImageFile._Tile(FORMAT, (0, 0, *self.size), 0, ())]

    def load_seek(self, pos: int) -> None:
        # Its presence tells Pillow's incremental parser to wait for the whole file.
        self.fp.seek(pos)

    def verify(self) -> None:
        """Check every byte of the file against its checksums, without decoding it.

        Raises:
            OSError: the file is damaged or truncated.
        """
        if self.fp is None:
            raise RuntimeError("verify must be called directly after open")
        try:
            self.fp.seek(0)
            unpack(self.fp.read())
        except CodecError as error:
            raise OSError(str(error)) from error
        finally:
            super().verify()


class _Decoder(ImageFile.PyDecoder):
    """Decodes a whole file at once."""

    _pulls_fd = True

    def decode(self, buffer: Any) -> tuple[int, int]:
        from pycodec import api

        try:
            picture, _ = api.decode_picture(self.fd.read(), device=DEVICE, threads=THREADS)
        except CodecError as error:
            raise OSError(str(error)) from error
        pixels = picture.pixels
        if picture.alpha is not None:
            pixels = np.dstack([pixels, picture.alpha])
        left, top, right, bottom = self.state.extents()
        if pixels.shape[:2] != (bottom - top, right - left):
            raise OSError("the file has changed since it was opened")
        self.set_as_raw(np.ascontiguousarray(pixels))
        return -1, 0


def _mode(header: Header) -> str:
    return ("L" if header.gray else "RGB") + ("A" if header.alpha else "")


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    """``image.save(..., "LCI")``; the options are listed in ``docs/integrations.md``."""
    from pycodec import api

    options = image.encoderinfo
    picture = from_any(image)
    for note in picture.warnings:
        warnings.warn(note, stacklevel=3)
    # What is not said stays as it is; None or nothing leaves it out.
    if "icc_profile" in options:
        picture.icc = options["icc_profile"] or None
    if "exif" in options:
        picture.exif = _exif_bytes(options["exif"])
    if "xmp" in options:
        xmp = options["xmp"]
        picture.xmp = (xmp.encode() if isinstance(xmp, str) else xmp) or None
    try:
        data, _ = api.encode_picture(
            picture,
            options.get("quality", _DEFAULT_QUALITY),
            lossless=bool(options.get("lossless", False)),
            model=options.get("model"),
            device=options.get("device"),
            threads=options.get("threads"),
            tile=options.get("tile"),
        )
    except ValueError:  # InputError: an option is wrong
        raise
    except CodecError as error:
        raise OSError(str(error)) from error
    file.write(data)
    if hasattr(file, "flush"):
        file.flush()


def _exif_bytes(exif: Image.Exif | bytes | None) -> bytes | None:
    data = exif.tobytes() if isinstance(exif, Image.Exif) else exif
    return data.removeprefix(EXIF_PREFIX) or None if data else None


def register() -> None:
    """Make the format known to Pillow; importing this module does it."""
    Image.register_open(FORMAT, LciImageFile, _accept)
    Image.register_decoder(FORMAT, _Decoder)
    Image.register_save(FORMAT, _save)
    Image.register_extension(FORMAT, SUFFIX)
    Image.register_mime(FORMAT, MIME_TYPE)


register()
