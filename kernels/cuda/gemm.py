"""Convolution as implicit GEMM, and matrix products, on the CUDA cores of a GPU: exact float32.

A block makes bm x bn results. Its threads fetch bk columns of A and rows of B into shared memory together, then each
adds up its tm x tn results in registers, reading both operands as 16-byte vectors: rows of B side by side, rows of A
the same for the threads of a row, which shared memory broadcasts. The epilogue runs on the registers.
"""

from __future__ import annotations

from typing import Sequence

from tvm import s_tir, tirx

from hwprune.errors import Infeasible
from hwprune.kernels.cuda.model import Step, product_cycles, within
from hwprune.kernels.cuda.product import Product, pixels_first, product
from hwprune.kernels.schedule import Config, block_or_none, unroll
from hwprune.occupancy import Usage, excess, gpu_of
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "cuda_gemm"

#: Tiles of a block and of a thread, from those of CUTLASS's SIMT kernels down to what fills a card with few results.
_BLOCKS = ((128, 128), (128, 64), (64, 128), (64, 64), (128, 32), (64, 32), (32, 64), (32, 32), (16, 64), (32, 16), (16, 32), (16, 16))
_THREADS = ((8, 8), (8, 4), (4, 8), (4, 4), (2, 4), (1, 4))
_DEPTHS = (8, 16, 32)
_OFFERED = 24
#: Addresses, loop counters and what the compiler keeps in flight, beyond accumulators and operands.
_FURTHER_REGISTERS = 40
#: Assumption, from reading the generated code: finding a pixel from its number takes divisions, that is multiplications
#: and shifts, then come border conditions, load and store.
_INSTRUCTIONS_PER_FETCH = 24


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    shape = Product.of(workload)
    if profile.gpu is None or shape is None:
        return None
    ranked = []
    for bm, bn in _BLOCKS:
        for tm, tn in _THREADS:
            for bk in _DEPTHS:
                usage = _usage(bm, bn, bk, tm, tn, profile)
                if not _fits_together(bm, bn, tm, tn, profile) or excess(usage, gpu_of(profile)):
                    continue
                step = _step(shape, (bm, bn), (tm, tn), usage, profile)
                cost = product_cycles((shape.m, shape.n, shape.k), (bm, bn, bk), step, usage, profile)
                ranked.append((cost, Config.make(name, bm=bm, bn=bn, bk=bk, tm=tm, tn=tn)))
    ranked.sort(key=lambda item: item[0])
    return [config for _, config in ranked[:_OFFERED]]


def _step(shape: Product, block: tuple[int, int], thread: tuple[int, int], usage: Usage, profile: TargetProfile) -> Step:
    (bm, bn), (tm, tn), lanes, warp = block, thread, profile.lanes, gpu_of(profile).warp_size
    loads = usage.threads / warp * (tm + tn) / lanes  # 16 bytes a thread, from rows that a warp shares
    fetches = (bm / (lanes if shape.contiguous else 1) + bn / lanes) / warp
    instructions = bm * bn / warp + loads + fetches * _INSTRUCTIONS_PER_FETCH
    return Step(bm * bn / (profile.core.fma_per_cycle * lanes), instructions, l2_bytes=4 * (bm + bn))


