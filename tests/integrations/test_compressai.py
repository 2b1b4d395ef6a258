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
from pycodec.models.hyperprior import LATENT_BITS, hyperlatents
from pycodec.models.hyperprior_network import ARCHITECTURES
from pycodec.models.zoo import load_model

from ..hyperprior_networks import GROUPED, WITH_CONTEXT, WITHOUT_CONTEXT, make_network


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
    shape = result["shape"]
    if architecture in GROUPED:
        assert set(result) == {"strings", "shape", "y_hat"}
        shape = shape["hyper"]
    else:
        assert set(result) == {"strings", "shape"}
    assert tuple(shape) == ((4, 8) if kinds == 1 else (1, 2))
    assert [len(kind) for kind in result["strings"]] == [2] * kinds
    decoded = model.decompress(**result)["x_hat"]
    assert decoded.shape == x.shape
    assert 0 <= float(decoded.min()) <= float(decoded.max()) <= 1
    # Each picture of a batch is coded alone.
    one = model.compress(x[1:])
    assert one["strings"] == [kind[1:] for kind in result["strings"]]
    y = model.model.g_a(x[1:])
    streams = [kind[0] for kind in one["strings"]]
    latents = model.entropy_model.decode(streams, *shape).permute(2, 0, 1) / (1 << LATENT_BITS)
    assert float((latents - y[0]).abs().max()) <= 0.5 + 2**-6
    if architecture in GROUPED:
        assert torch.equal(one["y_hat"][0], latents)


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
@pytest.mark.parametrize("architecture", ["mbt2018", *GROUPED])
def test_threads_change_no_stream(accelerated, architecture, threads):
    model = accelerate(make_network(architecture), pictures(2, 128, 128), threads=threads)
    x = pictures()
    with torch.no_grad():
        y = model.model.g_a(x[:1])
        z = hyperlatents(model.model, y, abs_latents=False)
    expected = accelerated[architecture].entropy_model.encode(y[0], z[0], 3)
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


def test_damaged_results_of_latent_codecs(accelerated):
    model = accelerated["elic2022-official"]
    result = model.compress(pictures(1, 64, 64))
    for wrong in [result["shape"]["hyper"], {}, None]:
        with pytest.raises(InputError, match="latent codecs"):
            model.decompress(result["strings"], wrong)
    with pytest.raises(CorruptStreamError):
        model.decompress(result["strings"], {"hyper": (1, 2)})
    with pytest.raises(InputError, match="2 lists"):
        model.decompress(result["strings"][:1], result["shape"])


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
    network.Gain = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(UnsupportedError, match="gains"):
        accelerate(network)


def test_what_accelerate_refuses_of_latent_codecs():
    """Trees of other parts, and parts that do not fit: nothing is coded with a wrong guess."""
    with pytest.raises(UnsupportedError, match="not reproducible"):
        accelerate(make_network("cheng2020-anchor-checkerboard"), exact=True)

    def changed(architecture, change):
        network = make_network(architecture)
        change(network.latent_codec)
        return network

    def merge_a_sum(codec):
        codec.y.merge = lambda context, side: context + side[:, : context.shape[1]]

    def two_contexts(codec):
        first = codec.y.context_prediction
        codec.y.context_prediction = torch.nn.Sequential(first, torch.nn.Conv2d(24, 24, 1))

    def shuffled(codec):
        context = codec.y.channel_context["y1"]
        context.append(torch.nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1))

    def other_tables(codec):
        codec.y.latent_codec["y1"].y.gaussian_conditional.scale_table = torch.ones(3)

    def pool(codec):
        codec.y.entropy_parameters[0] = torch.nn.Conv2d(48, 40, 3, padding=1)

    for architecture, change, match in [
        ("cheng2020-anchor-checkerboard", merge_a_sum, "merges|fit"),
        ("cheng2020-anchor-checkerboard", pool, "pointwise"),
        ("cheng2020-anchor-checkerboard", lambda c: delattr(c, "hyper"), "_HyperpriorCodec"),
        (
            "cheng2020-anchor-checkerboard",
            lambda c: setattr(c.y.y, "chunks", ("scales",)),
            "scales",
        ),
        ("cheng2020-anchor-checkerboard", lambda c: delattr(c.y.y, "chunks"), "_GaussianCodec"),
        ("cheng2020-anchor-checkerboard", two_contexts, "2 layers"),
        ("elic2022-official", shuffled, "keep the size"),
        ("elic2022-official", other_tables, "tables"),
        ("elic2022-official", lambda c: c.y.groups.append(3), "ChannelGroups"),
        ("elic2022-official", lambda c: c.y.groups.reverse(), "fit|groups"),
    ]:
        with pytest.raises(UnsupportedError, match=match):
            accelerate(changed(architecture, change))


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
        ("word.pth", b"hello"),  # a KeyError of the unpickler
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
    sensetime = pytest.importorskip("compressai.models.sensetime")
    classes = {
        "bmshj2018-factorized": models.FactorizedPrior,
        "bmshj2018-hyperprior": models.ScaleHyperprior,
        "mbt2018-mean": models.MeanScaleHyperprior,
        "mbt2018": models.JointAutoregressiveHierarchicalPriors,
        "cheng2020-anchor": models.Cheng2020Anchor,
        "cheng2020-attn": models.Cheng2020Attention,
        "cheng2020-anchor-checkerboard": sensetime.Cheng2020AnchorCheckerboard,
        "elic2022-official": sensetime.Elic2022Official,
        "elic2022-chandelier": sensetime.Elic2022Chandelier,
    }

    def make(architecture):
        network = make_network(architecture)
        widths = (network.n,) if architecture.startswith("cheng2020") else (network.n, network.m)
        if network.groups is not None:
            widths = (*widths, network.groups)
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
    assert set(ours) == set(theirs)
    assert list(fast.state_dict()) == list(model.state_dict())
    if "y_hat" in ours:
        assert float((ours["y_hat"] - theirs["y_hat"]).abs().mean()) < 0.01
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
@torch.no_grad()
def test_indexes_are_compressai_s(build, architecture, monkeypatch):
    """The conditioning is the same: at every symbol the table that CompressAI takes, or, where the
    scale is at a border, the next."""
    model = build(architecture)
    fast = accelerate(model, pictures(2, 128, 128))
    x = pictures(1, 128, 192)
    kind = type(
        next(
            m for m in model.modules() if hasattr(m, "build_indexes") and hasattr(m, "scale_table")
        )
    )
    build_indexes, steps = kind.build_indexes, []

    def recorded(self, scales):
        indexes = build_indexes(self, scales)
        steps.append(indexes[0].reshape(len(indexes[0]), -1).T.numpy())  # channels innermost
        return indexes

    monkeypatch.setattr(kind, "build_indexes", recorded)
    model.compress(x)
    expected = np.concatenate([step.ravel() for step in steps])
    y = model.g_a(x)
    z = hyperlatents(model, y, abs_latents=False)
    indexes = fast.entropy_model.encode(y[0], z[0]).indexes.astype(int)
    if architecture not in GROUPED:  # there in raster order, here in waves
        height, width = y.shape[2:]
        waves = np.concatenate(fast.entropy_model.context_model.waves(height, width))
        expected = expected.reshape(height, width, -1)[tuple(waves.T)].ravel()
    assert len(np.unique(expected)) > 3
    assert np.abs(indexes - expected).max() <= 1
    assert (indexes == expected).mean() > 0.97


