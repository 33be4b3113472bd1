"""Predicted speed of the convolutions' inner loops on AArch64 cores, from their assembly: simulated, nothing is run.

OSACA stands for A72 and, as Neoverse N1, for A76; llvm-mca for the in-order A53 and A55.
"""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from benchmarks.incore import CORES, FLOAT16_CORES, SHAPES, convolution, profile_of
from torch import nn

from hwprune.compile.lower import lower
from hwprune.cost.incore import Prediction, hottest_loop, missing_tool, predict
from hwprune.graph import trace
from hwprune.kernels import build, candidates, primfunc
from hwprune.kernels.arm import conv_lane
from hwprune.kernels.schedule import Config

#: Of the core's multiply-add throughput.
LEAST_FRACTION = 0.85
#: Where the first candidate is known to stay below: with 13 steps, a prime, LLVM does not unroll without a way out in between,
#: and the in-order core waits for the first loads of each step.
KNOWN_BELOW = {("A53", (53, 90, 3, 14)): 0.84}
#: Instructions that OSACA may not know without making the prediction worthless: additions and compares of loop counters.
_COUNTING = re.compile(r"(add|sub|subs|cmp|mov)\s+[xw]")


@lru_cache(maxsize=None)
def predicted(core: str, shape, number: int) -> tuple[Config, Prediction]:
    profile = profile_of(core)
    workload = convolution(*shape, profile)
    config = conv_lane.candidates(workload, profile)[number]
    module = build({"kernel": primfunc(workload, profile, config)}, profile)
    return config, predict(module.inspect_source("s"), profile)


@pytest.fixture(autouse=True)
def needs_the_tool(request):
    missing = missing_tool(profile_of(request.node.callspec.params["core"]))
    if missing:
        pytest.skip(f"NOT CHECKED on {request.node.callspec.params['core']}: {missing}")


every_core = pytest.mark.parametrize("core", CORES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))


@every_core
@every_shape
def test_first_candidate_is_conv_lanes(core, shape):
    profile = profile_of(core)
    workload = convolution(*shape, profile)
    assert candidates(workload, profile)[0] == conv_lane.candidates(workload, profile)[0]


def _numbered():
    """First candidates of every core; those that follow, which a tuner tries next, where the core hides a tile's latencies."""
    for core in CORES:
        for number in range(1 if profile_of(core).core.in_order else 3):
            yield core, number


@pytest.mark.parametrize("core, number", list(_numbered()))
@every_shape
def test_inner_loop_keeps_the_multiply_add_pipes_busy(core, shape, number):
    config, found = predicted(core, shape, number)
    least = KNOWN_BELOW.get((core, shape), LEAST_FRACTION)
    assert found.fma_fraction >= least, f"{config.to_text()}: {found.fma_fraction:.2f} on {core}\n" + "\n".join(found.loop.body)


@every_core
@every_shape
@pytest.mark.parametrize("number", range(3))
def test_inner_loop_spills_nothing(core, shape, number):
    config, found = predicted(core, shape, number)
    assert not found.loop.spills, f"{config.to_text()} on {core}"


@every_core
@every_shape
def test_inner_loop_loads_a_vector_of_channels_and_multiplies_by_lane(core, shape):
    config, found = predicted(core, shape, 0)
    lanes = profile_of(core).lanes
    tile = config["ht"] * config["wt"] * config["cov"]
    assert found.loop.multiply_adds % (lanes * tile) == 0
    by_lane = [line for line in found.loop.instructions if re.search(r"\.s\[\d\]$", line)]
    assert len(by_lane) == found.loop.multiply_adds
    assert all(any(f"s[{lane}]" in line for line in by_lane) for lane in range(lanes))


@every_core
@every_shape
def test_the_tool_knows_every_instruction_that_counts(core, shape):
    _, found = predicted(core, shape, 0)
    assert [line for line in found.unknown if not _COUNTING.match(line)] == []


@pytest.mark.parametrize("core", FLOAT16_CORES)
@every_shape
def test_float16_multiplies_eight_lanes_by_lane_and_spills_nothing(core, shape):
    profile = profile_of(core)
    workload = convolution(*shape, profile)
    config = candidates(workload, profile)[0]
    assert config.rule == "conv_lane_half"
    found = predict(build({"kernel": primfunc(workload, profile, config)}, profile).inspect_source("s"), profile)
    by_lane = [line for line in found.loop.instructions if re.match(r"fmla v\d+\.8h, v\d+\.8h, v\d+\.h\[\d\]$", line)]
    assert found.loop.multiply_adds == len(by_lane) > 0
    assert found.fma_fraction >= LEAST_FRACTION and not found.loop.spills, "\n".join(found.loop.body)
    assert [line for line in found.unknown if not _COUNTING.match(line)] == []


class Depthwise(nn.Module):
    """A depthwise convolution whose input a kernel made."""

    def __init__(self, channels: int, stride: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu6(self.conv(F.hardswish(x)))


@pytest.mark.parametrize("core", [*CORES, *FLOAT16_CORES])
@pytest.mark.parametrize("channels, size, stride, kernel", [(144, 56, 1, 3), (88, 56, 2, 3), (72, 28, 1, 5), (37, 19, 1, 3)])
def test_depthwise_loop_spills_nothing(core, channels, size, stride, kernel):
    profile = profile_of(core)
    network = lower(trace(Depthwise(channels, stride, kernel).eval(), torch.zeros(1, channels, size, size)), profile)
    (workload,) = (w for w in network.workloads() if w.anchor is not None)
    config = candidates(workload, profile)[0]
    assert config.rule == "depthwise"
    loop = hottest_loop(build({"kernel": primfunc(workload, profile, config)}, profile).inspect_source("s"), profile)
    assert loop.multiply_adds >= config["wt"] * config["cov"] and not loop.spills, config.to_text()
