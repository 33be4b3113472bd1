"""Matrix product with a packed weight, and convolution as one.

A tile of pixels x vectors of output channels is accumulated in registers over the whole reduction (kernel rows, columns,
input channels). The weights of a column of tiles are a panel: pixels pass by it while it lies in a near cache, and the next
panel is fetched meanwhile, for in a network weights come from far. Pixels and vectors are cut into tiles of at most two
sizes each, so that no tile is mostly empty and none needs a predicate. Where half of the last vector is padding, and the core
starts two halves in the time of a whole, that half is left out.

A convolution without border reads its input where it lies. Otherwise the input is copied first, with its border.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Callable, Hashable, Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwprune.cost.analytic import VECTOR_OPS
from hwprune.errors import Infeasible
from hwprune.kernels.common.conv_direct import Geometry, fetch_cycles
from hwprune.kernels.compute import expression
from hwprune.kernels.functions import ELEMENTWISE
from hwprune.kernels.loops import (
    Ahead, Registers, Runs, accumulate, constant, fetch_level, function, registers, scratch, vector, width_of,
)  # fmt: skip
from hwprune.kernels.schedule import Config, varied
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "gemm"

#: An epilogue of more instructions a vector runs in a loop of its own: unrolled with the tile it would not fit the code cache.
_LIGHT = 8
#: Cost by which each further register tile goes back in the order among those that threads share out in the other way.
_STEP = 0.01


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    anchor = workload.anchor
    if anchor is None or anchor.op not in ("dense", "conv2d") or workload.dtype != "float32":
        return None
    if anchor.op == "dense" and workload.output.shape[0] < 2:
        return None
    if anchor.op == "conv2d" and (profile.core.lane_broadcast or anchor["groups"] != 1 or anchor.get("layout", "nhwc") != "nhwc"):
        return None  # by lane, convolutions have a rule of their own
    g = Pixels(workload)
    if g.lanes != profile.lanes:
        return None
    offered: list[tuple[float, Hashable, Config]] = []
    for (ht, wt, cov), split in product(tiles(g, profile), ("columns", "rows")):
        params = {"ht": ht, "wt": wt, "cov": cov, "split": split}
        offered.append((_cost(g, profile, **params), split, Config.make(name, **params)))
        if halves(g, cov, split):
            offered.append((_cost(g, profile, **params, half=True), split, Config.make(name, **params, half=1)))
    return varied(offered, _STEP)


def halves(g: Pixels, cov: int, split: str) -> bool:
    """Whether half of the last vector can be left out and it is worth it: halves alone in a panel, each with a pixel of its own to
    load, were measured to be as slow as whole ones. Threads then share rows: panels are not all alike."""
    return g.half and split == "rows" and Runs(g.blocks, cov).sizes[-1][1] > 1


def last_apart(blocks: int, panels: Runs) -> tuple[Runs | None, int]:
    """Where the last panel is one by itself: those before it, if there are any, and the vectors of the last."""
    last = panels.sizes[-1][1]
    return (Runs(blocks - last, panels.largest) if blocks > last else None), last


class Pixels(Geometry):
    """Geometry of a product: pixels as (n, oh, ow), all of them in one row where nothing keeps rows apart.

    by_rows : rows stay apart.
    """

    def __init__(self, workload: Workload, by_rows: bool = False):
        super().__init__(workload)
        anchor = workload.anchor
        self.strides = anchor["stride"] if anchor.op == "conv2d" else (1, 1)
        self.dilations = anchor["dilation"] if anchor.op == "conv2d" else (1, 1)
        self.half = workload.half_padding
        self.pixels = self.n * self.oh * self.ow
        plain = (self.kh, self.kw, *self.strides, self.border) == (1, 1, 1, 1, False)
        self.flat = plain and not by_rows and self._flattens(workload)
        if self.flat:
            self.n, self.oh, self.ow = 1, 1, self.pixels

    @staticmethod
    def _flattens(workload: Workload) -> bool:
        """Whether all operators see pixels one by one, and all pixels alike."""
        if any(c.op not in ELEMENTWISE for c in workload.ops if c is not workload.anchor):
            return False
        whole = tuple(workload.output.shape)
        others = [t.shape for i, t in enumerate(workload.inputs) if i not in workload.anchor.args]
        return all(tuple(s) == whole or all(d == 1 for d in s[:-1]) for s in others)

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns that the pixels read."""
        extents = zip((self.oh, self.ow), (self.kh, self.kw), self.strides, self.dilations)
        return tuple((out - 1) * stride + (kernel - 1) * dilation + 1 for out, kernel, stride, dilation in extents)


