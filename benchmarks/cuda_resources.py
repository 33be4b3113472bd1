"""What GPU kernels take of each card, as nvcc reports it: registers, spills, shared memory, and the occupancy they leave.

    python -m benchmarks.cuda_resources

Needs nvcc and no GPU; nothing runs, so there are no latencies. The workloads are layers of ResNet-50 and MobileNetV2 at
224 x 224 and batch 1, each with its rule's first candidate.
"""

from __future__ import annotations

import argparse
from typing import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import report
from hwprune.compile.lower import lower
from hwprune.graph import trace
from hwprune.kernels import candidates, primfunc
from hwprune.kernels.cuda.resources import Resources, resources
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile, load_file, shipped_folder
from hwprune.workload import Workload

CARDS = ("a100", "rtx3090", "jetson-orin", "rtx4090", "h100", "h200")
HEADER = ("family", "target", "architecture", "schedule", "threads a block", "registers", "spilled bytes", "shared bytes", "occupancy", "latency")


class Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x * 2)  # a kernel before it: the operand is stored as kernels store it


def _conv(*args, **options) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Hardtanh(), nn.Conv2d(*args, **options), nn.ReLU())


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "7x7 stride 2, 3 to 64": (lambda: nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU()), (1, 3, 224, 224)),
    "3x3, 64 to 64 at 56": (_conv(64, 64, 3, padding=1), (1, 64, 56, 56)),
    "3x3, 512 to 512 at 7": (_conv(512, 512, 3, padding=1), (1, 512, 7, 7)),
    "1x1, 64 to 256 at 56": (_conv(64, 256, 1), (1, 64, 56, 56)),
    "1x1, 2048 to 512 at 7": (_conv(2048, 512, 1), (1, 2048, 7, 7)),
    "3x3 in 32 groups, 128 at 56": (_conv(128, 128, 3, padding=1, groups=32), (1, 128, 56, 56)),
    "depthwise 3x3, 144 at 56": (_conv(144, 144, 3, padding=1, groups=144), (1, 144, 56, 56)),
    "dense, 2048 to 1000, batch 1": (lambda: nn.Sequential(nn.Linear(2048, 1000)), (1, 2048)),
    "dense, 2048 to 1000, batch 256": (lambda: nn.Sequential(nn.Linear(2048, 1000)), (256, 2048)),
    "max pool 3x3 stride 2, 64 at 112": (lambda: Function(lambda x: F.max_pool2d(x, 3, 2, 1)), (1, 64, 112, 112)),
    "global pool, 2048 at 7": (lambda: Function(lambda x: x.mean((2, 3))), (1, 2048, 7, 7)),
    "element-wise, GELU of 256 at 56": (lambda: Function(F.gelu), (1, 256, 56, 56)),
}


def workload(family: str, profile: TargetProfile) -> Workload:
    """The kernel that the family is named after."""
    make, shape = FAMILIES[family]
    network = lower(trace(make().eval(), torch.zeros(shape)), profile)
    return max(network.workloads(), key=lambda w: (w.anchor is not None, w.macs, len(w.ops)))


def rows(name: str) -> list[list[object]]:
    """One row of each family on the card called ``name``."""
    profile = load_file(shipped_folder() / f"{name}.toml")
    workloads = [workload(family, profile) for family in FAMILIES]
    configs = [candidates(w, profile)[0] for w in workloads]
    found = resources({f"f{i}": primfunc(w, profile, c) for i, (w, c) in enumerate(zip(workloads, configs))}, profile)
    return [_row(family, profile, c, found[f"f{i}"]) for i, (family, c) in enumerate(zip(FAMILIES, configs))]


def _row(family: str, profile: TargetProfile, config: Config, found: Resources) -> list[object]:
    schedule = " ".join([config.rule, *(f"{key}={value}" for key, value in config.params)])
    spilled = found.spill_store_bytes + found.spill_load_bytes
    return [family, profile.name, profile.codegen.arch, schedule, found.threads, found.registers, spilled,
            found.shared_bytes, f"{found.occupancy(profile):.0%}", "not measured"]  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    by_card = [rows(name) for name in CARDS]
    table = [row for same in zip(*by_card) for row in same]
    notes = (
        "No GPU was at hand: nothing here ran on one, and every latency is not measured.",
        "Registers, spills and static shared memory are what `nvcc -Xptxas -v` reports for the card's architecture; occupancy follows from them and the profile's limits.",
        "All kernels here are exact float32 on the CUDA cores. That they compute what torch computes is tested on the CPU (`tests/kernels/test_kernels_cuda.py`).",
    )
    print(report.write("cuda_resources", "What GPU kernels take of each card", "python -m benchmarks.cuda_resources", [("Kernels", HEADER, table)], notes))


if __name__ == "__main__":
    main()
