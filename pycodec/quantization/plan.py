"""What export needs to know to make integers of a float transform: grids, widths, scales."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class ActivationGrid:
    """Of a convolution's input: ``x`` is stored as ``q = x / scale + zero_point``.

    Attributes:
        scale: float [Cin].
        zero_point: integers [Cin]; 0 after a ReLU.
        bits: 4, 6, 8 or 16.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int


@dataclass
class LayerPlan:
    """One convolution.

    Attributes:
        input: grid of what it reads.
        weight_bits: 4, 6 or 8.
        weight_scale: float [Cout], of the weights with the input's scales folded in; from their
            peak if None.
        rounded: integers [Cout, Cin, k, k], if their rounding was already chosen.
    """

    input: ActivationGrid
    weight_bits: int
    weight_scale: Tensor | None = None
    rounded: Tensor | None = None


@dataclass
class TransformPlan:
    """One transform.

    Attributes:
        layers: by module path within the transform: ``blocks16.0.reduce``.
        streams: float [C], the scale of ``stream4``, ``stream8``, ``stream16``.
    """

    layers: dict[str, LayerPlan]
    streams: dict[str, Tensor] = field(default_factory=dict)
