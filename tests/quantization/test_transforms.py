"""The exported transforms follow the float ones, are equal everywhere, and cannot overflow."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from skimage import data

from pycodec import _cpu, api
from pycodec.errors import CodecError, InputError, UnsupportedError
from pycodec.images import Picture
from pycodec.models.blocks import on_sphere
from pycodec.models.integer_transforms import (
    PROGRAMS,
    Convert,
    Convolve,
    IntegerTransform,
    exp2_fixed,
    pack_int12,
    unpack_int12,
)
from pycodec.models.photo import TRANSFORMS, PhotoCodec, save_integers, save_photo_model
from pycodec.models.photo_network import PhotoConfig, PhotoNetwork
from pycodec.ops import quantized_conv2d
from pycodec.ops.quantized_conv2d import unpack_int4
from pycodec.projection.grid import SphereGrid
from pycodec.quantization.calibration import (
    METHODS,
    minmax_scale,
    mse_scale,
    percentile_scale,
    round_rows,
)
from pycodec.quantization.export import export_entropy_model
from pycodec.quantization.photo import WEIGHT_BITS, Calibration
from pycodec.quantization.transforms import (
    accumulator_bound,
    export_transform,
    input_range,
)

from ..levels import LEVELS, simd_level

SMALL = PhotoConfig((16, 24, 32), 32, 16, 16, 16, 16, 16)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A small model with weights that do something, and its folder."""
    torch.manual_seed(0)
    network = PhotoNetwork(SMALL)
    for name, parameter in network.named_parameters():
        if name.endswith(("expand.weight", "conv2.weight")):
            torch.nn.init.normal_(parameter, std=0.02)
        elif "affine" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    network.hyper_analysis.conv3.weight.data *= 40
    network.entropy_model.set_quantization(True)
    tensors = {
        f"{part}.{k}": v
        for part in TRANSFORMS
        for k, v in getattr(network, part).state_dict().items()
    }
    entropy = export_entropy_model(network.entropy_model)
    tensors |= {f"entropy.{k}": v for k, v in entropy.items()}
    folder = tmp_path_factory.mktemp("models") / "small"
    save_photo_model(folder, tensors, SMALL)
    codec = PhotoCodec(tensors, SMALL, bytes(8), precision="fp32")
    pictures = [data.astronaut()[:128, :192], data.coffee()[:192, :128], data.cat()[:128, :128]]
    calibration = Calibration(codec, pictures)
    for precision in WEIGHT_BITS:
        save_integers(folder, precision, calibration.export(precision))
    return codec, folder, calibration


@pytest.fixture(scope="module")
def integers(photo):
    _, _, calibration = photo
    tensors = calibration.export("mixed")
    return {
        part: {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(part)}
        for part in TRANSFORMS
    }


def pixels(height=64, width=96):
    return np.ascontiguousarray(data.astronaut()[200 : 200 + height, 100 : 100 + width])


def test_int12_packing():
    weight = torch.arange(-2048, 2048, dtype=torch.int16).view(2, -1)
    packed = pack_int12(weight)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 3072)
    assert torch.equal(unpack_int12(packed), weight)


def test_exp2_fixed():
    log2 = torch.arange(-(1 << 16), 30 << 16, 97)
    exact = 2.0 ** (log2.double() / (1 << 16))
    made = exp2_fixed(log2)
    assert int(made[0]) == 0
    assert bool(((made - exact).abs() <= 1 + exact * 2e-9).all())
    assert bool((made[1:] >= made[:-1]).all())


