"""The last layers of the entropy model, fitted to new pictures by Fisher scoring.

Each stage's last layer is linear in its hidden activations, and predicts mean and log2 scale of
Gaussians. So the bits of its symbols have a gradient and a curvature, the Fisher information, that
a pass over some pictures adds up for each output channel: ``1 / (v ln 2)`` of the mean, with v the
variance of a symbol, rounding included, and ``2 ln 2`` of the log2 scale. A damped Newton step with
them is a matter of minutes, and changes nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pycodec.context.quadtree import STAGES, stage_mask
from pycodec.models.blocks import on_sphere
from pycodec.models.entropy_model import MAX_LOG2_SCALE, MIN_LOG2_SCALE, gaussian_bits
from pycodec.models.photo_network import LAMBDA_MAX, LAMBDA_MIN, PhotoNetwork, quality_lambda
from pycodec.projection.grid import GridBatch
from pycodec.training.pieces import Piece

MEAN_STEP, MEAN_DAMPING = 0.5, 0.2
SCALE_STEP, SCALE_DAMPING = 1.0, 0.1
"""Share of the Newton step, and of the diagonal of the curvature that is added to it."""


class HeadFit:
    """Gradients and curvatures of the last layers, added up over pieces of pictures.

    Args:
        network: its weights are read in :meth:`add` and changed in :meth:`apply`.
    """

    def __init__(self, network: PhotoNetwork) -> None:
        self.network = network
        device = next(network.parameters()).device
        channels = network.entropy_model.latent_channels
        inputs = network.entropy_model.stages[0].head.weight.shape[1] + 1  # and a one, for the bias
        self._group = channels // STAGES
        self._mean_curvature = torch.zeros(STAGES, channels, inputs, inputs, device=device)
        # A scale's curvature is the same for all channels that a stage has at a position.
        self._scale_curvature = torch.zeros(STAGES, STAGES, inputs, inputs, device=device)
        self._mean_gradient = torch.zeros(STAGES, channels, inputs, device=device)
        self._scale_gradient = torch.zeros(STAGES, channels, inputs, device=device)

    def add(self, piece: Piece) -> None:
        """Take up a piece, with noise in place of rounding and the loss's weight of its quality."""
        network, model = self.network, self.network.entropy_model
        x = piece.x.to(self._mean_gradient.device)
        quality = torch.tensor(piece.qualities, device=x.device) / 100
        # Tables pad on every device; the kernels of the CPU are faster there.
        grid = piece.grid if x.device.type == "cpu" else GridBatch([piece.grid]).to(x.device)
        hidden: list[Tensor] = []
        hooks = [
            stage.act_hidden.register_forward_hook(lambda _m, _i, out: hidden.append(out))
            for stage in model.stages
        ]
        try:
            with torch.no_grad(), on_sphere(grid):
                y = network.analysis(x, quality)
                model(y, network.hyperlatents(y, quality), quality)
        finally:
            for hook in hooks:
                hook.remove()
        middle = quality_lambda(torch.tensor(piece.quality_code / 100))
        weight = float((middle / math.sqrt(LAMBDA_MIN * LAMBDA_MAX)).rsqrt())
        log2_step = model.log2_step(quality).detach()[:, :, None, None].expand_as(y)
        own = piece.grid.own(y)[:, 0].bool()
        for number, stage in enumerate(model.stages):
            with torch.no_grad():
                mean, log2_scale = stage.head(hidden[number], stage.act_hidden.scale).chunk(2, 1)
            where = stage_mask(number, y.shape[1], *y.shape[2:])
            for group in range(STAGES):
                channels = slice(group * self._group, (group + 1) * self._group)
                here = own & torch.from_numpy(where[channels.start]).to(y.device)
                inputs, residual, scale, step = (
                    t.permute(0, 2, 3, 1)[here]
                    for t in (
                        hidden[number],
                        (y - mean)[:, channels],
                        log2_scale[:, channels],
                        log2_step[:, channels],
                    )
                )
                inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
                self._add(number, group, inputs, residual, scale, step, weight)

    @torch.no_grad()
    def _add(
        self,
        stage: int,
        group: int,
        x: Tensor,
        residual: Tensor,
        log2_scale: Tensor,
        log2_step: Tensor,
        weight: float,
    ) -> None:
        """Of one stage and group: ``x [n, K]``, the others ``[n, channels]`` in native units."""
        channels = slice(group * self._group, (group + 1) * self._group)
        step = torch.exp2(log2_step)
        shift = torch.zeros_like(step, requires_grad=True)
        scale = (log2_scale - log2_step).clamp(MIN_LOG2_SCALE, MAX_LOG2_SCALE).requires_grad_()
        noisy = residual / step + torch.rand_like(step) - 0.5
        with torch.enable_grad():
            bits = gaussian_bits(noisy - shift, torch.exp2(scale)).sum()
            to_mean, to_scale = torch.autograd.grad(bits, (shift, scale))
        variance = torch.exp2(2 * scale) + 1 / 12
        curvature = weight / (math.log(2) * variance * step**2)
        self._mean_curvature[stage, channels] += (x * curvature.T[:, :, None]).transpose(1, 2) @ x
        self._mean_gradient[stage, channels] += weight * (to_mean / step).T @ x
        self._scale_curvature[stage, group] += 2 * math.log(2) * weight * x.T @ x
        self._scale_gradient[stage, channels] += weight * to_scale.T @ x

    @torch.no_grad()
    def apply(self) -> None:
        """Change the last layers by a damped Newton step."""
        for number, stage in enumerate(self.network.entropy_model.stages):
            curvature = self._scale_curvature[number].repeat_interleave(self._group, 0)
            mean = _solve(self._mean_curvature[number], self._mean_gradient[number], MEAN_DAMPING)
            scale = _solve(curvature, self._scale_gradient[number], SCALE_DAMPING)
            change = torch.cat([MEAN_STEP * mean, SCALE_STEP * scale])
            stage.head.weight.sub_(change[:, :-1, None, None])
            stage.head.bias.sub_(change[:, -1])


def _solve(curvature: Tensor, gradient: Tensor, damping: float) -> Tensor:
    """``[C, K, K]``, ``[C, K]`` to the Newton step ``[C, K]``."""
    diagonal = curvature.diagonal(dim1=1, dim2=2)
    # The mean keeps inputs that are hardly ever positive from moving.
    more = damping * (diagonal + 0.1 * diagonal.mean(1, keepdim=True)) + 1e-12
    return torch.linalg.solve(curvature + torch.diag_embed(more), gradient)


def refit_heads(network: PhotoNetwork, pieces: Iterable[Piece]) -> None:
    """One pass: fit the last layers of the entropy model to ``pieces``, in place."""
    fit = HeadFit(network.train())
    for piece in pieces:
        fit.add(piece)
    fit.apply()
