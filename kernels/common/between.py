"""What makes the rows in between, where a kernel is a convolution and the window that reads it; see ``expansion``.

``Product`` is a 1x1 convolution and ``Windowed`` one with a window of its own, each with tiles of pixels of a row x vectors of
channels; ``ByLane`` and ``WindowedByLane`` are they on cores whose multiply-add takes one lane of a register for all lanes. In
float16 there is ``HalfByLane`` only.
"""

from __future__ import annotations

from typing import Callable, Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwprune.kernels.arm import conv_lane_half
from hwprune.kernels.common import by_lane, depthwise, gemm
from hwprune.kernels.common.taps import Columns, rows_inside
from hwprune.kernels.loops import Registers, Runs, accumulate, registers, scratch, vector
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import Workload

#: What ``Columns.taps_of`` gives: tap, result of the tile, column.
Tap = tuple[int, int, int]
#: Vectors of a tile that takes numbers by lane, and registers that it leaves free on a core that runs in order.
_MOST_VECTORS, _SPARE_IN_ORDER = 8, 4


class Geometry:
    """Of both stages.

    kept : rows of the activation in between that exist at a time, of ``height``. image : rows and columns of the input, which has its
    channels outermost if it is ``plain``, and else whole vectors of them, or not.
    """

    def __init__(self, workload: Workload):
        self.stages = workload.stages
        self.window = depthwise.Geometry(self.stages[1])
        _, self.height, self.width, _ = self.stages[0].output.shape
        self.product = gemm.Pixels(self.stages[0], by_rows=True)
        anchor, spec = self.stages[0].anchor, self.stages[0].inputs[self.stages[0].anchor.args[0]]
        self.plain = anchor.get("layout", "nhwc") == "nchw"
        self.image = tuple(spec.shape[2:] if self.plain else spec.shape[1:3])
        self.pointwise = (self.product.kh, self.product.kw) == (1, 1) and not self.plain
        self.whole_vectors = spec.shape[-1] % self.product.lanes == 0
        self.blocks = self.product.blocks
        self.kept = (self.window.kh - 1) * self.window.dilation[0] + 1

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

    @property
    def across(self) -> Columns:
        """The convolution's window along a row."""
        p = self.product
        return Columns(p.ow, p.kw, p.strides[1], p.dilations[1], self.stages[0].anchor["padding"][1], self.image[1])


def kind_of(g: Geometry, profile: TargetProfile) -> type["Product"]:
    """What makes the rows."""
    if g.pointwise and profile.core.lane_broadcast and g.whole_vectors:
        return HalfByLane if g.window.dtype == "float16" else ByLane
    if g.pointwise:
        return Product
    return WindowedByLane if profile.core.lane_broadcast and g.plain else Windowed


