"""A convolution and the depthwise convolution that reads it, in one kernel: the first half of an inverted bottleneck, or of a
network that begins with one.

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
from hwprune.kernels.common import by_lane, depthwise, gemm
from hwprune.kernels.common.taps import Columns, rows_inside
from hwprune.kernels.loops import Runs, accumulate, function, registers, scratch
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import DTYPE_BYTES, Workload

name = "expansion"

SPLITS = ("rows", "channels")

#: The cycles below tell a convolution's tiles apart better than the depthwise tiles that go with one: by so much more for each.
_SPREAD = 0.03
#: Vectors of a tile that takes its pixels' channels by lane, and registers that it leaves free on a core that runs in order.
_MOST_VECTORS, _SPARE_IN_ORDER = 8, 4
#: What depthwise tiles take longer where they read from the second cache.
_FROM_SECOND = 1.25


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    if len(workload.anchors) != 2:
        return None
    g, ranked = _Geometry(workload), []
    for (wt, cov), split in product(g.tiles(profile), SPLITS):
        params = {"wt": wt, "cov": cov, "split": split}
        ranked += _with_windows(g, profile, params)
        if g.halves(cov, split):
            ranked += _with_windows(g, profile, {**params, "half": 1})
    ranked.sort(key=lambda item: item[0])
    return [config for _, config in ranked]


def _with_windows(g: "_Geometry", profile: TargetProfile, params: dict) -> list[tuple[float, Config]]:
    """Cycles and configuration of each depthwise tile that goes with a tile of the convolution, spread out among other tiles'."""
    offered = []
    for pixels, vectors in g.windows(profile, params["cov"], "half" in params):
        own = {**params, "pixels": pixels, "vectors": vectors}
        offered.append((_cost(g, profile, **own), Config.make(name, **own)))
    offered.sort(key=lambda item: item[0])
    return [(cost * (1 + _SPREAD * i), config) for i, (cost, config) in enumerate(offered)]


class _Geometry:
    """Of both stages. ``kept``: rows of the activation in between that exist at a time, of ``height``."""

    def __init__(self, workload: Workload):
        self.stages = workload.stages
        self.window = depthwise.Geometry(self.stages[1])
        _, self.height, self.width, _ = self.stages[0].output.shape
        self.product = gemm.Pixels(self.stages[0], by_rows=True)
        self.pointwise = (self.product.kh, self.product.kw) == (1, 1) and self.stages[0].anchor.get("layout", "nhwc") == "nhwc"
        anchor = self.stages[0].anchor
        self.whole_vectors = self.stages[0].inputs[anchor.args[0]].shape[-1] % self.product.lanes == 0
        self.blocks = self.product.blocks
        self.kept = (self.window.kh - 1) * self.window.dilation[0] + 1

    def tiles(self, profile: TargetProfile) -> list[tuple[int, int]]:
        """(pixels, vectors) of the convolution's register tiles."""
        offered = gemm.tiles(self.product, profile)
        if self.is_by_lane(profile):
            spare = _SPARE_IN_ORDER if profile.core.in_order else 0
            offered = gemm.even_tiles(self.product, _MOST_VECTORS, lambda cov: by_lane.most_pixels(cov, profile, spare))
        return sorted({(wt, cov) for ht, wt, cov in offered if ht == 1})

    def is_by_lane(self, profile: TargetProfile) -> bool:
        """Whether the convolution takes its pixels' channels by lane."""
        return profile.core.lane_broadcast and self.pointwise and self.whole_vectors

    def product_cycles(self, profile: TargetProfile, wt: int, cov: int, half: bool) -> float:
        """Cycles of all of the convolution's tiles."""
        if self.is_by_lane(profile):
            return by_lane.tile_cycles(self.product, profile, 1, wt, cov)
        return gemm.tile_cycles(self.product, profile, 1, wt, cov, half)

    def halves(self, cov: int, split: str) -> bool:
        """Whether half of the convolution's last vector can be left out; see ``gemm.halves``."""
        return self.pointwise and gemm.halves(self.product, cov, split)

    def panels(self, cov: int, half: bool) -> set[int]:
        """Vectors of the convolution's panels, ``cov`` at most."""
        panels: Runs | None = Runs(self.blocks, cov)
        alone = set()
        if half:
            panels, last = gemm.last_apart(self.blocks, panels)
            alone = {last}
        return alone | {size for _, size in (panels.sizes if panels else ())}

    def windows(self, profile: TargetProfile, cov: int, half: bool) -> list[tuple[int, int]]:
        """(pixels, vectors) of the depthwise tiles that fit the registers and the convolution's panels."""
        sizes = self.panels(cov, half)
        return [(wt, v) for wt, v in depthwise.tiles(self.window, profile) if all(size % v == 0 for size in sizes)]


def _cost(g: _Geometry, profile: TargetProfile, wt: int, cov: int, pixels: int, vectors: int, split: str, half: int = 0) -> float:
    """Cycles of both stages, each as its own rule reckons it, and of rows that two threads make."""
    threads, oh = profile.threads, g.window.oh
    first = g.product_cycles(profile, wt, cov, bool(half))
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


