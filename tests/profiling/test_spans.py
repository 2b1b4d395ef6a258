"""Spans: who records what, in which lane, with which work."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from pycodec import _cpu
from pycodec.errors import InputError
from pycodec.ops.quantized_conv2d import QuantizedConv2d
from pycodec.profiling import spans
from pycodec.profiling.spans import KERNEL, LAYER, STAGE, WAVE, Recorder
from pycodec.profiling.torch_spans import TorchSpans

from ..context.test_gaussian_waves import make_input, make_waves
from ..lossless_networks import random_codec


def small_conv(**options) -> QuantizedConv2d:
    weight = torch.ones(8, 3, 3, 4, dtype=torch.int8)
    ones = torch.ones(8, dtype=torch.int32)
    return QuantizedConv2d(weight, ones, ones, 4, out_dtype=torch.uint8, **options)


def test_nothing_is_recorded_without_a_recorder():
    with spans.span("stage"):
        small_conv()(torch.ones(1, 5, 6, 4, dtype=torch.uint8))
    assert _cpu.take_spans() == ([], 0)
    with Recorder() as recorder:
        pass
    assert recorder.spans == []


def test_spans_nest_and_carry_their_work():
    conv = small_conv(name="stage1.hidden")
    x = torch.ones(2, 5, 6, 4, dtype=torch.uint8)
    before = time.perf_counter_ns()
    with Recorder() as recorder, spans.span("outer"):
        conv(x)
    after = time.perf_counter_ns()
    found = {item.name: item for item in recorder.spans}
    assert set(found) == {"outer", "stage1.hidden", "quantized_conv2d"}
    kernel, layer, outer = (found[n] for n in ("quantized_conv2d", "stage1.hidden", "outer"))
    assert (outer.kind, layer.kind, kernel.kind) == (STAGE, LAYER, KERNEL)
    # The clocks of C++ and Python are the same one.
    assert before <= outer.begin <= layer.begin <= kernel.begin
    assert kernel.end <= layer.end <= outer.end <= after
    assert len({item.lane for item in recorder.spans}) == 1
    assert kernel.layer == "stage1.hidden"
    assert kernel.operations == 2 * (2 * 5 * 6) * (8 * 3 * 3 * 4)
    assert kernel.bytes == 2 * 5 * 6 * (4 + 8) + 8 * 3 * 3 * 4
    assert kernel.arithmetic == ("int8 tiles" if _cpu.simd_level() == "amx" else "int8")


def test_every_thread_has_a_lane():
    conv = small_conv()
    x = torch.ones(1, 5, 6, 4, dtype=torch.uint8)

    def work():
        for _ in range(50):
            with spans.span("work"):
                conv(x, 1)

    with Recorder() as recorder:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # The system may give a thread the number of one that has ended.
    lanes = spans.by_lane(recorder.spans)
    assert 1 <= len(lanes) <= 4
    for kind in (STAGE, LAYER, KERNEL):
        assert sum(item.kind == kind for item in recorder.spans) == 200
    for of_lane in lanes.values():
        for item, around in spans.nested(of_lane):
            if item.kind == KERNEL:
                assert [s.kind for s in around] == [STAGE, LAYER]
    assert recorder.dropped == 0


def test_one_recorder_at_a_time():
    with Recorder(), pytest.raises(InputError, match="already"), Recorder():
        pass
    with Recorder():  # the failure has left nothing behind
        pass


def test_a_failure_ends_its_span():
    with Recorder() as recorder, pytest.raises(ValueError), spans.span("stage"):
        raise ValueError
    assert [item.name for item in recorder.spans] == ["stage"]


@spans.spanned("called")
def called(value: int) -> int:
    """A docstring."""
    return value + 1


def test_functions_can_be_spans():
    assert called.__doc__ == "A docstring."
    with Recorder() as recorder:
        assert called(1) == 2
        now = time.perf_counter()
        spans.add_stage("stage", now, now + 0.5)
    assert [item.name for item in recorder.spans] == ["called", "stage"]
    assert recorder.spans[1].seconds == pytest.approx(0.5)


@pytest.fixture(scope="module")
def codec():
    return random_codec(3)


@pytest.mark.parametrize("threads", (1, 3))
def test_waves_have_a_lane(codec, rng, threads):
    network, tables = codec.gray, codec.tables
    height, width = 9, 11
    symbols = rng.integers(0, 2, (network.groups, height, width)).astype(np.int32)
    stream = network.encode(symbols, tables)
    with Recorder() as recorder:
        assert np.array_equal(
            network.decode(stream, tables, height, width, threads=threads), symbols
        )
    waves = [item for item in recorder.spans if item.kind == WAVE]
    full = [len(wave) > 0 for wave in network.waves(height, width)]
    assert [item.number for item in waves] == np.flatnonzero(full).tolist()
    assert {item.lane for item in waves} == {"waves"}
    assert all(a.end <= b.begin for a, b in itertools.pairwise(waves))
    products = sum(
        int(layer.mask.sum()) * layer.in_width * layer.out_width for layer in network.layers
    )
    assert sum(item.operations for item in waves) == 2 * products * height * width
    decode = next(item for item in recorder.spans if item.name == "wave_network_decode")
    assert all(decode.begin <= item.begin and item.end <= decode.end for item in waves)
    layers = [item for item in recorder.spans if item.name == "wave_layers"]
    assert len({item.lane for item in layers}) == threads


def test_waves_of_gaussians(rng):
    waves = make_waves(rng)
    height, width = 7, 10
    latents, side = make_input(rng, waves, height, width)
    with Recorder() as recorder:
        waves.encode(latents, side, 2)
    found = [item for item in recorder.spans if item.kind == WAVE]
    assert len(found) == 3 * (height - 1) + width
    products = 24 * 12 * 5 + 19 * (3 + 24) + 10 * 19  # 12 taps are left by the mask
    assert sum(item.operations for item in found) == 2 * height * width * products
    assert {item.arithmetic for item in found} == {"int16"}
    assert [s.name for s in recorder.spans if s.kind == KERNEL] == ["gaussian_waves_encode"]


def test_a_pass_counts_what_the_masks_leave(codec, rng):
    network, tables = codec.gray, codec.tables
    symbols = rng.integers(0, 2, (network.groups, 9, 11)).astype(np.int32)
    with Recorder() as recorder:
        network.encode(symbols, tables)
    layers = [item for item in recorder.spans if item.name == "wave_network_layers"]
    products = sum(
        int(layer.mask.sum()) * layer.in_width * layer.out_width for layer in network.layers
    )
    assert sum(item.operations for item in layers) == 2 * products * 9 * 11
    coder = next(item for item in recorder.spans if item.name == "rans_encode")
    assert coder.bytes >= 5 * symbols.size


def test_kernels_that_drop_spans_say_so():
    with Recorder() as recorder:
        _cpu.time_spans((1 << 18) + 7)
    assert recorder.dropped == 7
    assert len(recorder.spans) == 1 << 18


def test_calls_of_torch_are_kernels_of_named_layers():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.ReLU())
    x = torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        plain = model(x)
        with TorchSpans({"net": model}):  # no recorder: nothing changes
            assert torch.equal(model(x), plain)
        with Recorder() as recorder, TorchSpans({"net": model}):
            assert torch.equal(model(x), plain)
    conv = next(item for item in recorder.spans if item.name == "torch.conv2d")
    assert conv.layer == "net.0"
    assert conv.operations == 2 * 8 * 8 * 5 * 3 * 9
    assert conv.bytes == 4 * (3 * 64 + 5 * 64 + 5 * 3 * 9 + 5)
    assert conv.arithmetic == "float32"
    assert "torch.relu" in {item.name for item in recorder.spans}


def test_spans_need_no_torch(tmp_path):
    code = "import sys, pycodec.profiling.spans; sys.exit('torch' in sys.modules)"
    # Elsewhere than in the checkout, whose package may not be built.
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


class FakeCuda:
    """What of ``torch.cuda`` the device's lane is made with; its clock goes on by 1 ms a look."""

    def __init__(self):
        self.clock, self.ranges = 0.0, []
        self.nvtx = self
        fake = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self, stream):
                fake.clock += 1.0
                self.at = fake.clock

            def elapsed_time(self, other):
                return other.at - self.at

        self.Event = Event

    def range_push(self, name):
        self.ranges.append(name)

    def range_pop(self):
        self.ranges.append("pop")

    def synchronize(self, device=None):
        pass

    def current_stream(self, device):
        return None


def test_the_device_has_a_lane_and_ranges(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(torch, "cuda", fake)
    with Recorder(torch.device("cuda", 0)) as recorder, spans.span("stage"):
        queued = {"bytes": 10, "operations": 20}
        with spans.span("kernel", KERNEL, queued):
            pass
    lanes = spans.by_lane(recorder.spans)
    device = {item.name: item for item in lanes.pop("cuda:0")}
    assert device["kernel"].seconds == pytest.approx(1e-3)
    assert device["stage"].seconds == pytest.approx(3e-3)
    assert (device["kernel"].bytes, device["kernel"].operations) == (10, 20)
    assert fake.ranges == ["stage", "kernel", "pop", "pop"]
    # What the processor did was to queue it: the work counts once.
    (host,) = lanes.values()
    assert {item.name for item in host} == {"stage", "kernel"}
    assert not any(item.operations for item in host)
