"""Converted models in integers: layers, what calibration chooses, and the command."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from skimage import data
from torch import nn

from pycodec import api
from pycodec.cli import main
from pycodec.coding.container import split_streams
from pycodec.errors import InputError, UnsupportedError
from pycodec.evaluation.evaluate import pycodec_under_test
from pycodec.models.hyperprior import export_entropy_model
from pycodec.models.hyperprior_codec import (
    HyperpriorCodec,
    load_hyperprior_model,
    save_hyperprior_model,
)
from pycodec.models.hyperprior_network import ARCHITECTURES, GDN
from pycodec.models.integer_layers import (
    GDN_PIXELS,
    ChunkedGDN,
    IntegerRun,
    as_convolutions,
    find_runs,
    use_integers,
)
from pycodec.models.integer_transforms import unpack_int12
from pycodec.models.photo import save_integers
from pycodec.models.zoo import load_model
from pycodec.profiling.spans import Recorder
from pycodec.quantization.hyperprior import HyperpriorCalibration
from pycodec.quantization.transforms import accumulator_bound

from ..hyperprior_networks import make_network

SEVERAL = ("mbt2018", "bmshj2018-hyperprior", "cheng2020-attn", "elic2022-chandelier")
"""GDN and leaky ReLUs; ReLUs in h_a; attention, residual and sub-pixel layers; ELIC."""


def transforms_of(architecture: str) -> nn.Module:
    network = make_network(architecture)
    network.drop_entropy_model()
    as_convolutions(network)
    return network


def crop(height: int = 64, width: int = 128) -> np.ndarray:
    return np.ascontiguousarray(data.coffee()[100 : 100 + height, 200 : 200 + width])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Float models by architecture."""
    made = {}
    for name in SEVERAL:
        network = make_network(name)
        made[name] = tmp_path_factory.mktemp(name)
        generator = torch.Generator().manual_seed(5)
        pictures = torch.rand(1, 3, 64, 64, generator=generator)
        save_hyperprior_model(made[name], network, export_entropy_model(network, pictures))
    return made


@pytest.fixture(scope="module")
def calibrations(folders) -> dict[str, HyperpriorCalibration]:
    return {
        name: HyperpriorCalibration(load_hyperprior_model(folder), [crop(128, 128)])
        for name, folder in folders.items()
    }


@pytest.fixture(scope="module")
def integers(calibrations) -> dict[str, dict[str, torch.Tensor]]:
    """With layers of 8 and of 12 bits."""
    return {
        name: calibration.export(
            {n: 8 if i % 3 == 0 else 12 for i, n in enumerate(calibration.multiplications())}
        )
        for name, calibration in calibrations.items()
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(data.coffee()[:200, :300]).save(folder / "0.png")
    return folder


@pytest.fixture(scope="module")
def quantized(folders, pictures, tmp_path_factory) -> dict[str, Path]:
    """Written by the command."""
    out = {name: tmp_path_factory.mktemp("quantized") / name for name in ("mbt2018",)}
    for name, folder in out.items():
        arguments = [str(folders[name]), "--calibrate", str(pictures), "--out", str(folder)]
        assert main(["quantize", *arguments]) == 0
    return out


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_convolution_is_in_one_run(architecture):
    network = transforms_of(architecture)
    names = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    runs = find_runs(network)
    assert sorted(layer.name for run in runs for layer in run.layers) == sorted(names)
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in network.modules())
    lengths = {len(run.layers) for run in runs}
    has_relus = architecture in ("bmshj2018-hyperprior", "cheng2020-attn") or "elic" in architecture
    assert lengths == ({1, 3} if has_relus else {1})