@pytest.mark.parametrize("quality", [1.0, 37.5, 100.0])
def test_integers_follow_the_float_transforms(photo, quality):
    codec, folder, _ = photo
    integer = api.load_model(folder, precision="int8")
    picture = pixels(128, 128)
    x = (torch.tensor(picture).float() / 255)[None].permute(0, 3, 1, 2)
    with torch.inference_mode():
        y = codec.analysis(x, torch.tensor([quality]))
        latents = integer.integers["analysis"](torch.tensor(picture), round(quality * 100))
        real = latents.float().permute(2, 0, 1)[None] / 1024
        signal, error = y.square().mean(), (real - y).square().mean()
        assert error < signal * 4e-3
        out = codec.synthesis(real, torch.tensor([quality]))[0].permute(1, 2, 0) * 255
        made = integer.integers["synthesis"](latents, round(quality * 100))
        assert out.std() > 20
        assert (made.float() - out.clamp(0, 255)).abs().mean() < 2
        z = codec.hyper_analysis(real, torch.tensor([quality]))[0].permute(1, 2, 0).round()
        hyper = integer.integers["hyper_analysis"](latents, round(quality * 100))
        assert z.std() > 0.5
        assert (hyper - z).abs().mean() < 0.15


def check_backends_and_levels(integers, run):
    """The native programs, at every SIMD level and thread count, and the reference's steps.

    ``run`` takes the transforms and a number of threads and gives their results, pixels last.
    """
    hashes = set()

    def check(backend, threads=None):
        made = {part: IntegerTransform(part, integers[part], backend) for part in TRANSFORMS}
        results = run(made, threads)
        joined = b"".join(t.contiguous().numpy().tobytes() for t in results)
        hashes.add(hashlib.sha256(joined).hexdigest())
        return results[-1]

    assert check("reference").unique().numel() > 20
    for level in LEVELS:
        with simd_level(level):
            check("native", 1)
            check("native", 3)
    assert len(hashes) == 1


def test_every_backend_and_level_gives_the_same_bytes(integers):
    picture = torch.tensor(pixels(96, 80))

    def run(made, threads):
        latents = made["analysis"](picture, 6250, threads)
        hyper = made["hyper_analysis"](latents, 6250, threads)
        return latents, hyper, made["synthesis"](latents, 6250, threads)

    check_backends_and_levels(integers, run)


GRIDS = (SphereGrid((1, 3, 3, 2)), SphereGrid((2, 2, 1), south=False), SphereGrid((1,), False))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_backend_and_level_gives_the_same_bytes_on_a_sphere(integers, grid):
    qualities = [3000 + 1500 * tile for tile in range(grid.tiles)]
    size = grid.tiles, 64, 64 * grid.columns
    tiles = torch.tensor(np.resize(pixels(64, 200), (*size, 3)))
    own = {rows: torch.from_numpy(grid.mask(rows)) for rows in (1, 4, 64)}

    def run(made, threads):
        latents = made["analysis"].on_sphere(tiles, qualities, grid, threads)
        hyper = made["hyper_analysis"].on_sphere(latents, qualities, grid, threads)
        out = made["synthesis"].on_sphere(latents, qualities, grid, threads)
        assert out.shape == tiles.shape and hyper.shape[1:3] == (1, grid.columns)
        return [t[own[t.shape[1]]] for t in (latents, hyper, out)]

    check_backends_and_levels(integers, run)


def test_integers_follow_the_float_transforms_on_a_sphere(photo):
    codec, folder, _ = photo
    integer = api.load_model(folder, precision="int8")
    grid, qualities = SphereGrid((2, 4, 3)), [2000, 6000, 9000]
    tiles = torch.tensor(np.resize(pixels(64, 256), (3, 64, 256, 3)))
    at = torch.tensor(qualities) / 100
    with torch.inference_mode(), on_sphere(grid):
        y = codec.analysis((tiles.float() / 255).permute(0, 3, 1, 2), at).permute(0, 2, 3, 1)
        latents = integer.integers["analysis"].on_sphere(tiles, qualities, grid)
        own = torch.from_numpy(grid.mask(4))
        error = (latents / 1024 - y)[own].square().mean()
        assert error < y[own].square().mean() * 4e-3
        out = codec.synthesis((latents / 1024).permute(0, 3, 1, 2), at).permute(0, 2, 3, 1) * 255
        made = integer.integers["synthesis"].on_sphere(latents, qualities, grid)
        own = torch.from_numpy(grid.mask(64))
        assert out[own].std() > 20
        assert (made - out.clamp(0, 255))[own].abs().mean() < 2


