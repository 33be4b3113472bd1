"""Direct convolution and matrix product on cores whose multiply-add takes one lane of a register for all lanes.

The register tile and the loops around it are conv_direct's. Its reduction loads the input one vector of channels at a time:
``lanes`` consecutive input channels of a pixel are one load, and each multiply-add picks its channel by lane. A pixel then
costs one load in ``lanes`` steps instead of one each. Channels beyond the last whole vector are a copy of the loop body of
their own, without conditions in the loop.
"""

from __future__ import annotations

from typing import Iterator, Sequence

from tvm import tirx

from hwprune.kernels.common.conv_direct import TAIL_APART, Geometry, pixel_waste, rank_tiles, schedule_tiles, split_sizes
from hwprune.kernels.schedule import Config, divisors, unroll
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "conv_lane"

#: TVM keeps a buffer in registers (on the stack, for LLVM to promote) below this size, and allocates it above.
_STACK_BYTES = 1024
#: Cycles that a load beside multiply-adds is thought to cost: of equal tiles, the one with fewer loads comes first.
_LOAD_WEIGHT = 0.05

#: What a tile that leaves few registers free is thought to cost an in-order core.
_CROWDED = 1.12

Tile = tuple[int, int, int]


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    anchor = workload.anchor
    if not profile.core.lane_broadcast or anchor is None or anchor.op not in ("conv2d", "dense") or workload.dtype != "float32":
        return None
    geometry = Geometry(workload)
    if geometry.groups != 1 or geometry.ci < geometry.lanes:
        return None
    return rank_tiles(name, geometry, profile, _tiles(geometry, profile), _tile_cost)


def _tiles(g: Geometry, profile: TargetProfile) -> Iterator[Tile]:
    """Register tiles that fit."""
    for cov in _channel_sizes(g.blocks):
        for wt in split_sizes(g.ow):
            for ht in (h for h in divisors(g.oh) if h <= 4):
                if _spare_registers(ht * wt, cov, profile) >= 0 and _staged_bytes(ht, wt, g) < _STACK_BYTES:
                    yield ht, wt, cov


def _channel_sizes(blocks: int) -> list[int]:
    """Vectors of channels in a tile: divisors, and two in any case, the last tile then having one."""
    return sorted({c for c in divisors(blocks) if c <= 8} | ({2} if blocks > 2 else set()))


def _spare_registers(pixels: int, cov: int, profile: TargetProfile) -> int:
    """What accumulators, a vector of each pixel and the weights of one step leave free of the registers."""
    # one more: the weights of the next step are loaded while the last ones of this are in use
    return profile.core.vector_registers - (pixels * cov + pixels + cov + 1)


def _staged_bytes(ht: int, wt: int, g: Geometry) -> int:
    """Size of the staged pixels; those that a stride skips are in it, though nothing loads them."""
    return ((ht - 1) * g.stride + 1) * ((wt - 1) * g.stride + 1) * 4 * g.lanes


def _tile_cost(tile: Tile, g: Geometry, profile: TargetProfile) -> float:
    """Cycles per fused multiply-add over ``lanes`` steps: ports, latency and loads."""
    ht, wt, cov = tile
    core, pixels = profile.core, ht * wt
    fmas, loads = g.lanes * pixels * cov, pixels + g.lanes * cov
    ports, latency = fmas / core.fma_per_cycle, g.lanes * core.fma_latency_cycles
    # as many loads as multiply-adds start in a cycle; those that hold up none still fill the queues
    cycles = max(ports, loads / core.fma_per_cycle) + max(core.vector_load_cycles, _LOAD_WEIGHT) * loads
    # for an in-order core LLVM unrolls the loop and loads far ahead, and may spill where few registers are free
    crowded = core.in_order and _spare_registers(pixels, cov, profile) < core.vector_registers // 8
    return max(cycles, latency) / fmas * pixel_waste(g, wt) * (_CROWDED if crowded else 1)


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    # an in-order core wants the loads of the next step among this one's multiply-adds. LLVM unrolls for it, but where the
    # number of steps is odd the loop is left in the middle, and what comes after is not scheduled with what was before
    together = 2 if profile.core.in_order else 1
    return schedule_tiles(workload, profile, config, lambda *at: _accumulate(*at, profile.lanes, together), tail_apart=True)


def _accumulate(sch, conv, tile_at, is_dense: bool, lanes: int, together: int) -> None:
    """Reduce at ``tile_at``: ``lanes`` channels of each pixel are staged at once, then unrolled over, ``together`` times."""
    sch.compute_at(conv, tile_at, preserve_unit_loops=True)
    loops = sch.get_loops(conv)
    spatial, reduction = (loops[-4:-1], loops[-1:]) if is_dense else (loops[-8:-3], loops[-3:])
    group, step, channel = sch.split(reduction[-1], [None, together, lanes])
    sch.reorder(*reduction[:-1], group, step, channel, *spatial)
    sch.vectorize(spatial[-1])
    unroll(sch, [step, channel, *spatial[:-1]])
    first = reduction[0] if len(reduction) > 1 else group
    sch.decompose_reduction(conv, first)
    _stage(sch, sch.get_sblock("C_update"), step, 2 if is_dense else 4)
    # the last group of a width that lanes do not divide becomes code of its own, the loop keeps no condition
    sch.annotate(group, TAIL_APART, True)


def _stage(sch, update, step, rank: int) -> None:
    """Copy the pixels' next channels at ``step``, a vector each; ``rank`` is the input's."""
    # scope "global": TVM puts a small buffer of that scope on the stack, where LLVM makes registers of it
    staged = sch.cache_read(update, 1, "global")
    sch.compute_at(staged, step, preserve_unit_loops=True)
    *outer, vector = sch.get_loops(staged)[-rank:]
    sch.vectorize(vector)
    unroll(sch, outer)
