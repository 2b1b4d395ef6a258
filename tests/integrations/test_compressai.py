"""CompressAI's models with this codec: what is the same, and what is not.

The tests below the line need CompressAI, which has wheels for some versions of Python only; those
above run on the same networks as ``pycodec.models.hyperprior_network`` has them.
"""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from pycodec import cli
from pycodec.errors import CodecError, CorruptStreamError, InputError, UnsupportedError
from pycodec.integrations.compressai import accelerate, convert_checkpoint, read_pictures
from pycodec.models.hyperprior import LATENT_BITS
from pycodec.models.hyperprior_network import ARCHITECTURES
from pycodec.models.zoo import load_model

from ..hyperprior_networks import WITH_CONTEXT, WITHOUT_CONTEXT, make_network


def pictures(count=2, height=64, width=128):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def accelerated():
    return {name: accelerate(make_network(name), pictures(2, 128, 128)) for name in ARCHITECTURES}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compress_and_decompress(accelerated, architecture):
    model = accelerated[architecture]
    x = pictures()
    result = model.compress(x)
    kinds = 1 if architecture == "bmshj2018-factorized" else 2
    assert set(result) == {"strings", "shape"}
    assert tuple(result["shape"]) == ((4, 8) if kinds == 1 else (1, 2))
    assert [len(kind) for kind in result["strings"]] == [2] * kinds
    decoded = model.decompress(**result)["x_hat"]
    assert decoded.shape == x.shape
    assert 0 <= float(decoded.min()) <= float(decoded.max()) <= 1
    # Each picture of a batch is coded alone.
    one = model.compress(x[1:])
    assert one["strings"] == [kind[1:] for kind in result["strings"]]
    y = model.model.g_a(x[1:])
    streams = [kind[0] for kind in one["strings"]]
    latents = model.entropy_model.decode(streams, *one["shape"]).permute(2, 0, 1)
    assert float((latents / (1 << LATENT_BITS) - y[0]).abs().max()) <= 0.5 + 2**-6


def test_it_stays_the_model(accelerated):
    for architecture, model in accelerated.items():
        own = make_network(architecture).state_dict()
        assert list(model.state_dict()) == list(own)
        assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())
        with pytest.raises(InputError, match="accelerate again"):
            model.load_state_dict(own)


def test_the_model_is_left_as_it_was():
    network = make_network("mbt2018").train()
    accelerate(network)
    assert network.training


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_stream(accelerated, threads):
    model = accelerate(make_network("mbt2018"), pictures(2, 128, 128), threads=threads)
    x = pictures()
    with torch.no_grad():
        y = model.model.g_a(x[:1])
        z = model.model.h_a(y)
    expected = accelerated["mbt2018"].entropy_model.encode(y[0], z[0], 3)
    coded = model.entropy_model.encode(y[0], z[0], threads)
    assert coded.streams == expected.streams


def test_kinds_of_calibration():
    network = make_network("mbt2018-mean")
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (70, 300, 3), np.uint8),
        rng.integers(0, 256, (1, 1, 3), np.uint8),
    ]
    tensors = [torch.from_numpy(a).permute(2, 0, 1) / 255 for a in arrays]
    x = pictures(1, 64, 64)
    a, b = (accelerate(network, kind).compress(x)["strings"] for kind in (arrays, tensors))
    assert a == b
    made = accelerate(network)
    assert made.decompress(**made.compress(x))["x_hat"].shape == x.shape
    for wrong in [[], [arrays[0][..., 0]], [arrays[0].astype(float)], [torch.zeros(4, 5)]]:
        with pytest.raises(InputError, match="calibration"):
            accelerate(network, wrong)


