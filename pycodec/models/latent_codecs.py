"""Where a model has its entropy model, and channel groups and checkerboards in integers.

CompressAI has hyperpriors as parts of the model itself (``model.h_s``), or as a tree of latent
codecs below ``model.latent_codec``: its checkerboard and ELIC models are built so. Both are read
here by the names of their parts, whatever classes they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pycodec.context.gaussian_groups import ChannelGroup
from pycodec.errors import UnsupportedError
from pycodec.quantization.int16 import (
    FloatLayer,
    float_layers,
    integer_network,
    load_stack,
    save_stack,
    under,
)


@dataclass(frozen=True)
class EntropyParts:
    """The float networks of an entropy model.

    Attributes:
        entropy_bottleneck: the factorized prior.
        h_a, h_s: None without a hyperprior.
        gaussians: the Gaussian conditionals; all must have one table of scales.
        context, entropy_parameters: of a model with a raster context.
        groups: of a model with channel groups or a checkerboard.
    """

    entropy_bottleneck: nn.Module
    h_a: nn.Module | None = None
    h_s: nn.Module | None = None
    gaussians: Sequence[nn.Module] = ()
    context: nn.Module | None = None
    entropy_parameters: nn.Module | None = None
    groups: Sequence[FloatGroup] = ()

    @property
    def scale_table(self) -> list[float]:
        """Of the Gaussians; empty if no table was made yet.

        Raises:
            UnsupportedError: they have different ones.
        """
        tables = [gaussian.scale_table.tolist() for gaussian in self.gaussians]
        if any(table != tables[0] for table in tables):
            raise UnsupportedError("the latent codecs have different tables of scales")
        return tables[0]


@dataclass(frozen=True)
class FloatGroup:
    """Channels that are coded together, and the float networks that predict them.

    Attributes:
        channels: how many; None for all latents.
        heads: from side channels, channel context and checkerboard, in the order of ``inputs``, to
            scales and means, in the order of ``chunks``.
        inputs: what the heads see of numbered side channels, results of the channel context and
            of the checkerboard (given their numbers): the numbers.
        chunks: ``("scales", "means")`` or the other way round.
        seen: channels of earlier groups that the channel context sees.
        channel_context: over ``seen``.
        checkerboard: masked convolution.
        odd_first: whether anchors are positions with odd h + w.
    """

    channels: int | None
    heads: Sequence[FloatLayer]
    inputs: Callable[[int, int, int], list[int]]
    chunks: tuple[str, ...]
    seen: Sequence[int] = ()
    channel_context: Sequence[FloatLayer] = ()
    checkerboard: FloatLayer | None = None
    odd_first: bool = False


def entropy_parts(model: nn.Module) -> EntropyParts:
    """The entropy model of a model as CompressAI builds them.

    Raises:
        UnsupportedError: it has parts that no integer form is known for.
    """
    if not isinstance(getattr(model, "latent_codec", None), nn.Module):
        has_hyperprior = getattr(model, "h_s", None) is not None
        return EntropyParts(
            model.entropy_bottleneck,
            getattr(model, "h_a", None),
            getattr(model, "h_s", None),
            [model.gaussian_conditional] if has_hyperprior else [],
            getattr(model, "context_prediction", None),
            getattr(model, "entropy_parameters", None),
        )
    codec = model.latent_codec
    hyper, latents = getattr(codec, "hyper", None), getattr(codec, "y", None)
    if not all(hasattr(hyper, part) for part in ("entropy_bottleneck", "h_a", "h_s")):
        raise _unknown(codec)
    if type(codec).__name__.startswith("Gain"):  # has the parts, and multiplies latents besides
        raise _unknown(codec)
    parts = EntropyParts(hyper.entropy_bottleneck, hyper.h_a, hyper.h_s)
    if hasattr(latents, "channel_context") and hasattr(latents, "groups"):
        names = [f"y{k}" for k in range(len(latents.groups))]
        if set(names) != {*latents.latent_codec} or set(names[1:]) != {*latents.channel_context}:
            raise _unknown(latents)
        children = [latents.latent_codec[name] for name in names]
        groups = [_group_of_channels(latents, index, child) for index, child in enumerate(children)]
        gaussians = [_gaussian_codec(child).gaussian_conditional for child in children]
        return replace(parts, groups=groups, gaussians=gaussians)
    if hasattr(latents, "context_prediction") and not hasattr(latents, "anchor_parity"):
        return replace(  # raster order
            parts,
            gaussians=[latents.gaussian_conditional],
            context=latents.context_prediction,
            entropy_parameters=latents.entropy_parameters,
        )
    gaussians = [_gaussian_codec(latents).gaussian_conditional]
    return replace(parts, groups=[_group(latents, None)], gaussians=gaussians)


def _unknown(codec: object) -> UnsupportedError:
    return UnsupportedError(f"no integer form is known for a {type(codec).__name__}")


def _gaussian_codec(codec: nn.Module) -> nn.Module:
    """That codes the symbols of a group."""
    leaf = codec.y if hasattr(codec, "anchor_parity") and hasattr(codec, "y") else codec
    if not (hasattr(leaf, "gaussian_conditional") and hasattr(leaf, "chunks")):
        raise _unknown(leaf)
    return leaf


def _group(
    codec: nn.Module, channels: int | None, merged: Callable[..., Tensor] | None = None
) -> FloatGroup:
    """``merged`` puts channel context and side channels together, where there are both."""
    leaf = _gaussian_codec(codec)
    if sorted(leaf.chunks) != ["means", "scales"]:
        raise UnsupportedError(f"Gaussians of {' and '.join(leaf.chunks)} are not known")
    is_checkerboard = leaf is not codec
    heads = float_layers(codec.entropy_parameters) if is_checkerboard else []
    heads += float_layers(leaf.entropy_parameters)
    if not heads:
        raise _unknown(codec)

    def inputs(side: int, context: int, own: int) -> list[int]:
        numbers = torch.arange(side + context + own, dtype=torch.float32).view(1, -1, 1, 1)
        known, from_context, from_own = numbers.split([side, context, own], 1)
        if merged is not None:
            known = merged(from_context, known)
        if is_checkerboard:
            known = codec.merge(from_own, known)
        return _numbers(known, side + context + own)

    if not is_checkerboard:
        return FloatGroup(channels, heads, inputs, leaf.chunks)
    contexts = float_layers(codec.context_prediction)
    if len(contexts) != 1:
        raise UnsupportedError(f"a checkerboard's context has {len(contexts)} layers, not one")
    odd_first = codec.anchor_parity == "odd"
    return FloatGroup(
        channels, heads, inputs, leaf.chunks, checkerboard=contexts[0], odd_first=odd_first
    )


def _group_of_channels(codec: nn.Module, index: int, child: nn.Module) -> FloatGroup:
    sizes = list(codec.groups)
    if index == 0:
        return _group(child, sizes[0])
    before = sum(sizes[:index])
    numbers = torch.arange(before, dtype=torch.float32).view(1, -1, 1, 1)
    seen = _numbers(codec.merge_y(*numbers.split(sizes[:index], 1)), before)
    layers = float_layers(codec.channel_context[f"y{index}"])
    if any(layer.shuffle for layer in layers):
        raise UnsupportedError("a channel context must keep the size of the latents")
    group = _group(child, sizes[index], codec.merge_params)
    return replace(group, seen=seen, channel_context=layers)


def _numbers(merged: Tensor, count: int) -> list[int]:
    """Which of ``count`` numbered channels a model puts together, and in which order."""
    numbers = merged.flatten().long().tolist()
    if (
        merged.dim() != 4
        or len(set(numbers)) != len(numbers)
        or not set(numbers) <= {*range(count)}
    ):
        raise UnsupportedError("a latent codec merges tensors in a way that is not known")
    return numbers


@torch.no_grad()
def export_groups(
    groups: Sequence[FloatGroup],
    latents: Tensor,
    side: Tensor,
    side_scale: Tensor,
    seen_scale: Tensor,
    parameter_scale: Tensor,
    parameter_limit: int,
) -> dict[str, Tensor]:
    """Integer tensors of :func:`load_groups`.

    Args:
        groups: of :func:`entropy_parts`.
        latents: rounded ones, float [B, M, H, W]: what scales of activations are chosen by.
        side: of the same pictures, float [B, S, H, W].
        side_scale: float64 [S].
        seen_scale: float64 [M], of latents as contexts see them.
        parameter_scale: float64 [2 M], of the scales and of the means.
        parameter_limit: of both.

    Raises:
        UnsupportedError: the networks do not fit together, or not into integers.
    """
    sizes = [latents.shape[1] if group.channels is None else group.channels for group in groups]
    if sum(sizes) != latents.shape[1]:
        raise UnsupportedError(f"groups of {sizes} channels for {latents.shape[1]} latents")
    rows, columns = (torch.arange(n) for n in latents.shape[2:])
    odd = (rows[:, None] + columns) % 2
    tensors: dict[str, Tensor] = {}
    start = 0
    for index, (group, size) in enumerate(zip(groups, sizes, strict=True)):
        own = slice(start, start + size)
        start += size
        stacks: dict[str, list[dict[str, Tensor]]] = {"channel": [], "context": []}
        known, scales = side, side_scale
        counts = [side.shape[1], 0, 0]
        if group.channel_context:
            seen = list(group.seen)
            stacks["channel"], context, scale = integer_network(
                group.channel_context, latents[:, seen], seen_scale[seen]
            )
            known, scales = torch.cat([known, context], 1), torch.cat([scales, scale])
            counts[1] = context.shape[1]
        if group.checkerboard is not None:
            anchors = latents[:, own] * (odd == int(group.odd_first))
            stacks["context"], context, scale = integer_network(
                [group.checkerboard], anchors, seen_scale[own]
            )
            # As anchors see it, and as the others do.
            known = torch.cat([known, known])
            known = torch.cat([known, torch.cat([torch.zeros_like(context), context])], 1)
            scales = torch.cat([scales, scale])
            counts[2] = context.shape[1]
        both = torch.cat(list(parameter_scale.view(2, -1)[:, own]))
        heads = _in_order(group, counts, size)
        stacks["head"], _, _ = integer_network(heads, known, scales, both, parameter_limit)
        prefix = f"group{index}."
        tensors[f"{prefix}channels"] = torch.tensor(size, dtype=torch.int32)
        tensors[f"{prefix}seen"] = torch.tensor(list(group.seen), dtype=torch.int32)
        tensors[f"{prefix}odd_first"] = torch.tensor(int(group.odd_first), dtype=torch.int32)
        for name, stack in stacks.items():
            tensors |= save_stack(stack, prefix + name)
    return tensors


def _in_order(group: FloatGroup, counts: Sequence[int], size: int) -> list[FloatLayer]:
    """Heads that see side, channel context and checkerboard, and give scales, then means."""
    heads = list(group.heads)
    numbers = group.inputs(*counts)
    if heads[0].weight.shape[1] != len(numbers) or heads[-1].weight.shape[0] != 2 * size:
        raise UnsupportedError("a latent codec's entropy parameters do not fit its contexts")
    weight = heads[0].weight.new_zeros((len(heads[0].weight), sum(counts), 1, 1))
    if heads[0].weight.shape[2:] != (1, 1):
        raise UnsupportedError("entropy parameters must be pointwise")
    weight[:, numbers] = heads[0].weight
    heads[0] = replace(heads[0], weight=weight)
    if group.chunks[0] == "means":
        order = torch.arange(2 * size).roll(size)
        last = heads[-1]
        heads[-1] = replace(last, weight=last.weight[order], bias=last.bias[order])
    return heads


def load_groups(tensors: Mapping[str, Tensor], backend: str = "native") -> list[ChannelGroup]:
    """The groups of :func:`export_groups`; none if there are no such tensors.

    Raises:
        KeyError: a tensor is missing.
        InputError: they do not fit together.
    """
    groups = []
    while f"group{len(groups)}.channels" in tensors:
        own = under(tensors, f"group{len(groups)}.")
        context, channel, heads = (
            [layer for layer, _ in load_stack(own, name, backend)]
            for name in ("context", "channel", "head")
        )
        groups.append(
            ChannelGroup(
                int(own["channels"]),
                heads,
                own["seen"].tolist(),
                channel,
                context[0] if context else None,
                bool(own["odd_first"]),
            )
        )
    return groups
