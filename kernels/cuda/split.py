"""Products with few rows on a GPU: the threads of a block share the reduction, so that every SM has work.

A block makes bm rows x vectors of results. Each of its threads takes every threads-th step of k, which lies in memory
beside its neighbours', and keeps a partial sum of each result in registers; the block then adds the partial sums up.
Weights are read once, straight to registers: with one row this is a matrix-vector product at the memory's speed.
"""

from __future__ import annotations

import math
from typing import Sequence

from tvm import s_tir, tirx

from hwprune.errors import Infeasible
from hwprune.kernels.cuda.model import L2_LATENCY_CYCLES, within
from hwprune.kernels.cuda.product import Product, block_tiles, pixels_first, product
from hwprune.kernels.schedule import Config, block_or_none, unroll
from hwprune.occupancy import Usage, blocks_per_sm, excess, gpu_of
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "cuda_split"

_ROWS, _VECTORS, _WARPS, _STEPS = (1, 2, 4, 8), (1, 2), (1, 2, 4, 8), (2, 4)
_OFFERED = 12
#: Addresses and loop counters beyond partial sums and operands.
_FURTHER_REGISTERS = 32


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    shape = Product.of(workload)
    if profile.gpu is None or shape is None or not _starved(shape, profile):
        return None
    ranked = []
    for bm in _ROWS:
        for vectors in _VECTORS:
            for warps in _WARPS:
                for steps in _STEPS:
                    usage = _usage(bm, vectors, warps, steps, profile)
                    if not excess(usage, gpu_of(profile)):
                        config = Config.make(name, bm=bm, vectors=vectors, warps=warps, steps=steps)
                        ranked.append((_cycles(shape, bm, vectors, warps, steps, usage, profile), config))
    ranked.sort(key=lambda item: item[0])
    return [config for _, config in ranked[:_OFFERED]]


def _starved(shape: Product, profile: TargetProfile) -> bool:
    """Whether a product of tiles, the smallest of which are a warp square, leaves SMs idle."""
    warp = gpu_of(profile).warp_size
    return math.ceil(shape.m / warp) * math.ceil(shape.n / warp) < profile.cores


def _usage(bm: int, vectors: int, warps: int, steps: int, profile: TargetProfile) -> Usage:
    results, warp = bm * vectors * profile.lanes, gpu_of(profile).warp_size
    registers = results + steps * (bm + vectors * profile.lanes) + _FURTHER_REGISTERS
    return Usage(warps * warp, registers, 4 * (results + warp))


def _cycles(shape: Product, bm: int, vectors: int, warps: int, steps: int, usage: Usage, profile: TargetProfile) -> float:
    """Multiply-adds, operands from L2, and the sum over threads (five steps of a warp for each result), in waves."""
    core, results = profile.core, bm * vectors * profile.lanes
    blocks = math.ceil(shape.m / bm) * math.ceil(shape.n / (vectors * profile.lanes))
    at_once = min(blocks_per_sm(usage, gpu_of(profile)), math.ceil(blocks / profile.cores))
    waves = math.ceil(blocks / (profile.cores * at_once))
    share = math.ceil(shape.k / (usage.threads * steps)) * steps  # of each thread
    arithmetic = at_once * results * share * usage.threads / (core.fma_per_cycle * profile.lanes)
    l2 = profile.memory.l2_gb_per_s * 1e3 / core.frequency_mhz
    fetches = at_once * 4 * (bm + vectors * profile.lanes) * share * usage.threads / l2
    fold = results * (math.log2(gpu_of(profile).warp_size) + warps)
    return waves * (max(arithmetic, fetches) + share / steps * L2_LATENCY_CYCLES / at_once + fold)


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    bm, vectors, warps, steps = (int(config[key]) for key in ("bm", "vectors", "warps", "steps"))
    within(_usage(bm, vectors, warps, steps, profile), profile, config)
    if min(bm, vectors, warps, steps) < 1:
        raise Infeasible(f"{config.to_text()}: a tile of nothing")
    threads = warps * gpu_of(profile).warp_size
    sch = s_tir.Schedule(product(workload, (bm, vectors * profile.lanes, threads * steps)).primfunc())
    for stage in ("P", "A", "B"):
        block = block_or_none(sch, stage)
        if block is not None:
            sch.compute_inline(block)
    pixels_first(sch, workload)
    *_, k = sch.get_loops(sch.get_sblock("C"))
    _, thread = sch.split(k, [None, threads])
    partial = sch.rfactor(thread, 0)
    at, inner = block_tiles(sch, bm, vectors * profile.lanes)
    _fold(sch, at)
    _partial(sch, partial, at, steps, profile.lanes)
    # last: cut for the threads, the block's results no longer look like a rectangle
    _, thread = sch.split(sch.fuse(*inner), [None, threads])
    sch.bind(thread, "threadIdx.x")
    return sch.mod["main"]


def _fold(sch: s_tir.Schedule, at) -> None:
    """The sum over threads, to shared memory, from where any thread takes a result."""
    acc = sch.get_sblock("C")
    sch.set_scope(acc, 0, "shared")
    sch.compute_at(acc, at, preserve_unit_loops=True)
    _, thread, m, n = sch.get_loops(acc)
    sch.reorder(m, n, thread)
    sch.bind(thread, "threadIdx.x")


def _partial(sch: s_tir.Schedule, partial, at, steps: int, lanes: int) -> None:
    sch.set_scope(partial, 0, "local")
    sch.compute_at(partial, at, preserve_unit_loops=True)
    loops = sch.get_loops(partial)[1:]
    thread, m, n, k = loops
    sch.bind(thread, "threadIdx.x")
    outer, lane = sch.split(n, [None, lanes])
    ko, ki = sch.split(k, [None, steps])
    sch.reorder(ko, ki, m, outer, lane)
    unroll(sch, [ki, m, outer])
    sch.vectorize(lane)
    sch.decompose_reduction(partial, ko)
