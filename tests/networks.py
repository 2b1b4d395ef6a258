"""Small untrained photo networks, exported, for tests that need a codec but not compression."""

from __future__ import annotations

import torch

from pycodec.models.photo import PhotoCodec
from pycodec.models.photo_network import PhotoConfig, PhotoNetwork
from pycodec.quantization.export import export_entropy_model
from pycodec.quantization.fake_quant import QuantizedActivation

SMALL = PhotoConfig(
    widths=(16, 24, 32),
    latent_channels=32,
    hyper_hidden=16,
    hyper_channels=8,
    context_channels=8,
    feature_channels=16,
    stage_hidden=16,
)


def quantized_network(seed: int, config: PhotoConfig = SMALL) -> PhotoNetwork:
    """Random weights, activation scales set from random pictures, quantization on."""
    torch.manual_seed(seed)
    network = PhotoNetwork(config)
    with torch.no_grad():
        for parameter in network.parameters():  # some life in what starts at zero
            parameter.add_(0.05 * torch.randn_like(parameter))
        for value in network.analysis.head.parameters():
            value.mul_(20)
        for module in network.modules():
            if isinstance(module, QuantizedActivation):
                module.observing = True
        network(torch.rand(4, 3, 128, 128), torch.tensor([1.0, 30.0, 60.0, 100.0]))
    network.entropy_model.set_quantization(True)
    for module in network.modules():
        if isinstance(module, QuantizedActivation):
            module.observing = False
    return network.eval()


def random_codec(seed: int, backend: str = "native", precision: str | None = None) -> PhotoCodec:
    """The codec of ``quantized_network(seed)``; the same weights for every backend."""
    network = quantized_network(seed)
    tensors = {
        name: tensor.detach()
        for name, tensor in network.state_dict().items()
        if not name.startswith("entropy_model.")
    }
    entropy = export_entropy_model(network.entropy_model)
    tensors |= {f"entropy.{name}": tensor for name, tensor in entropy.items()}
    return PhotoCodec(tensors, network.config, b"testonly", backend=backend, precision=precision)
