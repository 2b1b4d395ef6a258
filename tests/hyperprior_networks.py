"""Small untrained hyperprior networks whose latents are not all zero."""

from __future__ import annotations

import torch

from pycodec.models.hyperprior_network import HyperpriorNetwork

RASTER = ("mbt2018", "cheng2020-anchor", "cheng2020-attn")
GROUPED = ("cheng2020-anchor-checkerboard", "elic2022-official", "elic2022-chandelier")
WITH_CONTEXT = RASTER + GROUPED
WITHOUT_CONTEXT = ("bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean")


@torch.no_grad()
def make_network(architecture: str, n: int = 12, m: int = 20) -> HyperpriorNetwork:
    """The same in every call; latents and hyperlatents spread over some units."""
    m = n if architecture.startswith("cheng2020") else m
    groups = (2, 4, 6, m - 12) if architecture.startswith("elic2022") else None
    state = torch.random.get_rng_state()
    torch.manual_seed(11)
    network = HyperpriorNetwork(architecture, n, m, groups)
    pictures = torch.rand(2, 3, 64, 64)
    _spread(network.g_a, pictures, 3.0)
    hyper = network.latent_codec.hyper if hasattr(network, "latent_codec") else network
    if hasattr(hyper, "h_a"):
        _spread(hyper.h_a, network.g_a(pictures), 2.0)
        z = torch.round(hyper.h_a(network.g_a(pictures)))
        _spread(hyper.h_s, z, 1.5)
    torch.random.set_rng_state(state)
    return network.eval().requires_grad_(False)


def _spread(stack: torch.nn.Module, x: torch.Tensor, deviation: float) -> None:
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    last = [m for m in stack if isinstance(m, kinds)][-1]
    factor = deviation / stack(x).std()
    last.weight.mul_(factor)
    last.bias.mul_(factor)
