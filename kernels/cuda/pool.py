"""Global pooling on a GPU: the pixels of a plane are shared out among the threads of a block, which then add up.

Threads of a row take neighbouring channel vectors of a pixel, rows of threads take pixels.
"""

from __future__ import annotations

from typing import Sequence

from tvm import s_tir, te, tirx

from hwprune.errors import Infeasible
from hwprune.kernels.compute import compute
from hwprune.kernels.cuda.model import within
from hwprune.kernels.cuda.product import rounded
from hwprune.kernels.schedule import Config, divisors
from hwprune.occupancy import Usage, excess, gpu_of
from hwprune.target import TargetProfile
from hwprune.workload import OpCall, Workload

name = "cuda_global_pool"

_PIXELS, _CHANNELS = (32, 16, 64, 8), (32, 64, 16, 8)


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    if profile.gpu is None or workload.anchor is None or workload.anchor.op != "global_pool":
        return None
    # threads may not stand aside where the others wait for them, so their number divides the channels
    widths = divisors(workload.output.shape[-1])
    channels = dict.fromkeys(max(w for w in widths if w <= most) for most in _CHANNELS)
    fits = [(p, c) for c in channels for p in _PIXELS if not excess(_usage(p, c), gpu_of(profile))]
    return [Config.make(name, pixels=p, channels=c) for p, c in fits]


def _usage(pixels: int, channels: int) -> Usage:
    return Usage(pixels * channels, 32, 4 * channels * (pixels + 1))


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    pixels, channels = int(config["pixels"]), int(config["channels"])
    within(_usage(pixels, channels), profile, config)
    if workload.output.shape[-1] % channels:
        raise Infeasible(f"{config.to_text()} does not divide {workload.output.shape[-1]} channels")
    sch = s_tir.Schedule(compute(workload, {"global_pool": _plane(pixels)}).primfunc())
    *_, k = sch.get_loops("C")
    _, ty = sch.split(k, [None, pixels])
    partial = sch.rfactor(ty, 0)
    *outer, channel = sch.get_loops(sch.get_sblock("Y"))
    co, ci = sch.split(channel, [None, channels])
    at = sch.fuse(*outer, co)
    sch.bind(at, "blockIdx.x")
    sch.bind(ci, "threadIdx.x")
    acc = sch.get_sblock("C")
    sch.set_scope(acc, 0, "shared")
    sch.compute_at(acc, at, preserve_unit_loops=True)
    _, thread, *unit, own = sch.get_loops(acc)
    sch.reorder(*unit, own, thread)
    sch.bind(own, "threadIdx.x")
    sch.bind(thread, "threadIdx.y")
    sch.set_scope(partial, 0, "local")
    sch.compute_at(partial, at, preserve_unit_loops=True)
    loops = sch.get_loops(partial)
    thread, own, k = loops[1], loops[-2], loops[-1]
    # the same order as in the sum over threads, so that each partial sum stays in one register of its thread
    sch.reorder(*loops[2:-2], own, thread, k)
    sch.bind(thread, "threadIdx.y")
    sch.bind(own, "threadIdx.x")
    sch.decompose_reduction(partial, k)
    return sch.mod["main"]


def _plane(pixels: int):
    """The anchor with a plane's pixels on one axis, as many as whole rows of threads take; zeros beyond the last."""

    def anchor(call: OpCall, values, workload: Workload):
        expr, (n, h, w, channels) = values[call.args[0]]
        axis = te.reduce_axis((0, rounded(h * w, pixels)), "k")

        def pixel(*i):
            value = expr(i[0], axis // w, axis % w, i[-1])
            return value if h * w % pixels == 0 else tirx.if_then_else(axis < h * w, value, tirx.const(0.0, "float32"))

        shape = (n, 1, 1, channels) if call["keep"] else (n, channels)
        acc = te.compute(shape, lambda *i: te.sum(pixel(*i), axis=[axis]), name="C")
        return (lambda *i: acc(*i) * tirx.const(1.0 / (h * w), "float32")), shape

    return anchor