def test_variants_of_a_layer(photo, integers):
    """A layer of 4 bits beside one of 8: either is what a model without variants computes."""
    _, _, calibration = photo
    narrow = integers["synthesis"]  # blocks16 of 4 bits
    wide = calibration.export("int8")
    wide = {k.removeprefix("synthesis."): v for k, v in wide.items() if k.startswith("synthesis.")}
    layers = ["blocks16.0.conv", "blocks16.1.conv"]
    both = dict(wide)
    for layer in layers:
        own = {k.removeprefix(layer): v for k, v in narrow.items() if k.startswith(f"{layer}.")}
        both |= {f"{layer}@4{name}": tensor for name, tensor in own.items()}
    latents = torch.randint(-4000, 4000, (3, 5, SMALL.latent_channels), dtype=torch.int32)

    def run(tensors, widths=None):
        return IntegerTransform("synthesis", tensors, widths=widths)(latents, 7000)

    assert torch.equal(run(both), run(wide))
    mixed = {k: v for k, v in wide.items() if not k.startswith(tuple(f"{n}." for n in layers))}
    mixed |= {k: v for k, v in narrow.items() if k.startswith(tuple(f"{n}." for n in layers))}
    chosen = run(both, widths=dict.fromkeys(layers, 4))
    assert torch.equal(chosen, run(mixed)) and not torch.equal(chosen, run(wide))
    with pytest.raises(InputError, match="no variant of 6 bits"):
        run(both, widths={"blocks16.0.conv": 6})


def test_exact_pixels_of_files(photo):
    """Whatever wrote a file and whatever reads it; tiles have no seams."""
    _, folder, _ = photo
    picture = Picture(pixels(150, 141))
    files = {
        precision: api.encode_picture(picture, 60, model=folder, precision=precision, tile=64)[0]
        for precision in ("fp32", "int8", "mixed")
    }
    for file in files.values():
        hashes = set()
        for level in LEVELS:
            api.load_model.__globals__["_load"].cache_clear()
            with simd_level(level):
                decoded, _ = api.decode_picture(file, model=folder, exact_pixels=True)
            hashes.add(hashlib.sha256(decoded.pixels.tobytes()).hexdigest())
        assert len(hashes) == 1
        near, _ = api.decode_picture(file, model=folder, precision="fp32")
        assert np.abs(near.pixels.astype(int) - decoded.pixels).mean() < 1
    whole = api.encode_picture(picture, 60, model=folder, precision="int8", tile=256)[0]
    tiled, _ = api.decode_picture(files["int8"], model=folder, precision="int8")
    untiled, _ = api.decode_picture(whole, model=folder, precision="int8")
    assert np.array_equal(tiled.pixels, untiled.pixels)


def test_a_file_may_ask_for_exact_pixels(photo):
    _, folder, _ = photo
    picture = Picture(pixels())
    asks, _ = api.encode_picture(picture, 40, model=folder, exact_pixels=True)
    plain, _ = api.encode_picture(picture, 40, model=folder, precision="int8")
    assert len(asks) == len(plain) + 7  # a section of one byte
    expected, _ = api.decode_picture(plain, model=folder, precision="int8")
    decoded, _ = api.decode_picture(asks, model=folder)
    assert np.array_equal(decoded.pixels, expected.pixels)
    mixed, _ = api.encode_picture(picture, 40, model=folder, exact_pixels=True, precision="mixed")
    decoded, _ = api.decode_picture(mixed, model=folder)
    expected, _ = api.decode_picture(mixed, model=folder, precision="mixed")
    assert np.array_equal(decoded.pixels, expected.pixels)


