"""The networks of the published hyperprior models, with the parameter names of CompressAI.

So that its checkpoints load here by name, without CompressAI being installed. The layers are those
of Balle et al. (ICLR 2017 and 2018), Minnen et al. (NeurIPS 2018), Cheng et al. (CVPR 2020), and He
et al. (checkerboard, CVPR 2021; ELIC, CVPR 2022), with the changes that CompressAI documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, count, pairwise, takewhile

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pycodec.errors import InputError

BOTTLENECK_FILTERS = (1, 3, 3, 3, 3, 1)


class _NonNegative(nn.Module):
    """Parameters are stored so that their squares, less a pedestal, are what counts."""

    def __init__(self, minimum: float) -> None:
        super().__init__()
        pedestal = 2.0**-36
        self.register_buffer("pedestal", torch.tensor([pedestal]))
        self.lower_bound = nn.Module()
        self.lower_bound.register_buffer("bound", torch.tensor([(minimum + pedestal) ** 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.lower_bound.bound) ** 2 - self.pedestal


class GDN(nn.Module):
    """Generalized divisive normalization (arXiv 1511.06281), or its approximate inverse."""

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta_reparam = _NonNegative(1e-6)
        self.beta = nn.Parameter(torch.sqrt(torch.ones(channels) + 2.0**-36))
        self.gamma_reparam = _NonNegative(0.0)
        self.gamma = nn.Parameter(torch.sqrt(0.1 * torch.eye(channels) + 2.0**-36))

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.gamma_reparam(self.gamma)[:, :, None, None]
        norm = F.conv2d(x**2, gamma, self.beta_reparam(self.beta))
        return x * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))


class _Masked(nn.Conv2d):
    """Sees the positions at which ``mask``, [kernel, kernel], is not zero."""

    def __init__(self, channels: int, outputs: int, mask: Tensor) -> None:
        super().__init__(channels, outputs, tuple(mask.shape), padding=len(mask) // 2)
        self.register_buffer("mask", mask.expand_as(self.weight).clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def _raster_mask(kernel: int = 5) -> Tensor:
    """What comes before the centre in raster order."""
    order = torch.arange(kernel * kernel).view(kernel, kernel)
    return (order < order[kernel // 2, kernel // 2]).float()


def _checkerboard_mask(kernel: int = 5) -> Tensor:
    """The other half of a checkerboard."""
    offsets = torch.arange(kernel)
    return ((offsets[:, None] + offsets) % 2).float()


class _EntropyBottleneck(nn.Module):
    """Holds the parameters of a factorized prior; ``bottleneck_tables`` makes use of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = BOTTLENECK_FILTERS
        last = len(widths) - 2
        scale = 10 ** (1 / (last + 1))
        self.matrices, self.biases, self.factors = (nn.ParameterList() for _ in range(3))
        for i in range(last + 1):
            start = torch.log(torch.expm1(torch.tensor(1 / scale / widths[i + 1])))
            self.matrices.append(
                nn.Parameter(start.expand(channels, widths[i + 1], widths[i]).clone())
            )
            self.biases.append(nn.Parameter(torch.rand(channels, widths[i + 1], 1) - 0.5))
            if i < last:
                self.factors.append(nn.Parameter(torch.zeros(channels, widths[i + 1], 1)))
        self.quantiles = nn.Parameter(torch.tensor([-10.0, 0, 10]).repeat(channels, 1, 1))


class _GaussianConditional(nn.Module):
    """Holds the table of scales; empty for CompressAI's own."""

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale_table", scales)


class _GaussianCodec(nn.Module):
    """The parts of CompressAI's latent codec for Gaussians; those below likewise."""

    def __init__(self, chunks: tuple[str, str]) -> None:
        super().__init__()
        self.gaussian_conditional = _GaussianConditional(torch.empty(0))
        self.entropy_parameters = nn.Identity()
        self.chunks = chunks


class _CheckerboardCodec(nn.Module):
    anchor_parity = "even"

    def __init__(
        self, context: nn.Module, entropy_parameters: nn.Module, chunks: tuple[str, str]
    ) -> None:
        super().__init__()
        self.context_prediction, self.entropy_parameters = context, entropy_parameters
        self.y = _GaussianCodec(chunks)

    def merge(self, context: Tensor, side: Tensor) -> Tensor:
        return torch.cat([context, side], 1)


class _ChannelGroupsCodec(nn.Module):
    def __init__(
        self,
        groups: Sequence[int],
        channel_context: Mapping[str, nn.Module],
        latent_codec: Mapping[str, nn.Module],
        first_and_last: bool,
    ) -> None:
        super().__init__()
        self.groups, self.first_and_last = list(groups), first_and_last
        self.channel_context = nn.ModuleDict(channel_context)
        self.latent_codec = nn.ModuleDict(latent_codec)

    def merge_y(self, *parts: Tensor) -> Tensor:
        chosen = [parts[0], parts[-1]] if self.first_and_last and len(parts) > 1 else parts
        return torch.cat(list(chosen), 1)

    def merge_params(self, context: Tensor, side: Tensor) -> Tensor:
        return torch.cat([context, side], 1)


