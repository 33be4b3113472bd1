"""Predicted speed of the convolutions' inner loops on the AArch64 boards: simulated, from the assembly that ships.

    python -m benchmarks.incore

For each core and shape, the loop with the most multiply-adds of the first candidate. Figures are of data in L1: what a tile's
write-back, the border and memory cost is not in them.
"""

from __future__ import annotations

import re
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import report
from hwprune.compile import ops
from hwprune.compile.lower import lower
from hwprune.cost.incore import Loop, Prediction, missing_tool, predict, predict_loop
from hwprune.graph import trace
from hwprune.kernels import build, candidates, primfunc
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile, load_file, shipped_folder
from hwprune.workload import Workload

#: core -> (shipped profile, processor if it is not the profile's own): A55 is the A53's successor, on no shipped board
CORES = {"A53": ("rpi3", None), "A55": ("rpi3", "cortex-a55"), "A72": ("rpi4", None), "A76": ("rpi5", None)}
#: and those that have arithmetic of float16, with networks in it
FLOAT16_CORES = {"A76 fp16": ("rpi5-fp16", None)}
#: (input channels, output channels, kernel, height and width): as trained, and as pruned
SHAPES = (
    (64, 64, 3, 56), (256, 64, 1, 56), (64, 256, 1, 56), (128, 128, 3, 28),
    (37, 61, 3, 28), (37, 61, 1, 28), (61, 37, 1, 14), (53, 90, 3, 14),
)  # fmt: skip
#: (input channels, channels in between, height and width, kernel and stride of the depthwise convolution), of one kernel
PAIRS = ((16, 96, 112, 3, 2), (24, 144, 56, 3, 1), (32, 192, 28, 3, 1), (19, 61, 56, 5, 2))
HEADER = (
    "core", "convolution", "fraction of multiply-add throughput", "cycles", "multiply-adds", "instructions", "spills",
    "tool", "provenance", "schedule",
)  # fmt: skip
DOUBTS = (
    "core", "convolution", "as predicted", "by llvm-mca's own simulation", "bound by loads of whole vectors", "provenance",
)  # fmt: skip


class Convolution(nn.Module):
    """A convolution whose input a kernel made."""

    def __init__(self, channels: int, outputs: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(F.hardswish(x)))


def convolution(channels: int, outputs: int, kernel: int, size: int, profile: TargetProfile) -> Workload:
    """The workload of a convolution with bias and ReLU on an image of ``size`` x ``size``."""
    module = Convolution(channels, outputs, kernel).eval()
    network = lower(trace(module, torch.zeros(1, channels, size, size)), profile)
    (found,) = (w for w in network.workloads() if w.anchor is not None)
    return found