def test_precisions_that_cannot_be(photo, tmp_path):
    codec, folder, _ = photo
    picture = Picture(pixels())
    with pytest.raises(InputError, match="precision must be one of"):
        api.encode_picture(picture, 50, model=folder, precision="fp64")
    with pytest.raises(InputError, match="exact pixels need integers"):
        api.encode_picture(picture, 50, model=folder, precision="bf16", exact_pixels=True)
    with pytest.raises(InputError, match="another precision"):
        api.encode_picture(picture, 50, model=codec, precision="int8")
    with pytest.raises(InputError, match="knows no precision"):
        api.encode_picture(picture, 50, lossless=True, precision="int8")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("model.json", "model.safetensors"):
        (bare / name).write_bytes((folder / name).read_bytes())
    text = (bare / "model.json").read_text()
    (bare / "model.json").write_text(text.replace('"mixed"', '"other"'))
    with pytest.raises(UnsupportedError, match="no weights for mixed"):
        api.load_model(bare, precision="mixed")
    with pytest.raises(InputError, match="cannot read"):
        api.load_model(bare, precision="int8")
    (bare / "int8.safetensors").write_bytes((folder / "mixed.safetensors").read_bytes())
    with pytest.raises(InputError, match="damaged"):
        api.load_model(bare, precision="int8")


def worst_inputs(weight, low, high):
    """Inputs that give output 0 its largest and its least accumulator: [2, kh, kw, Cin]."""
    weight = weight[0].long()
    most = torch.where(weight > 0, high, low)
    return torch.stack([most, torch.where(weight > 0, low, high)])


