"""Direct convolution and matrix product on CPUs with vectors.

Output tile = ht x wt pixels x (cov x lanes) channels, accumulated in registers; reduction over kernel rows, columns,
input channels; the border is added where the parallel loop copies its rows; everything element-wise runs at the tile's
write-back. A matrix product is the same with its rows as pixels.
"""

from __future__ import annotations

import math
from typing import Sequence

from tvm import s_tir, tirx

from hwprune.errors import Infeasible
from hwprune.kernels.compute import compute
from hwprune.kernels.functions import FLOAT16_TERMS
from hwprune.kernels.schedule import Config, block_or_none, divisors, unroll, varied, vectorize_innermost
from hwprune.target import TargetProfile
from hwprune.workload import DTYPE_BYTES, Workload

name = "conv_direct"

#: cost by which each further variant of a register tile goes back in the order: costs tell tiles apart better than loop orders
_STEP = 0.02
#: inner order of the loops over row tiles, column tiles and channel tiles
ORDERS = ("hwc", "hcw", "chw")
#: TVM's mark of a loop whose last iteration, the only one with a condition, becomes code of its own
TAIL_APART = "pragma_loop_partition_hint"

#: Of the time in which constants come, the part that a kernel waits for them: they lie in a row, and are fetched ahead.
_FETCHED_AHEAD = 0.25


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    anchor = workload.anchor
    if anchor is None or anchor.op not in ("conv2d", "dense"):
        return None
    geometry = Geometry(workload)
    return rank_tiles(name, geometry, profile, _tiles(geometry, profile), _tile_cost)


def rank_tiles(rule: str, geometry: Geometry, profile: TargetProfile, tiles, tile_cost) -> list[Config]:
    """Configurations of ``rule`` over the best of ``tiles`` (ht, wt, cov), with every loop order and partition."""
    tiles = sorted(tiles, key=lambda t: tile_cost(t, geometry, profile))
    ranked = []
    for rank, (ht, wt, cov) in enumerate(tiles[:12]):
        tile = tile_cost((ht, wt, cov), geometry, profile)
        for order in ORDERS:
            for split, rows in _partitions(geometry, ht, cov, profile):
                cost = _cost(geometry, profile, tile, (ht, wt, cov), order, split, rows)
                ranked.append((cost, rank, Config.make(rule, ht=ht, wt=wt, cov=cov, order=order, split=split, rows=rows)))
    return varied(sorted(ranked, key=lambda item: item[:2]), _STEP)


class Geometry:
    """Extents of a convolution or matrix product, pixels as (n, oh, ow)."""

    def __init__(self, workload: Workload):
        anchor = workload.anchor
        self.is_conv = anchor.op == "conv2d"
        weight = workload.inputs[anchor.args[1]].shape
        source = workload.inputs[anchor.args[0]].shape if anchor.args[0] < len(workload.inputs) else None
        self.blocks, self.lanes = weight[0], weight[-1]
        if anchor.op == "dense":
            self.kh = self.kw = 1
            self.ci, self.n, self.oh, self.ow = weight[1], 1, 1, workload.output.shape[0]
            self.stride, self.border, self.groups = 1, False, 1
        else:
            _, self.kh, self.kw, self.ci, _ = weight
            self.n, self.oh, self.ow = anchor["out"][0], anchor["out"][1], anchor["out"][2]
            self.stride, self.groups = anchor["stride"][0], anchor["groups"]
            self.border = any(anchor["padding"]) or anchor.get("layout", "nhwc") == "nchw" or source is None
        self.reduction = self.kh * self.kw * self.ci
        self.item_bytes = DTYPE_BYTES[workload.dtype]
        #: registers that a vector of sums takes
        self.sum_registers = 2 if workload.dtype == "float16" and self.reduction > FLOAT16_TERMS else 1


