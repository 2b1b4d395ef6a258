"""Gradients of rounding that know how far the next level is.

Rounding has no useful derivative. The straight-through estimator (``fake_quant.round_ste``) takes
that of the identity, 1 everywhere: a value that sits on its level is pushed as hard as one that is
about to leave it. The distance-aware gradient modulator of DynaQuant (arXiv 2511.07903) takes the
derivative of a smooth staircase instead, large where two levels are equally near, small on a level.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pycodec.errors import InputError

DEFAULT_BETA = 2.0
"""Slopes from 0.55 on a level to 1.31 in the middle between two."""


def soft_round(x: Tensor, beta: float = DEFAULT_BETA) -> Tensor:
    """The staircase whose derivative is the modulator; goes to rounding as ``beta`` grows.

    With f = x - floor(x), the part above the lower level,

        g(x) = floor(x) + tanh(beta (f - 1/2)) / (2 tanh(beta / 2)) + 1/2.

    It meets rounding at every integer and, with the right slope on both sides, at every half. The
    paper's staircase, as descriptions of it print it, is ``tanh(beta f - 1/2) / (2 tanh(1/2)) +
    1/2``: the same for beta = 1, but for any other it would jump at the integers, so the middle is
    kept at f = 1/2 and the height at 1 for every beta, as in QuantSR and in soft rounding
    (Agustsson and Theis, arXiv 2006.09952).
    """
    lower = torch.floor(x)
    return lower + torch.tanh(beta * (x - lower - 0.5)) / (2 * math.tanh(beta / 2)) + 0.5


def modulation(x: Tensor, beta: float = DEFAULT_BETA) -> Tensor:
    """The factor of gradients at ``x``, the derivative of :func:`soft_round`:

        g'(x) = beta (1 - tanh(beta (f - 1/2))^2) / (2 tanh(beta / 2)).

    Its mean over a step is 1 whatever ``beta`` is, so learning rates keep their meaning.
    """
    fraction = x - torch.floor(x)
    return (1 - torch.tanh(beta * (fraction - 0.5)).square()) * (beta / (2 * math.tanh(beta / 2)))


class _ModulatedRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.beta = beta
        return torch.round(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * modulation(x, ctx.beta), None


def round_modulated(x: Tensor, beta: float = DEFAULT_BETA) -> Tensor:
    """Round to the nearest integer; gradients are multiplied by :func:`modulation`.

    Args:
        x: float, in units of the quantization step.
        beta: how much slopes differ, above 0; towards 0 it is the straight-through estimator.

    Raises:
        InputError: ``beta`` is not a positive finite number.
    """
    if not 0 < beta < math.inf:
        raise InputError(f"beta must be positive, not {beta!r}")
    return _ModulatedRound.apply(x, beta)
