"""A convolution and the depthwise convolution or pool that reads it, in one kernel: the first half of an inverted bottleneck, or
what a network begins with.

What lies between the two is the largest activation of such a network, and nothing else reads it. Here a few of its rows exist at a
time, of as many channels as a panel of the convolution has, in a ring that stays in a near cache: a row of results needs the rows
that its window reaches, and what the row before has made is still there. The products and the windows are those of ``gemm`` and
``depthwise``; where the first convolution has a window, too, its taps outside of the image are left out, so that nothing is
copied. Threads share channels, or rows of results; then each makes the few rows in between that two of them need.
"""

from __future__ import annotations

from itertools import product
from typing import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwprune.errors import Infeasible
from hwprune.kernels.common import depthwise
from hwprune.kernels.common.between import Geometry, kind_of
from hwprune.kernels.loops import Runs, function, scratch
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import DTYPE_BYTES, Workload

name = "expansion"

SPLITS = ("rows", "channels")

#: The cycles below tell a convolution's tiles apart better than the depthwise tiles that go with one: by so much more for each.
_SPREAD = 0.03
#: What depthwise tiles take longer where they read from the second cache.
_FROM_SECOND = 1.25


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    if len(workload.anchors) != 2:
        return None
    g, ranked = Geometry(workload), []
    for (wt, cov), split in product(kind_of(g, profile).tiles(g, profile), SPLITS):
        params = {"wt": wt, "cov": cov, "split": split}
        ranked += _with_windows(g, profile, params)
        if g.halves(cov, split):
            ranked += _with_windows(g, profile, {**params, "half": 1})
    ranked.sort(key=lambda item: item[0])
    return [config for _, config in ranked]


def _with_windows(g: Geometry, profile: TargetProfile, params: dict) -> list[tuple[float, Config]]:
    """Cycles and configuration of each depthwise tile that goes with a tile of the convolution, spread out among other tiles'."""
    offered, half = [], "half" in params
    product_cycles = kind_of(g, profile).cycles(g, profile, params["wt"], params["cov"], half)
    for pixels, vectors in g.windows(profile, params["cov"], half):
        cost = _cost(g, profile, product_cycles, params["cov"], pixels, vectors, params["split"])
        offered.append((cost, Config.make(name, **params, pixels=pixels, vectors=vectors)))
    offered.sort(key=lambda item: item[0])
    return [(cost * (1 + _SPREAD * i), config) for i, (cost, config) in enumerate(offered)]


def _cost(g: Geometry, profile: TargetProfile, first: float, cov: int, pixels: int, vectors: int, split: str) -> float:
    """Cycles of both stages, of which ``first`` are the convolution's, and of rows that two threads make."""
    threads, oh = profile.threads, g.window.oh
    second = depthwise.tile_cycles(g.window, profile, pixels, vectors)
    if DTYPE_BYTES[g.window.dtype] * g.kept * g.width * cov * profile.lanes > profile.memory.l1d_bytes:
        second *= _FROM_SECOND
    if split == "channels":
        panels = [size for count, size in Runs(g.blocks, cov).sizes for _ in range(count)]
        shares = [sum(panels[t * len(panels) // threads : (t + 1) * len(panels) // threads]) for t in range(threads)]
        return (first + second) * max(shares) / g.blocks
    twice = (threads - 1) * max(g.kept - g.window.stride[0], 0)
    rows = -(-oh // threads) / oh
    return first * min(1, rows + twice / g.height / threads) + second * rows


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    return function(workload, _Builder(workload, profile, config).statements)


class _Window(depthwise.Builder):
    """The depthwise convolution or pool, of what lies in between."""

    def __init__(self, g: Geometry, profile: TargetProfile, config: Config):
        params = {"wt": config["pixels"], "cov": config["vectors"], "split": config["split"], "order": "cy"}
        super().__init__(g.stages[1], profile, Config.make(depthwise.name, **params))
        self.between, self.first = g, 0

    def _pixel(self, batch, row, column, channels):
        local = tirx.Ramp(channels.base - self.first * self.lanes, 1, self.lanes)
        return self.source[row % self.between.kept * self.g.w + column, local]


class _Builder:
    def __init__(self, workload: Workload, profile: TargetProfile, config: Config):
        self.workload, self.threads, self.lanes = workload, profile.threads, profile.lanes
        self.g = g = Geometry(workload)
        cov, self.half, self.vectors = int(config["cov"]), bool(config.get("half")), int(config["vectors"])
        self.panels, self.by_rows = Runs(g.blocks, cov), config["split"] == "rows"
        if self.half and not g.halves(cov, config["split"]):
            raise Infeasible(f"{config.to_text()}: half of the last vector of {g.blocks} cannot be left out")
        if any(size % self.vectors for size in g.panels(cov, self.half)):
            raise Infeasible(f"{config.to_text()}: panels of {g.panels(cov, self.half)} vectors do not divide into {self.vectors}")
        self.product = kind_of(g, profile)(g, profile, config)
        self.window = _Window(g, profile, config)

    def statements(self, inputs, y) -> None:
        g = self.g
        read = [[inputs[i] for i in numbers] for numbers in self.workload.inputs_of_stages]
        with T.parallel(self.threads) as thread:
            between = scratch((g.kept * g.width, self.panels.largest * self.lanes), self.workload.dtype)
            self.product.take(read[0], between)
            self.product.begin()
            self.window.take([between, *read[1]], y)
            low, high = (tirx.floordiv((thread + k) * g.window.oh, self.threads) for k in (0, 1)) if self.by_rows else (0, g.window.oh)

            def panel(block, cov, **half):
                with T.serial(0, g.window.n) as batch, T.serial(0, high - low) as turn:
                    self._rows_for(batch, low + turn, turn, block, cov, **half)
                    self._row(batch, low + turn, block, cov)

            if self.half:
                self.product.halved(panel)
            elif self.by_rows:
                self.panels.each(panel)
            else:
                self.panels.each(panel, (thread, self.threads))

    def _rows_for(self, batch, row, turn, block, cov: int, **half) -> None:
        """The rows in between that this row of results is the first to need."""
        g = self.g
        stride, top = g.window.stride[0], g.window.top
        start = tirx.max(row * stride - top, 0)
        there = tirx.min(tirx.max((row - 1) * stride - top + g.kept, 0), g.height)
        first = tirx.Select(turn == 0, start, tirx.max(start, there))
        last = tirx.min(row * stride - top + g.kept, g.height)
        with T.serial(0, tirx.max(last - first, 0)) as more:
            self.product.row(batch, first + more, block, cov, **half)

    def _row(self, batch, row, block, cov: int) -> None:
        self.window.first = block
        with T.serial(0, cov // self.vectors) as group:
            self.window.row(batch, row, (block + group * self.vectors) * self.lanes)