@torch.no_grad()
def test_other_latent_codecs(build):
    """Trees that none of CompressAI's models is made of."""
    codecs = pytest.importorskip("compressai.latent_codecs")
    x = pictures(1, 64, 128)
    raster = build("cheng2020-anchor")
    tree = torch.nn.Module()
    tree.g_a, tree.g_s = raster.g_a, raster.g_s
    hyper = codecs.HyperLatentCodec(raster.entropy_bottleneck, raster.h_a, raster.h_s)

    def with_latents(y):
        tree.latent_codec = codecs.HyperpriorLatentCodec({"y": y, "hyper": hyper})
        return tree.eval()

    scan = codecs.RasterScanLatentCodec(
        raster.gaussian_conditional, raster.entropy_parameters, raster.context_prediction
    )
    fast = accelerate(with_latents(scan))
    coded = fast.compress(x)
    assert coded["strings"] == accelerate(raster).compress(x)["strings"]
    assert coded["shape"] == tree.latent_codec.compress(tree.g_a(x))["shape"]
    assert torch.equal(tree.g_s(coded["y_hat"]).clamp(0, 1), fast.decompress(**coded)["x_hat"])

    def gaussian(inputs, channels):
        network = torch.nn.Conv2d(inputs, 2 * channels, 1)
        return codecs.GaussianConditionalLatentCodec(entropy_parameters=network)

    n, side = raster.M, 2 * raster.M
    context = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, padding=1), torch.nn.ReLU())
    groups = codecs.ChannelGroupsLatentCodec(
        {"y0": gaussian(side, 4), "y1": gaussian(side + 6, n - 4)},
        {"y1": context},
        groups=[4, n - 4],
    )
    for latents in (gaussian(side, n), groups):
        model = with_latents(latents)
        for codec in model.modules():
            if hasattr(codec, "update_scale_table"):
                codec.update_scale_table(raster.gaussian_conditional.scale_table, force=True)
        fast = accelerate(model)
        coded = fast.compress(x)
        theirs = model.latent_codec.compress(model.g_a(x))
        assert coded["shape"] == theirs["shape"]
        # Here and there a latent is at the border of two symbols.
        close = (coded["y_hat"] - theirs["y_hat"]).abs() < 2**-4
        assert float(close.float().mean()) > 0.97
        expected = model.g_s(coded["y_hat"]).clamp(0, 1)
        assert torch.equal(fast.decompress(**coded)["x_hat"], expected)
    with pytest.raises(UnsupportedError, match="EntropyBottleneckLatentCodec"):
        accelerate(with_latents(codecs.EntropyBottleneckLatentCodec(channels=n)))


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
