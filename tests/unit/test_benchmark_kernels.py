"""The arithmetic of the kernel benchmark, by hand, and that its page and plot are written of it."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as xml

import pytest
from test_measure_probe_results import rate, reach, results

from benchmarks import kernels, plots, report
from hwprune import target
from hwprune.compile.lower import lower
from hwprune.graph import trace
from hwprune.kernels import candidates
from hwprune.kernels.schedule import Config


@pytest.fixture(scope="module")
def timing():
    """A 3x3 convolution of 32 to 32 channels on 10 x 10 pixels with ReLU by Winograd, a depthwise one, and a linear layer."""
    import torch
    from torch import nn

    net = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Flatten(), nn.Linear(3200, 64))
    profile = target.load("x86")
    emitted = lower(trace(net.eval(), torch.zeros(1, 32, 10, 10)), profile).emitted()
    assert emitted[0].workload.macs == 10 * 10 * 32 * 32 * 9
    configs = [Config.make("winograd", m=4, split="phases", rows=3, wt=1, cov=1), *(candidates(e.workload, profile)[0] for e in emitted[1:])]
    return kernels.Timing("net", [(f"call{i}", e.workload, c, 100.0, 120.0, 50.0) for i, (e, c) in enumerate(zip(emitted, configs))])


@pytest.fixture(scope="module")
def machine():
    read = {"l1": reach(9.0, 90.0), "l2": reach(5.0, 50.0), "l3": reach(3.0, 30.0), "dram": reach(1.0, 10.0)}
    copied = read | {"l2": reach(4.0, 40.0)}
    peak = {"one_core": rate(60.0), "all_threads": rate(100.0)}
    return kernels.Machine.of(results(peak_gflops=peak, read_gb_per_s=read, copy_gb_per_s=copied), target.load("x86"))


def test_winograd_beside_the_roofline(timing, machine):
    made = kernels.kernels_of(timing, machine)[0]
    tiles = 3 * 3  # of 4 x 4 pixels
    assert made.multiplied == pytest.approx(tiles * 36 * 32 * 32)
    assert made.weights == 4 * (36 * 32 * 32 + 32)  # transformed, and the bias
    assert made.activations == 4 * 2 * 10 * 10 * 32
    assert (made.weights_from, made.activations_from) == ("l3", "l2")  # a megabyte of constants does not fit two L2 of 256 KiB
    assert made.compute_us == pytest.approx(2 * tiles * 36 * 32 * 32 / 100e3)
    # a line of six takes 13 operations, twelve lines a tile; on the way back ten, for six lines and then four
    assert made.transform_us == pytest.approx(2 * tiles * 32 * (12 * 13 + 10 * 10) / 100e3)
    assert made.launches_us == pytest.approx(3 * machine.launch_us)
    # of a copy at 40 GB/s of what is read at 50, a byte read and one written take 2 / 40 = 1 / 50 + 3 / 100
    assert machine.written_per_us["l2"] == pytest.approx(100e3 / 3)
    assert made.memory_us == pytest.approx(made.weights / 30e3 + made.activations / 2 / 50e3 + made.activations / 2 * 3 / 100e3)
    assert made.lanes_in_use == 1
    arithmetic = made.compute_us + made.transform_us
    assert made.bound == ("l3" if made.memory_us > arithmetic else "peak")
    assert made.fraction == pytest.approx((max(arithmetic, made.memory_us) + made.launches_us) / 100)


def test_what_lies_in_the_other_core_moves_as_threads_hand_it_over(timing, machine):
    handing = dataclasses.replace(machine, handed_per_us=12e3)
    own = 1 / machine.profile.threads
    assert own < 1
    winograd = kernels.kernels_of(timing, handing)[0]
    half = winograd.activations / 2  # is read, half is written
    near = half / 50e3 + half * 3 / 100e3
    assert winograd.activations_from == "l2"
    assert winograd.memory_us == pytest.approx(winograd.weights / 30e3 + own * near + (1 - own) * winograd.activations / 12e3)
    assert handing.activations_us("l3", 300.0, 0.0) == pytest.approx(300 / 30e3)


def test_kinds(timing, machine):
    assert [k.kind for k in kernels.kernels_of(timing, machine)][:2] == ["conv 3x3", "depthwise 3x3"]


def test_lanes_that_are_padding_are_told():
    import torch
    from torch import nn

    profile = target.load("x86")
    (workload,) = (w for w in lower(trace(nn.Conv2d(8, 19, 3).eval(), torch.zeros(1, 8, 6, 6)), profile).workloads() if w.macs)
    assert kernels._lanes_in_use(workload, Config.make("conv_direct")) == pytest.approx(19 / 24)
    assert kernels._lanes_in_use(workload, Config.make("gemm", half=1)) == pytest.approx(19 / 20)
    assert kernels._shape(workload) == "8>19 at 4x4"


def test_a_convolution_with_its_depthwise_one_is_both(monkeypatch):
    import torch
    from torch import nn

    monkeypatch.setattr("hwprune.compile.ops.is_worth_joining", lambda *_: True)
    net = nn.Sequential(nn.Conv2d(8, 19, 1), nn.ReLU(), nn.Conv2d(19, 19, 3, 2, 1, groups=19))
    profile = target.load("x86")
    (workload,) = (w for w in lower(trace(nn.Sequential(nn.Hardswish(), net).eval(), torch.zeros(1, 8, 6, 6)), profile).workloads() if w.macs)
    kernel = kernels.Kernel("net", "call", workload, candidates(workload, profile)[0], *[1.0] * 13)
    assert kernel.kind == "conv 1x1 + depthwise 3x3" and kernels._shape(workload) == "8>19 at 6x6 + 24 at 3x3 /2"
    assert kernels._lanes_in_use(workload, Config.make("expansion")) == pytest.approx(19 / 24)


def test_page_and_plot(timing, machine, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    made = kernels.kernels_of(timing, machine)
    page = kernels._write(made, results()).read_text()
    assert "| net | all |" in page and "conv 3x3 32>32 at 10x10" in page and "(kernels.svg)" in page
    first = (tmp_path / "kernels.svg").read_bytes()
    assert xml.fromstring(first).tag.endswith("svg") and b"share of the attainable" in first
    plots.layers([("net", made)], tmp_path / "kernels.svg")
    assert (tmp_path / "kernels.svg").read_bytes() == first
