"""Adam in the eigenbasis of the inputs: the optimizer of context networks over bit planes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pycodec.errors import InputError

LARGEST_BASIS = 512
"""Inputs of one output with a common basis; larger kernels have one of channels and one of taps."""


class Soap(torch.optim.Optimizer):
    """SOAP (arXiv 2409.11321), of the input side, with bases for each group of outputs.

    The bits of neighbouring pixels are correlated and weigh 128 to 1, so that the gradient's
    covariance has a condition number of many thousands and Adam, whose steps are as large along
    every axis, is slow. Here the axes are the eigenvectors of that covariance. A trimmed layer's
    planes see different inputs, so each has its own.

    A convolution's weight [Cout, Cin, k, k] is seen as [groups, Cout / groups, inputs], or, if
    there are more than 512 inputs, as [groups, Cout / groups, Cin, k * k], with a basis for each of
    the last two. Everything else, such as biases, is trained by Adam. The first step only measures.
    Which parameters have gradients must not change from step to step: an :class:`InputError`.

    Args:
        params: parameters or groups of them.
        lr: step size; as Adam's, a bound of each step along an axis.
        betas: decay of the mean of the gradient and of its square.
        covariance_beta: decay of the covariance.
        every: steps between two refinements of the bases (a step of the power method each).
        groups: of output channels.
        eps: added to the root of the squares.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        covariance_beta: float = 0.98,
        every: int = 10,
        groups: int = 8,
        eps: float = 1e-12,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "covariance_beta": covariance_beta}
        super().__init__(params, {**defaults, "every": every, "groups": groups, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        if closure is not None:
            raise ValueError("Soap takes no closure")
        for options in self.param_groups:
            for alike in _alike(options["params"]):
                self._update(alike, options)

    def _update(self, alike: list[Tensor], options: dict) -> None:
        """Update parameters of one shape together; the first one's state is that of all."""
        state = self.state[alike[0]]
        gradient = torch.cat([_grouped(p.grad, options["groups"]) for p in alike])
        rotated = alike[0].dim() == 4
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(gradient)
            state["square"] = torch.zeros_like(gradient)
        if state["mean"].shape != gradient.shape:
            raise InputError("the optimizer's state is of other parameters, or another version's")
        if rotated and _measure(state, gradient, 1 - options["covariance_beta"]):
            return
        state["step"] += 1
        beta, square_beta = options["betas"]
        bases = state.get("bases", [])
        state["mean"].lerp_(gradient, 1 - beta)
        state["square"].lerp_(_rotate(gradient, bases).square(), 1 - square_beta)
        mean = _rotate(state["mean"], bases) / (1 - beta ** state["step"])
        square = state["square"] / (1 - square_beta ** state["step"])
        update = mean / (square.sqrt() + options["eps"])
        update = _rotate(update, [basis.mT for basis in bases])
        updates = update.view(len(alike), *alike[0].shape).unbind()
        torch._foreach_add_(alike, updates, alpha=-options["lr"])
        if rotated and state["step"] % options["every"] == 0:
            _refine(state)


def _alike(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Those with a gradient, by shape: a GPU would spend its time on starting small kernels."""
    found: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            found.setdefault(parameter.shape, []).append(parameter)
    return list(found.values())


def _grouped(gradient: Tensor, groups: int) -> Tensor:
    """[groups, outputs, inputs] or [groups, outputs, Cin, taps] of a kernel, else [1, ...]."""
    if gradient.dim() != 4:
        return gradient.float()[None]
    outputs = gradient.shape[0] // groups
    if gradient[0].numel() <= LARGEST_BASIS:
        return gradient.float().reshape(groups, outputs, -1)
    return gradient.float().reshape(groups, outputs, gradient.shape[1], -1)


def _rotate(x: Tensor, bases: list[Tensor]) -> Tensor:
    """Multiply the axes from 2 on by [groups, d, d] each."""
    for axis, basis in enumerate(bases, 2):
        last = x.movedim(axis, -1)
        product = last.flatten(1, -2) @ basis
        x = product.reshape(last.shape).movedim(-1, axis)
    return x


def _measure(state: dict, gradient: Tensor, weight: float) -> bool:
    """Update the covariance of each axis; whether this was the first one, which sets the bases."""
    products = []
    for axis in range(2, gradient.dim()):
        rows = gradient.movedim(axis, -1).flatten(1, -2)
        products.append(rows.mT @ rows)
    first = "bases" not in state
    if first:
        state["covariances"] = products
        state["bases"] = [torch.linalg.eigh(p.double())[1].float() for p in products]
    else:
        for covariance, product in zip(state["covariances"], products, strict=True):
            covariance.lerp_(product, weight)
    return first


def _refine(state: dict) -> None:
    """One step of the power method; ``square`` follows the order of the axes."""
    for i, (covariance, basis) in enumerate(zip(state["covariances"], state["bases"], strict=True)):
        product = covariance @ basis
        order = (product * basis).sum(1).argsort(dim=1, descending=True)
        square = state["square"].movedim(i + 2, -1)
        shape = order.shape[:1] + (1,) * (square.dim() - 2) + order.shape[1:]
        moved = square.gather(-1, order.reshape(shape).expand_as(square))
        state["square"] = moved.movedim(-1, i + 2).contiguous()
        product = product.gather(2, order[:, None].expand_as(product))
        state["bases"][i] = torch.linalg.qr(product)[0]
