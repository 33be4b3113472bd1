"""Latency of a kernel on a core that is not here: simulated, from the very code that would ship.

Arithmetic: every block of the kernel's assembly runs as often as ``assembly.py`` counts, each thread by itself; the cycles of
one run are those that the profile's in-core tool gives (``incore.py``) for blocks that matter, and what the core issues at
best for the others. The slowest thread counts, so that the last wave of tasks and tiles at an edge are in it.

Memory: the bytes of ``traffic.py`` that pass between L1 and L2 move at the profile's bandwidth of one core's L2, those that
pass beyond the last cache at that of the main memory, which all threads share. What a kernel touches for the first time and
is in no cache is waited for; what it fetches again streams in while it computes, and the longest of the three counts (on two
boards, 84 convolutions each, that describes what was measured best, see benchmarks/simulated.py: also on the in-order core,
whose prefetcher runs ahead). Constants are in no cache if the network's do not fit there.

The start of a kernel and both bandwidths are the profile's figures.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Mapping, Sequence

from tvm import tirx

from hwprune.cost import incore
from hwprune.cost.assembly import Block, Program, Region
from hwprune.cost.traffic import Loops
from hwprune.errors import Infeasible, NoLatency
from hwprune.kernels import build, kernel_inputs, multiply_adds, primfunc
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import Workload

#: Blocks with less than this share of the instructions executed are not worth the tool's time.
_MATTERS = 0.02
#: Instructions that a core issues in a cycle at best, where the profile does not say.
_ISSUE_WIDTH = 2
#: Bytes that memset and memcpy move in a cycle: one vector.
_COPIED_PER_CYCLE = 16
#: What the tools said in this process.
_ASKED: dict[tuple, tuple[float, tuple[str, ...]]] = {}
_WHOLE_VECTOR_LOADS = {"ldr": 1, "ldur": 1, "ldp": 2}


@dataclass(frozen=True)
class Simulation:
    """What makes a kernel's latency.

    cycles : of the slowest thread, its data in L1. near_bytes : between that thread's L1 and L2. new_bytes, again_bytes :
    between the last cache and main memory, of all threads, for the first time and again. unknown : instructions of the
    blocks that matter that the tool does not know.
    """

    cycles: float
    near_bytes: int
    new_bytes: int
    again_bytes: int
    unknown: tuple[str, ...] = ()

    def latency_us(self, profile: TargetProfile) -> float:
        """Microseconds of the kernel run alone, its start included."""
        far = profile.memory.dram_gb_per_s * 1e3  # bytes per microsecond
        streams = max(self.near_bytes / (profile.memory.l2_gb_per_s * 1e3), self.again_bytes / far)
        computing = self.cycles / profile.core.frequency_mhz
        return max(computing, streams) + self.new_bytes / far + profile.overhead.kernel_us


def simulate(workload: Workload, profile: TargetProfile, config: Config, *, cold_constants: bool = False) -> Simulation:
    """Simulate the kernel of ``workload`` under the schedule ``config``.

    cold_constants : the kernel's constants are in no cache when it starts.
    NoLatency says why a kernel cannot be simulated; Infeasible that the schedule does not fit.
    """
    if profile.architecture != "aarch64":
        raise NoLatency(f"kernels are simulated for aarch64, and target {profile.name!r} is {profile.architecture}")
    function = primfunc(workload, profile, config)
    program = Program(build({"kernel": function}, profile).inspect_source("s"))
    regions = program.run("kernel_compute_", len(kernel_inputs(workload, config)) + 1, profile.threads)
    cycles, unknown = slowest(program, regions, profile)
    return Simulation(cycles, *_moved(function, workload, profile, config, cold_constants), unknown)


def moved(workload: Workload, profile: TargetProfile, config: Config, cold_constants: bool) -> tuple[int, int, int]:
    """Bytes between the busiest thread's L1 and L2; beyond the last cache, new and again. Nothing is compiled."""
    return _moved(primfunc(workload, profile, config), workload, profile, config, cold_constants)


def _moved(
    function: tirx.PrimFunc, workload: Workload, profile: TargetProfile, config: Config, cold_constants: bool
) -> tuple[int, int, int]:
    loops = Loops(function, profile.threads)
    constants = [n for n, spec in enumerate(kernel_inputs(workload, config)) if spec.role == "weight"]
    near = sum(loops.traffic(profile.memory.l1d_bytes, shared=False).values())
    return near, *far_bytes(loops, profile, constants if cold_constants else ())