def _tiles(g: Geometry, profile: TargetProfile):
    """Register tiles that fit: accumulators plus the operands in flight stay within the register file."""
    # LLVM unrolls the reduction for an in-order core and loads far ahead: there more operands are in flight
    registers = profile.core.vector_registers - (profile.core.vector_registers // 4 if profile.core.in_order else 2)
    wide = max(1, g.lanes // profile.lanes) * g.sum_registers
    for cov in (c for c in divisors(g.blocks) if c <= 8):
        for wt in split_sizes(g.ow):
            for ht in (h for h in divisors(g.oh) if h <= 4):
                if (ht * wt * cov + cov) * wide <= registers:
                    yield ht, wt, cov


def split_sizes(extent: int) -> list[int]:
    """Tile widths: divisors, and for extents with poor ones, sizes with a remainder."""
    sizes = {d for d in divisors(extent) if d <= 32}
    if max((d for d in sizes if d <= 16), default=1) < 4:
        sizes |= {s for s in (4, 6, 8) if s < extent}
    return sorted(sizes)


def _tile_cost(tile: tuple[int, int, int], g: Geometry, profile: TargetProfile) -> float:
    """Cycles per fused multiply-add, from the three limits of an inner loop: ports, latency, loads."""
    ht, wt, cov = tile
    core = profile.core
    fmas = ht * wt * cov
    ports = fmas / core.fma_per_cycle
    latency = core.fma_latency_cycles
    loads = (ht * wt + cov if cov > 1 else fmas + cov) / core.loads_per_cycle
    return max(ports, latency, loads) / fmas * pixel_waste(g, wt) + 0.05 * cov / fmas


def pixel_waste(g: Geometry, wt: int) -> float:
    """Columns computed by tiles of width ``wt`` over those asked for."""
    return math.ceil(g.ow / wt) * wt / g.ow


def _partitions(g: Geometry, ht: int, cov: int, profile: TargetProfile):
    """How the work is cut for the threads: by rows (a chunk of rows each), by output channels, or not at all."""
    threads = profile.threads
    row_tiles = g.oh // ht
    chunks = [c for c in divisors(row_tiles) if (g.n * row_tiles // c) % threads == 0 or c == 1]
    for chunk in chunks[:2] + chunks[-1:] if len(chunks) > 3 else chunks:
        yield "rows", chunk * ht
    if g.blocks % (cov * threads) == 0 and threads > 1:
        yield "channels", g.oh
    yield "none", g.oh


def _cost(g: Geometry, profile: TargetProfile, per_fma: float, tile: tuple[int, int, int], order, split, rows) -> float:
    """Relative time of a configuration: register tile (its cost ``per_fma``), thread balance, border copies, where operands live."""
    threads, core, (ht, wt, cov) = profile.threads, profile.core, tile
    work = g.n * g.oh * g.ow * g.blocks * g.reduction / core.fma_per_cycle
    by_rows = g.n * g.oh // rows if g.is_conv else math.ceil(g.ow / wt)
    tasks = {"rows": by_rows, "channels": threads, "none": 1}[split]
    share = math.ceil(tasks / threads) / tasks
    cycles = work * per_fma * core.fma_per_cycle * share
    if g.border:
        height = (rows - 1) * g.stride + g.kh
        copies = tasks if split == "rows" else g.n * (threads if split == "channels" else 1)
        width = (g.ow - 1) * g.stride + g.kw
        cycles += copies * share * height * width * g.ci * g.groups / g.lanes * 1.5
    weights = g.item_bytes * g.reduction * cov * g.lanes
    rows_bytes = g.item_bytes * ((ht - 1) * g.stride + g.kh) * g.ow * g.stride * g.ci
    l1 = profile.memory.l1d_bytes
    if order == "hwc" and g.item_bytes * g.reduction * g.blocks * g.lanes > l1:
        cycles *= 1.10
    if order in ("hcw", "chw") and weights > l1:
        cycles *= 1.08
    if order == "chw" and rows_bytes * rows / max(ht, 1) > l1:
        cycles *= 1.03
    if split != "none":
        cycles += fetch_cycles(g, profile, split == "rows")
        cycles += profile.overhead.kernel_us * core.frequency_mhz
    return cycles


def fetch_cycles(g: Geometry, profile: TargetProfile, by_rows: bool) -> float:
    """Cycles for what a thread reads beyond its share, where threads have second caches of their own: of all constants where they
    share rows; or of the whole input, of which the others' shares lie in their caches, and come as slowly as from main memory."""
    threads, memory = profile.threads, profile.memory
    if not memory.l3_bytes:
        return 0.0
    read = _FETCHED_AHEAD * g.reduction * g.blocks * g.lanes if by_rows else g.n * g.oh * g.ow * g.stride**2 * g.ci * g.groups
    per_cycle = 1e3 * memory.dram_gb_per_s / threads / profile.core.frequency_mhz
    return g.item_bytes * read * (threads - 1) / threads / per_cycle


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    return schedule_tiles(workload, profile, config, _accumulate)


def schedule_tiles(
    workload: Workload, profile: TargetProfile, config: Config, accumulate, tail_apart: bool = False
) -> tirx.PrimFunc:
    """The loops over tiles; ``accumulate(sch, conv, tile_at, is_dense)`` schedules the reduction of one tile.

    tail_apart : a last tile of fewer columns or vectors of channels is code of its own, the others have no condition.
    """
    g = Geometry(workload)
    sch = s_tir.Schedule(compute(workload).primfunc())
    conv, out, padded = sch.get_sblock("C"), sch.get_sblock("Y"), block_or_none(sch, "P")
    ht, wt, cov = int(config["ht"]), int(config["wt"]), int(config["cov"])
    rows, split, order = int(config["rows"]), config["split"], config["order"]
    if (g.blocks % cov and not tail_apart) or g.oh % ht or rows % ht or g.oh % rows:
        raise Infeasible(f"{config.to_text()} does not divide {g.oh}x{g.ow}x{g.blocks} vectors")
    if padded is not None and not g.border:
        sch.compute_inline(padded)
        padded = None

    loops = sch.get_loops(out)
    if workload.anchor.op == "dense":
        pixel, channel = loops
        batch, chunk, row, inner_row = [], None, None, None
    else:
        batch_loop, height, pixel, channel = loops
        chunk, row, inner_row = sch.split(height, [None, rows // ht, ht])
        batch = [batch_loop]
    column, inner_column = sch.split(pixel, [None, wt])
    block, vectors, lane = sch.split(channel, [None, cov, g.lanes])
    outer = {"h": row, "w": column, "c": block}
    if split == "channels":
        if g.blocks % (cov * profile.threads):
            raise Infeasible(f"{g.blocks} vectors of channels, {cov} a tile, do not divide among {profile.threads} threads")
        task, outer["c"] = sch.split(block, [profile.threads, None])
        head = [task, *batch, chunk]
    else:
        head = [*batch, chunk]
    body = [outer[axis] for axis in order]
    inner = [inner_row, inner_column, vectors, lane]
    sch.reorder(*(loop for loop in [*head, *body, *inner] if loop is not None))
    head = [loop for loop in head if loop is not None]
    if split == "channels":
        sch.parallel(head[0])
        border_at = head[-1]
    elif split == "rows" and head:
        border_at = sch.fuse(*head)
        sch.parallel(border_at)
    elif split == "rows":  # a matrix product: rows are columns of pixels
        border_at = None
        sch.parallel(next(loop for loop in body if loop is not None))
    else:
        border_at = head[-1] if head else None
    sch.vectorize(lane)
    unroll(sch, [loop for loop in inner[:-1] if loop is not None])
    tile_at = [loop for loop in body if loop is not None][-1]
    accumulate(sch, conv, tile_at, workload.anchor.op == "dense")
    for loop, uneven in ((column, g.ow % wt), (outer["c"], g.blocks % cov)):
        if tail_apart and uneven and sch.get(loop).kind != tirx.ForKind.PARALLEL:
            sch.annotate(loop, TAIL_APART, True)
    if padded is not None:
        if border_at is None:
            sch.compute_inline(padded)
        else:
            sch.compute_at(padded, border_at, preserve_unit_loops=True)
            vectorize_innermost(sch, padded, g.lanes)
    return sch.mod["main"]


def _accumulate(sch: s_tir.Schedule, conv, tile_at, is_dense: bool) -> None:
    """Accumulators in registers at ``tile_at``: initialise, reduce, with the tile unrolled and channels vectorized."""
    sch.compute_at(conv, tile_at, preserve_unit_loops=True)
    sch.set_scope(conv, 0, "local")
    loops = sch.get_loops(conv)
    spatial, reduction = (loops[-4:-1], loops[-1:]) if is_dense else (loops[-8:-3], loops[-3:])
    lane = spatial[-1]
    sch.reorder(*reduction, *spatial)
    sch.vectorize(lane)
    unroll(sch, spatial[:-1])
    sch.decompose_reduction(conv, reduction[0])
