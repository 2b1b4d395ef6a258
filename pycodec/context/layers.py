"""Trainable convolutions that know their mask: what context networks are made of.

Parameters are called ``weight`` [Cout, Cin, kh, kw] and ``bias`` [Cout], as those of ``nn.Conv2d``,
and the mask is not among them: a state dict from elsewhere loads by name. Trimmed weights may have
any value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pycodec.context.orders import RASTER, Kernel, Order, get_order, kernel_size, mask, weight_mask
from pycodec.context.schedule import Layer
from pycodec.ops.masked_conv2d import masked_conv2d
from pycodec.ops.trimmed_conv2d import trimmed_conv2d


class _ContextConv2d(nn.Conv2d):
    """A convolution to the same size with a mask."""

    group_mask: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Kernel,
        *,
        order: Order | str,
        kind: str,
        groups_in: int,
        groups_out: int,
        bias: bool,
        backend: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        kh, kw = kernel_size(kernel)
        super().__init__(
            in_channels,
            out_channels,
            (kh, kw),
            padding=(kh // 2, kw // 2),
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.order = get_order(order)
        self.kind = kind
        self.backend = backend
        group_mask = mask(self.order, kind, groups_in, groups_out, (kh, kw))
        weight_mask(group_mask, in_channels, out_channels)  # fails here rather than in forward
        self.register_buffer("group_mask", group_mask.to(device), persistent=False)

    @property
    def layer(self) -> Layer:
        """What ``find_schedule`` and ``check_causality`` want to know."""
        return Layer(
            self.group_mask.cpu().numpy(),
            self.kind,
            self.order.active(self.kind),
            self.order.phase,
        )

    def extra_repr(self) -> str:
        groups = "x".join(map(str, self.group_mask.shape[:2]))
        return f"{super().extra_repr()}, order={self.order.name}, kind={self.kind}, groups={groups}"

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # CompressAI's MaskedConv2d keeps its mask beside its weight.
        theirs = state_dict.pop(f"{prefix}mask", None)
        if theirs is not None:
            ours = weight_mask(self.group_mask.cpu(), self.in_channels, self.out_channels)
            if theirs.shape != ours.shape or not torch.equal(theirs.cpu() != 0, ours):
                error_msgs.append(f"{prefix}mask is not the mask of {self}")
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )


class TrimmedConv2d(_ContextConv2d):
    """A :func:`pycodec.ops.trimmed_conv2d` with weights, [N, Cin, H, W] to [N, Cout, H, W].

    Args:
        in_channels, out_channels: multiples of the numbers of groups; groups are contiguous.
        kernel: odd size, k or (kh, kw).
        order: an order or its name.
        kind: "A" for the first layer, "B" for the others.
        groups_in, groups_out: numbers of groups; groups_out is groups_in by default.
        bias: whether there is one.
        backend: of the operation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Kernel,
        *,
        order: Order | str,
        kind: str,
        groups_in: int,
        groups_out: int | None = None,
        bias: bool = True,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            order=order,
            kind=kind,
            groups_in=groups_in,
            groups_out=groups_in if groups_out is None else groups_out,
            bias=bias,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        active = self.order.active(kind)
        pattern = None if active is None else torch.from_numpy(active).to(device)
        self.register_buffer("active", pattern, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.active is None:
            return trimmed_conv2d(x, self.weight, self.group_mask, self.bias, backend=self.backend)
        total = trimmed_conv2d(x, self.weight, self.group_mask, backend=self.backend)
        rows = torch.arange(x.shape[2], device=x.device) % self.active.shape[0]
        columns = torch.arange(x.shape[3], device=x.device) % self.active.shape[1]
        total = torch.where(self.active[rows[:, None], columns], total, total.new_zeros(()))
        return total if self.bias is None else total + self.bias.to(total.dtype)[:, None, None]


class MaskedConv2d(_ContextConv2d):
    """A :func:`pycodec.ops.masked_conv2d` with weights, [N, Cin, H, W] to [N, Cout, H, W].

    Takes the place of CompressAI's ``MaskedConv2d``; its state dict loads here.

    Args:
        in_channels, out_channels: any numbers.
        kernel: odd size, k or (kh, kw).
        kind: "A" for the first layer, "B" for the others.
        bias: whether there is one.
        backend: of the operation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Kernel,
        *,
        kind: str = "A",
        bias: bool = True,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            order=RASTER,
            kind=kind,
            groups_in=1,
            groups_out=1,
            bias=bias,
            backend=backend,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        return masked_conv2d(x, self.weight, self.bias, kind=self.kind, backend=self.backend)
