"""The pass of a training step as a CUDA graph.

A step on the pieces of a batch queues some 1500 small kernels, which takes a processor several
times as long as the GPU needs for them. A graph queues them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Batch(Protocol):
    """What a pass sees."""

    def tensors(self) -> list[Tensor]:
        """All that it is made of, in the same order always."""


Pass = Callable[[Any], tuple[Tensor, dict[str, Tensor]]]
"""Of a batch the loss, and what is logged."""

_WARM_UP = 3


class CapturedPass:
    """A forward and backward pass that is captured once, and replayed on other batches.

    Random numbers are drawn anew in each replay. All else that is not in the batch or the weights
    stays as it was: the mode of the network, its arithmetic, what is trained.

    Args:
        run: the forward pass.
        network: whose gradients are computed; it has none at first, and may lose them in between.
            No result of an earlier pass may be alive with its graph: what adds up the gradients
            would belong to the stream of that pass, which is not captured.
        batch: on the GPU; it is kept, and other batches are copied into it.
    """

    def __init__(self, run: Pass, network: nn.Module, batch: Batch) -> None:
        self._batch = batch
        self._device = batch.tensors()[0].device
        with torch.cuda.device(self._device):
            self._capture(run, network)

    def _capture(self, run: Pass, network: nn.Module) -> None:
        batch = self._batch
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):  # libraries allocate what they need before the capture
            for _ in range(_WARM_UP):
                run(batch)[0].backward()
                network.zero_grad(set_to_none=True)
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, of data loaders say, may go on with what they do.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            loss, self._values = run(batch)
            loss.backward()
        self._gradients = [(p, p.grad) for p in network.parameters() if p.grad is not None]

    def fits(self, batch: Batch) -> bool:
        """Whether the batch has the shape of the one that was captured."""
        own, other = self._batch.tensors(), batch.tensors()
        return [t.shape for t in own] == [t.shape for t in other]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Set the network's gradients; returns what is logged, valid until the next call."""
        with torch.cuda.device(self._device):
            for own, other in zip(self._batch.tensors(), batch.tensors(), strict=True):
                own.copy_(other)
            self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._values