def rows_of(tiles: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """(pixels, vectors) of those tiles (rows, pixels, vectors) that are of one row, and the widest where all of so many vectors have more."""
    found = {(wt, cov) for ht, wt, cov in tiles if ht == 1}
    of_more = {cov for _, _, cov in tiles} - {cov for _, cov in found}
    return sorted(found | {max((wt, cov) for _, wt, cov in tiles if cov == own) for own in of_more})


def _spare(profile: TargetProfile) -> int:
    return _SPARE_IN_ORDER if profile.core.in_order else 0


class Product(gemm.Builder):
    """A 1x1 convolution."""

    @staticmethod
    def tiles(g: Geometry, profile: TargetProfile) -> list[tuple[int, int]]:
        """(pixels, vectors) of register tiles."""
        return rows_of(gemm.tiles(g.product, profile))

    @staticmethod
    def cycles(g: Geometry, profile: TargetProfile, wt: int, cov: int, half: bool) -> float:
        """Of all tiles."""
        return gemm.tile_cycles(g.product, profile, 1, wt, cov, half)

    def __init__(self, g: Geometry, profile: TargetProfile, config: Config):
        super().__init__(g.stages[0], profile, Config.make(gemm.name, ht=1, wt=config["wt"], cov=config["cov"], split="rows"), g.product)
        self.between, self.passes = g, self.columns.count

    def row(self, batch, row, block, cov: int, **half) -> None:
        """A row of all pixels that lie side by side, ``cov`` vectors of them."""
        self.first = block
        self.columns.numbered(lambda column, wt, number: self.tile(gemm.Place(batch, row, column, 1, wt, number), block, cov, **half))

    def _place_of(self, pixel, channel) -> tuple:
        _, row, column = pixel
        return row % self.between.kept * self.between.width + column, channel - self.first * self.g.lanes


class ByLane(Product):
    """A 1x1 convolution that takes its pixels' channels by lane."""

    @staticmethod
    def tiles(g: Geometry, profile: TargetProfile) -> list[tuple[int, int]]:
        return rows_of(gemm.even_tiles(g.product, _MOST_VECTORS, lambda cov: by_lane.most_pixels(cov, profile, _spare(profile))))

    @staticmethod
    def cycles(g: Geometry, profile: TargetProfile, wt: int, cov: int, half: bool) -> float:
        return by_lane.tile_cycles(g.product, profile, 1, wt, cov)

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


class HalfByLane(Product, conv_lane_half.Builder):
    """The same in float16."""

    @staticmethod
    def tiles(g: Geometry, profile: TargetProfile) -> list[tuple[int, int]]:
        return rows_of(conv_lane_half.tiles(g.product, profile))

    @staticmethod
    def cycles(g: Geometry, profile: TargetProfile, wt: int, cov: int, half: bool) -> float:
        return conv_lane_half.tile_cycles(g.product, profile, 1, wt, cov)


class Windowed(Product):
    """A convolution with a window. Its input is read number by number, so however its channels lie."""

    def __init__(self, g: Geometry, profile: TargetProfile, config: Config):
        super().__init__(g, profile, config)
        self.plain, self.h, self.across = g.plain, g.image[0], g.across
        self.top = self.workload.anchor["padding"][0]
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
        add = self._adding(place, block, cov, acc, taps)
        start = place.row * g.strides[0] - self.top
        first, count = rows_inside(start, g.kh, g.dilations[0], self.h)
        with T.serial(0, count) as tap, T.serial(0, g.ci) as k:
            dy = first + tap
            add(start + dy * g.dilations[0], dy, k)
        self._write(place, block, cov, acc)

    def _adding(self, place: gemm.Place, block, cov: int, acc: Registers, taps: Sequence[Tap]) -> Callable:
        """``add(row, dy, k)``: acc += the products of ``taps`` with a row of channel k of the image, which is row ``dy`` of the window."""
        g, first = self.g, place.column * self.g.strides[1]

        def add(row, dy, k) -> None:
            for dx in range(g.kw):
                counted = {j: at for own, j, at in taps if own == dx}
                part = {(n, v): acc[j, v] for n, j in enumerate(counted) for v in range(cov)}
                read = [self._number(place.batch, row, first + at - self.across.left, k) for at in counted.values()]
                accumulate(part, read, self._weights(block, cov, dy, dx, k))

        return add

    def _weights(self, block, cov: int, dy, dx: int, k) -> list[tirx.Expr]:
        """Of one tap and channel, a vector for each of the tile's."""
        return [self.weight[block + v, dy, dx, k, tirx.Ramp(0, 1, self.g.lanes)] for v in range(cov)]

    def _number(self, batch, y, x, k) -> tirx.Expr:
        return self.source(batch, k, y, x) if self.plain else self.source(batch, y, x, k)


class WindowedByLane(Windowed):
    """A convolution with a window over an image whose columns lie side by side: so many of them as a vector has lanes are one load, for
    all taps that read them."""

    @staticmethod
    def tiles(g: Geometry, profile: TargetProfile) -> list[tuple[int, int]]:
        free = profile.core.vector_registers - _spare(profile) - 1

        def fits(wt: int, cov: int) -> bool:
            return wt * cov + len(_vectors_of(g, wt)) + cov <= free

        return rows_of(gemm.even_tiles(g.product, _MOST_VECTORS, lambda cov: max((wt for wt in range(1, free) if fits(wt, cov)), default=0)))

    @staticmethod
    def cycles(g: Geometry, profile: TargetProfile, wt: int, cov: int, half: bool) -> float:
        p, cycles = g.product, 0.0
        for wide, w in Runs(p.ow, wt).sizes:
            for many, v in Runs(p.blocks, cov).sizes:
                step = by_lane.step_cycles(p.kw, w * v, len(_vectors_of(g, w)) + p.kw * v, profile)
                cycles += p.n * p.oh * wide * many * (step * p.kh * p.ci + 3 * w * v / profile.core.fma_per_cycle + 20)
        return cycles

    def _adding(self, place: gemm.Place, block, cov: int, acc: Registers, taps: Sequence[Tap]) -> Callable:
        starts = by_lane.covering([at for _, _, at in taps], self.g.lanes)
        if not starts:
            return super()._adding(place, block, cov, acc, taps)
        g, left = self.g, place.column * self.g.strides[1] - self.across.left
        staged = {start: scratch((g.lanes,), self.workload.dtype) for start in starts}

        def add(row, dy, k) -> None:
            for start, buffer in staged.items():
                vector(buffer, 0, lambda lane, start=start: self._number(place.batch, row, left + start + lane, k), g.lanes)
            for dx in range(g.kw):
                weights = [T.Bind(weight) for weight in self._weights(block, cov, dy, dx, k)]
                for _, j, at in (tap for tap in taps if tap[0] == dx):
                    start = max(s for s in starts if s <= at)
                    by_lane.add([acc[j, v] for v in range(cov)], staged[start], at - start, weights)

        return add


def _vectors_of(g: Geometry, wt: int) -> Sequence[int]:
    """First columns of the vectors that a tile of ``wt`` pixels reads of a row."""
    return by_lane.covering([at for _, _, at in g.across.taps_of(0, wt, inside=True)], g.product.lanes)