def best(
    workload: Workload, profile: TargetProfile, offered: Sequence[Config], built: int = 3, *, cold_constants: bool = False
) -> tuple[Config, Simulation]:
    """The fastest of ``offered`` by simulation, and what makes its latency.

    built : so many are compiled: the first of each rule, and those that would be the fastest with the arithmetic of their
        rule's first one and the bytes that they move themselves. One whose multiply-adds alone, or whose rule's arithmetic,
        takes longer than the fastest so far has lost without that.
    NoLatency or Infeasible: none of those can be simulated.
    """
    firsts = sorted({c.rule: c for c in reversed(offered)}.values(), key=lambda c: least_us(workload, profile, c))
    found: dict[Config, Simulation] = {}
    refused: list[NoLatency | Infeasible] = []

    def fastest_us() -> float:
        return min((s.latency_us(profile) for s in found.values()), default=math.inf)

    def attempt(config: Config) -> None:
        if least_us(workload, profile, config) > fastest_us():
            return
        try:
            found[config] = simulate(workload, profile, config, cold_constants=cold_constants)
        except (NoLatency, Infeasible) as err:
            refused.append(err)

    def with_its_arithmetic(config: Config) -> float:
        return Simulation(cycles[config.rule], *moved(workload, profile, config, cold_constants)).latency_us(profile)

    for config in firsts:
        attempt(config)
    if not found:
        raise refused[0]
    if built > len(firsts):
        most = fastest_us() * profile.core.frequency_mhz
        cycles = {config.rule: s.cycles for config, s in found.items() if s.cycles <= most}
        others = sorted((c for c in offered if c not in firsts and c.rule in cycles), key=with_its_arithmetic)
        for config in others[: built - len(firsts)]:
            attempt(config)
    return min(found.items(), key=lambda item: item[1].latency_us(profile))


def least_us(workload: Workload, profile: TargetProfile, config: Config) -> float:
    """Microseconds that the multiply-adds of a convolution or product take on all cores at their fastest; 0 for others."""
    if workload.anchor is None or workload.anchor.op not in ("conv2d", "dense"):
        return 0.0
    per_cycle = profile.lanes * profile.core.fma_per_cycle * profile.threads
    return multiply_adds(workload, config) / per_cycle / profile.core.frequency_mhz


def far_bytes(loops: Loops, profile: TargetProfile, cold: Sequence[int]) -> tuple[int, int]:
    """Bytes between the last cache and main memory, new and again; ``cold``: numbers of arguments that no cache has before.

    A kernel that fits into the last cache finds there what the one before it left.
    """
    cache, whole = last_cache_bytes(profile), loops.footprint()
    if sum(whole.values()) <= cache:
        return sum(whole.get(number, 0) for number in cold), 0
    new = sum(count for number, count in whole.items() if number < loops.arguments)
    return new, max(0, sum(loops.traffic(cache, shared=True).values()) - new)


def last_cache_bytes(profile: TargetProfile) -> int:
    """Bytes of the last cache before main memory, which the threads share."""
    return max(profile.memory.l2_bytes, profile.memory.l3_bytes)


def slowest(program: Program, regions: Sequence[Region], profile: TargetProfile) -> tuple[float, tuple[str, ...]]:
    """Cycles of the regions one after the other, each as long as its slowest thread; instructions that are not known."""
    runs = sum((Counter(t.counts) for region in regions for t in region.threads), Counter())
    each, unknown = block_cycles(program, runs, profile)
    total = 0.0
    for region in regions:
        total += max(
            sum(each[label] * n for label, n in t.counts.items()) + t.copied_bytes / _COPIED_PER_CYCLE for t in region.threads
        )
    return total, unknown


def block_cycles(program: Program, runs: Mapping[str, int], profile: TargetProfile) -> tuple[dict[str, float], tuple[str, ...]]:
    """Cycles of one run of each block that runs at all."""
    executed = {label: n * len(program.blocks[label].lines) for label, n in runs.items()}
    least = _MATTERS * sum(executed.values())
    width = (profile.incore.instructions_per_cycle if profile.incore else None) or _ISSUE_WIDTH
    each, unknown = {}, []
    for label in runs:
        block = program.blocks[label]
        if executed[label] < least:
            each[label] = len(block.lines) / width
        else:
            each[label], missing = _by_tool(block, profile)
            unknown += missing
    return each, tuple(dict.fromkeys(unknown))


def _by_tool(block: Block, profile: TargetProfile) -> tuple[float, tuple[str, ...]]:
    # schedules share their tiles' loops: labels aside, a loop is asked for once
    lines = tuple(re.sub(r"\.LBB\w+", ".L", line) for line in block.lines)
    key = (profile.digest(), lines, block.loops)
    if key not in _ASKED:
        loop = incore.Loop(lines, profile.architecture, repeats=block.loops)
        found = incore.predict_loop(loop, profile)
        _ASKED[key] = max(found.cycles, _load_bound(loop, profile)), found.unknown
    return _ASKED[key]


def _load_bound(loop: incore.Loop, profile: TargetProfile) -> float:
    """Cycles of a loop on a core whose multiply-adds wait for the load of a whole vector."""
    loads = sum(_WHOLE_VECTOR_LOADS.get(line.split()[0], 0) for line in loop.instructions if re.match(r"\w+\s+q", line))
    return loop.multiply_adds / profile.core.fma_per_cycle + loads * profile.core.vector_load_cycles
