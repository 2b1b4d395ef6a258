"""Finding models: by name among those in the package, or by the path of a model folder."""

from __future__ import annotations

import copyreg
import functools
import json
import pickle
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from pycodec.errors import InputError, UnsupportedError
from pycodec.models import hyperprior_codec, lossless, photo
from pycodec.models.model_folder import CONFIG_FILE, WEIGHTS, read_description

DEFAULT_MODEL = "photo"
DEFAULT_SPHERE_MODEL = "photo-sphere"
DEFAULT_LOSSLESS_MODEL = "tcae-fast"

Codec = photo.PhotoCodec | lossless.LosslessCodec | hyperprior_codec.HyperpriorCodec

_Origin = tuple[Path, str | None, str | None]
_origins: WeakKeyDictionary[Codec, _Origin] = WeakKeyDictionary()


def model_names() -> list[str]:
    """Names of the models in the package."""
    return sorted(p.parent.name for p in WEIGHTS.glob(f"*/{CONFIG_FILE}"))


@functools.lru_cache(maxsize=4)
def _load(folder: Path, device: str | None, precision: str | None) -> Codec:
    codec = _load_anew(folder, device, precision)
    _origins[codec] = folder, device, precision
    return codec


def _reduce(codec: Codec) -> tuple:
    """For pickle and copy: a model goes to another process as where it is, and is loaded there."""
    if codec not in _origins:
        raise pickle.PicklingError("only models that load_model() has loaded can be pickled")
    folder, device, precision = _origins[codec]
    name = folder.name if folder.parent == WEIGHTS.resolve() else folder
    return load_model, (name, device, precision)


for _kind in Codec.__args__:
    copyreg.pickle(_kind, _reduce)


def _load_anew(folder: Path, device: str | None, precision: str | None) -> Codec:
    kind = read_description(folder).get("kind")
    if kind == lossless.KIND:
        if precision is not None:
            raise InputError(f"the model {folder.name} is lossless: it knows no precision")
        return lossless.load_lossless_model(folder, device=device)
    if kind == hyperprior_codec.KIND:
        return hyperprior_codec.load_hyperprior_model(folder, device=device, precision=precision)
    return photo.load_photo_model(folder, device=device, precision=precision)


def model_folder(name_or_path: str | Path) -> Path:
    """Where a model is, by a name from ``model_names()`` or its folder.

    Raises:
        InputError: there is no such model.
    """
    for folder in (WEIGHTS / str(name_or_path), Path(str(name_or_path))):
        if (folder / CONFIG_FILE).is_file():
            return folder
    names = ", ".join(model_names()) or "none"
    raise InputError(f"no model {str(name_or_path)!r}; the package has: {names}")


def model_kind(name_or_path: str | Path) -> str | None:
    """What ``model.json`` says: one of the modules' ``KIND``.

    Raises:
        InputError: there is no such model.
    """
    return read_description(model_folder(name_or_path)).get("kind")


def load_model(
    name_or_path: str | Path = DEFAULT_MODEL,
    device: str | None = None,
    precision: str | None = None,
) -> Codec:
    """Load a model; loaded models are kept and shared.

    A loaded model can be pickled, to give it to another process: that loads it from where it is.

    Args:
        name_or_path: a name from ``model_names()`` or a folder that ``pycodec train`` or
            ``pycodec convert-compressai`` wrote.
        device: of the transforms, such as ``"cpu"`` or ``"cuda"``.
        precision: of the transforms: of a photo model one of ``pycodec.models.photo.PRECISIONS``,
            of a converted one ``fp32`` or ``int8``.

    Raises:
        InputError: there is no such model, or the device cannot be used.
        UnsupportedError: the model does not have the precision.
    """
    folder = model_folder(name_or_path)
    try:
        if device is not None and torch.device(device).type == "meta":
            raise RuntimeError("it keeps no data")
        return _load(folder.resolve(), None if device is None else str(device), precision)
    except (AssertionError, ImportError, RuntimeError) as error:  # torch's ways to refuse a device
        raise InputError(f"cannot use device {device!r}: {error}") from error


def find_model(
    fingerprint: bytes, device: str | None = None, precision: str | None = None
) -> Codec:
    """The model of the package whose weights have this fingerprint.

    Raises:
        UnsupportedError: none has.
    """
    for name in model_names():
        description = json.loads((WEIGHTS / name / CONFIG_FILE).read_text())
        if bytes.fromhex(description["sha256"])[:8] == fingerprint:
            return load_model(name, device, precision)
    raise UnsupportedError(
        f"the file needs a model with fingerprint {fingerprint.hex()}, which is not in this "
        "version of pycodec; pass its folder with --model, or use the version that wrote the file"
    )
