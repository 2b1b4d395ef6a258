"""A model on disk: ``model.safetensors`` with all numbers, ``model.json`` that describes it."""

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