@pytest.mark.parametrize("architecture", ["bmshj2018-factorized", "mbt2018"])
def test_damaged_results(accelerated, architecture):
    model = accelerated[architecture]
    result = model.compress(pictures(1, 64, 64))
    strings, shape = result["strings"], result["shape"]
    for kind in range(len(strings)):
        cut = [[s[:-2] for s in k] if i == kind else k for i, k in enumerate(strings)]
        with pytest.raises(CorruptStreamError):
            model.decompress(cut, shape)
    for wrong in [strings[0], [], [[]] * len(strings), strings * 2, "strings"]:
        with pytest.raises(CodecError):
            model.decompress(wrong, shape)
    for wrong in [(1,), (0, 1), (-1, 1), (1, 1 << 20)]:
        with pytest.raises(InputError, match="shape"):
            model.decompress(strings, wrong)
    with pytest.raises(CorruptStreamError):
        model.decompress(strings, (shape[0] + 1, shape[1]))


def test_what_compress_refuses(accelerated):
    model = accelerated["mbt2018"]
    for wrong in [torch.rand(3, 64, 64), torch.rand(1, 1, 64, 64), "picture"]:
        with pytest.raises(InputError, match="compress takes"):
            model.compress(wrong)
    with pytest.raises(InputError, match="multiple of 64"):
        model.compress(torch.rand(1, 3, 80, 64))


def test_what_accelerate_refuses():
    with pytest.raises(UnsupportedError, match="has no g_a"):
        accelerate(torch.nn.Linear(2, 2))
    network = make_network("mbt2018")
    with pytest.raises(UnsupportedError, match="not reproducible"):
        accelerate(network, exact=True)
    with pytest.raises(InputError, match="threads"):
        accelerate(network, threads=0)
    network.h_s[1] = torch.nn.GELU()
    with pytest.raises(UnsupportedError, match="GELU"):
        accelerate(network)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_converted_checkpoint(tmp_path, architecture, accelerated):
    """Through the command line: checkpoint to model, picture to file and back."""
    network = make_network(architecture)
    checkpoint = tmp_path / "model.pth.tar"
    torch.save({"epoch": 3, "state_dict": network.state_dict()}, checkpoint)
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    (folder / "notes.txt").write_text("no picture")
    out = tmp_path / "converted"
    arguments = [architecture, str(checkpoint), "--out", str(out), "--calibrate", str(folder)]
    assert cli.main(["convert-compressai", *arguments]) == 0
    data, back = str(tmp_path / "a.lci"), tmp_path / "back.png"
    assert cli.main(["encode", "--quiet", "--model", str(out), str(folder / "a.png"), data]) == 0
    assert cli.main(["info", data]) == 0
    assert cli.main(["decode", "--quiet", "--model", str(out), data, str(back)]) == 0
    with Image.open(back) as image:
        decoded = np.array(image)
    # What the float networks make of the same latents.
    rows, columns = (10, 6) if architecture == "bmshj2018-factorized" else (58, 38)
    padded = np.pad(pixels, ((0, rows), (0, columns), (0, 0)), mode="edge")
    x = torch.from_numpy(padded).permute(2, 0, 1)[None] / 255
    model = accelerate(network, [pixels])
    expected = model.decompress(**model.compress(x))["x_hat"][0, :, :70, :90]
    expected = (expected * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(decoded - expected).max() <= 1


def test_wrong_checkpoints(tmp_path, capsys):
    out = tmp_path / "out"
    for name, content in [
        ("text.pth", b"no checkpoint"),
        ("empty.pth", b""),
        ("code.pth", pickle.dumps(print)),  # would run on loading, were it allowed to
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="cannot read"):
            convert_checkpoint("mbt2018", tmp_path / name, out)
    with pytest.raises(InputError, match="cannot read"):
        convert_checkpoint("mbt2018", tmp_path / "missing.pth", out)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="no state dict"):
        convert_checkpoint("mbt2018", tmp_path / "list.pth", out)
    torch.save(make_network("mbt2018-mean").state_dict(), tmp_path / "other.pth")
    arguments = ["mbt2018", str(tmp_path / "other.pth"), "--out", str(out)]
    assert cli.main(["convert-compressai", *arguments]) == 1
    assert "not the weights" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(InputError, match="no pictures"):
        read_pictures(tmp_path)