def _fits_together(bm: int, bn: int, tm: int, tn: int, profile: TargetProfile) -> bool:
    """Whether the threads are whole warps, and not so few that fetching takes them long."""
    threads = (bm // tm) * (bn // tn)
    warp = gpu_of(profile).warp_size
    return bm % tm == 0 and bn % tn == 0 and threads % warp == 0 and threads >= 2 * warp


def _usage(bm: int, bn: int, bk: int, tm: int, tn: int, profile: TargetProfile) -> Usage:
    lanes = profile.lanes
    # both rows are padded by one vector against bank conflicts
    shared = 4 * (bm * (bk + lanes) + bk * (bn + lanes))
    registers = tm * tn + tm * lanes + tn + _FURTHER_REGISTERS
    return Usage((bm // tm) * (bn // tn), registers, shared)


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    bm, bn, bk, tm, tn = (int(config[key]) for key in ("bm", "bn", "bk", "tm", "tn"))
    within(_usage(bm, bn, bk, tm, tn, profile), profile, config)
    if not _fits_together(bm, bn, tm, tn, profile) or bk % profile.lanes:
        raise Infeasible(f"{config.to_text()}: tiles of threads do not fill those of blocks")
    shape = Product.of(workload)
    sch = s_tir.Schedule(product(workload, (bm, bn, bk)).primfunc())
    padded = block_or_none(sch, "P")
    if padded is not None:
        sch.compute_inline(padded)
    pixels_first(sch, workload)
    tx = result_tiles(sch, (bm, bn), (tm, tn), profile)
    ko, ki, kk = _accumulate(sch, tx, bk, profile)
    fetch(sch, "A", ko, (bm // tm, bn // tn), profile.lanes if shape.contiguous else 1, profile)
    fetch(sch, "B", ko, (bm // tm, bn // tn), profile.lanes, profile)
    _operands(sch, ko, ki, kk, profile.lanes)
    return sch.mod["main"]


def result_tiles(sch: s_tir.Schedule, block: tuple[int, int], thread: tuple[int, int], profile: TargetProfile):
    """Cut the result into blocks and threads; the loop of the threads of a row, in which one thread's tile lies."""
    (bm, bn), (tm, tn) = block, thread
    m, channel = sch.get_loops(sch.get_sblock("Y"))
    # whole vectors: tiles that overhang the result then do so by vectors, and each is stored at once
    vectors, lane = sch.split(channel, [None, profile.lanes])
    mo, ty, mi = sch.split(m, [None, bm // tm, tm])
    no, tx, ni = sch.split(vectors, [None, bn // tn, tn // profile.lanes])
    sch.reorder(mo, no, ty, tx, mi, ni, lane)
    sch.bind(sch.fuse(mo, no), "blockIdx.x")
    sch.bind(ty, "threadIdx.y")
    sch.bind(tx, "threadIdx.x")
    unroll(sch, [mi, ni])
    sch.vectorize(lane)
    return tx


def _accumulate(sch: s_tir.Schedule, tx, bk: int, profile: TargetProfile):
    acc = sch.get_sblock("C")
    sch.compute_at(acc, tx, preserve_unit_loops=True)
    sch.set_scope(acc, 0, "local")
    *_, m, n, k = sch.get_loops(acc)
    ko, ki, kk = sch.split(k, [None, bk // profile.lanes, profile.lanes])
    sch.reorder(ko, ki, kk, m, n)
    unroll(sch, [kk, m, n])
    return ko, ki, kk


def fetch(sch: s_tir.Schedule, matrix: str, ko, threads: tuple[int, int], lanes: int, profile: TargetProfile) -> None:
    """All threads of a block fetch a tile of ``matrix`` at ``ko``, a vector of ``lanes`` each time.

    Neighbouring threads take neighbouring vectors of k, which lie next to each other in memory: pixels have their
    channels innermost, and packed weights have the vectors of one k after those of another.
    """
    block = sch.get_sblock(matrix)
    sch.set_scope(block, 0, "shared")  # first: what lies in shared memory is computed for all threads of the block
    sch.compute_at(block, ko, preserve_unit_loops=True)
    *_, row, column = sch.get_loops(block)
    outer, lane = sch.split(column, [None, lanes])
    if matrix == "B":
        sch.reorder(outer, row, lane)
        task = sch.fuse(outer, row)
    else:
        task = sch.fuse(row, outer)
    _, ty, tx = sch.split(task, [None, *threads])
    sch.bind(ty, "threadIdx.y")
    sch.bind(tx, "threadIdx.x")
    sch.vectorize(lane)
    sch.storage_align(block, 0, axis=-2, factor=gpu_of(profile).warp_size, offset=profile.lanes)


def _operands(sch: s_tir.Schedule, ko, ki, kk, lanes: int) -> None:
    """Operands of a thread in registers: rows of A over a vector of k, a row of B for each k."""
    acc = sch.get_sblock("C")
    left, right = sch.cache_read(acc, 0, "local"), sch.cache_read(acc, 1, "local")
    sch.compute_at(left, ki, preserve_unit_loops=True)
    sch.compute_at(right, kk, preserve_unit_loops=True)
    for block in (left, right):
        *_, row, column = sch.get_loops(block)
        sch.unroll(row)
        outer, lane = sch.split(column, [None, lanes])
        sch.unroll(outer)
        sch.vectorize(lane)
    sch.decompose_reduction(acc, ko)
