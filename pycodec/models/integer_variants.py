"""Integer transforms whose residual branches have weights of several widths.

Besides the tensors of layer ``L`` a model may hold those of variants ``L@6`` and ``L@4``, see
``docs/quantization.md``. An encoder chooses for each picture; what it chose for the synthesis
stands in the file, so that decoders get the same pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pycodec.errors import CorruptStreamError, InputError
from pycodec.models.integer_transforms import PROGRAMS, Convolve, IntegerTransform
from pycodec.projection.grid import SphereGrid
from pycodec.quantization.bit_width import WIDTHS, BitWidthSelector

Bits = tuple[int, ...]
"""Of the weights of :func:`branch_layers`, in their order."""

_KEPT_READY = 4
_CODES = {WIDTHS[-1 - code]: code for code in range(len(WIDTHS))}
"""Two bits a layer in files: 0 for 8 bits, 1 for 6, 2 for 4."""


def branch_layers(transform: str) -> list[str]:
    """Names within the transform of the layers of residual branches, whose width is a choice."""
    layers = [step.layer for step in PROGRAMS[transform] if isinstance(step, Convolve)]
    return [name for name in layers if name.startswith("block")]


class VariantTransform:
    """An :class:`IntegerTransform` for each choice of widths, made when it is needed.

    Args:
        name: ``analysis``, ``hyper_analysis`` or ``synthesis``.
        tensors: of the transform, with those of its variants.
        backend: as of :class:`IntegerTransform`.

    Attributes:
        variants: of each of :func:`branch_layers` the narrower widths it has, mostly none.

    Raises:
        InputError: a tensor is missing or does not fit.
    """

    def __init__(
        self, name: str, tensors: Mapping[str, Tensor], backend: str | None = None
    ) -> None:
        self.name, self.backend, self._tensors = name, backend, tensors
        layers = branch_layers(name)
        found: dict[str, set[int]] = {layer: set() for layer in layers}
        for key in tensors:
            layer, at, rest = key.partition("@")
            bits = rest.partition(".")[0]
            if at:
                if layer not in found or not bits.isdecimal():
                    raise InputError(f"the transform {name} has a tensor without a layer: {key}")
                found[layer].add(int(bits))
        self.variants = {layer: tuple(sorted(found[layer])) for layer in layers}
        self.widest = (WIDTHS[-1],) * len(self.variants)
        self._with = functools.lru_cache(_KEPT_READY)(self._with)
        self._with(self.widest)  # so that a missing tensor is found here

    def __call__(
        self, x: Tensor, quality_code: int, threads: int | None = None, bits: Bits | None = None
    ) -> Tensor:
        """As :class:`IntegerTransform`; with ``bits`` that :meth:`available` gave."""
        return self._with(self.widest if bits is None else bits)(x, quality_code, threads)

    def on_sphere(
        self,
        x: Tensor,
        quality_codes: Sequence[int],
        grid: SphereGrid,
        threads: int | None = None,
        bits: Bits | None = None,
    ) -> Tensor:
        """As that of :class:`IntegerTransform`; with ``bits`` that :meth:`available` gave."""
        transform = self._with(self.widest if bits is None else bits)
        return transform.on_sphere(x, quality_codes, grid, threads)

    def _with(self, bits: Bits) -> IntegerTransform:
        chosen = dict(zip(self.variants, bits, strict=True))
        widths = {layer: width for layer, width in chosen.items() if width != WIDTHS[-1]}
        return IntegerTransform(self.name, self._tensors, self.backend, widths)

    def available(self, bits: Bits) -> Bits:
        """The choice with the widest variant where a layer lacks what was chosen."""
        return tuple(
            width if width in had else WIDTHS[-1]
            for width, had in zip(bits, self.variants.values(), strict=True)
        )

    def pack(self, bits: Bits) -> bytes:
        """Two bits for each layer that has variants, the first ones lowest."""
        value, count = 0, 0
        for width, had in zip(bits, self.variants.values(), strict=True):
            if had:
                value |= _CODES[width] << 2 * count
                count += 1
        return value.to_bytes(-(-count // 4), "little")

    def unpack(self, data: bytes) -> Bits:
        """The inverse of :meth:`pack`; nothing stands for the widest variants.

        Raises:
            CorruptStreamError: ``data`` are no choice among this transform's variants.
        """
        if not data:
            return self.widest
        value, bits = int.from_bytes(data, "little"), []
        for had in self.variants.values():
            bits.append(WIDTHS[-1])
            if had:
                code = value & 3
                bits[-1] = WIDTHS[-1 - code] if code < len(WIDTHS) else 0
                value >>= 2
        if value or self.available(tuple(bits)) != tuple(bits) or len(data) != len(self.pack(bits)):
            raise CorruptStreamError("the widths are none of the model's", section="precision")
        return tuple(bits)


def load_selectors(tensors: Mapping[str, Tensor]) -> dict[str, BitWidthSelector]:
    """Of a dynamic model, by transform: from its tensors ``selector.TRANSFORM.``.

    Raises:
        InputError: a selector's tensors do not fit each other.
    """
    selectors = {}
    for name in PROGRAMS:
        prefix = f"selector.{name}."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if not state:
            continue
        try:
            selector = BitWidthSelector(
                len(state["center"]), len(state["allowed"]), len(state["hidden.bias"])
            )
            selector.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise InputError(f"the selector of {name} does not fit its tensors") from error
        if selector.layers != len(branch_layers(name)):
            raise InputError(f"the selector of {name} is for another number of layers")
        selectors[name] = selector.eval().requires_grad_(False)
    return selectors


def choose(selector: BitWidthSelector, activity: Tensor, quality_code: int) -> Bits:
    """What a selector chooses for ``activity [C]`` of the first layer's result."""
    choice = selector(activity[None], torch.tensor([quality_code / 100]))
    return tuple(WIDTHS[index] for index in choice[0].argmax(1).tolist())
