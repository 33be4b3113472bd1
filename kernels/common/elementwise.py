"""Everything that keeps no accumulator tile: element-wise kernels, copies, pooling, depthwise convolution.

The result's loops are fused down to the innermost axis, cut for the threads and vectorized; a reduction is computed at
the vector, its accumulator in registers.
"""

from __future__ import annotations

from typing import Sequence

from tvm import s_tir, tirx

from hwprune.errors import Infeasible
from hwprune.kernels.compute import compute
from hwprune.kernels.schedule import Config, block_or_none, divisors, static_extent, unroll, vectorize_innermost
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "elementwise"


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    if profile.gpu is not None or (workload.anchor is not None and workload.anchor.op in ("conv2d", "dense")):
        return None
    small = workload.bytes_moved + 4 * workload.macs < 16 * profile.memory.l1d_bytes
    splits = ("none", "rows") if small else ("rows", "none")
    tiles = _tiles(workload, profile)
    return [Config.make(name, split=split, wt=wt, cov=cov) for wt, cov in tiles for split in splits]


def _tiles(workload: Workload, profile: TargetProfile) -> list[tuple[int, int]]:
    """(pixels, vectors) of a register tile, for kernels with a reduction; (1, 1) for the rest."""
    anchor = workload.anchor
    if anchor is None:
        return [(1, 1)]
    width = workload.output.shape[-2] if len(workload.output.shape) == 4 else 1
    vectors = max(1, workload.output.shape[-1] // profile.lanes)
    budget = profile.core.vector_registers // 2
    found = [(wt, cov) for wt in divisors(width) for cov in divisors(vectors) if wt * cov <= budget and cov <= 4]
    aim = profile.core.fma_latency_cycles * profile.core.fma_per_cycle
    return sorted(found, key=lambda t: (abs(t[0] * t[1] - aim), -t[0]))[:6]


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    sch = s_tir.Schedule(compute(workload).primfunc())
    out, acc, padded = sch.get_sblock("Y"), block_or_none(sch, "C"), block_or_none(sch, "P")
    *outer, channel = sch.get_loops(out)
    if acc is None:
        task = sch.fuse(*outer) if outer else None
        vectorize_innermost(sch, out, profile.lanes)
        if config["split"] == "rows" and task is not None:
            sch.parallel(task)
        return sch.mod["main"]
    return _reduce(sch, out, acc, padded, outer, channel, profile, config)


def _reduce(sch, out, acc, padded, outer, channel, profile, config) -> tirx.PrimFunc:
    wt, cov, lanes = int(config["wt"]), int(config["cov"]), profile.lanes
    if static_extent(sch, channel) % (cov * lanes):
        raise Infeasible(f"{static_extent(sch, channel)} channels do not divide into {cov} vectors of {lanes}")
    column, inner_column = sch.split(outer[-1], [None, wt])
    block, vectors, lane = sch.split(channel, [None, cov, lanes])
    sch.reorder(*outer[:-1], column, block, inner_column, vectors, lane)
    task = sch.fuse(*outer[:-1]) if outer[:-1] else column
    if static_extent(sch, task) == 1 and config["split"] == "rows":
        # one row only (a global pool): the threads share the channels
        sch.reorder(block, column)
        task, block = block, column
        sch.parallel(task)
        tile_at = block
    else:
        if config["split"] == "rows":
            sch.parallel(task)
        tile_at = block
    sch.vectorize(lane)
    unroll(sch, [inner_column, vectors])
    sch.compute_at(acc, tile_at, preserve_unit_loops=True)
    sch.set_scope(acc, 0, "local")
    loops = sch.get_loops(acc)
    spatial, reduction = loops[-2 - len(outer) - 1 : -2], loops[-2:]
    _, vector = sch.split(spatial[-1], [None, lanes])
    wide = sch.get_loops(acc)[-4]  # vectors of the tile
    sch.reorder(*reduction, *spatial[:-1], wide, vector)
    sch.vectorize(vector)
    unroll(sch, [*spatial[:-1], wide])
    sch.decompose_reduction(acc, reduction[0])
    if padded is not None:
        sch.compute_at(padded, task, preserve_unit_loops=True)
        vectorize_innermost(sch, padded, lanes)
    return sch.mod["main"]
