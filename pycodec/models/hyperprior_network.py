"""The networks of the published hyperprior models, with the parameter names of CompressAI.

So that its checkpoints load here by name, without CompressAI being installed. The layers are those
of Balle et al. (ICLR 2017 and 2018), Minnen et al. (NeurIPS 2018) and Cheng et al. (CVPR 2020,
with the changes that CompressAI documents).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

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
    """Sees what comes before its centre in raster order."""

    def __init__(self, channels: int, outputs: int, kernel: int) -> None:
        super().__init__(channels, outputs, kernel, padding=kernel // 2)
        mask = torch.ones_like(self.weight)
        mask[:, :, kernel // 2, kernel // 2 :] = 0
        mask[:, :, kernel // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


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


def _conv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def _deconv(inputs: int, outputs: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1)


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


class HyperpriorNetwork(nn.Module):
    """One of :data:`ARCHITECTURES`; ``pycodec.models.hyperprior`` codes with it.

    Args:
        architecture: CompressAI's name of the model.
        n, m: widths, as the papers call them; ``m`` is ``n`` for Cheng et al.
    """

    def __init__(self, architecture: str, n: int, m: int) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            names = ", ".join(ARCHITECTURES)
            raise InputError(f"unknown architecture {architecture!r}; there are {names}")
        if not 1 <= min(n, m) <= max(n, m) <= 1024 or n % 2 or m % 2:
            raise InputError(f"widths must be even numbers up to 1024, not {n} and {m}")
        self.architecture, self.n, self.m = architecture, n, m
        self.has_means = architecture not in ("bmshj2018-factorized", "bmshj2018-hyperprior")
        if architecture.startswith("cheng2020"):
            if n != m:
                raise InputError(f"{architecture} has one width, not {n} and {m}")
            self._build_cheng(n, attention=architecture == "cheng2020-attn")
        else:
            self._build_gdn(n, m)
        if architecture == "bmshj2018-factorized":
            self.entropy_bottleneck = _EntropyBottleneck(m)
            return
        self.entropy_bottleneck = _EntropyBottleneck(n)
        self.gaussian_conditional = _GaussianConditional(torch.empty(0))
        if not architecture.startswith("cheng2020"):
            self._build_hyperprior(n, m)
        if architecture.startswith(("mbt2018", "cheng2020")) and architecture != "mbt2018-mean":
            self.context_prediction = _Masked(m, 2 * m, 5)
            widths = (4 * m, m * 10 // 3, m * 8 // 3, 2 * m)
            self.entropy_parameters = _activated(
                [nn.Conv2d(i, o, 1) for i, o in pairwise(widths)], _leaky
            )

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
        activation = _leaky if self.has_means else lambda: nn.ReLU(inplace=True)
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
        self.h_a = _activated(
            [_conv(n, n, 3, stride) for stride in (1, 1, 2, 1, 2)],
            _leaky,
        )
        wide = n * 3 // 2
        self.h_s = _activated(
            [
                _conv(n, n, 3, 1),
                _subpixel(n, n),
                _conv(n, wide, 3, 1),
                _subpixel(wide, wide),
                _conv(wide, 2 * n, 3, 1),
            ],
            _leaky,
        )


ARCHITECTURES = (
    "bmshj2018-factorized",
    "bmshj2018-hyperprior",
    "mbt2018-mean",
    "mbt2018",
    "cheng2020-anchor",
    "cheng2020-attn",
)

_OLD_NAMES = {"_matrix": "matrices.", "_bias": "biases.", "_factor": "factors."}
_CODER_STATE = ("_offset", "_quantized_cdf", "_cdf_length", "scale_bound", "bound", "target")


def load_checkpoint(architecture: str, state: Mapping[str, Tensor]) -> HyperpriorNetwork:
    """The network of a CompressAI state dict, of any of its versions.

    Raises:
        InputError: there is no such architecture, or these are not its weights.
    """
    first = "g_a.0.conv1.weight" if architecture.startswith("cheng2020") else "g_a.0.weight"
    last = first if architecture.startswith("cheng2020") else "g_a.6.weight"
    own: dict[str, Tensor] = {}
    for name, value in state.items():
        name = name.removeprefix("module.")  # of nn.DataParallel
        module, _, parameter = name.rpartition(".")
        if module.split(".")[0] in ("entropy_bottleneck", "gaussian_conditional"):
            if parameter in _CODER_STATE:
                continue
            for old, new in _OLD_NAMES.items():
                if parameter.startswith(old):
                    name = f"{module}.{new}{parameter.removeprefix(old)}"
        own[name] = value
    try:
        n, m = (int(own[name].shape[0]) for name in (first, last))
    except (KeyError, IndexError) as error:
        raise InputError(f"these are not the weights of {architecture}: no {error}") from None
    network = HyperpriorNetwork(architecture, n, m)
    scales = own.get("gaussian_conditional.scale_table")
    if scales is not None:
        network.gaussian_conditional = _GaussianConditional(torch.empty_like(scales))
    try:
        network.load_state_dict(own)
    except RuntimeError as error:
        raise InputError(f"these are not the weights of {architecture}: {error}") from error
    return network.eval().requires_grad_(False)