def test_no_accumulator_overflows(integers):
    """Worst inputs reach the proven bounds of every layer, and int32 holds them."""
    reached = 0
    for part, tensors in integers.items():
        transform = IntegerTransform(part, tensors, "reference")
        for step in transform.steps:
            if not isinstance(step, Convolve):
                continue
            layer = transform._layers[step.layer]
            weight, bias = layer._arguments[0], layer._arguments[1]
            x_dtype = transform._input_dtypes[step.layer]
            bits = int(tensors[f"{step.layer}.input.bits"])
            signed = any(
                isinstance(s, Convert) and s.layer == step.layer and not s.relu
                for s in transform.steps
            )
            low, high = input_range(bits, signed)
            if weight.dtype == torch.uint8:
                weight = unpack_int4(weight, layer.in_channels)
            first = weight[:1].contiguous()
            least, most = accumulator_bound(first, bias[:1], low, high)
            assert -(2**31) <= least <= most < 2**31
            x = worst_inputs(first, low, high).to(x_dtype)
            one = torch.ones(1, dtype=torch.int32)
            for level in LEVELS:
                with simd_level(level):
                    out = quantized_conv2d(
                        *(x, first, bias[:1].contiguous(), 2 * one, 1), out_dtype=torch.int32
                    )
                middle = out[:, x.shape[1] // 2, x.shape[2] // 2, 0]
                assert middle.tolist() == [most, least]
            reached += 1
    assert reached == sum(isinstance(s, Convolve) for steps in PROGRAMS.values() for s in steps)


def test_export_refuses_what_could_overflow(photo):
    codec, _, calibration = photo
    plan = calibration.plan("analysis", WEIGHT_BITS["int8"], "mse")
    plan.layers["down16"].input.bits = 16
    plan.layers["down16"].weight_bits = 15
    plan.layers["down16"].rounded = None
    plan.layers["down16"].weight_scale = torch.full((SMALL.widths[2],), 1e-9)
    with pytest.raises(CodecError, match="down16"):
        export_transform("analysis", codec.analysis, plan)


def test_scales():
    x = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 40.0  # an outlier
    full, most, best = minmax_scale(x, 127), percentile_scale(x, 127), mse_scale(x, 127, -128)
    assert float(full[0] * 127) == pytest.approx(40.0)
    assert most[0] < full[0] * 0.6

    def error(scale):
        rounded = (x / scale[:, None]).round().clamp(-128, 127) * scale[:, None]
        return (rounded - x).square().mean(1)

    assert bool((error(best) <= error(full) + 1e-12).all())


def test_rounding_makes_up_for_errors():
    """With correlated inputs the products' error is smaller than that of plain rounding."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 2000, generator=generator, dtype=torch.float64)
    x = torch.randn(24, 4, generator=generator, dtype=torch.float64) @ base
    x += 0.1 * torch.randn(24, 2000, generator=generator, dtype=torch.float64)
    rows = 3 * torch.randn(10, 24, generator=generator, dtype=torch.float64)
    made = round_rows(rows, x @ x.T / 2000, 127)
    assert torch.equal(made, made.round())
    assert ((made - rows) @ x).square().mean() < 0.3 * ((rows.round() - rows) @ x).square().mean()


def test_calibration_needs_fp32_and_pictures(photo):
    codec, folder, _ = photo
    with pytest.raises(InputError, match="pictures"):
        Calibration(codec, [])
    with pytest.raises(InputError, match="at least 64"):
        Calibration(codec, [np.zeros((40, 90, 3), np.uint8)])
    with pytest.raises(InputError, match="fp32"):
        Calibration(api.load_model(folder, precision="int8"), [pixels()])


@pytest.mark.parametrize("method", METHODS)
def test_methods_of_calibration(photo, method):
    codec, _, calibration = photo
    plan = calibration.plan("synthesis", WEIGHT_BITS["int8"], method)
    made = IntegerTransform("synthesis", export_transform("synthesis", codec.synthesis, plan))
    latents = torch.randint(-2000, 2000, (4, 4, SMALL.latent_channels), dtype=torch.int32)
    assert made(latents, 5000).shape == (64, 64, 3)


def test_programs_refuse_steps_that_do_not_fit():
    layer = _cpu.QuantizedConv2d(
        np.ones((4, 1, 1, 8), np.int8), np.ones(4, np.int32), np.ones(4, np.int32), 8, np.int16
    )
    program = _cpu.TransformProgram()
    first = program.add_layer(layer, "int8")
    with pytest.raises(InputError, match="no such value"):
        program.requantize(3, first)
    with pytest.raises(InputError, match="no such layer"):
        program.requantize(0, 7)
    with pytest.raises(InputError, match="pixels are uint8"):
        program.unshuffle(first, 4)
    with pytest.raises(InputError, match="only uint8"):
        program.convolve_to_layer(first, first)
    program.requantize(0, first)
    program.convolve(first)
    x = np.ones((1, 2, 3, 8), np.int16)
    right = (np.ones(8, np.int32), np.zeros(8, np.int64), 4, -128, 127)
    assert program.run(x, [right], []).shape == (1, 2, 3, 4)
    each = (np.ones((1, 8), np.int32), np.zeros((1, 8), np.int64), 4, -128, 127)
    assert program.run(x, [each], []).shape == (1, 2, 3, 4)
    two = (np.ones((2, 8), np.int32), np.zeros((2, 8), np.int64), *each[2:])
    for bad, parameters, message in (
        (x, [], "another number of requantizations"),
        (x, [(right[0][1:], right[1], *right[2:])], "multiplier and offset"),
        (x[..., :4].copy(), [right], "another number of channels"),
        (x.astype(np.int8), [right], "int16 and int32"),
        (x[0], [right], "height, width, channels"),
        (np.repeat(x, 3, 0), [two], "each channel"),
    ):
        with pytest.raises(InputError, match=message):
            program.run(bad, parameters, [])


def test_programs_refuse_borders_that_do_not_fit():
    layer = _cpu.QuantizedConv2d(
        np.ones((4, 3, 3, 8), np.int8), np.ones(4, np.int32), np.ones(4, np.int32), 8, np.int16
    )
    program = _cpu.TransformProgram()
    program.requantize(0, program.add_layer(layer, "int8"))
    program.convolve(0)
    x = np.ones((2, 2, 3, 8), np.int16)
    parameters = [(np.ones(8, np.int32), np.zeros(8, np.int64), 4, -128, 127)]
    pixels = 2 * 4 * 5
    assert program.run(x, parameters, [(2, np.array([[0, 6, 7, 256]]))]).shape == (2, 2, 3, 4)
    for borders, message in (
        ((4, np.array([[0, 6, 7, 1]])), "no borders for tiles"),
        ((2, np.array([[pixels, 6, 7, 1]])), "outside their frame"),
        ((2, np.array([[0, -1, 7, 1]])), "outside their frame"),
        ((2, np.array([[0, 6, 7, 257]])), "outside their frame"),
        ((2, np.array([0, 6, 7, 1])), "pixels, 4"),
    ):
        with pytest.raises(InputError, match=message):
            program.run(x, parameters, [borders])
