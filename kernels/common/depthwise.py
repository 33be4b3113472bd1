"""Depthwise convolution and pooling: each channel by itself.

A tile of pixels of a row x vectors of channels is accumulated in registers: products or input values are added up, or the
largest value is kept. Each input vector of a row is loaded once for all results of the tile that it counts in, and nothing is
copied: rows outside of the input are left out of the loop over the kernel's rows, and the columns at the left and right border
have code of their own, which leaves out what lies outside: by themselves, or, where a row has few tiles, together with their
neighbours (``edges``). Input that no near cache holds may be fetched a row ahead.
"""

from __future__ import annotations

from functools import cached_property
from typing import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwprune.errors import Infeasible
from hwprune.kernels.common.taps import Columns, rows_inside
from hwprune.kernels.compute import expression, pooled
from hwprune.kernels.functions import FLOAT16_TERMS, LOWEST_FLOAT16, as_type
from hwprune.kernels.loops import Runs, function, prefetch, registers, vector
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import DTYPE_BYTES, Workload

name = "depthwise"

#: Order of the loops over channels and rows: with channels outermost a column of rows stays in the nearest cache, with rows
#: outermost memory is read in order.
ORDERS = ("cy", "yc")


#: Weights that are in registers at once beside the pixels, and room for what the compiler moves about.
_WEIGHTS_IN_FLIGHT = 4


#: Tiles of a row that may have code of their own, each.
_APART = 3


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    anchor = workload.anchor
    if anchor is None or anchor.op not in ("depthwise", "pool2d") or anchor.get("layout", "nhwc") != "nhwc":
        return None
    if anchor.args[0] >= len(workload.inputs):  # operators before it would be computed once for each tap
        return None
    g = Geometry(workload)
    if not g.fits or g.channels % profile.lanes or len(workload.output.shape) != 4:
        return None
    if g.weighted and g.sum_dtype == "float16" and g.kh * g.kw > FLOAT16_TERMS:
        return None  # the sum is one of float32
    offered, far = [], _from_far(g, profile)
    for wt, cov in tiles(g, profile):
        for split in ("rows", "channels"):
            for order in ORDERS:
                cost, params = _cost(g, profile, wt, cov, split, order), {"wt": wt, "cov": cov, "split": split, "order": order}
                offered.append((cost, Config.make(name, **params)))
                # what these save is not in the cost: measurements tell
                if far:
                    offered.append((1.01 * cost, Config.make(name, **params, ahead=1)))
                if g.has_edges and Runs(g.ow, wt).count <= _APART:
                    offered.append((0.97 * cost, Config.make(name, **params, edges=1)))
    offered.sort(key=lambda item: item[0])
    return [config for _, config in offered]


class Geometry:
    """Extents of a depthwise convolution or of a pool."""

    def __init__(self, workload: Workload):
        anchor = workload.anchor
        assert anchor is not None
        self.anchor = anchor
        self.weighted = anchor.op == "depthwise"
        self.n, self.oh, self.ow, self.channels = workload.output.shape
        _, self.h, self.w, self.source_channels = workload.inputs[anchor.args[0]].shape
        self.kh, self.kw = workload.inputs[anchor.args[1]].shape[:2] if self.weighted else anchor["kernel"]
        self.dtype = workload.dtype
        self.stride, self.dilation = anchor["stride"], anchor["dilation"]
        self.top, self.left = anchor["padding"][:2]

    @property
    def fits(self) -> bool:
        """Whether each result channel is made of the input channel of its number."""
        return self.source_channels == self.channels and (not self.weighted or self.anchor["multiplier"] == 1)

    @property
    def sum_dtype(self) -> str:
        """Type of the accumulators: means are taken in float32."""
        return self.dtype if self.weighted or self.anchor["kind"] == "max" else "float32"

    @property
    def start(self) -> float:
        """What a result is if nothing inside of the input counts in it."""
        if self.weighted:
            return 0.0
        return max(self.anchor["border"], LOWEST_FLOAT16) if self.sum_dtype == "float16" else self.anchor["border"]

    @property
    def has_edges(self) -> bool:
        """Whether some columns at the border lack taps."""
        return self.columns.inner() != (0, self.ow)

    @cached_property
    def columns(self) -> Columns:
        return Columns(self.ow, self.kw, self.stride[1], self.dilation[1], self.left, self.w)

    @property
    def reach(self) -> int:
        return self.columns.reach