def pair(channels: int, between: int, size: int, kernel: int, stride: int, profile: TargetProfile) -> Workload:
    """The workload of a 1x1 convolution with ReLU6 and a depthwise one that reads it, in one kernel."""
    window = nn.Conv2d(between, between, kernel, stride, kernel // 2, groups=between)
    module = nn.Sequential(nn.Hardswish(), nn.Conv2d(channels, between, 1), nn.ReLU6(), window, nn.ReLU6()).eval()
    with patch.object(ops, "is_worth_joining", lambda *_: True):  # of an image of any size
        network = lower(trace(module, torch.zeros(1, channels, size, size)), profile)
    (found,) = (w for w in network.workloads() if len(w.anchors) == 2)
    return found


def profile_of(core: str) -> TargetProfile:
    """The profile that a core of ``CORES`` or ``FLOAT16_CORES`` is compiled and predicted with."""
    name, processor = {**CORES, **FLOAT16_CORES}[core]
    profile = load_file(shipped_folder() / f"{name}.toml")
    if processor is None:
        return profile
    codegen = profile.codegen.model_copy(update={"mcpu": processor})
    incore = profile.incore.model_copy(update={"model": processor, "in_order_write_back": True})
    return profile.model_copy(update={"codegen": codegen, "incore": incore})


def prediction(core: str, shape: tuple[int, ...]) -> tuple[Config, Prediction]:
    """The first candidate and its hottest loop, of one of ``SHAPES`` or ``PAIRS``."""
    profile = profile_of(core)
    workload = (convolution if len(shape) == 4 else pair)(*shape, profile)
    config = candidates(workload, profile)[0]
    return config, predict(build({"kernel": primfunc(workload, profile, config)}, profile).inspect_source("s"), profile)


def title(shape: tuple[int, ...]) -> str:
    if len(shape) == 5:
        channels, between, size, kernel, stride = shape
        return f"1x1, {channels} to {between}, {size}x{size} + depthwise {kernel}x{kernel} /{stride}"
    channels, outputs, kernel, size = shape
    return f"{kernel}x{kernel}, {channels} to {outputs}, {size}x{size}"


def row(core: str, shape: tuple[int, ...]) -> list[object]:
    """One row of the table of predictions."""
    incore = profile_of(core).incore
    config, found = prediction(core, shape)
    schedule = f"{config.rule} {config.get('ht', 1)}x{config['wt']} pixels x {config['cov']} vectors"
    return [
        core, title(shape), f"{found.fma_fraction:.3f}", f"{found.cycles:.1f}", found.loop.multiply_adds,
        len(found.loop.instructions), len(found.loop.spills), f"{incore.tool} {incore.model}", "simulated", schedule,
    ]  # fmt: skip


def doubt(core: str, shape: tuple[int, int, int, int]) -> list[object]:
    """One row of the table of other accounts of an in-order core."""
    profile = profile_of(core)
    _, found = prediction(core, shape)
    as_it_is = profile.model_copy(update={"incore": profile.incore.model_copy(update={"in_order_write_back": True})})
    multiply_adds = found.loop.multiply_adds / profile.core.fma_per_cycle
    bound = multiply_adds / (multiply_adds + whole_vector_loads(found.loop) * profile.core.vector_load_cycles)
    return [core, title(shape), f"{found.fma_fraction:.3f}", f"{predict_loop(found.loop, as_it_is).fma_fraction:.3f}", f"{bound:.3f}", "simulated"]


def whole_vector_loads(loop: Loop) -> int:
    """Whole vectors that one iteration loads; a pair is two."""
    return sum({"ldr": 1, "ldur": 1, "ldp": 2}.get(line.split()[0], 0) for line in loop.instructions if re.match(r"\w+\s+q", line))


def main() -> None:
    rows = []
    for core in (*CORES, *FLOAT16_CORES):
        missing = missing_tool(profile_of(core))
        if missing:
            raise SystemExit(f"error: {missing}")
        for shape in SHAPES:
            rows.append(row(core, shape))
            print(*rows[-1], sep="\t", flush=True)
    pairs = [row(core, shape) for core in CORES for shape in PAIRS]
    doubts = [doubt(core, shape) for core in CORES if profile_of(core).core.in_order for shape in SHAPES]
    report.write(
        "incore", "Inner loops of convolutions on AArch64 cores", "python -m benchmarks.incore",
        [("Predictions", HEADER, rows), ("With the depthwise convolution", HEADER, pairs), ("In-order cores", DOUBTS, doubts)],
        [
            "Simulated, not measured: one iteration of the first candidate's hottest loop, its data in L1.",
            "With the depthwise convolution: of one kernel for both, the hottest loop is the 1x1 convolution's. Of few inputs LLVM makes a tile's "
            "whole reduction one piece of code: then what begins a tile is in its figures.",
            "A72, A76 (as Neoverse N1): OSACA, the largest of ports, chain from iteration to iteration, and front end.",
            "A55: llvm-mca. LLVM's model starts two multiply-adds of whole vectors a cycle, the core one: the profile's limit counts.",
            "A53: llvm-mca's figures, issued in order, written back as they come (hwprune/cost/in_order.py). llvm-mca's own "
            "simulation of this core has each load wait for the ten cycles of the multiply-add before it, which the core does not.",
            "In-order cores: LLVM's models start a load of a whole vector beside a multiply-add. By ncnn's guide to both cores it "
            "takes two cycles alone; the last column is the bound by that, and what a board is expected to reach at most.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
