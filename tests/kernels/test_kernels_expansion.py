"""A convolution and the depthwise one that reads it in one kernel: all its schedules compute what the two do."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from compiled_networks import run
from operator_banks import TOLERANCE, exact, randomized, relative_error
from torch import nn

from hwprune import runtime
from hwprune.compile import ops
from hwprune.compile.artifact import build_artifact
from hwprune.compile.lower import lower
from hwprune.errors import Infeasible
from hwprune.graph import trace
from hwprune.kernels import candidates, primfunc
from hwprune.kernels.common import expansion
from hwprune.kernels.schedule import Config
from hwprune.measure.verify import kernel_error


@pytest.fixture(autouse=True)
def join(monkeypatch):
    """These images are too small to be worth it."""
    monkeypatch.setattr(ops, "is_worth_joining", lambda *_: True)


class Shortcut(nn.Module):
    """What lies between is the sum of two values of that shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv, self.window = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x):
        return self.window(F.relu6(self.conv(x) + x))


def pair(inputs: int, channels: int, window: int, stride: int = 1, *, padding: int | None = None, dilation=1, between=nn.ReLU6) -> nn.Module:
    padding = window // 2 if padding is None else padding
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels), between(),
        nn.Conv2d(channels, channels, window, stride, padding, dilation, groups=channels), nn.Hardswish(),
    )  # fmt: skip


def stem(channels: int, kernel: int, stride: int, padding: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, kernel, stride, padding), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1, groups=channels))


#: name -> (the two convolutions, their input, whether a kernel makes it)
PAIRS = {
    "3x3": (pair(8, 40, 3), (1, 8, 9, 13), True),
    "3x3_stride_2": (pair(5, 48, 3, 2), (1, 5, 12, 11), True),
    "5x5_silu": (pair(16, 40, 5, between=nn.SiLU), (1, 16, 7, 7), True),
    "5x5_stride_2_batch": (pair(7, 24, 5, 2), (3, 7, 10, 9), True),
    "7x7_taller_than_the_image": (pair(8, 16, 7), (1, 8, 3, 5), True),
    "3x3_dilated": (pair(8, 24, 3, padding=2, dilation=2), (1, 8, 11, 8), True),
    "without_border": (pair(9, 32, 3, padding=0), (2, 9, 8, 8), True),
    "stride_beyond_the_window": (pair(8, 24, 2, 3, padding=0), (1, 8, 11, 11), True),
    "shortcut": (Shortcut(24), (1, 24, 9, 7), True),
    "stem": (stem(24, 3, 2, 1), (1, 3, 19, 17), False),
    "stem_batch_5x3": (stem(16, (5, 3), (2, 1), (2, 1)), (2, 3, 12, 9), True),
    "stem_1x1_of_the_input": (stem(40, 1, 1, 0), (1, 3, 8, 8), False),
}


class Network(nn.Module):
    def __init__(self, operator: nn.Module, inside: bool):
        super().__init__()
        self.operator, self.inside = operator, inside

    def forward(self, x):
        return self.operator(F.hardswish(x) if self.inside else x)


def network_of(name: str, profile):
    operator, shape, inside = PAIRS[name]
    module = randomized(Network(operator, inside))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return module, x, lower(trace(module, (x,)), profile)


def joined(network) -> list:
    return [w for w in network.workloads() if len(w.anchors) == 2]


def some(offered: list[Config], count: int) -> list[Config]:
    """Of each way to share the work the first, and others from all over the list."""
    ways = {(c["split"], c.get("half")): c for c in reversed(offered)}
    return list(dict.fromkeys([*ways.values(), *random.Random(0).sample(list(offered), min(count, len(offered)))]))


@pytest.mark.parametrize("name", PAIRS)
def test_every_way_computes_what_torch_does(usable, tmp_path, name):
    profile = usable(8)
    module, x, network = network_of(name, profile)
    (workload,) = joined(network)
    (expected,) = exact(module, (x,))
    for i, config in enumerate(some(list(candidates(workload, profile)), 1)):
        pick = lambda w, config=config: config if w.key == workload.key else candidates(w, profile)[0]
        artifact = build_artifact(network, profile, pick, tmp_path / str(i))
        (found,) = run(runtime.load(artifact), (x,))
        assert relative_error(found, expected) < TOLERANCE, config.to_text()


@pytest.mark.parametrize("lanes", [4, 16])
@pytest.mark.parametrize("name", ["3x3_stride_2", "stem"])
def test_vectors_of_other_widths(usable, lanes, name):
    profile = usable(lanes)
    (workload,) = joined(network_of(name, profile)[2])
    for config in some(list(candidates(workload, profile)), 2):
        assert kernel_error(workload, config, profile) < TOLERANCE, config.to_text()


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_any_number_of_threads(usable, threads):
    """More threads than panels or rows, too."""
    profile = usable(8).model_copy(update={"threads": threads})
    for name in ("5x5_stride_2_batch", "7x7_taller_than_the_image", "stem"):
        (workload,) = joined(network_of(name, profile)[2])
        for config in some(list(candidates(workload, profile)), 1):
            assert kernel_error(workload, config, profile) < TOLERANCE, f"{name} {config.to_text()}"


def test_half_of_the_last_vector_is_left_out(usable):
    profile = usable(8)
    profile = profile.model_copy(update={"core": profile.core.model_copy(update={"fma_per_cycle": 1.0})})
    module = randomized(nn.Sequential(nn.Hardswish(), pair(12, 44, 3)))
    (workload,) = joined(lower(trace(module, (torch.zeros(1, 12, 9, 9),)), profile))
    halves = [c for c in candidates(workload, profile) if c.get("half")]
    assert len(halves) > 3
    for config in some(halves, 4):
        assert kernel_error(workload, config, profile) < TOLERANCE, config.to_text()
    (whole,) = joined(network_of("3x3", profile)[2])
    with pytest.raises(Infeasible, match="half of the last vector"):
        primfunc(whole, profile, halves[0])


def test_windows_that_leave_vectors_out_are_refused(usable):
    profile = usable(8)
    (workload,) = joined(network_of("3x3", profile)[2])
    params = dict(candidates(workload, profile)[0].params)
    with pytest.raises(Infeasible, match="do not divide into 3"):
        primfunc(workload, profile, Config.make(expansion.name, **{**params, "cov": 2, "vectors": 3}))
