"""Issue of a loop by an in-order core, from llvm-mca's figures of each instruction.

llvm-mca simulates in-order cores itself, and has results written back in order: an instruction waits if it would be done
before an earlier, longer one. That holds where LLVM's model of the core marks what may be done out of order (Cortex-A55); the
model of the Cortex-A53 has no such marks, and each load after a multiply-add waits for the multiply-add's latency. For such a
core, this module issues the same instructions with the same figures (latency, units, micro-ops), and results are written back
as they come.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Mapping, Sequence

from hwprune.cost.operands import accesses

#: Iterations simulated, and those at the start that do not count: the pipeline fills in them.
_ITERATIONS, _WARM = 24, 8


@dataclass(frozen=True)
class Instruction:
    """Figures of one instruction. ``units``: cycles that it keeps a unit of each kind."""

    text: str
    latency: int
    micro_ops: int
    units: tuple[tuple[str, float], ...]


def instructions(report: Mapping) -> tuple[list[Instruction], dict[str, int], int]:
    """What ``llvm-mca -json`` says of one iteration: instructions, units of each kind, micro-ops issued per cycle."""
    region = report["CodeRegions"][0]
    kinds = [re.split(r"\.[\x00-\x1f\d]", name)[0] for name in report["TargetInfo"]["Resources"]]
    usage: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for item in region["ResourcePressureView"]["ResourcePressureInfo"]:
        usage[item["InstructionIndex"]].append((kinds[item["ResourceIndex"]], item["ResourceUsage"]))
    figures = region["InstructionInfoView"]["InstructionList"]
    found = [
        Instruction(text.replace("\t", " "), f["Latency"], f["NumMicroOpcodes"], tuple(usage[i]))
        for i, (text, f) in enumerate(zip(region["Instructions"], figures, strict=True))
    ]
    return found, {kind: kinds.count(kind) for kind in kinds}, region["SummaryView"]["DispatchWidth"]


def cycles_per_iteration(loop: Sequence[Instruction], units: Mapping[str, int], width: int) -> float:
    """Cycles of one iteration of ``loop`` once it runs steadily, issued in order, at most ``width`` micro-ops a cycle."""
    ready: dict[str, float] = defaultdict(float)
    free = {kind: [0.0] * count for kind, count in units.items()}
    now, room, marks = 0.0, width, []
    facts = [(i, *accesses(i.text, i.latency)) for i in loop]
    for _ in range(_ITERATIONS):
        for instruction, reads, writes in facts:
            start = max([now, *(ready[name] for name in reads), *(min(free[kind]) for kind, _ in instruction.units)])
            if start == now and room < min(instruction.micro_ops, width):
                start = now + 1
            if start > now:
                now, room = start, width
            room = max(0, room - instruction.micro_ops)
            for kind, busy in instruction.units:
                unit = free[kind].index(min(free[kind]))
                free[kind][unit] = now + busy
            for name, latency in writes.items():
                ready[name] = now + latency
        marks.append(now)
    return (marks[-1] - marks[_WARM - 1]) / (_ITERATIONS - _WARM)