class _HyperCodec(nn.Module):
    def __init__(self, channels: int, h_a: nn.Module, h_s: nn.Module) -> None:
        super().__init__()
        self.entropy_bottleneck = _EntropyBottleneck(channels)
        self.h_a, self.h_s = h_a, h_s


class _HyperpriorCodec(nn.Module):
    def __init__(self, y: nn.Module, hyper: nn.Module) -> None:
        super().__init__()
        self.y, self.hyper = y, hyper


def _conv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def _deconv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> nn.Module:
    return nn.ConvTranspose2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, output_padding=stride - 1
    )


def _subpixel(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, 4 * outputs, 3, padding=1), nn.PixelShuffle(2))


class _ResidualWithStride(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3)
        self.leaky_relu = nn.LeakyReLU(inplace=True)
        self.conv2 = _conv(outputs, outputs, 3, 1)
        self.gdn = GDN(outputs)
        self.skip = _conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.gdn(self.conv2(self.leaky_relu(self.conv1(x)))) + self.skip(x)


class _ResidualUpsample(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.subpel_conv = _subpixel(inputs, outputs)
        self.leaky_relu = nn.LeakyReLU(inplace=True)
        self.conv = _conv(outputs, outputs, 3, 1)
        self.igdn = GDN(outputs, inverse=True)
        self.upsample = _subpixel(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.igdn(self.conv(self.leaky_relu(self.subpel_conv(x)))) + self.upsample(x)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, 3, 1)
        self.leaky_relu = nn.LeakyReLU(inplace=True)
        self.conv2 = _conv(channels, channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leaky_relu(self.conv2(self.leaky_relu(self.conv1(x)))) + x


class _ResidualUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv = nn.Sequential(
            _conv(channels, half, 1, 1),
            nn.ReLU(inplace=True),
            _conv(half, half, 3, 1),
            nn.ReLU(inplace=True),
            _conv(half, channels, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class _Bottleneck(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.conv3 = _conv(channels, half, 1, 1), _conv(half, channels, 1, 1)
        self.conv2 = _conv(half, half, 3, 1)
        self.relu1, self.relu2 = _relu(), _relu()

    @property
    def branch(self) -> list[str]:
        """Names of what runs one after the other."""
        return ["conv1", "relu1", "conv2", "relu2", "conv3"]

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for name in self.branch:
            out = self.get_submodule(name)(out)
        return out + x


class _Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(_ResidualUnit(channels) for _ in range(3)))
        self.conv_b = nn.Sequential(
            *(_ResidualUnit(channels) for _ in range(3)), _conv(channels, channels, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_a(x) * torch.sigmoid(self.conv_b(x))


def _activated(layers: list[nn.Module], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Layers with an activation after each but the last."""
    both = [module for layer in layers for module in (layer, activation())]
    return nn.Sequential(*both[:-1])


def _leaky() -> nn.Module:
    return nn.LeakyReLU(inplace=True)


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)


class HyperpriorNetwork(nn.Module):
    """One of :data:`ARCHITECTURES`; ``pycodec.models.hyperprior`` codes with it.

    Args:
        architecture: CompressAI's name of the model.
        n, m: widths, as the papers call them; ``m`` is ``n`` for Cheng et al.
        groups: of ELIC, sizes of the groups of channels, which add up to ``m``; None for those of
            the paper.
    """

    def __init__(
        self, architecture: str, n: int, m: int, groups: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            names = ", ".join(ARCHITECTURES)
            raise InputError(f"unknown architecture {architecture!r}; there are {names}")
        if not 1 <= min(n, m) <= max(n, m) <= 1024 or n % 2 or m % 2:
            raise InputError(f"widths must be even numbers up to 1024, not {n} and {m}")
        self.architecture, self.n, self.m = architecture, n, m
        self.has_means = architecture not in ("bmshj2018-factorized", "bmshj2018-hyperprior")
        self.groups = None
        if architecture.startswith("elic2022"):
            self.groups = [*(groups or (*ELIC_GROUPS, m - sum(ELIC_GROUPS)))]
            if sum(self.groups) != m or min(self.groups) < 1:
                raise InputError(f"groups of {self.groups} channels do not add up to {m}")
            self._build_elic(n, m, self.groups)
            return
        if groups is not None:
            raise InputError(f"{architecture} has no groups of channels")
        if architecture.startswith("cheng2020"):
            if n != m:
                raise InputError(f"{architecture} has one width, not {n} and {m}")
            self._build_cheng(n, attention=architecture == "cheng2020-attn")
        else:
            self._build_gdn(n, m)
        if architecture == "bmshj2018-factorized":
            self.entropy_bottleneck = _EntropyBottleneck(m)
            return
        if architecture == "cheng2020-anchor-checkerboard":
            self.latent_codec = _HyperpriorCodec(
                _CheckerboardCodec(
                    _Masked(m, 2 * m, _checkerboard_mask()),
                    _entropy_parameters(m),
                    ("scales", "means"),
                ),
                _HyperCodec(n, *_cheng_hyperprior(n)),
            )
            return
        self.entropy_bottleneck = _EntropyBottleneck(n)
        self.gaussian_conditional = _GaussianConditional(torch.empty(0))
        if architecture.startswith("cheng2020"):
            self.h_a, self.h_s = _cheng_hyperprior(n)
        else:
            self._build_hyperprior(n, m)
        if architecture.startswith(("mbt2018", "cheng2020")) and architecture != "mbt2018-mean":
            self.context_prediction = _Masked(m, 2 * m, _raster_mask())
            self.entropy_parameters = _entropy_parameters(m)

    @property
    def halo(self) -> int:
        """Latents around a tile, more than its own latents, or pixels, depend on."""
        return 16 if self.architecture.startswith(("cheng2020", "elic2022")) else 4

    def drop_entropy_model(self) -> None:
        """Keep the transforms alone: g_a, g_s and h_a."""
        owner = self
        if hasattr(self, "latent_codec"):
            del self.latent_codec.y
            owner = self.latent_codec.hyper
        for part in (
            "h_s",
            "context_prediction",
            "entropy_parameters",
            "entropy_bottleneck",
            "gaussian_conditional",
        ):
            if hasattr(owner, part):
                delattr(owner, part)

    def _build_gdn(self, n: int, m: int) -> None:
        self.g_a = nn.Sequential(
            _conv(3, n), GDN(n), _conv(n, n), GDN(n), _conv(n, n), GDN(n), _conv(n, m)
        )
        self.g_s = nn.Sequential(
            _deconv(m, n),
            GDN(n, inverse=True),
            _deconv(n, n),
            GDN(n, inverse=True),
            _deconv(n, n),
            GDN(n, inverse=True),
            _deconv(n, 3),
        )

    def _build_hyperprior(self, n: int, m: int) -> None:
        activation = _leaky if self.has_means else _relu
        self.h_a = _activated([_conv(m, n, 3, 1), _conv(n, n), _conv(n, n)], activation)
        widths = (m, m * 3 // 2, 2 * m) if self.has_means else (n, n, m)
        self.h_s = _activated(
            [_deconv(n, widths[0]), _deconv(*widths[:2]), _conv(*widths[1:], 3, 1)], activation
        )
        if not self.has_means:
            self.h_s.append(activation())

    def _build_cheng(self, n: int, attention: bool) -> None:
        self.g_a = nn.Sequential(
            _ResidualWithStride(3, n),
            _Residual(n),
            _ResidualWithStride(n, n),
            *([_Attention(n)] if attention else []),
            _Residual(n),
            _ResidualWithStride(n, n),
            _Residual(n),
            _conv(n, n, 3),
            *([_Attention(n)] if attention else []),
        )
        self.g_s = nn.Sequential(
            *([_Attention(n)] if attention else []),
            _Residual(n),
            _ResidualUpsample(n, n),
            _Residual(n),
            _ResidualUpsample(n, n),
            *([_Attention(n)] if attention else []),
            _Residual(n),
            _ResidualUpsample(n, n),
            _Residual(n),
            _subpixel(n, 3),
        )

    def _build_elic(self, n: int, m: int, groups: Sequence[int]) -> None:
        def blocks() -> list[nn.Module]:
            return [_Bottleneck(n) for _ in range(3)]

        self.g_a = nn.Sequential(
            _conv(3, n),
            *blocks(),
            _conv(n, n),
            *blocks(),
            _Attention(n),
            _conv(n, n),
            *blocks(),
            _conv(n, m),
            _Attention(m),
        )
        self.g_s = nn.Sequential(
            _Attention(m),
            _deconv(m, n),
            *blocks(),
            _deconv(n, n),
            _Attention(n),
            *blocks(),
            _deconv(n, n),
            *blocks(),
            _deconv(n, 3),
        )
        # CompressAI's second version of ELIC (after V. Chandelier) has other widths, and of the
        # earlier groups sees the first and the last alone.
        is_second = self.architecture == "elic2022-chandelier"
        h_a = _activated([_conv(m, n, 3, 1), _conv(n, n), _conv(n, n)], _relu)
        wide = n * 3 // 2
        side = 2 * m if is_second else 2 * n
        last = _conv(wide, side, 3, 1) if is_second else _deconv(wide, side, 3, 1)
        h_s = _activated([_deconv(n, n), _deconv(n, wide), last], _relu)
        channel_context, latent_codec = {}, {}
        for k, (size, before) in enumerate(
            zip(groups, accumulate(groups, initial=0), strict=False)
        ):
            if k > 0:
                seen = groups[0] + (k > 1) * groups[k - 1] if is_second else before
                layers = [_conv(i, o, 5, 1) for i, o in pairwise((seen, 224, 128, 2 * size))]
                channel_context[f"y{k}"] = _activated(layers, _relu)
            inputs = 2 * size * (1 + (k > 0)) + side
            if is_second:
                widths = [inputs, 2 * m, 512, 2 * size]
            else:
                widths = torch.linspace(inputs, 2 * size, 4).floor().int()
                widths[1:-1] = widths[1:-1].clip(min=2 * n)
                widths = widths.tolist()
            latent_codec[f"y{k}"] = _CheckerboardCodec(
                _Masked(size, 2 * size, _checkerboard_mask()),
                _activated([nn.Conv2d(i, o, 1) for i, o in pairwise(widths)], _relu),
                ("means", "scales") if is_second else ("scales", "means"),
            )
        self.latent_codec = _HyperpriorCodec(
            _ChannelGroupsCodec(groups, channel_context, latent_codec, is_second),
            _HyperCodec(n, h_a, h_s),
        )


def _entropy_parameters(m: int) -> nn.Module:
    """Of Minnen et al. and Cheng et al."""
    widths = (4 * m, m * 10 // 3, m * 8 // 3, 2 * m)
    return _activated([nn.Conv2d(i, o, 1) for i, o in pairwise(widths)], _leaky)


def _cheng_hyperprior(n: int) -> tuple[nn.Module, nn.Module]:
    """h_a and h_s."""
    wide = n * 3 // 2
    h_a = _activated([_conv(n, n, 3, stride) for stride in (1, 1, 2, 1, 2)], _leaky)
    h_s = _activated(
        [
            _conv(n, n, 3, 1),
            _subpixel(n, n),
            _conv(n, wide, 3, 1),
            _subpixel(wide, wide),
            _conv(wide, 2 * n, 3, 1),
        ],
        _leaky,
    )
    return h_a, h_s


ARCHITECTURES = (
    "bmshj2018-factorized",
    "bmshj2018-hyperprior",
    "mbt2018-mean",
    "mbt2018",
    "cheng2020-anchor",
    "cheng2020-attn",
    "cheng2020-anchor-checkerboard",
    "elic2022-official",
    "elic2022-chandelier",
)

ELIC_GROUPS = (16, 16, 32, 64)
"""And the rest."""

_OLD_NAMES = {"_matrix": "matrices.", "_bias": "biases.", "_factor": "factors."}
_CODER_STATE = ("_offset", "_quantized_cdf", "_cdf_length", "scale_bound", "bound", "target")


def load_checkpoint(architecture: str, state: Mapping[str, Tensor]) -> HyperpriorNetwork:
    """The network of a CompressAI state dict, of any of its versions.

    Raises:
        InputError: there is no such architecture, or these are not its weights.
    """
    own: dict[str, Tensor] = {}
    for name, value in state.items():
        name = name.removeprefix("module.")  # of nn.DataParallel
        module, _, parameter = name.rpartition(".")
        if {"entropy_bottleneck", "gaussian_conditional"} & {*module.split(".")}:
            if parameter in _CODER_STATE:
                continue
            for old, new in _OLD_NAMES.items():
                if parameter.startswith(old):
                    name = f"{module}.{new}{parameter.removeprefix(old)}"
        own[name] = value
    groups = None
    first = last = "g_a.0.conv1.weight"
    if not architecture.startswith("cheng2020"):
        first = "g_a.0.weight"
        last = "g_a.6.weight"
    if architecture.startswith("elic2022"):
        last = "g_a.13.weight"
        name = "latent_codec.y.latent_codec.y{}.context_prediction.weight"
        contexts = takewhile(lambda c: c is not None, (own.get(name.format(k)) for k in count()))
        groups = [context.shape[1] for context in contexts]
    try:
        n, m = (int(own[name].shape[0]) for name in (first, last))
    except (KeyError, IndexError) as error:
        raise InputError(f"these are not the weights of {architecture}: no {error}") from None
    network = HyperpriorNetwork(architecture, n, m, groups)
    for name, module in network.named_modules():
        scales = own.get(f"{name}.scale_table")
        if scales is not None and isinstance(module, _GaussianConditional):
            module.scale_table = torch.empty_like(scales)
    try:
        network.load_state_dict(own)
    except RuntimeError as error:
        raise InputError(f"these are not the weights of {architecture}: {error}") from error
    return network.eval().requires_grad_(False)
