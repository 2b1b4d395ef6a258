"""Command line options from the fields of a dataclass."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields


def add_options(parser: argparse.ArgumentParser, options: type, texts: Mapping[str, str]) -> None:
    """An option for each field of the dataclass that has a text, with its type and default."""
    for option in fields(options):
        if option.name in texts:
            parser.add_argument(
                "--" + option.name.replace("_", "-"),
                type=type(option.default),
                default=option.default,
                help=f"{texts[option.name]} (default: %(default)s)",
            )
