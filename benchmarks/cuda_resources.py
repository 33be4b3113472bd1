"""What GPU kernels take of each card, as nvcc reports it: registers, spills, shared memory, and the occupancy they leave.

    python -m benchmarks.cuda_resources

Needs nvcc and no GPU; nothing runs, so there are no latencies. The workloads are layers of ResNet-50 and MobileNetV2 at
224 x 224 and batch 1, each with its rule's first candidate. Those that tensor cores can multiply are listed for each
precision, as for a profile that allows it.
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
from hwprune.kernels.cuda import tensor
from hwprune.kernels.cuda.ptx import PRECISIONS
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


def allowing(profile: TargetProfile, precision: str) -> TargetProfile:
    """The profile of a user who allows ``precision`` beside fp32."""
    assert profile.gpu is not None
    return profile.model_copy(update={"gpu": profile.gpu.model_copy(update={"precision": ("fp32", precision)})})


def rows(name: str) -> list[list[list[object]]]:
    """Two tables of the card called ``name``: one row of each family in fp32, and those of the tensor cores."""
    profile = load_file(shipped_folder() / f"{name}.toml")
    workloads = {family: workload(family, profile) for family in FAMILIES}
    tables = [[(family, profile, candidates(w, profile)[0]) for family, w in workloads.items()], []]
    for family, w in workloads.items():
        for precision in PRECISIONS:
            allowed = allowing(profile, precision)
            tables[1] += [(family, allowed, found[0]) for found in (tensor.candidates(w, allowed),) if found]
    kernels = [kernel for table in tables for kernel in table]
    functions = {f"f{i}": primfunc(workloads[family], allowed, config) for i, (family, allowed, config) in enumerate(kernels)}
    found = iter(resources(functions, profile).values())
    return [[_row(family, profile, config, next(found)) for family, _, config in table] for table in tables]


def _row(family: str, profile: TargetProfile, config: Config, found: Resources) -> list[object]:
    schedule = " ".join([config.rule, *(f"{key}={value}" for key, value in config.params)])
    spilled = found.spill_store_bytes + found.spill_load_bytes
    return [family, profile.name, profile.codegen.arch, schedule, found.threads, found.registers, spilled,
            found.shared_bytes, f"{found.occupancy(profile):.0%}", "not measured"]  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    by_card = [rows(name) for name in CARDS]
    tables = [[row for same in zip(*tables) for row in same] for tables in zip(*by_card)]
    notes = (
        "No GPU was at hand: nothing here ran on one, and every latency is not measured.",
        "Registers, spills and static shared memory are what `nvcc -Xptxas -v` reports for the card's architecture; occupancy follows from them and the profile's limits.",
        "Kernels of the first table are exact float32 on the CUDA cores. Those of the second are built for a profile with `precision = [\"fp32\", \"tf32\"]` or `[\"fp32\", \"fp16\"]`: factors are rounded to 11 bits, sums are float32.",
        "That they compute what torch computes, with factors rounded as tensor cores take them where they do, is tested on the CPU (`tests/kernels/test_kernels_cuda.py`, `tests/kernels/test_kernels_tensor.py`).",
    )
    sections = [(title, HEADER, table) for title, table in zip(("Kernels", "Tensor cores"), tables)]
    print(report.write("cuda_resources", "What GPU kernels take of each card", "python -m benchmarks.cuda_resources", sections, notes))


if __name__ == "__main__":
    main()
