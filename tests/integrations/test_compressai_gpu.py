"""CompressAI's models whose transforms run on a GPU: the latents are still those of the CPU."""

from __future__ import annotations

import pytest
import torch

from pycodec.integrations.compressai import accelerate

from ..hyperprior_networks import GROUPED, make_network


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", ["mbt2018", "cheng2020-anchor-checkerboard"])
def test_transforms_on_a_gpu(architecture):
    pictures = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    on_gpu = accelerate(make_network(architecture).cuda(), pictures)
    on_cpu = accelerate(make_network(architecture), pictures)
    result = on_gpu.compress(pictures.cuda())
    there = on_gpu.decompress(**result)["x_hat"]
    assert there.is_cuda
    here = on_cpu.decompress(**result)["x_hat"]
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-2)  # the GPU may use TF32
    shape = result["shape"]["hyper"] if architecture in GROUPED else result["shape"]
    for streams in zip(*result["strings"], strict=True):
        expected = on_gpu.entropy_model.decode(streams, *shape)
        assert torch.equal(on_cpu.entropy_model.decode(streams, *shape), expected)