def tiles(g: Geometry, profile: TargetProfile) -> list[tuple[int, int]]:
    """(pixels, vectors) of a register tile: accumulators, and the input and the weights of a row of the kernel."""
    registers = profile.core.vector_registers
    return sorted({
        (Runs(g.ow, wt).largest, cov)
        for wt in range(1, min(g.ow, 14) + 1) for cov in (1, 2, 3)
        if g.channels // profile.lanes % cov == 0 and wt * cov + _operands(g, profile, wt, cov) <= registers
    })  # fmt: skip


def _operands(g: Geometry, profile: TargetProfile, wt: int, cov: int) -> int:
    """Registers of a tile beside its accumulators."""
    if not profile.core.lane_broadcast:
        return 2 * cov + 2
    # cores that multiply by lane take no operand from memory: all pixels that a row of the kernel reaches are in registers
    return (wt - 1) * g.stride[1] + g.reach + 1 + _WEIGHTS_IN_FLIGHT


def _from_far(g: Geometry, profile: TargetProfile) -> bool:
    """Whether a thread's part of the input is more than its near cache keeps."""
    return DTYPE_BYTES[g.dtype] * g.n * g.h * g.w * g.channels > profile.threads * profile.memory.l2_bytes / 2


def tile_cycles(g: Geometry, profile: TargetProfile, wt: int, cov: int) -> float:
    """Cycles of all tiles: multiply-adds, loads, chains of accumulators."""
    core = profile.core
    loads = ((wt - 1) * g.stride[1] + g.reach + 1 + (g.kw if g.weighted else 0)) * cov
    row = max(wt * g.kw * cov / core.fma_per_cycle, g.kw * core.fma_latency_cycles, loads / core.loads_per_cycle) + 2
    return g.n * g.oh * (g.channels // profile.lanes // cov) * Runs(g.ow, wt).count * (row * g.kh + 4 * wt * cov)


def _cost(g: Geometry, profile: TargetProfile, wt: int, cov: int, split: str, order: str) -> float:
    """Cycles of all tiles; and what threads and caches cost."""
    memory = profile.memory
    oh, ow, channels, kh, stride = g.oh, g.ow, g.channels, g.kh, g.stride[1]
    vectors, cycles = channels // profile.lanes // cov, tile_cycles(g, profile, wt, cov)
    units = oh if split == "rows" else vectors
    cycles *= -(-units // profile.threads) / units
    item = DTYPE_BYTES[g.dtype]
    image = item * oh * ow * stride**2 * profile.lanes * cov
    if order == "cy" and image * vectors > memory.l2_bytes / 2:
        cycles *= 1.1  # a vector here and there of memory that is far
    if order == "yc" and item * kh * ow * stride * channels > memory.l1d_bytes:
        cycles *= 1.1
    return cycles


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    return function(workload, Builder(workload, profile, config).statements)


class Builder:
    def __init__(self, workload: Workload, profile: TargetProfile, config: Config):
        self.workload, self.config, self.threads, self.lanes = workload, config, profile.threads, profile.lanes
        self.g = g = Geometry(workload)
        self.cov = int(config["cov"])
        if g.channels % (self.cov * self.lanes):
            raise Infeasible(f"{config.to_text()}: {g.channels} channels do not divide into {self.cov} vectors of {self.lanes}")
        self.blocks = g.channels // self.lanes // self.cov
        self.ahead, self.edges = bool(config.get("ahead")), bool(config.get("edges"))
        if self.edges and Runs(g.ow, int(config["wt"])).count > _APART:
            raise Infeasible(f"{config.to_text()}: rows of {g.ow} results have more than {_APART} tiles")

    def statements(self, inputs, y) -> None:
        self.take(inputs, y)
        by_rows = self.config["split"] == "rows"
        with T.parallel(self.threads) as thread:
            part = (thread, self.threads)

            def rows(body):
                Runs(self.g.oh, 1).each(lambda row, _: body(row), part if by_rows else None)

            def channels(body):
                Runs(self.blocks, 1).each(lambda block, _: body(block * (self.cov * self.lanes)), None if by_rows else part)

            with T.serial(0, self.g.n) as batch:
                if self.config["order"] == "cy":
                    channels(lambda channel: rows(lambda row: self.row(batch, row, channel)))
                else:
                    rows(lambda row: channels(lambda channel: self.row(batch, row, channel)))

    def take(self, inputs, y) -> None:
        """The buffers that the kernel reads and writes."""
        anchor = self.workload.anchor
        self.y, self.source = y, inputs[anchor.args[0]]
        self.weight = inputs[anchor.args[1]] if self.g.weighted else None
        self.cell = None
        self.value = expression(self.workload, inputs, self._anchor)

    def _anchor(self, call, values):
        if self.g.weighted:
            return (lambda *index: self.cell), self.y.shape
        finished = pooled(call, (self.g.h, self.g.w))
        return (lambda b, y, x, c: as_type(finished(self.cell, y, x), self.g.dtype)), self.y.shape

    def _combined(self, total, pixel, weight):
        if self.g.weighted:
            return total + pixel * weight
        return tirx.max(total, pixel) if self.g.anchor["kind"] == "max" else total + pixel

    def row(self, batch, row, channel) -> None:
        """One row of results, of the vectors from ``channel`` on."""
        if self.edges:
            column = 0
            for count, size in Runs(self.g.ow, int(self.config["wt"])).sizes:
                for _ in range(count):
                    self._tile(batch, row, column, channel, size)
                    column += size
            return
        first, last = self.g.columns.inner()
        if first:
            self._tile(batch, row, 0, channel, first)
        if last > first:
            Runs(last - first, int(self.config["wt"])).each(
                lambda column, size: self._tile(batch, row, first + column, channel, size, inside=True)
            )
        if last < self.g.ow:
            self._tile(batch, row, last, channel, self.g.ow - last)

    def _tile(self, batch, row, column, channel, size: int, inside: bool = False) -> None:
        g, taps = self.g, list(self.g.columns.taps_of(column, size, inside))
        acc = registers(size, self.cov, self.lanes, g.start, g.sum_dtype)
        lanes = tirx.Ramp(0, 1, self.lanes)
        (sy, sx), (ey, _) = g.stride, g.dilation
        start = row * sy - g.top
        first_tap, count = rows_inside(start, g.kh, ey, g.h)
        if self.ahead:
            self._fetch_next_row(batch, start + (g.kh - 1) * ey + 1, column * sx + g.reach + 1 - sx - g.left, channel, size)
        with T.serial(0, count) as tap:
            dy = first_tap + tap
            for b in range(self.cov):
                at = tirx.Ramp(channel + b * self.lanes, 1, self.lanes)
                pixels, weights = {}, {}
                for dx, j, offset in taps:
                    if offset not in pixels:
                        pixel = self._pixel(batch, start + dy * ey, column * sx + offset - g.left, at)
                        pixels[offset] = T.Bind(as_type(pixel, f"{g.sum_dtype}x{self.lanes}"))
                    if g.weighted and dx not in weights:
                        weights[dx] = T.Bind(self.weight[dy, dx, at])
                    T.buffer_store(acc[j, b], self._combined(acc[j, b][lanes], pixels[offset], weights.get(dx)), [lanes])
        for (j, b), register in acc.items():
            pixel, first = (batch, row, column + j), channel + b * self.lanes

            def value(lane, register=register, pixel=pixel, first=first):
                self.cell = register[lane]
                return self.value(*pixel, first + lane)

            vector(self.y, (*pixel, first), value, self.lanes)

    def _pixel(self, batch, row, column, channels) -> tirx.Expr:
        return self.source[batch, row, column, channels]

    def _fetch_next_row(self, batch, row, column, channel, size: int) -> None:
        """Of the input, what the tile below reads and this one does not: rows from ``row`` on, the tile's own columns."""
        sy, sx = self.g.stride
        for y in range(sy):
            for x in range(size * sx):
                for b in range(self.cov):
                    prefetch(self.source, (batch, row + y, column + x, channel + b * self.lanes), level=2)
