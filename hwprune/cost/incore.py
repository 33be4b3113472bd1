"""Cycles of a kernel's inner loops on a core that is not here: simulated, from the very assembly that ships.

OSACA (out-of-order cores) or llvm-mca (in-order cores) knows each instruction's ports and latency; which of them, and under
which name it knows the core, is the profile's ``[incore]`` table. Data is taken to be in L1: a cost model adds memory.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Callable, Sequence

from hwprune.cost import in_order, out_of_order
from hwprune.errors import NoLatency
from hwprune.target import TargetProfile

_MULTIPLY_ADD = {"aarch64": re.compile(r"fmla\s+(\w+)"), "x86_64": re.compile(r"vfn?m(?:add|sub)\w*\s.*%(\w+)")}
#: a vector register saved on the stack or read back
_SPILL = {
    "aarch64": re.compile(r"(str|stp|ldr|ldp|stur|ldur)\s+[qds]\d.*\[sp"),
    "x86_64": re.compile(r"vmov[ua]p[sd]\s.*\(%rsp\)"),
}
_LABEL = re.compile(r"(\.L\w+):")
_JUMP = re.compile(r"(?:b\.\w+|cbn?z|tbn?z|b|j\w+)\s.*?(\.L\w+)")
_MCA_ITERATIONS = 100
_MCA_TIMEOUT_S = 60


@dataclass(frozen=True)
class Loop:
    """A loop that holds no other. ``body``: its lines, from the label to the jump back.

    repeats : False for lines that run once in a while, between which nothing is carried.
    """

    body: tuple[str, ...]
    architecture: str
    repeats: bool = True

    @property
    def instructions(self) -> tuple[str, ...]:
        """What executes: the body without labels and directives."""
        return tuple(line for line in self.body if not line.startswith("."))

    @property
    def multiply_adds(self) -> int:
        """Vector multiply-adds of one iteration."""
        return sum(bool(_MULTIPLY_ADD[self.architecture].match(line)) for line in self.body)

    @property
    def accumulators(self) -> int:
        """Registers that multiply-adds add to."""
        return len({found[1] for line in self.body if (found := _MULTIPLY_ADD[self.architecture].match(line))})

    @property
    def spills(self) -> tuple[str, ...]:
        """Vector registers that go through the stack."""
        return tuple(line for line in self.body if _SPILL[self.architecture].match(line))


@dataclass(frozen=True)
class Prediction:
    """Cycles of one iteration of a loop.

    throughput_cycles : by ports, by what the front end takes in, and by the multiply-adds that the profile says the core
        starts. llvm-mca simulates an in-order core whole: its cycles stand here.
    latency_cycles : by the longest chain of dependent instructions from one iteration to the next; zero from llvm-mca, and
        where multiply-adds cannot make one that is longer than the throughput's.
    fma_fraction : multiply-adds started per cycle over the most that the core starts.
    unknown : instructions that the tool has no figures for, and counted as free.
    """

    loop: Loop
    throughput_cycles: float
    latency_cycles: float
    fma_fraction: float
    tool: str
    unknown: tuple[str, ...] = ()

    @property
    def cycles(self) -> float:
        return max(self.throughput_cycles, self.latency_cycles)


def inner_loops(assembly: str, architecture: str) -> list[Loop]:
    """Loops of ``assembly`` that hold no other loop."""
    lines = [" ".join(line.split("//")[0].split()) for line in assembly.splitlines()]
    lines = [line for line in lines if line]
    labels = {found[1]: i for i, line in enumerate(lines) if (found := _LABEL.match(line))}
    spans = []
    for i, line in enumerate(lines):
        jump = _JUMP.match(line)
        if jump and labels.get(jump[1], i) < i:
            spans.append((labels[jump[1]], i))
    inner = [(a, b) for a, b in spans if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in spans)]
    return [Loop(tuple(lines[a : b + 1]), architecture) for a, b in inner]


def hottest_loop(assembly: str, profile: TargetProfile) -> Loop:
    """The inner loop of the largest register tile, of several the one with the most multiply-adds: what is left of pixels or channels
    has loops of smaller tiles, that may be unrolled further. NoLatency if none multiplies and adds."""
    loops = inner_loops(assembly, profile.architecture)
    found = max(loops, key=lambda loop: (loop.accumulators, loop.multiply_adds), default=None)
    if found is None or not found.multiply_adds:
        raise NoLatency("no inner loop of this kernel multiplies and adds; an in-core prediction is for those that do")
    return found


def predict(assembly: str, profile: TargetProfile) -> Prediction:
    """Simulated cycles of the hottest inner loop of ``assembly``.

    NoLatency: the profile names no tool, the tool is not here (the sentence says how to install it), or it fails.
    """
    return predict_loop(hottest_loop(assembly, profile), profile)


def predict_loop(loop: Loop, profile: TargetProfile) -> Prediction:
    """Simulated cycles of one iteration of ``loop``. See ``predict``."""
    if profile.incore is None:
        raise NoLatency(f"target {profile.name!r} has no [incore] table that names a tool for its core")
    missing = missing_tool(profile)
    if missing:
        raise NoLatency(missing)
    ports, latency, unknown = _TOOLS[profile.incore.tool](loop, profile)
    least = loop.multiply_adds / profile.core.fma_per_cycle
    front_end = len(loop.instructions) / profile.incore.instructions_per_cycle if profile.incore.instructions_per_cycle else 0.0
    throughput = max(ports, front_end, least)
    fraction = least / max(throughput, latency)
    return Prediction(loop, throughput, latency, fraction, profile.incore.tool, tuple(unknown))


def missing_tool(profile: TargetProfile) -> str | None:
    """One sentence if the profile's tool is not installed, else None."""
    if profile.incore and profile.incore.tool == "llvm-mca" and shutil.which("llvm-mca") is None:
        return "`llvm-mca` is not here; install it (Debian: apt-get install llvm)"
    if profile.incore and profile.incore.tool == "osaca":
        import importlib.util

        if importlib.util.find_spec("osaca") is None:
            return "the Python package `osaca` is not here; install it (pip install osaca)"
    return None


