"""What LLVM makes of the inner loop of a convolution: multiply-adds, their operands, and nothing on the stack.

For every shipped CPU target; nothing is run, so the targets need not be this machine.
"""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hwprune.compile.lower import lower
from hwprune.graph import trace
from hwprune.kernels import build, candidates, primfunc
from hwprune.target import TargetProfile, load_file, shipped_folder

_MULTIPLY_ADD = {"aarch64": "fmla", "x86_64": "vfmadd"}
#: a vector register saved on the stack or read back
_SPILL = {
    "aarch64": re.compile(r"(str|stp|ldr|ldp|stur|ldur)\s+[qds]\d.*\[sp"),
    "x86_64": re.compile(r"vmov[ua]p[sd]\s.*\(%rsp\)"),
}
_CANDIDATES = 3


class Conv(nn.Module):
    def __init__(self, channels: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv(F.hardswish(x)))


def inner_loops(assembly: str) -> list[list[str]]:
    """Bodies of loops that hold no other loop."""
    lines = [line.strip() for line in assembly.splitlines() if line.strip()]
    labels = {line.split(":")[0]: i for i, line in enumerate(lines) if re.match(r"\.L\w+:", line)}
    spans = []
    for i, line in enumerate(lines):
        jump = re.match(r"(?:b\.\w+|cbn?z|tbn?z|b|j\w+)\s.*?(\.L\w+)", line)
        if jump and labels.get(jump[1], i) < i:
            spans.append((labels[jump[1]], i))
    return [lines[a : b + 1] for a, b in spans if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in spans)]


def hottest_loop(profile: TargetProfile, workload, config) -> list[str]:
    """The inner loop with the most multiply-adds."""
    module = build({"kernel": primfunc(workload, profile, config)}, profile)
    name = _MULTIPLY_ADD[profile.architecture]
    loops = inner_loops(module.inspect_source("s"))
    return max(loops, key=lambda body: sum(line.startswith(name) for line in body))


@pytest.mark.parametrize("channels, outputs, size", [(16, 32, 16), (64, 64, 56)])
@pytest.mark.parametrize("target", ["rpi3", "rpi4", "rpi5", "x86", "x86-avx512"])
def test_convolution_keeps_its_accumulators_in_registers(target, channels, outputs, size):
    profile = load_file(shipped_folder() / f"{target}.toml")
    network = lower(trace(Conv(channels, outputs).eval(), torch.zeros(1, channels, size, size)), profile)
    (workload,) = (w for w in network.workloads() if w.anchor is not None)
    for config in candidates(workload, profile)[:_CANDIDATES]:
        loop = hottest_loop(profile, workload, config)
        multiply_adds = sum(line.startswith(_MULTIPLY_ADD[profile.architecture]) for line in loop)
        tile = config["ht"] * config["wt"] * config["cov"]
        assert multiply_adds >= tile and multiply_adds % tile == 0, config.to_text()
        spills = [line for line in loop if _SPILL[profile.architecture].match(line)]
        # one temporary in 64 multiply-adds was seen on an in-order core; accumulators on the stack are an order more
        assert len(spills) * 20 <= multiply_adds, f"{config.to_text()}: {spills}"
