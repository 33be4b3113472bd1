"""Convolution as implicit GEMM, and matrix products, on the tensor cores: factors rounded to float16, sums in float32.

Offered only where the profile's ``precision`` has fp16, as factors lose 13 bits and overflow beyond 65,504. TF32 waits
for TVM: its generator of CUDA writes fragments of half and integers only. A block makes bm x bn results and fetches operands as
``gemm`` does, rounding them on the way to shared memory. Each warp multiplies 16 x 16 tiles held in fragments (WMMA,
CUDA C++ Programming Guide, warp matrix functions); sums go through shared memory to the epilogue.
"""

from __future__ import annotations

from typing import Sequence

from tvm import s_tir, tirx

from hwprune.errors import Infeasible
from hwprune.kernels.cuda.gemm import fetch
from hwprune.kernels.cuda.model import product_cycles, within
from hwprune.kernels.cuda.product import Product, block_tiles, pixels_first, product
from hwprune.kernels.schedule import Config, block_or_none
from hwprune.occupancy import Usage, excess, gpu_of
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "cuda_tensor"

#: Rows and columns of a fragment of sums, and steps of k that one instruction takes.
_TILE = _STEPS = 16
_BLOCKS = ((128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (32, 64), (32, 32))
_WARPS, _DEPTHS = ((2, 4), (4, 2), (2, 2), (1, 2), (2, 1)), (16, 32)
_OFFERED = 12
_FURTHER_REGISTERS = 48


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    shape = Product.of(workload)
    if profile.gpu is None or "fp16" not in profile.gpu.precision or shape is None:
        return None
    if min(shape.m, shape.n, shape.k) < _TILE:
        return None
    ranked = []
    rate = profile.gpu.fp16_tflops * 1e6 / 2 / (profile.cores * profile.core.frequency_mhz)
    for bm, bn in _BLOCKS:
        for wm, wn in _WARPS:
            for bk in _DEPTHS:
                usage = _usage(bm, bn, bk, wm, wn, profile)
                if bm % (wm * _TILE) or bn % (wn * _TILE) or excess(usage, gpu_of(profile)):
                    continue
                config = Config.make(name, precision="fp16", bm=bm, bn=bn, bk=bk, wm=wm, wn=wn)
                cost = product_cycles(shape, (bm, bn, bk), (bm // wm, bn // wn), usage, profile, (rate, _TILE**2 * _STEPS))
                ranked.append((cost, config))
    ranked.sort(key=lambda item: item[0])
    return [config for _, config in ranked[:_OFFERED]]


def _usage(bm: int, bn: int, bk: int, wm: int, wn: int, profile: TargetProfile) -> Usage:
    warp, pad = gpu_of(profile).warp_size, _pad(profile)
    shared = 2 * (bm * (bk + pad) + bk * (bn + pad)) + 4 * bm * bn
    sums = bm * bn // (wm * wn * warp)
    operands = (bm // wm + bn // wn) * _STEPS // warp
    return Usage(wm * wn * warp, sums + operands + _FURTHER_REGISTERS, shared)


def _pad(profile: TargetProfile) -> int:
    """Elements after a row in shared memory: one vector of 16 bytes, of float16, against bank conflicts."""
    return 2 * profile.lanes


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    return scheduled(workload, profile, config, tensorized=True)


def scheduled(workload: Workload, profile: TargetProfile, config: Config, *, tensorized: bool) -> tirx.PrimFunc:
    """The function with tensor-core intrinsics, or the same loops without them, which can be run on a CPU."""
    bm, bn, bk, wm, wn = (int(config[key]) for key in ("bm", "bn", "bk", "wm", "wn"))
    allowed = gpu_of(profile).precision
    if config["precision"] != "fp16" or "fp16" not in allowed:
        raise Infeasible(f"{config.to_text()}: target {profile.name!r} allows {', '.join(allowed)}")
    within(_usage(bm, bn, bk, wm, wn, profile), profile, config)
    if bm % (wm * _TILE) or bn % (wn * _TILE) or bk % _STEPS:
        raise Infeasible(f"{config.to_text()}: warps do not fill the block with fragments")
    sch = s_tir.Schedule(product(workload, (bm, bn, bk), lambda x: tirx.Cast("float16", x), "float16").primfunc())
    if block_or_none(sch, "P") is not None:
        sch.compute_inline("P")
    pixels_first(sch, workload)
    shape, threads = Product.of(workload), (wm * wn, gpu_of(profile).warp_size)
    at, inner = block_tiles(sch, bm, bn)
    steps = _Steps(sch, tensorized)
    ko = steps.multiply(steps.store(at, wm, wn), bk)
    for matrix, lanes in (("A", profile.lanes if shape.contiguous else 1), ("B", profile.lanes)):
        fetch(sch, matrix, ko, threads, lanes, profile, pad=_pad(profile))
    steps.finish(ko)
    _epilogue(sch, inner, threads, profile)
    return sch.mod["main"]


def _epilogue(sch: s_tir.Schedule, inner, threads: tuple[int, int], profile: TargetProfile) -> None:
    _, ty, tx, lane = sch.split(sch.fuse(*inner), [None, *threads, profile.lanes])
    sch.bind(ty, "threadIdx.y")
    sch.bind(tx, "threadIdx.x")
    sch.vectorize(lane)


class _Steps:
    """The stages of one product that become tensor-core instructions."""

    def __init__(self, sch: s_tir.Schedule, tensorized: bool):
        self.sch, self.tensorized = sch, tensorized
        self.stored = sch.cache_read("Y", _reads(sch).index("C"), "shared")
        self.left, self.right = sch.cache_read("C", 0, "wmma.matrix_a"), sch.cache_read("C", 1, "wmma.matrix_b")

    def store(self, at, wm: int, wn: int):
        """Fragments of sums to shared memory, each warp its own. The loop over warps."""
        sch = self.sch
        sch.set_scope("C", 0, "wmma.accumulator")
        sch.compute_at(self.stored, at, preserve_unit_loops=True)
        *_, m, n = sch.get_loops(self.stored)
        y, i, mi = sch.split(m, [wm, None, _TILE])
        x, j, ni = sch.split(n, [wn, None, _TILE])
        sch.reorder(y, x, i, j, mi, ni)
        warp = sch.fuse(y, x)
        sch.bind(warp, "threadIdx.y")
        self.store_at = mi
        return warp

    def multiply(self, warp, bk: int):
        """Fragments of sums of one warp, and their operands. The loop over fetches."""
        sch = self.sch
        sch.compute_at("C", warp, preserve_unit_loops=True)
        *_, m, n, k = sch.get_loops("C")
        i, mi = sch.split(m, [None, _TILE])
        j, ni = sch.split(n, [None, _TILE])
        ko, ki, kk = sch.split(k, [None, bk // _STEPS, _STEPS])
        sch.reorder(ko, ki, i, j, mi, ni, kk)
        self.product_at, self.loads_at = mi, []
        for block, shape in ((self.left, (_TILE, _STEPS)), (self.right, (_STEPS, _TILE))):
            sch.compute_at(block, ki, preserve_unit_loops=True)
            *_, row, column = sch.get_loops(block)
            (ro, ri), (co, ci) = sch.split(row, [None, shape[0]]), sch.split(column, [None, shape[1]])
            sch.reorder(ro, co, ri, ci)
            self.loads_at.append(ri)
        return ko

    def finish(self, ko) -> None:
        sch = self.sch
        init = sch.decompose_reduction("C", ko)
        if not self.tensorized:
            return
        *_, mi, _ = sch.get_loops(init)
        # importing it parses hundreds of intrinsics, which takes half a minute
        from tvm.s_tir.tensor_intrin.cuda import get_wmma_intrin_group

        names = get_wmma_intrin_group("shared", "shared", "float16", "float32", False)
        sch.tensorize(mi, names["init"])
        for loop, which in zip((*self.loads_at, self.product_at, self.store_at), ("load_a", "load_b", "compute", "store")):
            sch.tensorize(loop, names[which])


def _reads(sch: s_tir.Schedule) -> list[str]:
    return [region.source.name for region in sch.get(sch.get_sblock("Y")).reads]
