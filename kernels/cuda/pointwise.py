"""Kernels on a GPU whose threads share little: element-wise, copies, pooling, depthwise and grouped convolution.

A thread makes a vector of channels of wt pixels of a row. Neighbouring threads take neighbouring vectors, so a warp
reads and writes whole lines; a window's overlap between threads is left to the L1 cache.
"""

from __future__ import annotations

import math
from typing import Sequence

from tvm import s_tir, tirx

from hwprune.errors import Infeasible
from hwprune.kernels.compute import compute
from hwprune.kernels.cuda.model import within
from hwprune.kernels.cuda.product import pixels_first
from hwprune.kernels.schedule import Config, divisors, static_extent, unroll
from hwprune.occupancy import Usage, blocks_per_sm, excess, gpu_of
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "cuda_pointwise"

_WARPS, _WIDTHS = (4, 8, 2, 1), (1, 2, 4, 7, 8)
#: Windows up to this many taps are unrolled.
_UNROLLED = 25


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    anchor = workload.anchor
    if profile.gpu is None or (anchor is not None and anchor.op not in ("conv2d", "depthwise", "pool2d")):
        return None
    gpu, ranked = gpu_of(profile), []
    for wt in _widths(workload):
        for order, warps in enumerate(_WARPS):
            usage = _usage(wt, warps, profile)
            if not excess(usage, gpu):
                ranked.append((_idle(workload, wt, usage, profile), -wt, order, Config.make(name, wt=wt, warps=warps)))
    return [config for *_, config in sorted(ranked, key=lambda item: item[:3])]


def _widths(workload: Workload) -> list[int]:
    """Pixels of a row that one thread makes: more than one only shares anything under a window."""
    if workload.anchor is None:
        return [1]
    return [w for w in _WIDTHS if w in divisors(workload.output.shape[2])]


def _usage(wt: int, warps: int, profile: TargetProfile) -> Usage:
    return Usage(warps * gpu_of(profile).warp_size, 24 + 3 * wt * profile.lanes, 0)


def _idle(workload: Workload, wt: int, usage: Usage, profile: TargetProfile) -> float:
    """Share of the card's threads without work, 0 from half of them on: as many keep its memory busy."""
    gpu = gpu_of(profile)
    tasks = workload.output.size_bytes / 4 / profile.lanes / wt
    at_once = min(tasks, profile.cores * blocks_per_sm(usage, gpu) * usage.threads)
    return max(0.0, 1 - 2 * at_once / (profile.cores * gpu.max_threads_per_sm))


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    wt, warps = int(config["wt"]), int(config["warps"])
    usage = _usage(wt, warps, profile)
    within(usage, profile, config)
    sch = s_tir.Schedule(compute(workload).primfunc())
    if workload.anchor is None:
        _element_wise(sch, usage.threads, profile)
        return sch.mod["main"]
    if workload.output.shape[2] % wt:
        raise Infeasible(f"{config.to_text()} does not divide {workload.output.shape[2]} pixels")
    sch.compute_inline("P")
    _pixels_first(sch, workload)
    thread = _threads(sch, wt, usage.threads, profile.lanes)
    _window(sch, thread, profile.lanes, axes=3 if workload.anchor.op == "conv2d" else 2)
    return sch.mod["main"]


def _element_wise(sch: s_tir.Schedule, threads: int, profile: TargetProfile) -> None:
    *outer, channel = sch.get_loops("Y")
    lanes = profile.lanes if static_extent(sch, channel) % profile.lanes == 0 else 1
    vectors, lane = sch.split(channel, [None, lanes])
    blocks, thread = sch.split(sch.fuse(*outer, vectors), [None, threads])
    sch.bind(blocks, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    sch.vectorize(lane)


def _pixels_first(sch: s_tir.Schedule, workload: Workload) -> None:
    """Window sums as (pixel of all images, channel): one axis to cut, whatever the extents of the image."""
    pixels_first(sch, workload)
    _, oh, ow, _ = workload.output.shape

    def pixel(b, y, x):
        return (b * oh + y) * ow + x

    if workload.anchor.op == "conv2d":  # its channels are (vector, lane)
        lanes = workload.inputs[workload.anchor.args[1]].shape[-1]
        sch.transform_layout("C", ("write", 0), lambda b, y, x, o, v: (pixel(b, y, x), o * lanes + v))
        sch.transform_block_layout("C", lambda b, y, x, o, v, ry, rx, rc: (pixel(b, y, x), o * lanes + v, ry, rx, rc))
    else:
        sch.transform_layout("C", ("write", 0), lambda b, y, x, c: (pixel(b, y, x), c))
        sch.transform_block_layout("C", lambda b, y, x, c, ry, rx: (pixel(b, y, x), c, ry, rx))


def _threads(sch: s_tir.Schedule, wt: int, threads: int, lanes: int):
    """Cut the result for the threads: vectors along x, tiles of pixels along y. The loop that holds a thread's tile."""
    m, channel = sch.get_loops("Y")
    vectors, lane = sch.split(channel, [None, lanes])
    across = _across(static_extent(sch, vectors), threads)
    mo, ty, mi = sch.split(m, [None, threads // across, wt])
    vo, tx = sch.split(vectors, [None, across])
    sch.reorder(mo, vo, ty, tx, mi, lane)
    sch.bind(sch.fuse(mo, vo), "blockIdx.x")
    sch.bind(ty, "threadIdx.y")
    sch.bind(tx, "threadIdx.x")
    sch.unroll(mi)
    sch.vectorize(lane)
    return tx


def _across(vectors: int, threads: int) -> int:
    """Threads along the channels: all of them if a block has as many, else a divisor that leaves none idle."""
    fitting = [d for d in divisors(vectors) if d <= threads]
    return fitting[-1]


def _window(sch: s_tir.Schedule, thread, lanes: int, axes: int) -> None:
    """Sums over a window, the innermost ``axes`` loops, in the registers of one thread."""
    acc = sch.get_sblock("C")
    sch.set_scope(acc, 0, "local")
    sch.compute_at(acc, thread, preserve_unit_loops=True)
    *_, pixel, channel = sch.get_loops(acc)[: -axes]
    reduction = sch.get_loops(acc)[-axes:]
    outer, lane = sch.split(channel, [None, lanes])
    sch.reorder(*reduction, pixel, outer, lane)
    if math.prod(static_extent(sch, loop) for loop in reduction) <= _UNROLLED:
        unroll(sch, reduction)
    unroll(sch, [pixel, outer])
    sch.vectorize(lane)
    sch.decompose_reduction(acc, reduction[0])