class _Product(gemm.Builder):
    """A 1x1 convolution, into memory in between."""

    def __init__(self, g: _Geometry, profile: TargetProfile, config: Config):
        super().__init__(g.stages[0], profile, Config.make(gemm.name, ht=1, wt=config["wt"], cov=config["cov"], split="rows"), g.product)
        self.between, self.passes = g, self.columns.count

    def row(self, batch, row, block, cov: int, **half) -> None:
        """A row of all pixels that lie side by side, ``cov`` vectors of them."""
        self.first = block
        self.columns.numbered(lambda column, wt, number: self.tile(gemm.Place(batch, row, column, 1, wt, number), block, cov, **half))

    def _place_of(self, pixel, channel) -> tuple:
        _, row, column = pixel
        return row % self.between.kept * self.between.width + column, channel - self.first * self.g.lanes


class _ByLane(_Product):
    """A 1x1 convolution, into memory in between, which takes its pixels' channels by lane."""

    def tile(self, place: gemm.Place, block, cov: int) -> None:
        g, lanes = self.g, tirx.Ramp(0, 1, self.g.lanes)
        acc, staged = registers(place.wt, cov, g.lanes), [scratch((g.lanes,), self.workload.dtype) for _ in place.pixels]
        whole, rest = divmod(g.ci, g.lanes)

        def group(first, channels: int) -> None:
            pixel = lambda n, lane: self._pixel(place, *place.pixels[n], 0, 0, first + lane)
            by_lane.accumulate(acc, staged, pixel, lambda j, c: self.weight[block + j, 0, 0, first + c, lanes], channels)

        if whole:
            with T.serial(0, whole) as step:
                group(step * g.lanes, g.lanes)
        if rest:
            group(whole * g.lanes, rest)
        self._write(place, block, cov, acc)


class _Windowed(_Product):
    """A convolution with a window, into memory in between. Its input is read number by number, so however its channels lie."""

    def __init__(self, g: _Geometry, profile: TargetProfile, config: Config):
        super().__init__(g, profile, config)
        anchor, spec = self.workload.anchor, self.workload.inputs[self.workload.anchor.args[0]]
        self.plain = anchor.get("layout", "nhwc") == "nchw"
        self.h, w = spec.shape[2:] if self.plain else spec.shape[1:3]
        self.top, left = anchor["padding"][:2]
        self.across = Columns(self.g.ow, self.g.kw, self.g.strides[1], self.g.dilations[1], left, w)
        low, high = self.across.inner()
        self.edges = [(0, low), (high, self.g.ow - high)]
        self.low, self.inner = low, Runs(high - low, int(config["wt"])) if high > low else None

    def row(self, batch, row, block, cov: int) -> None:
        self.first = block
        for column, size in self.edges:
            if size:
                self._part(gemm.Place(batch, row, column, 1, size, 0), block, cov, inside=False)
        if self.inner:
            self.inner.each(lambda column, wt: self._part(gemm.Place(batch, row, self.low + column, 1, wt, 0), block, cov, inside=True))

    def _part(self, place: gemm.Place, block, cov: int, inside: bool) -> None:
        g, taps = self.g, list(self.across.taps_of(place.column, place.wt, inside))
        acc = registers(place.wt, cov, g.lanes)
        start = place.row * g.strides[0] - self.top
        first, count = rows_inside(start, g.kh, g.dilations[0], self.h)
        with T.serial(0, count) as tap, T.serial(0, g.ci) as k:
            dy = first + tap
            for dx in range(g.kw):
                counted = {j: at for own, j, at in taps if own == dx}
                weights = [self.weight[block + v, dy, dx, k, tirx.Ramp(0, 1, g.lanes)] for v in range(cov)]
                part = {(n, v): acc[j, v] for n, j in enumerate(counted) for v in range(cov)}
                place_of = [(start + dy * g.dilations[0], place.column * g.strides[1] + at - self.across.left) for at in counted.values()]
                accumulate(part, [self._number(place.batch, y, x, k) for y, x in place_of], weights)
        self._write(place, block, cov, acc)

    def _number(self, batch, y, x, k) -> tirx.Expr:
        return self.source(batch, k, y, x) if self.plain else self.source(batch, y, x, k)


class _Window(depthwise.Builder):
    """The depthwise convolution, of what lies in between."""

    def __init__(self, g: _Geometry, profile: TargetProfile, config: Config):
        params = {"wt": config["pixels"], "cov": config["vectors"], "split": config["split"], "order": "cy"}
        super().__init__(g.stages[1], profile, Config.make(depthwise.name, **params))
        self.between, self.first = g, 0

    def _pixel(self, batch, row, column, channels):
        local = tirx.Ramp(channels.base - self.first * self.lanes, 1, self.lanes)
        return self.source[row % self.between.kept * self.g.w + column, local]


class _Builder:
    def __init__(self, workload: Workload, profile: TargetProfile, config: Config):
        self.workload, self.threads, self.lanes = workload, profile.threads, profile.lanes
        self.g = g = _Geometry(workload)
        cov, self.half, self.vectors = int(config["cov"]), bool(config.get("half")), int(config["vectors"])
        self.panels, self.by_rows = Runs(g.blocks, cov), config["split"] == "rows"
        if self.half and not g.halves(cov, config["split"]):
            raise Infeasible(f"{config.to_text()}: half of the last vector of {g.blocks} cannot be left out")
        if any(size % self.vectors for size in g.panels(cov, self.half)):
            raise Infeasible(f"{config.to_text()}: panels of {g.panels(cov, self.half)} vectors do not divide into {self.vectors}")
        kind = _ByLane if g.is_by_lane(profile) else _Product if g.pointwise else _Windowed
        self.product = kind(g, profile, config)
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