# With CompressAI itself


@pytest.fixture
def build():
    """CompressAI's model with the weights of ``make_network``, and tables."""
    models = pytest.importorskip("compressai.models")
    classes = {
        "bmshj2018-factorized": models.FactorizedPrior,
        "bmshj2018-hyperprior": models.ScaleHyperprior,
        "mbt2018-mean": models.MeanScaleHyperprior,
        "mbt2018": models.JointAutoregressiveHierarchicalPriors,
        "cheng2020-anchor": models.Cheng2020Anchor,
        "cheng2020-attn": models.Cheng2020Attention,
    }

    def make(architecture):
        network = make_network(architecture)
        widths = (network.n,) if architecture.startswith("cheng2020") else (network.n, network.m)
        model = classes[architecture](*widths)
        missing, unexpected = torch.nn.Module.load_state_dict(
            model, network.state_dict(), strict=False
        )
        coder_state = ("_offset", "_quantized_cdf", "_cdf_length", "bound", "target")
        assert all(name.endswith(coder_state) for name in missing)
        assert unexpected == []
        model.update()
        return model.eval()

    return make


@pytest.mark.parametrize("architecture", WITHOUT_CONTEXT)
@torch.no_grad()
def test_exact_streams_are_compressai_s(build, architecture):
    model = build(architecture)
    exact = accelerate(model, exact=True)
    x = pictures(2, 128, 64)
    theirs = model.compress(x)
    assert exact.compress(x) == theirs
    decoded = exact.decompress(**theirs)["x_hat"]
    assert torch.equal(decoded, model.decompress(**theirs)["x_hat"])
    for kind in range(len(theirs["strings"])):
        cut = [[s[:3] for s in k] if i == kind else k for i, k in enumerate(theirs["strings"])]
        with pytest.raises(CorruptStreamError):
            exact.decompress(cut, theirs["shape"])


def test_exact_needs_tables(build):
    model = build("mbt2018-mean")
    model.gaussian_conditional._quantized_cdf = torch.IntTensor()
    with pytest.raises(InputError, match="update"):
        accelerate(model, exact=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_accelerated_is_close_to_compressai(build, architecture):
    """As good a picture, and no more bytes.

    Fewer is no surprise: untrained scales send many symbols beyond their tables, where the coders
    differ. Rates of trained models are in ``benchmarks/results/compressai.json``.
    """
    model = build(architecture)
    fast = accelerate(model, pictures(2, 128, 128))
    x = pictures(1, 128, 192)
    theirs, ours = model.compress(x), fast.compress(x)
    assert ours["shape"] == theirs["shape"]
    assert list(fast.state_dict()) == list(model.state_dict())
    size_of_theirs, size_of_ours = (
        sum(len(s) for kind in r["strings"] for s in kind) for r in (theirs, ours)
    )
    assert size_of_ours <= 1.01 * size_of_theirs + 12
    psnr = [
        -10 * math.log10(float((m.decompress(**r)["x_hat"] - x).square().mean()))
        for m, r in ((fast, ours), (model, theirs))
    ]
    assert abs(psnr[0] - psnr[1]) < 0.02


@pytest.mark.parametrize("architecture", WITH_CONTEXT)
def test_exact_is_refused(build, architecture):
    with pytest.raises(UnsupportedError, match="not reproducible"):
        accelerate(build(architecture), exact=True)


def test_converted_models_are_compressai_s(build, tmp_path):
    model = build("cheng2020-anchor")
    torch.save(model.state_dict(), tmp_path / "model.pth")
    convert_checkpoint("cheng2020-anchor", tmp_path / "model.pth", tmp_path / "model")
    codec = load_model(tmp_path / "model")
    x = pictures(1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(codec.network.g_a(x), model.g_a(x))