@pytest.mark.parametrize("architecture", ["mbt2018", "elic2022-official"])
def test_transposed_convolutions_as_convolutions(architecture):
    network = make_network(architecture)
    rewritten = transforms_of(architecture)
    y = torch.randn(1, network.m, 3, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rewritten.g_s(y), network.g_s(y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
def test_gdn_in_chunks(inverse, dtype, tolerance):
    generator = torch.Generator().manual_seed(2)
    gdn = GDN(24, inverse)
    with torch.no_grad():
        gdn.gamma += 0.1 * torch.rand(24, 24, generator=generator)
        x = torch.randn(2, 24, 33, GDN_PIXELS // 32, generator=generator)  # the last is a part
        expected = gdn(x)
        for layout in (torch.contiguous_format, torch.channels_last):
            found = ChunkedGDN(gdn, dtype)(x.clone(memory_format=layout))
            assert float((found - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("architecture", SEVERAL)
def test_integer_transforms_are_close_to_float(architecture, folders, calibrations, integers):
    codec = load_hyperprior_model(folders[architecture])
    network = copy.deepcopy(codec.network)
    use_integers(network, integers[architecture])
    kinds = {type(m) for m in network.modules()}
    assert IntegerRun in kinds and not kinds & {nn.Conv2d, nn.ConvTranspose2d, GDN}
    x = torch.from_numpy(crop()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        y = codec.network.g_a(x)
        owner = "latent_codec.hyper.h_a" if hasattr(network, "latent_codec") else "h_a"
        z_input = y if network.has_means else y.abs()
        for part, value in (
            ("g_a", x),
            (owner, z_input),
            ("g_s", torch.round(y)),
        ):
            expected = codec.network.get_submodule(part)(value)
            found = network.get_submodule(part)(value)
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert float((found - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize("architecture", SEVERAL)
def test_backends_agree_bit_for_bit(architecture, calibrations, integers):
    calibration = calibrations[architecture]
    generator = torch.Generator().manual_seed(3)
    for run in calibration.runs:
        first = calibration.network.get_submodule(run.layers[0].name)
        peak = calibration.observer.inputs[run.layers[0].name].peak.abs().amax()
        x = torch.randn(1, first.in_channels, 6, 7, generator=generator) * peak
        native, reference = (
            IntegerRun(run, integers[architecture], backend) for backend in ("native", "reference")
        )
        assert torch.equal(native(x), reference(x))


@pytest.mark.parametrize("architecture", SEVERAL)
def test_no_accumulator_can_overflow(architecture, calibrations, integers):
    tensors, most = integers[architecture], 0
    for run in calibrations[architecture].runs:
        bits = int(tensors[f"{run.layers[0].name}.input.bits"])
        for place, layer in enumerate(run.layers):
            name, packed = layer.name, tensors.get(f"{layer.name}.weight12")
            weight = tensors[f"{name}.weight"] if packed is None else unpack_int12(packed)
            low, high = (0, 2**15 - 1) if place else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            if bits == 8:
                low, high = 0, 255
            bound = accumulator_bound(weight, tensors[f"{name}.bias"], low, high)
            most = max(most, -bound[0], bound[1])
    assert 2**24 < most < 2**31


def test_wide_layers_use_what_accumulators_have(calibrations):
    calibration = calibrations["mbt2018"]
    conv = calibration.network.get_submodule("g_a.2")
    before = conv.weight.data.clone()
    try:
        conv.weight.data = torch.ones_like(before)  # 12 bits of each would not fit
        calibration._plans.pop(("g_a.2", 12), None)
        plan = calibration.plan("g_a.2", 12)
        step = plan.weight_scale / plan.input.scale.max()
        largest = float(((1 / step).abs()).max())
        assert 10 < largest < 2**11 - 1
    finally:
        conv.weight.data = before
        calibration._plans.pop(("g_a.2", 12), None)


def test_sensitivity_is_of_one_layer_alone(calibrations):
    calibration = calibrations["mbt2018"]
    before = copy.deepcopy(calibration.network.state_dict())
    shares = calibration.sensitivity([crop(64, 64)])
    assert set(shares) == {n for n in calibration.multiplications() if n.startswith(("g_a", "g_s"))}
    assert all(0 <= by[bits] < 1 for by in shares.values() for bits in (8, 12))
    assert sum(by[8] for by in shares.values()) > sum(by[12] for by in shares.values()) > 0
    for name, value in calibration.network.state_dict().items():
        assert torch.equal(value, before[name])


def test_eight_bits_where_they_cost_least(calibrations):
    calibration = calibrations["mbt2018"]
    work = calibration.multiplications()
    assert work["g_a.0"] == 3 * 12 * 25 / 4 and work["h_a.0"] == 20 * 12 * 9 / 256
    names = [n for n in work if n.startswith(("g_a", "g_s"))]
    shares = {name: {8: 0.01, 12: 0.0} for name in names}
    assert set(calibration.choose_bits(shares).values()) == {8, 12}  # h_a has 12
    assert all(calibration.choose_bits(shares)[name] == 8 for name in names)
    shares["g_s.6.0"] = {8: 0.6, 12: 0.1}
    chosen = calibration.choose_bits(shares)
    assert [name for name in names if chosen[name] == 12] == ["g_s.6.0"]
    shares = {name: {8: 9.0, 12: 0.0} for name in names}
    assert set(calibration.choose_bits(shares).values()) == {12}


def test_files_and_pixels_of_both_precisions(quantized, folders):
    folder = quantized["mbt2018"]
    fp32, int8 = (load_model(folder, precision=p) for p in ("fp32", "int8"))
    assert load_model(folder).precision == "fp32" and int8.precision == "int8"
    assert fp32.fingerprint == int8.fingerprint
    assert (folder / "model.safetensors").read_bytes() == (
        folders["mbt2018"] / "model.safetensors"
    ).read_bytes()
    pixels = crop(90, 130)
    for coder in (fp32, int8):
        file = api.encode(pixels, model=coder)
        one, two = (
            api.decode_picture(file, model=folder, precision=p)[0].pixels for p in ("fp32", "int8")
        )
        assert one.shape == two.shape == pixels.shape
        difference = np.abs(one.astype(int) - two)
        assert difference.max() <= 4 and difference.mean() < 0.3 and one.std() > 5


def test_latents_decode_alike(quantized):
    fp32, int8 = (load_model(quantized["mbt2018"], precision=p) for p in ("fp32", "int8"))
    coded = int8.compress(crop(), keep_symbols=True)
    streams = split_streams(memoryview(coded.streams[0]), 2)
    one, two = (codec.entropy_model.decode(streams, 1, 2) for codec in (fp32, int8))
    assert torch.equal(one, two) and bool(one.any())


def test_command_line(quantized, tmp_path, capsys):
    folder = str(quantized["mbt2018"])
    Image.fromarray(crop()).save(tmp_path / "a.png")
    names = [str(tmp_path / name) for name in ("a.png", "a.lci", "b.png")]
    options = ["--model", folder, "--precision", "int8"]
    assert main(["encode", *options, *names[:2]]) == 0
    assert main(["decode", *options, *names[1:]]) == 0
    codec = load_model(folder, precision="int8")
    with Recorder() as recorder:
        coded = codec.compress(crop())
        expected = codec.decompress(coded.streams, 128, 64, coded.quality_code)
    seen = {span.name for span in recorder.spans}
    assert {"analysis", "synthesis", "g_a.2", "h_a.0", "g_s.6.0"} <= seen
    assert np.array_equal(np.asarray(Image.open(names[2])), expected)
    options += ["--sizes", "64x64", "--seconds", "0.01", "--runs", "1"]
    assert main(["bench", *options]) == 0
    assert "int8" in capsys.readouterr().out


def test_eval_measures_the_precision(quantized):
    options = {"model": str(quantized["mbt2018"])}
    pixels = crop()
    for precision in ("fp32", "int8"):
        tested = pycodec_under_test((50.0,), precision=precision, **options)
        codec = load_model(quantized["mbt2018"], precision=precision)
        file = tested.encode(pixels, 50.0)
        assert file == api.encode(pixels, model=codec)
        expected = api.decode_picture(file, model=codec)[0].pixels
        assert np.array_equal(tested.decode(file), expected)


def test_report(folders, pictures, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = [str(folders["bmshj2018-hyperprior"]), "--calibrate", str(pictures)]
    arguments += ["--out", str(tmp_path / "out"), "--report", str(tmp_path / "report")]
    assert main(["quantize", *arguments]) == 0
    with (tmp_path / "report/layers.csv").open() as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    stored = safetensors.torch.load_file(tmp_path / "out/int8.safetensors")
    assert set(rows) == {name.removesuffix(".bias") for name in stored if name.endswith(".bias")}
    for name, row in rows.items():
        assert float(row["ms"]) > 0 and float(row["MAC/pixel"]) > 0
        assert (float(row["mean bits"]) == 12) == (f"{name}.weight12" in stored) or "g_a.0" in name
    assert rows["h_a.0"]["loss % at 8"] == "" and float(rows["g_s.0.0"]["loss % at 8"]) >= 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--finetune", "3"], "--finetune is for photo models"),
        (["--dynamic"], "--dynamic is for photo models"),
        (["--pictures", "0"], "--pictures is a count"),
        (["--mean-bits", "6"], "--mean-bits is for photo models"),
    ],
)
def test_nothing_is_trained(folders, pictures, tmp_path, capsys, options, message):
    arguments = [str(folders["mbt2018"]), "--calibrate", str(pictures), "--out", str(tmp_path)]
    assert main(["quantize", *arguments, *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_lossless_models_are_integer_already(pictures, tmp_path, capsys):
    arguments = ["tcae-fast", "--calibrate", str(pictures), "--out", str(tmp_path)]
    assert main(["quantize", *arguments]) == 1
    assert "integers as it is" in capsys.readouterr().err
    with pytest.raises(InputError, match="lossless: it knows no precision"):
        load_model("tcae-fast", precision="int8")


def test_precisions_that_a_model_does_not_have(folders):
    with pytest.raises(UnsupportedError, match="pycodec quantize makes them"):
        load_model(folders["mbt2018"], precision="int8")
    for precision in ("bf16", "mixed"):
        with pytest.raises(UnsupportedError, match="fp32 or int8"):
            load_model(folders["mbt2018"], precision=precision)


def test_pixels_are_not_exact(quantized):
    file = api.encode(crop(), model=quantized["mbt2018"])
    loaded = load_model(quantized["mbt2018"], precision="int8")
    for model in (quantized["mbt2018"], loaded):
        with pytest.raises(InputError, match="cannot be exact"):
            api.encode(crop(), model=model, exact_pixels=True)
        with pytest.raises(InputError, match="cannot be exact"):
            api.decode_picture(file, model=model, exact_pixels=True)


def test_damage(integers, quantized, folders, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in quantized["mbt2018"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = bytearray((folder / "int8.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "int8.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="SHA-256"):
        load_model(folder, precision="int8")
    tensors = dict(integers["mbt2018"])
    del tensors["g_s.2.0.bias"]
    save_integers(folder, "int8", tensors)
    with pytest.raises(InputError, match=r"lack the tensor 'g_s\.2\.0\.bias'"):
        load_model(folder, precision="int8")
    save_integers(folder, "int8", integers["elic2022-chandelier"])
    with pytest.raises(InputError):
        load_model(folder, precision="int8")


def test_calibration_needs_a_float_model_and_pictures(quantized, folders):
    with pytest.raises(InputError, match="precision fp32"):
        HyperpriorCalibration(load_model(quantized["mbt2018"], precision="int8"), [crop()])
    with pytest.raises(InputError, match="needs pictures"):
        HyperpriorCalibration(load_hyperprior_model(folders["mbt2018"]), [])
    assert isinstance(load_model(quantized["mbt2018"]), HyperpriorCodec)
