"""A model on disk: ``model.safetensors`` with its numbers, ``model.json`` that describes it.

Besides there may be files of weights in other forms, ``NAME.safetensors`` each, whose hashes stand
under ``files`` in the description. The model's fingerprint is that of ``model.safetensors`` alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pycodec.errors import InputError, UnsupportedError

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "model.json"

WEIGHTS = Path(__file__).parent / "weights"
"""Folders of the package's models, by name."""


def write_model_folder(
    folder: Path, kind: str, weights: bytes, config: dict[str, Any], base: str | None = None
) -> None:
    """Write both files; ``weights`` are the bytes of the safetensors file.

    ``base`` names the model of the package whose tensors complete them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(weights)
    description = {"kind": kind, "sha256": hashlib.sha256(weights).hexdigest(), "config": config}
    if base is not None:
        description["base"] = base
    (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n")


def read_description(folder: Path) -> dict[str, Any]:
    """What ``model.json`` says.

    Raises:
        InputError: the folder holds no model.
    """
    try:
        description = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:  # no file, no UTF-8, no JSON
        raise InputError(f"{folder} is not a model folder: {error}") from error
    if not isinstance(description, dict):
        raise InputError(f"{folder} is not a model folder: {CONFIG_FILE} describes no model")
    return description


def read_model_folder(folder: Path, kind: str) -> tuple[dict[str, Any], bytes]:
    """The description and the checked bytes of the safetensors file.

    Raises:
        InputError: the folder holds no model, or its weights are not those that were saved.
        UnsupportedError: it holds a model of another kind.
    """
    description = read_description(folder)
    if description.get("kind") != kind:
        raise UnsupportedError(f"{folder} holds a model of kind {description.get('kind')!r}")
    try:
        weights = (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise InputError(f"{folder} is not a model folder: {error}") from error
    if hashlib.sha256(weights).hexdigest() != description.get("sha256"):
        raise InputError(f"{folder / WEIGHTS_FILE} is damaged: its SHA-256 is not the recorded one")
    return description, weights


def add_weights_file(folder: Path, name: str, weights: bytes) -> None:
    """Write ``NAME.safetensors`` into a model folder and its hash into the description."""
    description = read_description(folder)
    files = {**description.get("files", {}), name: hashlib.sha256(weights).hexdigest()}
    (folder / f"{name}.safetensors").write_bytes(weights)
    description["files"] = dict(sorted(files.items()))
    (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n")


def read_weights_file(folder: Path, name: str, description: dict[str, Any]) -> bytes:
    """The checked bytes of ``NAME.safetensors``.

    Raises:
        UnsupportedError: the model has no such file.
        InputError: it is missing, or not the one that was saved.
    """
    recorded = description.get("files", {}).get(name)
    if recorded is None:
        raise UnsupportedError(
            f"the model {folder.name} has no weights for {name}: pycodec quantize makes them"
        )
    path = folder / f"{name}.safetensors"
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if hashlib.sha256(weights).hexdigest() != recorded:
        raise InputError(f"{path} is damaged: its SHA-256 is not the recorded one")
    return weights
