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

_REGISTER = re.compile(r"\b([vqdsbhxw])(\d+)\b|\b(sp)\b")
_FLAGS = "nzcv"
_SETS_FLAGS = re.compile(r"(cmp|cmn|tst|subs|adds|ands|fcmp)\b")
_READS_FLAGS = re.compile(r"(b\.\w+|csel|cset|csinc|cinc|adc|sbc)\b")
_ADDS_TO_RESULT = re.compile(r"(fmla|fmls|mla|mls|ins|movk|bsl|bit|bif)\b")
#: Iterations simulated, and those at the start that do not count: the pipeline fills in them.
_ITERATIONS, _WARM = 24, 8


@dataclass(frozen=True)
class Instruction:
    """Figures of one instruction. ``units``: cycles that it keeps a unit of each kind."""

    text: str
    latency: int
    micro_ops: int
    units: tuple[tuple[str, float], ...]

    @property
    def reads(self) -> frozenset[str]:
        names, memory = _operands(self.text)
        plain = names if self._stores else names[self._results :]
        own = names[:1] if _ADDS_TO_RESULT.match(self.text) else []
        return frozenset([*plain, *memory, *own, *([_FLAGS] if _READS_FLAGS.match(self.text) else [])])

    @property
    def writes(self) -> Mapping[str, int]:
        """Register -> cycles until it may be read."""
        names, memory = _operands(self.text)
        results = {} if self._stores or self._compares else {name: self.latency for name in names[: self._results]}
        if memory and ("]!" in self.text or re.search(r"\],\s*\S", self.text)):
            results[memory[0]] = 1  # the address moves on: an addition
        if _SETS_FLAGS.match(self.text):
            results[_FLAGS] = self.latency
        return results

    @property
    def _stores(self) -> bool:
        return self.text.startswith("st")

    @property
    def _compares(self) -> bool:
        return bool(re.match(r"(cmp|cmn|tst|fcmp|b|cbn?z|tbn?z)\b", self.text))

    @property
    def _results(self) -> int:
        return 0 if self._stores or self._compares else 2 if self.text.startswith("ldp") else 1


def _operands(text: str) -> tuple[list[str], list[str]]:
    """Registers outside and inside the brackets of an address; all views of a vector register are one."""
    plain, _, address = text.partition("[") if re.match(r"\s*(ld|st)", text) else (text, "", "")
    return _registers(plain.split(None, 1)[-1]), _registers(address)


def _registers(text: str) -> list[str]:
    kinds = {"x": "x", "w": "x"}
    return [found[3] or kinds.get(found[1], "v") + found[2] for found in _REGISTER.finditer(text)]


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
    facts = [(i, i.reads, i.writes) for i in loop]
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
