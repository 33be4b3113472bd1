"""What LLVM makes of the inner loop of a convolution: multiply-adds, their operands, and nothing on the stack.

For every shipped CPU target; nothing is run, so the targets need not be this machine.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hwprune.compile.lower import lower
from hwprune.cost.incore import Loop, hottest_loop
from hwprune.graph import trace
from hwprune.kernels import build, candidates, primfunc
from hwprune.target import TargetProfile, load_file, shipped_folder

_CANDIDATES = 3


class Conv(nn.Module):
    def __init__(self, channels: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv(F.hardswish(x)))


def loop_of(profile: TargetProfile, workload, config) -> Loop:
    """The inner loop with the most multiply-adds."""
    module = build({"kernel": primfunc(workload, profile, config)}, profile)
    return hottest_loop(module.inspect_source("s"), profile)


@pytest.mark.parametrize("channels, outputs, size", [(16, 32, 16), (64, 64, 56)])
@pytest.mark.parametrize("target", ["rpi3", "rpi4", "rpi5", "x86", "x86-avx512"])
def test_convolution_keeps_its_accumulators_in_registers(target, channels, outputs, size):
    profile = load_file(shipped_folder() / f"{target}.toml")
    network = lower(trace(Conv(channels, outputs).eval(), torch.zeros(1, channels, size, size)), profile)
    (workload,) = (w for w in network.workloads() if w.anchor is not None)
    for config in candidates(workload, profile, exact=True)[:_CANDIDATES]:  # Winograd has other loops
        loop = loop_of(profile, workload, config)
        tile = config["ht"] * config["wt"] * config["cov"]
        assert loop.multiply_adds >= tile and loop.multiply_adds % tile == 0, config.to_text()
        # one temporary in 64 multiply-adds was seen on an in-order core; accumulators on the stack are an order more
        assert len(loop.spills) * 20 <= loop.multiply_adds, f"{config.to_text()}: {loop.spills}"
