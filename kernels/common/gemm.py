"""Matrix product of many rows with a packed weight.

A tile of rows x vectors is accumulated in registers over the whole reduction; rows and vectors are cut into tiles of at
most two sizes, so that no tile is mostly empty and none needs a predicate. The panel of weights of a column of tiles
stays in the caches while the rows pass by it.
"""

from __future__ import annotations

from typing import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwprune.kernels.compute import chain
from hwprune.kernels.loops import Runs, function, scratch
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "gemm"

#: Arguments of LLVM's prefetch: a read, into the second level, of data.
_TO_READ_SOON = (0, 2, 1)


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    anchor = workload.anchor
    if anchor is None or anchor.op != "dense" or workload.output.shape[0] < 2:
        return None
    rows, (blocks, reduction, lanes) = workload.output.shape[0], workload.inputs[anchor.args[1]].shape
    if lanes != profile.lanes:
        return None
    ranked = []
    for mt, nv in _tiles(rows, blocks, profile):
        for split in ("columns", "rows"):
            cost = _cost(rows, blocks, reduction, mt, nv, split, profile)
            ranked.append((cost, Config.make(name, mt=mt, nv=nv, split=split)))
    ranked.sort(key=lambda item: item[0])
    return [config for _, config in ranked]


def _tiles(rows: int, blocks: int, profile: TargetProfile) -> list[tuple[int, int]]:
    """Register tiles: accumulators, one weight vector for each column and a few broadcast rows fit the registers."""
    spare = profile.core.vector_registers - (4 if profile.core.in_order else 1)
    found = {(min(mt, rows), min(nv, blocks)) for nv in range(1, 7) for mt in range(1, 15) if mt * nv + nv <= spare}
    return sorted(t for t in found if (t[0] + 1, t[1]) not in found or t[0] == rows)


def _cost(rows, blocks, reduction, mt, nv, split, profile) -> float:
    """Relative time: the register tile, what is left of it after cutting, threads in step, where operands stream from."""
    core, memory, threads = profile.core, profile.memory, profile.threads
    tiles, panels = -(-rows // mt), -(-blocks // nv)
    mt, nv = rows / tiles, blocks / panels
    fmas = mt * nv
    step = max(fmas / core.fma_per_cycle, core.fma_latency_cycles, (mt + nv) / 2)
    # weights from where a panel lies: once for each tile of rows
    traffic = nv * (0.2 if 4 * reduction * nv * profile.lanes <= memory.l1d_bytes // 2 else 0.5)
    step = max(step, traffic) + 0.1 * traffic
    units = panels if split == "columns" else tiles
    share = -(-units // threads) * threads / units
    return tiles * panels * (step * reduction + 4 * fmas) * share


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    anchor = workload.anchor
    rows, (blocks, reduction, v) = workload.output.shape[0], workload.inputs[anchor.args[1]].shape
    tiles, panels = Runs(rows, int(config["mt"])), Runs(blocks, int(config["nv"]))
    split = panels if config["split"] == "columns" else tiles

    def statements(inputs, y):
        x, w = inputs[anchor.args[0]], inputs[anchor.args[1]]
        with T.parallel(profile.threads) as thread:
            part = (thread, profile.threads)

            def column(block, nv):
                def tile(row, mt):
                    passes = profile.threads if split is tiles else 1
                    _prefetch(w, block + nv, nv * reduction, (row, mt), rows, passes)
                    _tile(workload, inputs, x, w, y, row, mt, block, nv, reduction, v)

                tiles.each(tile, part if split is tiles else None)

            panels.each(column, part if split is panels else None)

    return function(workload, statements)


def _prefetch(w, block, lines: int, tile: tuple[tirx.Expr, int], rows: int, passes: int) -> None:
    """Fetch the weights of the panel from ``block`` on, as much of them as ``tile`` (row, rows) is of this panel's work.

    In a network the weights come from far: whoever waited for them at each panel's first tile would lose a fifth of the
    time. ``passes`` : threads that share the rows, each of which needs all of the weights.
    """
    row, size = tile
    last, reduction = int(w.shape[0]) - 1, int(w.shape[1])
    with T.serial(0, -(-size * passes * lines // rows)) as line:
        at = tirx.floormod(tirx.floordiv(row * (passes * lines), rows) + line, lines)
        panel = tirx.min(block + tirx.floordiv(at, reduction), last)
        address = T.address_of(w[panel, tirx.floormod(at, reduction), 0])
        T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, *(tirx.const(n, "int32") for n in _TO_READ_SOON)))


def _tile(workload, inputs, x, w, y, row, mt: int, block, nv: int, reduction: int, v: int) -> None:
    acc = scratch((mt * nv * v,))
    cells = [(i, j, (i * nv + j) * v) for i in range(mt) for j in range(nv)]
    for _, _, at in cells:
        with T.vectorized(v) as lane:
            T.buffer_store(acc, tirx.const(0.0, "float32"), [at + lane])
    with T.serial(0, reduction) as k:
        for i, j, at in cells:
            with T.vectorized(v) as lane:
                T.buffer_store(acc, acc[at + lane] + x[row + i, k] * w[block + j, k, lane], [at + lane])
    result = scratch((mt * nv * v,))
    for _, _, at in cells:
        with T.vectorized(v) as lane:
            T.buffer_store(result, acc[at + lane], [at + lane])
    # the element-wise operators run in a loop of their own: unrolled with the tile they would not fit the code cache
    with T.serial(0, mt) as i:
        with T.serial(0, nv) as j:
            with T.vectorized(v) as lane:
                value = chain(workload, inputs, lambda r, c: result[(i * nv + j) * v + lane])
                T.buffer_store(y, value(row + i, (block + j) * v + lane), [row + i, (block + j) * v + lane])
