"""Depthwise convolution: each channel by itself.

A tile of pixels of a row x vectors of channels is accumulated in registers. Each input vector of a row is loaded once for
all results of the tile that it counts in, and nothing is copied: rows outside of the input are left out of the loop over the
kernel's rows, and the columns at the left and right border have code of their own, which leaves out what lies outside.
"""

from __future__ import annotations

import math
from typing import Iterator, Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwprune.errors import Infeasible
from hwprune.kernels.compute import FLOAT16_TERMS, expression
from hwprune.kernels.loops import Runs, function, registers, vector
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import DTYPE_BYTES, Workload

name = "depthwise"

#: Order of the loops over channels and rows: with channels outermost a column of rows stays in the nearest cache, with rows
#: outermost memory is read in order.
ORDERS = ("cy", "yc")


#: Weights that are in registers at once beside the pixels, and room for what the compiler moves about.
_WEIGHTS_IN_FLIGHT = 4


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    anchor = workload.anchor
    if anchor is None or anchor.op != "depthwise" or anchor["multiplier"] != 1 or anchor.get("layout", "nhwc") != "nhwc":
        return None
    if anchor.args[0] >= len(workload.inputs):  # operators before it would be computed once for each tap
        return None
    channels, source = workload.inputs[anchor.args[1]].shape[2], workload.inputs[anchor.args[0]].shape
    if source[3] != channels or channels % profile.lanes or len(workload.output.shape) != 4:
        return None
    if workload.dtype == "float16" and math.prod(workload.inputs[anchor.args[1]].shape[:2]) > FLOAT16_TERMS:
        return None  # the sum is one of float32
    offered = []
    for wt, cov in _tiles(workload, profile):
        for split in ("rows", "channels"):
            for order in ORDERS:
                config = Config.make(name, wt=wt, cov=cov, split=split, order=order)
                offered.append((_cost(workload, profile, wt, cov, split, order), config))
    offered.sort(key=lambda item: item[0])
    return [config for _, config in offered]


def _tiles(workload: Workload, profile: TargetProfile) -> list[tuple[int, int]]:
    """(pixels, vectors) of a register tile: accumulators, and the input and the weights of a row of the kernel."""
    _, _, ow, channels = workload.output.shape
    registers = profile.core.vector_registers
    return sorted({
        (Runs(ow, wt).largest, cov)
        for wt in range(1, min(ow, 14) + 1) for cov in (1, 2, 3)
        if channels // profile.lanes % cov == 0 and wt * cov + _operands(workload, profile, wt, cov) <= registers
    })  # fmt: skip


def _operands(workload: Workload, profile: TargetProfile, wt: int, cov: int) -> int:
    """Registers of a tile beside its accumulators."""
    anchor = workload.anchor
    if not profile.core.lane_broadcast:
        return 2 * cov + 2
    # cores that multiply by lane take no operand from memory: all pixels that a row of the kernel reaches are in registers
    _, kw, _ = workload.inputs[anchor.args[1]].shape
    return (wt - 1) * anchor["stride"][1] + (kw - 1) * anchor["dilation"][1] + 1 + _WEIGHTS_IN_FLIGHT


