"""The wave engine of the GPU equals the CPU's: on a GPU where there is one, and on the host.

On the host the kernels' own source runs, a thread for each warp (``wave_network_emulation.cpp``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pycodec.coding import rans_cuda
from pycodec.coding.tables import TableSet
from pycodec.context import wave_network_cuda
from pycodec.context.wave_network import IntegerLayer, WaveNetwork
from pycodec.context.wave_network_cuda import CudaWaveNetwork, Launch
from pycodec.errors import CorruptStreamError, InputError
from pycodec.models import head_adaptation, lossless
from pycodec.models.zoo import WEIGHTS
from pycodec.ops import trimmed_kernels

from ..emulation import build
from .test_wave_network import (
    CHECKERBOARD,
    ORDERS,
    TABLES,
    few_widths,
    random_network,
    random_side,
    random_volume,
    side_network,
)

FEW_WAVES = {"channelwise": (1, 0, 0), "rows": (1, 2, 0), "columns": (0, 0, 1)}
HERE = Path(__file__).parent
PERSISTENT, GRAPH = Launch(threads=64), Launch(persistent=False, threads=64)


@pytest.fixture(scope="module")
def emulations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulation")
    convolutions = HERE.parent / "ops" / "trimmed_conv2d_emulation.cpp"
    waves = HERE / "wave_network_emulation.cpp"
    coder = HERE.parent / "coding" / "rans_device_emulation.cpp"
    return (
        build(coder, "cuda_rans.cpp", folder),
        build(waves, "cuda_wave_network.cpp", folder),
        build(convolutions, "cuda_trimmed_conv2d.cpp", folder),
    )


@pytest.fixture(scope="class", params=["host", "host, threads backwards", "gpu"])
def device(request):
    """Where the network runs, and a function that sets the blocks of the emulated GPU."""
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        yield torch.device("cuda", torch.cuda.current_device()), lambda blocks: None
        return
    emulations = request.getfixturevalue("emulations")
    for emulation in emulations:
        emulation.set_backwards(request.param == "host, threads backwards")
    coder, waves, convolutions = emulations

    def launch(name, device, **arguments):
        module = coder if name.startswith("rans_") else waves
        getattr(module, name)(**arguments, stream=0)

    def convolve(name, device, **arguments):
        getattr(convolutions, name)(**arguments, stream=0)

    def resident_blocks(device, lanes, launch, staged_bytes):
        return waves.wave_decode_blocks(lanes, launch.threads, 1, staged_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rans_cuda, "_launch", launch)
        patch.setattr(rans_cuda, "_DEVICE_TYPE", "cpu")
        patch.setattr(wave_network_cuda, "_resident_blocks", resident_blocks)
        patch.setattr(trimmed_kernels, "launch_cuda", convolve)
        patch.setattr(trimmed_kernels, "_DEVICE_TYPE", "cpu")
        yield torch.device("cpu"), waves.set_resident_blocks


def outcome(decode):
    """The symbols, or all that an error says."""
    try:
        return decode().tolist()
    except CorruptStreamError as error:
        return type(error), str(error), error.offset
    except InputError as error:
        return type(error), str(error)


class TestOnEveryDevice:
    @given(
        seed=st.integers(0, 2**32 - 1),
        order=st.sampled_from(sorted(ORDERS)),
        groups=st.integers(1, 6),
        widths=few_widths(largest=40, most=3),
        height=st.integers(1, 9),
        width=st.integers(1, 20),
        lanes=st.sampled_from([None, 1, 4, 32, 64]),
        blocks=st.integers(1, 8),
        launch=st.sampled_from([PERSISTENT, GRAPH]),
    )
    @settings(max_examples=50)
    def test_equals_the_cpu(
        self, device, seed, order, groups, widths, height, width, lanes, blocks, launch
    ):
        rng = np.random.default_rng(seed)
        kernels = rng.choice([1, 3, 5, 7], len(widths))
        network = random_network(rng, ORDERS[order], groups, widths, kernels)
        symbols = random_volume(rng, groups, height, width)
        device, set_blocks = device
        set_blocks(blocks)
        on_gpu = CudaWaveNetwork(network, device)
        for actual, expected in zip(on_gpu.order(symbols), network.order(symbols), strict=True):
            assert actual.dtype == expected.dtype
            np.testing.assert_array_equal(actual, expected)
        stream = network.encode(symbols, TABLES, lanes=lanes)
        assert on_gpu.encode(symbols, TABLES, lanes=lanes) == stream
        decoded = on_gpu.decode(stream, TABLES, height, width, launch=launch)
        assert decoded.dtype == np.int32
        np.testing.assert_array_equal(decoded, symbols)

    def test_stages(self, device):
        """Layers that see their own place only go on without a meeting, unless they are wide."""
        rng = np.random.default_rng(0)

        def stages(order, widths, kernels):
            network = random_network(rng, ORDERS[order], 3, widths, kernels)
            return CudaWaveNetwork(network, device[0]).stages

        kernels = [5, 3, 1, 1]  # and a last layer of 3x3
        assert stages("slope", [8] * 4, kernels) == [[0], [1, 2, 3], [4]]
        assert stages("plane", [8] * 4, kernels) == [[0, 1, 2, 3, 4]]
        assert stages("slope", [8, 8, 9, 8], kernels) == [[0], [1], [2], [3], [4]]

    def test_the_last_layer_may_be_chosen_late(self, device):
        rng = np.random.default_rng(0)
        network = random_network(rng, ORDERS["slope"], 3, [5, 7], [3, 5])
        symbols = random_volume(rng, 3, 9, 14)
        on_gpu = CudaWaveNetwork(network, device[0])
        expected, actual = network.begin(symbols), on_gpu.begin(symbols)
        rows = [0, 4, 8]
        for a, b in zip(actual.head_input(rows), expected.head_input(rows), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        head = network.layers[-1]
        head = replace(head, weight=-head.weight, bias=head.bias + 3)
        changed = replace(network, layers=[*network.layers[:-1], head])
        for other in (None, changed):
            for a, b in zip(actual.order(other), expected.order(other), strict=True):
                np.testing.assert_array_equal(a, b)
        stream = changed.encode(symbols, TABLES)
        assert stream != network.encode(symbols, TABLES)
        decoded = on_gpu.with_head(changed).decode(stream, TABLES, 9, 14)
        np.testing.assert_array_equal(decoded, symbols)

    def test_lossless_files_are_those_of_the_cpu(self, device, monkeypatch):
        def larger_biases(encoding, tables):
            counts = head_adaptation._seen(encoding.network.layers[-1]).sum(1)
            return head_adaptation._pack([np.array([0] * n + [50]) for n in counts], 0)

        monkeypatch.setattr(lossless, "fit_head", larger_biases)
        on_cpu = lossless.load_lossless_model(WEIGHTS / "tcae-fast")
        on_gpu = lossless.load_lossless_model(WEIGHTS / "tcae-fast", device="cpu")
        for name in ("gray", "chroma"):
            setattr(on_gpu, name, CudaWaveNetwork(getattr(on_cpu, name), device[0]))
        pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
        coded = on_gpu.compress(pixels)
        assert coded.streams == on_cpu.compress(pixels).streams
        assert coded.streams != on_cpu.compress(pixels, adapt=False).streams
        decoded = on_gpu.decompress(coded.streams, 30, 24, gray=False)
        np.testing.assert_array_equal(decoded, pixels)

    @pytest.mark.parametrize("blocks", [7, 8])
    def test_bits_of_a_trained_network(self, device, blocks):
        """With a block for each plane, its weights and tables are in the blocks' memory."""
        codec = lossless.load_lossless_model(WEIGHTS / "tcae-fast")
        pixels = np.random.default_rng(1).integers(0, 60, (11, 17), np.uint8)
        bits = lossless.to_bits(pixels).astype(np.int32)
        device, set_blocks = device
        set_blocks(blocks)
        launch = Launch(threads=32)
        on_gpu = CudaWaveNetwork(codec.gray, device)
        if device.type == "cpu":
            staged = on_gpu.grid(launch, 32, codec.tables)[1]
            assert (staged > 16 * 256) == (blocks == 8)
        for lanes in (4, 64):
            stream = codec.gray.encode(bits, codec.tables, lanes=lanes)
            decoded = on_gpu.decode(stream, codec.tables, 11, 17, launch=launch)
            np.testing.assert_array_equal(decoded, bits)

    @pytest.mark.parametrize("lanes", [None, 64])
    def test_tiles_are_coded_side_by_side(self, device, lanes, monkeypatch):
        on_cpu = lossless.load_lossless_model(WEIGHTS / "tcae-fast")
        on_gpu = lossless.load_lossless_model(WEIGHTS / "tcae-fast", device="cpu")
        on_gpu.gray = CudaWaveNetwork(on_cpu.gray, device[0])
        rows, columns = np.indices((66, 70))
        pixels = ((rows * columns) // 40 % 256).astype(np.uint8)  # four tiles of four sizes
        options = {"tile_log2": 6, "lanes": lanes, "code_length": True}
        expected = on_cpu.compress(pixels, **options)
        assert len(expected.streams) == 4
        for most in (1 << 26, 1 << 15):  # all at once, and the largest alone
            monkeypatch.setattr(lossless, "_MOST_WAITING", most)
            coded = on_gpu.compress(pixels, **options)
            assert coded.streams == expected.streams
            assert coded.code_length_bits == pytest.approx(expected.code_length_bits)
            assert coded.num_symbols == pixels.size * 8
        for codec, wrong in ((on_gpu, 48), (on_gpu, 0), (on_cpu, 0)):
            with pytest.raises(InputError, match="lanes"):
                codec.compress(pixels, tile_log2=6, lanes=wrong)

    @given(
        seed=st.integers(0, 2**32 - 1),
        order=st.sampled_from([*sorted(ORDERS), *FEW_WAVES, "checkerboard"]),
        groups=st.integers(1, 4),
        kernel=st.sampled_from([1, 3, 5]),
        height=st.integers(1, 9),
        width=st.integers(1, 20),
        blocks=st.integers(1, 8),
        launch=st.sampled_from([PERSISTENT, GRAPH]),
    )
    @settings(max_examples=30)
    def test_side_tensors_and_other_orders(
        self, device, seed, order, groups, kernel, height, width, blocks, launch
    ):
        rng = np.random.default_rng(seed)
        if order == "checkerboard":
            network = side_network(rng, (0, 0, 0), groups, kernel, **CHECKERBOARD)
        else:
            network = side_network(rng, {**ORDERS, **FEW_WAVES}[order], groups, kernel)
        symbols = random_volume(rng, groups, height, width)
        side = random_side(rng, network, height, width)
        device, set_blocks = device
        set_blocks(blocks)
        on_gpu = CudaWaveNetwork(network, device)
        stream = network.encode(symbols, TABLES, side=side)
        assert on_gpu.encode(symbols, TABLES, side=side) == stream
        decoded = on_gpu.decode(stream, TABLES, height, width, side=side, launch=launch)
        np.testing.assert_array_equal(decoded, symbols)
        with pytest.raises(InputError, match="side"):
            on_gpu.decode(stream, TABLES, height, width, launch=launch)

    @pytest.mark.parametrize("launch", [PERSISTENT, GRAPH])
    def test_far_symbols(self, device, launch):
        """They are escapes, and clamped in the context only."""
        rng = np.random.default_rng(3)
        network = random_network(rng, (1, 1, 1))
        symbols = (random_volume(rng, 3, 6, 6) * 10_000).astype(np.int32)
        stream = network.encode(symbols, TABLES, lanes=8)
        device, set_blocks = device
        set_blocks(3)
        decoded = CudaWaveNetwork(network, device).decode(stream, TABLES, 6, 6, launch=launch)
        np.testing.assert_array_equal(decoded, symbols)

    @pytest.mark.parametrize("launch", [PERSISTENT, GRAPH])
    @pytest.mark.parametrize("lanes", [1, 4, 64])
    def test_damage(self, device, lanes, launch):
        rng = np.random.default_rng(lanes)
        network = random_network(rng, (1, 1, 1), widths=(4,), kernels=(3,))
        symbols = random_volume(rng, 3, 6, 6)
        stream = network.encode(symbols, TABLES, lanes=lanes)
        device, set_blocks = device
        set_blocks(1)
        on_gpu = CudaWaveNetwork(network, device)
        damaged = [stream + b"\0\0", stream + b"\0"]
        for position in range(0, len(stream), 1 + len(stream) // 40):
            flipped = bytearray(stream)
            flipped[position] ^= 0x41
            damaged += [stream[:position], bytes(flipped)]
        refused = 0
        for data in damaged:
            expected = outcome(lambda data=data: network.decode(data, TABLES, 6, 6))
            actual = outcome(lambda data=data: on_gpu.decode(data, TABLES, 6, 6, launch=launch))
            assert actual == expected
            refused += isinstance(expected, tuple)
        assert refused > len(damaged) / 2

    @pytest.mark.parametrize("launch", [PERSISTENT, GRAPH])
    def test_indexes_without_a_table(self, device, launch):
        rng = np.random.default_rng(7)
        network = random_network(rng, (1, 1, 1))
        symbols = random_volume(rng, 3, 7, 5)
        few = TableSet.gaussian(np.geomspace(0.2, 6, 6))
        stream = network.encode(symbols, TABLES)
        device, set_blocks = device
        set_blocks(2)
        on_gpu = CudaWaveNetwork(network, device)
        expected = outcome(lambda: network.decode(stream, few, 7, 5))
        assert expected[0] is InputError
        assert outcome(lambda: on_gpu.decode(stream, few, 7, 5, launch=launch)) == expected

    @pytest.mark.parametrize("launch", [PERSISTENT, GRAPH])
    @pytest.mark.parametrize("size", [(0, 0), (0, 7), (7, 0)])
    def test_no_symbols(self, device, size, launch):
        network = random_network(np.random.default_rng(0), (1, 1, 1))
        device, _ = device
        on_gpu = CudaWaveNetwork(network, device)
        stream = on_gpu.encode(np.empty((3, *size), np.int32), TABLES)
        assert on_gpu.decode(stream, TABLES, *size, launch=launch).shape == (3, *size)
        with pytest.raises(CorruptStreamError, match="goes on"):
            on_gpu.decode(stream + b"\0\0", TABLES, *size, launch=launch)

    def test_arguments_that_do_not_fit(self, device):
        network = random_network(np.random.default_rng(0), (1, 1, 1))
        on_gpu = CudaWaveNetwork(network, device[0])
        for symbols in (np.zeros((2, 4, 4), np.int32), np.zeros((3, 4, 4), np.int64), np.zeros(3)):
            with pytest.raises(InputError, match="symbols"):
                on_gpu.encode(symbols, TABLES)
            with pytest.raises(InputError, match="symbols"):
                on_gpu.begin(torch.from_numpy(symbols).to(device[0]))
        with pytest.raises(InputError, match="symbols must be on"):
            on_gpu.begin(torch.zeros((3, 4, 4), dtype=torch.int32, device="meta"))
        with pytest.raises(InputError, match="pixels"):
            on_gpu.decode(b"", TABLES, -1, 4)
        for launch in (Launch(threads=48), Launch(threads=512), Launch(threads=0)):
            with pytest.raises(InputError, match="threads"):
                on_gpu.decode(b"", TABLES, 4, 4, launch=launch)
        with pytest.raises(InputError, match="multiprocessor"):
            on_gpu.decode(b"", TABLES, 4, 4, launch=Launch(blocks_per_multiprocessor=0))

    def test_accumulators_wrap(self, device):
        """Where the CPU's do, whatever the order of additions."""
        rng = np.random.default_rng(9)
        network = random_network(rng, (1, 1, 1))
        layers = [
            IntegerLayer(
                **{
                    **layer.__dict__,
                    "bias": rng.choice([2**31 - 1, -(2**31)], len(layer.bias)).astype(np.int32),
                }
            )
            for layer in network.layers
        ]
        network = WaveNetwork(layers, (1, 1, 1))
        symbols = random_volume(rng, 3, 8, 9)
        stream = network.encode(symbols, TABLES)
        device, set_blocks = device
        set_blocks(4)
        on_gpu = CudaWaveNetwork(network, device)
        assert on_gpu.encode(symbols, TABLES) == stream
        np.testing.assert_array_equal(on_gpu.decode(stream, TABLES, 8, 9), symbols)


@pytest.mark.interpreted("context/wave_triton_check.py")
def test_triton_interpreter_decodes_the_cpus_streams(interpreted):
    assert "streams are written and decoded" in interpreted("context/wave_triton_check.py")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("order", ORDERS)
def test_triton_decodes_the_cpus_streams(order):
    from pycodec.triton_kernels.wave_network import WaveDecoder

    rng = np.random.default_rng(0)
    network = random_network(rng, ORDERS[order], 3, (5, 20, 5), (3, 5, 1))
    symbols = random_volume(rng, 3, 19, 33)
    stream = network.encode(symbols, TABLES)
    decoded = WaveDecoder(network, "cuda").decode(stream, TABLES, 19, 33)
    np.testing.assert_array_equal(decoded, symbols)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_the_error_says_so():
    network = random_network(np.random.default_rng(0), (1, 1, 1))
    with pytest.raises(InputError, match="sees no GPU"):
        CudaWaveNetwork(network)