def why_not(profile: TargetProfile) -> str | None:
    """One sentence if kernels of ``profile`` cannot be simulated here, else None."""
    if profile.architecture != "aarch64" or profile.incore is None:
        return f"target {profile.name!r} has no in-core model of an AArch64 core"
    return missing_tool(profile)


# --- llvm-mca ---------------------------------------------------------------------------------------------------


def _llvm_mca(loop: Loop, profile: TargetProfile) -> tuple[float, float, Sequence[str]]:
    if not profile.incore.in_order_write_back:
        return in_order.cycles_per_iteration(*in_order.instructions(_mca_report(loop, profile, 1))), 0.0, ()
    summary = _mca_report(loop, profile, _MCA_ITERATIONS)["CodeRegions"][0]["SummaryView"]
    return summary["TotalCycles"] / summary["Iterations"], 0.0, ()


def _mca_report(loop: Loop, profile: TargetProfile, iterations: int) -> dict:
    command = ["llvm-mca", f"-mtriple={profile.codegen.mtriple}", f"-mcpu={profile.incore.model}", f"-iterations={iterations}", "-json"]
    text = "\n".join(loop.instructions) + "\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_MCA_TIMEOUT_S)
    if done.returncode != 0:
        raise NoLatency(f"llvm-mca: {(done.stderr.strip().splitlines() or ['failed'])[0]}")
    return json.loads(done.stdout)


# --- OSACA ------------------------------------------------------------------------------------------------------


def _osaca(loop: Loop, profile: TargetProfile) -> tuple[float, float, Sequence[str]]:
    return out_of_order.bounds(loop.instructions, profile.incore.model, carried=loop.repeats)


_TOOLS: dict[str, Callable[[Loop, TargetProfile], tuple[float, float, Sequence[str]]]] = {
    "osaca": _osaca,
    "llvm-mca": _llvm_mca,
}
