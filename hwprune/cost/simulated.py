"""Latency of a kernel on a core that is not here: simulated, from the very code that would ship.

Arithmetic: every block of the kernel's assembly runs as often as ``assembly.py`` counts, each thread by itself; the cycles of
one run are those that the profile's in-core tool gives (``incore.py``) for blocks that matter, and what the core issues at
best for the others. The slowest thread counts, so that the last wave of tasks and tiles at an edge are in it.

Memory: the bytes of ``traffic.py`` that pass between L1 and L2 move at the profile's bandwidth of one core's L2, those that
pass beyond the last cache at that of the main memory, which all threads share. An in-order core waits for its L2; an
out-of-order core fetches from there while it computes, and the longer of the two counts. The main memory is too far for
either, and its time is added. Constants come from there at each inference if the network's do not fit into the caches.

Two figures are no physics but the profile's: the start of a kernel, and the bandwidths.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Mapping, Sequence

from hwprune.cost import incore
from hwprune.cost.assembly import Block, Program, Region
from hwprune.cost.traffic import Loops
from hwprune.errors import NoLatency
from hwprune.kernels import build, kernel_inputs, primfunc
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import Workload

#: Blocks with less than this share of the instructions executed are not worth the tool's time.
_MATTERS = 0.02
#: Instructions that a core issues in a cycle at best, where the profile does not say.
_ISSUE_WIDTH = 2
#: Bytes that memset and memcpy move in a cycle: one vector.
_COPIED_PER_CYCLE = 16
_WHOLE_VECTOR_LOADS = {"ldr": 1, "ldur": 1, "ldp": 2}


@dataclass(frozen=True)
class Simulation:
    """What makes a kernel's latency.

    cycles : of the slowest thread, its data in L1. near_bytes : between that thread's L1 and L2. far_bytes : between the
    last cache and main memory, of all threads. unknown : instructions of the blocks that matter that the tool does not know.
    """

    cycles: float
    near_bytes: int
    far_bytes: int
    unknown: tuple[str, ...] = ()

    def latency_us(self, profile: TargetProfile) -> float:
        """Microseconds of the kernel run alone, its start included."""
        core, memory = profile.core, profile.memory
        computing = self.cycles / core.frequency_mhz
        near = self.near_bytes / (memory.l2_gb_per_s * 1e3)
        far = self.far_bytes / (memory.dram_gb_per_s * 1e3)
        return (computing + near if core.in_order else max(computing, near)) + far + profile.overhead.kernel_us


def simulate(workload: Workload, profile: TargetProfile, config: Config, *, cold_constants: bool = False) -> Simulation:
    """Simulate the kernel of ``workload`` under the schedule ``config``.

    cold_constants : the kernel's constants are in no cache when it starts.
    NoLatency says why a kernel cannot be simulated; Infeasible that the schedule does not fit.
    """
    if profile.architecture != "aarch64":
        raise NoLatency(f"kernels are simulated for aarch64, and target {profile.name!r} is {profile.architecture}")
    function = primfunc(workload, profile, config)
    program = Program(build({"kernel": function}, profile).inspect_source("s"))
    arguments = kernel_inputs(workload, config)
    regions = program.run("kernel_compute_", len(arguments) + 1, profile.threads)
    cycles, unknown = slowest(program, regions, profile)
    loops = Loops(function, profile.threads)
    constants = [n for n, spec in enumerate(arguments) if spec.role == "weight"]
    near = sum(loops.traffic(profile.memory.l1d_bytes, shared=False).values())
    return Simulation(cycles, near, far_bytes(loops, profile, constants if cold_constants else ()), unknown)


def far_bytes(loops: Loops, profile: TargetProfile, cold: Sequence[int]) -> int:
    """Bytes between the last cache and main memory; ``cold``: numbers of arguments that are in no cache before."""
    cache, whole = last_cache_bytes(profile), loops.footprint()
    if sum(whole.values()) <= cache:
        return sum(whole.get(number, 0) for number in cold)
    return sum(loops.traffic(cache, shared=True).values())


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
    each, unknown = {}, []
    for label in runs:
        block = program.blocks[label]
        if executed[label] < least:
            each[label] = len(block.lines) / (profile.incore.instructions_per_cycle or _ISSUE_WIDTH if profile.incore else _ISSUE_WIDTH)
            continue
        each[label], missing = _by_tool(block, profile)
        unknown += missing
    return each, tuple(dict.fromkeys(unknown))


def _by_tool(block: Block, profile: TargetProfile) -> tuple[float, tuple[str, ...]]:
    loop = incore.Loop(tuple(block.lines), profile.architecture)
    found = incore.predict_loop(loop, profile)
    # what runs once in a while depends on its last run little
    cycles = found.cycles if block.loops else found.throughput_cycles
    return max(cycles, _load_bound(loop, profile)), found.unknown


def _load_bound(loop: incore.Loop, profile: TargetProfile) -> float:
    """Cycles of a loop on a core whose multiply-adds wait for the load of a whole vector."""
    loads = sum(_WHOLE_VECTOR_LOADS.get(line.split()[0], 0) for line in loop.instructions if re.match(r"\w+\s+q", line))
    return loop.multiply_adds / profile.core.fma_per_cycle + loads * profile.core.vector_load_cycles