def tiles(g: Pixels, profile: TargetProfile) -> list[tuple[int, int, int]]:
    """Register tiles (rows, columns, vectors): accumulators, a vector of weights for each column and a broadcast pixel fit."""
    spare = profile.core.vector_registers - (4 if profile.core.in_order else 1)
    return even_tiles(g, 6, lambda cov: min((spare - cov) // cov, 28 if cov == 1 else 14))


def even_tiles(g: Pixels, vectors: int, most_pixels: Callable[[int], int]) -> list[tuple[int, int, int]]:
    """Tiles (rows, columns, vectors) of at most ``vectors`` vectors and, for that many, ``most_pixels(vectors)`` pixels, each as large as
    the largest of an even cut."""
    found = set()
    for cov in range(1, min(g.blocks, vectors) + 1):
        most = most_pixels(cov)
        for wt in range(1, min(most, g.ow) + 1):
            wt = Runs(g.ow, wt).largest
            ht = min(most // wt, g.oh)
            found |= {(Runs(g.oh, h).largest, wt, Runs(g.blocks, cov).largest) for h in range(max(1, ht - 1), ht + 1)}
    return sorted(found)


def tile_cycles(g: Pixels, profile: TargetProfile, ht: int, wt: int, cov: int, half: bool = False) -> float:
    """Cycles of all register tiles, with the operands that stream. half : the last panel leaves half a vector out."""
    panel = 4 * g.reduction * cov * g.lanes
    fetch = 0.1 if panel <= profile.memory.l1d_bytes // 2 else 0.25
    cycles = 0.0
    for (tall, h), (wide, w), (many, v) in product(Runs(g.oh, ht).sizes, Runs(g.ow, wt).sizes, Runs(g.blocks, cov).sizes):
        step = _step(h * w, v, profile) + fetch * v
        cycles += g.n * tall * wide * many * (step * g.reduction + 3 * h * w * v + 20)
    if half:
        v = Runs(g.blocks, cov).sizes[-1][1]
        for (tall, h), (wide, w) in product(Runs(g.oh, ht).sizes, Runs(g.ow, wt).sizes):
            cycles -= g.n * tall * wide * (_step(h * w, v, profile) - _step(h * w, v - 0.5, profile)) * g.reduction
    return cycles


def _cost(g: Pixels, profile: TargetProfile, ht: int, wt: int, cov: int, split: str, half: bool = False) -> float:
    """Cycles: register tiles of all sizes, threads in step, copies of the border."""
    return shared_out(g, profile, tile_cycles(g, profile, ht, wt, cov, half), (ht, wt, cov), split)


def shared_out(g: Pixels, profile: TargetProfile, cycles: float, tile: tuple[int, int, int], split: str) -> float:
    """``cycles`` of all tiles as the threads share them out, what each has to fetch for its share, and the copy of the border."""
    threads, (ht, wt, cov) = profile.threads, tile
    units = Runs(g.blocks, cov).count if split == "columns" else _row_units(g, ht, wt)
    share = -(-units // threads) / units
    if split == "rows" and not profile.memory.l3_bytes:  # all threads fetch all weights, from the cache that they have in common
        share += 0.03
    cycles = cycles * share + fetch_cycles(g, profile, split == "rows")
    if g.border:
        height, width = g.padded
        cycles += g.n * height * width * g.ci / g.lanes * 1.5 / threads + profile.overhead.kernel_us * profile.core.frequency_mhz
    return cycles


def _step(rows: int, vectors: float, profile: TargetProfile) -> float:
    core = profile.core
    return max(rows * vectors / core.fma_per_cycle, core.fma_latency_cycles, (rows + vectors) / core.loads_per_cycle)


def _row_units(g: Pixels, ht: int, wt: int) -> int:
    """Tiles, or rows of them, that the threads share."""
    if g.flat or (g.n == 1 and g.oh == 1):
        return Runs(g.ow, wt).count
    return g.n if g.n > 1 else Runs(g.oh, ht).count


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    return function(workload, Builder(workload, profile, config).statements)


@dataclass(frozen=True)
class Place:
    """Where a tile is. ``number`` counts the tiles of a panel that a thread has."""

    batch: tirx.Expr | int
    row: tirx.Expr | int
    column: tirx.Expr | int
    ht: int
    wt: int
    number: tirx.Expr | int

    @cached_property
    def pixels(self) -> list[tuple[int, int]]:
        return [(i, j) for i in range(self.ht) for j in range(self.wt)]


class Builder:
    def __init__(self, workload: Workload, profile: TargetProfile, config: Config, g: Pixels | None = None):
        self.workload, self.profile, self.g = workload, profile, g or Pixels(workload)
        self.split = config["split"]
        self.rows, self.columns = Runs(self.g.oh, int(config["ht"])), Runs(self.g.ow, int(config["wt"]))
        self.panels = Runs(self.g.blocks, int(config["cov"]))
        self.half = bool(config.get("half"))
        if self.half and not halves(self.g, int(config["cov"]), self.split):
            raise Infeasible(f"{config.to_text()}: the last vector of {self.g.blocks} is whole, or alone in its panel, or threads share panels")
        anchor = workload.anchor
        light = sum(VECTOR_OPS.get(c.op, _LIGHT) for c in workload.ops if c is not anchor) <= _LIGHT
        self.largest = int(config["ht"]) * int(config["wt"]) * int(config["cov"]) * self.g.lanes
        # tiles that pass over a panel in a thread, and which panel is its next one
        by_rows, tiles = self.split == "rows", self.g.n * self.rows.count * self.columns.count
        self.passes, self.turns = (max(1, tiles // profile.threads), 1) if by_rows else (tiles, profile.threads)
        self.light, self.level = light, fetch_level(4 * self.g.reduction * int(config["cov"]) * self.g.lanes, profile)

    def statements(self, inputs, y) -> None:
        g, threads = self.g, self.profile.threads
        self.take(inputs, y)
        if g.border:
            self._copy()
        with T.parallel(threads) as thread:
            self.begin()
            part = (thread, threads)

            def panel(block, cov, **half):
                self._tiles(lambda place: self.tile(place, block, cov, **half), part if self.split == "rows" else None)

            if self.half:
                self.halved(panel)
            elif self.split == "rows":
                self.panels.each(panel)
            else:
                self.panels.turns(panel, part)

    def take(self, inputs, y) -> None:
        """The buffers that the kernel reads and writes."""
        self.y, self.weight = y, inputs[self.workload.anchor.args[1]]
        self.cell = None
        self.value = expression(self.workload, inputs, self._anchor)

    def begin(self) -> None:
        """What a thread needs for itself."""
        self.result = None if self.light else scratch((self.largest,), self.workload.dtype)

    def halved(self, panel) -> None:
        """All panels, one after the other; of the last vector only the first half."""
        before, last = last_apart(self.g.blocks, self.panels)
        if before:
            before.each(panel)
        panel(self.g.blocks - last, last, half=True)

    def _anchor(self, call, values):
        self.source, self.extent = values[call.args[0]]
        return (lambda *index: self.cell), tuple(self.workload.output.shape)

    def _copy(self) -> None:
        """The input with its border into memory of its own."""
        g = self.g
        top, left, _, _ = self.workload.anchor["padding"]
        _, h, w, c = self.extent
        height, width = g.padded
        copied = T.alloc_buffer((g.n, height, width, c), self.workload.dtype)
        source = self.source
        with T.parallel(0, g.n * height) as line:
            batch, row = line // height, line % height - top
            with T.serial(0, width) as x, T.serial(0, c // g.lanes) as block:
                inside = tirx.all(row >= 0, row < h, x >= left, x < w + left)

                def pixel(lane):
                    value = source(batch, row, x - left, block * g.lanes + lane)
                    return tirx.if_then_else(inside, value, constant(0.0, self.workload.dtype))

                vector(copied, (batch, line % height, x, block * g.lanes), pixel, g.lanes)
        self.source = lambda *index: copied[index]

    def _tiles(self, body, part) -> None:
        """``body`` of every tile, or of those of one thread."""
        g = self.g
        by_batch = part is not None and g.n > 1 and not g.flat
        low, high = (0, g.n) if not by_batch else (tirx.floordiv((part[0] + k) * g.n, part[1]) for k in (0, 1))
        part = None if by_batch else part
        in_row = part if g.oh == 1 else None
        with T.serial(0, high - low) as turn:
            batch = low + turn

            def line(row, ht, above):
                def tile(column, wt, before):
                    number = (turn * self.rows.count + above) * self.columns.count + before
                    body(Place(batch, row, column, ht, wt, number))

                self.columns.numbered(tile, in_row)

            self.rows.numbered(line, part if in_row is None else None)

    def tile(self, place: Place, block, cov: int, half: bool = False) -> None:
        g, weight, pixels = self.g, self.weight, place.pixels
        widths = [g.lanes] * (cov - 1) + [g.lanes // 2 if half else g.lanes]
        acc = registers(len(pixels), cov, g.lanes, last=widths[-1])
        ahead = Ahead(weight, cov * g.lanes, g.reduction, self.passes, self.profile.memory.line_bytes)
        following = (block + cov * self.turns) * g.reduction * g.lanes
        with T.serial(0, g.kh) as dy, T.serial(0, g.kw) as dx, T.serial(0, g.ci) as k:
            ahead.fetch(following, place.number, (dy * g.kw + dx) * g.ci + k, self.level)
            read = [weight[self._tap(block + j, dy, dx, k, tirx.Ramp(0, 1, width))] for j, width in enumerate(widths)]
            accumulate(acc, [self._pixel(place, i, j, dy, dx, k) for i, j in pixels], read)
        self._write(place, block, cov, acc)

    def _tap(self, block, dy, dx, k, lanes):
        return (block, dy, dx, k, lanes) if self.g.is_conv else (block, k, lanes)

    def _pixel(self, place: Place, i: int, j: int, dy, dx, k):
        g = self.g
        row = (place.row + i) * g.strides[0] + dy * g.dilations[0]
        column = (place.column + j) * g.strides[1] + dx * g.dilations[1]
        if not g.is_conv:
            return self.source(column, k)
        return self.source(place.batch, row, column, k)

    def _write(self, place: Place, block, cov: int, acc: Registers) -> None:
        pixels, lanes = place.pixels, self.g.lanes
        if self.light:
            for (n, b), register in acc.items():
                self._store(place, *pixels[n], (block + b) * lanes, lambda lane, register=register: register[lane], width_of(register))
        else:
            self._write_by_loop(place, block, cov, acc)
        missing, zero = lanes - width_of(acc[0, cov - 1]), constant(0.0, self.workload.dtype)
        for i, j in pixels if missing else ():  # padding, as if it had been multiplied by weights of zero
            self._store(place, i, j, (block + cov) * lanes - missing, lambda lane: zero, missing)

    def _write_by_loop(self, place: Place, block, cov: int, acc: Registers) -> None:
        """Through memory, so that the epilogue stands in the code once."""
        lanes, last = self.g.lanes, width_of(acc[0, cov - 1])
        for (n, b), register in acc.items():
            width = width_of(register)
            T.buffer_store(self.result, register[tirx.Ramp(0, 1, width)], [tirx.Ramp((n * cov + b) * lanes, 1, width)])
        whole = cov if last == lanes else cov - 1
        for first, count, width in ((0, whole, lanes), (whole, cov - whole, last)):
            if not count:
                continue
            with T.serial(0, len(place.pixels)) as n, T.serial(0, count) as vectors:
                b = first + vectors
                i, j = (0, n) if place.ht == 1 else (n // place.wt, n % place.wt)
                cell = lambda lane, n=n, b=b: self.result[(n * cov + b) * lanes + lane]
                self._store(place, i, j, (block + b) * lanes, cell, width)

    def _store(self, place: Place, i, j, first, cell, width: int) -> None:
        """``width`` channels from ``first`` on of a pixel of the tile; ``cell(lane)`` is what the product gave."""
        pixel = (place.batch, place.row + i, place.column + j) if self.g.is_conv else (place.column + j,)

        def value(lane):
            self.cell = cell(lane)
            return self.value(*pixel, first + lane)

        vector(self.y, self._place_of(pixel, first), value, width)

    def _place_of(self, pixel, channel) -> tuple:
        """Where the result has a pixel's channels from ``channel`` on."""
        return (*pixel, channel)