def _cost(workload: Workload, profile: TargetProfile, wt: int, cov: int, split: str, order: str) -> float:
    """Cycles: multiply-adds, loads, chains of accumulators; and what threads and caches cost."""
    core, memory, anchor = profile.core, profile.memory, workload.anchor
    n, oh, ow, channels = workload.output.shape
    kh, kw, _ = workload.inputs[anchor.args[1]].shape
    stride, dilation = anchor["stride"][1], anchor["dilation"][1]
    vectors, tiles = channels // profile.lanes // cov, Runs(ow, wt)
    loads = ((wt - 1) * stride + (kw - 1) * dilation + 1 + kw) * cov
    row = max(wt * kw * cov / core.fma_per_cycle, kw * core.fma_latency_cycles, loads / 2) + 2
    cycles = n * oh * vectors * tiles.count * (row * kh + 4 * wt * cov)
    units = oh if split == "rows" else vectors
    cycles *= -(-units // profile.threads) / units
    item = DTYPE_BYTES[workload.dtype]
    image = item * oh * ow * stride**2 * profile.lanes * cov
    if order == "cy" and image * vectors > memory.l2_bytes / 2:
        cycles *= 1.1  # a vector here and there of memory that is far
    if order == "yc" and item * kh * ow * stride * channels > memory.l1d_bytes:
        cycles *= 1.1
    return cycles


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    return function(workload, _Builder(workload, profile, config).statements)


class _Builder:
    def __init__(self, workload: Workload, profile: TargetProfile, config: Config):
        self.workload, self.config, self.threads, self.lanes = workload, config, profile.threads, profile.lanes
        anchor = workload.anchor
        self.n, self.oh, self.ow, channels = workload.output.shape
        self.kh, self.kw, _ = workload.inputs[anchor.args[1]].shape
        _, self.h, self.w, _ = workload.inputs[anchor.args[0]].shape
        self.stride, self.dilation, self.top, self.left = anchor["stride"], anchor["dilation"], *anchor["padding"][:2]
        self.cov = int(config["cov"])
        if channels % (self.cov * self.lanes):
            raise Infeasible(f"{config.to_text()}: {channels} channels do not divide into {self.cov} vectors of {self.lanes}")
        self.blocks = channels // self.lanes // self.cov

    def statements(self, inputs, y) -> None:
        anchor = self.workload.anchor
        self.y, self.source, self.weight = y, inputs[anchor.args[0]], inputs[anchor.args[1]]
        self.cell = None
        self.value = expression(self.workload, inputs, lambda call, values: ((lambda *index: self.cell), self.y.shape))
        by_rows = self.config["split"] == "rows"
        with T.parallel(self.threads) as thread:
            part = (thread, self.threads)

            def rows(body):
                Runs(self.oh, 1).each(lambda row, _: body(row), part if by_rows else None)

            def channels(body):
                Runs(self.blocks, 1).each(lambda block, _: body(block * (self.cov * self.lanes)), None if by_rows else part)

            with T.serial(0, self.n) as batch:
                if self.config["order"] == "cy":
                    channels(lambda channel: rows(lambda row: self._row(batch, row, channel)))
                else:
                    rows(lambda row: channels(lambda channel: self._row(batch, row, channel)))

    def _row(self, batch, row, channel) -> None:
        first, last = self._inner_columns()
        if first:
            self._tile(batch, row, 0, channel, first)
        if last > first:
            Runs(last - first, int(self.config["wt"])).each(
                lambda column, size: self._tile(batch, row, first + column, channel, size, inside=True)
            )
        if last < self.ow:
            self._tile(batch, row, last, channel, self.ow - last)

    def _inner_columns(self) -> tuple[int, int]:
        """First and last + 1 of the columns all of whose taps are inside."""
        reach = (self.kw - 1) * self.dilation[1] - self.left
        inside = [x for x in range(self.ow) if x * self.stride[1] >= self.left and x * self.stride[1] + reach < self.w]
        return (inside[0], inside[-1] + 1) if inside else (self.ow, self.ow)

    def _taps(self, column, size: int, inside: bool) -> Iterator[tuple[int, int, int]]:
        """(tap of the kernel's row, pixel of the tile, column of the input from the tile's first on) of what counts."""
        for dx in range(self.kw):
            for j in range(size):
                at = j * self.stride[1] + dx * self.dilation[1]
                if inside or 0 <= column * self.stride[1] + at - self.left < self.w:
                    yield dx, j, at

    def _tile(self, batch, row, column, channel, size: int, inside: bool = False) -> None:
        taps = list(self._taps(column, size, inside))
        acc = registers(size, self.cov, self.lanes, self.workload.dtype)
        lanes = tirx.Ramp(0, 1, self.lanes)
        (sy, sx), (ey, _) = self.stride, self.dilation
        start = row * sy - self.top
        first_tap = tirx.min(tirx.floordiv(tirx.max(-start, 0) + ey - 1, ey), self.kh)
        last_tap = tirx.min(self.kh, tirx.floordiv(self.h - start + ey - 1, ey))
        with T.serial(0, tirx.max(last_tap - first_tap, 0)) as tap:
            dy = first_tap + tap
            for b in range(self.cov):
                at = tirx.Ramp(channel + b * self.lanes, 1, self.lanes)
                pixels, weights = {}, {}
                for dx, j, offset in taps:
                    if offset not in pixels:
                        place = (batch, start + dy * ey, column * sx + offset - self.left, at)
                        pixels[offset] = T.Bind(self.source[place])
                    if dx not in weights:
                        weights[dx] = T.Bind(self.weight[dy, dx, at])
                    T.buffer_store(acc[j, b], acc[j, b][lanes] + pixels[offset] * weights[dx], [lanes])
        for (j, b), register in acc.items():
            pixel, first = (batch, row, column + j), channel + b * self.lanes

            def value(lane, register=register, pixel=pixel, first=first):
                self.cell = register[lane]
                return self.value(*pixel, first + lane)

            vector(self.y, (*pixel, first), value, self.lanes)
