"""Winograd's F(m x m, 3x3): a 3x3 convolution as (m+2)^2 matrix products over tiles of m x m pixels.

input tile d -> B'dB, one element a matrix; each matrix times its transformed weights; result tile A'mA. The weights
G g G' are transformed when the network is compiled. F(4,3) multiplies a quarter of what a direct convolution does,
F(2,3) 4/9. Rounding errors grow with m: the rule is not exact (``hwprune compile --exact`` leaves it out).

Three partitions for the threads: ``tiles``, where a task takes rows of tiles through all three steps in cache; ``shares``,
where each thread does so with its share of all tiles, cut where register tiles end; and ``phases``, where each step is shared
out by itself (transforms by channels, products by matrices), so that every weight is read once in all.

Source: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2015.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import ContextManager, Hashable, Sequence

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwprune.errors import Infeasible
from hwprune.kernels.compute import Value, expression
from hwprune.kernels.loops import (
    FLOAT, Ahead, Runs, accumulate, constant, fetch_level, function, registers, scratch, vector,
)  # fmt: skip
from hwprune.kernels.schedule import Config, Repack, as_read, divisors, varied
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "winograd"
#: its result differs from a direct convolution's by more than rounding of single additions does
exact = False

#: Cost by which each further register tile of a partition goes back in the order: partitions differ by more than costs know.
_STEP = 0.05

_INPUT = {
    2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]], float),
    4: np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
                 [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], float),
}  # fmt: skip
_WEIGHT = {
    2: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    4: np.array([[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
                 [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]),
}  # fmt: skip
_OUTPUT = {
    2: np.array([[1, 1, 1, 0], [0, 1, -1, 1]], float),
    4: np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float),
}


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    anchor = workload.anchor
    if anchor is None or anchor.op != "conv2d" or workload.dtype != "float32":
        return None  # transformed tiles are differences of sums up to a hundred times a pixel: float16 has no digits to lose there
    _, kh, kw, ci, _ = workload.inputs[anchor.args[1]].shape
    plain = anchor["stride"] == (1, 1) and anchor["dilation"] == (1, 1) and anchor["groups"] == 1
    if (kh, kw) != (3, 3) or not plain or anchor.get("layout", "nhwc") != "nhwc" or ci < profile.lanes:
        return None
    offered: list[tuple[float, Hashable, Config]] = []
    for m in (4, 2):
        base = _Geometry(workload, m)
        for split, rows in _partitions(base, profile):
            tiles = rows * base.tw if split == "tiles" else base.tiles
            parts = profile.threads if split == "shares" else 1
            for wt, cov in _register_tiles(base, tiles, profile, parts)[:3]:
                config = Config.make(name, m=m, split=split, rows=rows, wt=wt, cov=cov)
                offered.append((_cost(base, profile, split, rows, wt, cov), (m, split, rows), config))
    return varied(offered, _STEP)


def repack(workload: Workload, config: Config) -> dict[int, Repack]:
    """The convolution's weight, transformed: [m+2, m+2, co/v, ci, v]."""
    number = workload.anchor.args[1]
    blocks, _, _, ci, lanes = workload.inputs[number].shape
    m = int(config["m"])
    return {number: Repack(f"{name} {m}", ((m + 2) ** 2, blocks, ci, lanes), partial(_transformed, m))}


def multiply_adds(workload: Workload, config: Config) -> float:
    """Those of the matrix products: (m+2)^2 for m^2 results instead of nine each."""
    m = int(config["m"])
    return workload.macs * (m + 2) ** 2 / (9 * m * m)


def transform_operations(workload: Workload, config: Config) -> float:
    """Of the transforms of input and result, on single numbers; a multiply-add is one. What is fused with them is not in."""
    g = _Geometry(workload, int(config["m"]))
    tile_in = 2 * g.alpha * _rows_operations(_INPUT[g.m])
    tile_out = (g.alpha + g.m) * _columns_operations(_OUTPUT[g.m])
    channels = workload.macs / (9 * math.prod(g.out) * g.ci)
    return g.tiles * (g.ci * tile_in + channels * tile_out)


def _transformed(m: int, packed: np.ndarray) -> np.ndarray:
    blocks, _, _, ci, lanes = packed.shape
    g = _WEIGHT[m]
    return np.einsum("ik,jl,oklcv->ijocv", g, g, packed.astype(np.float64)).reshape(-1, blocks, ci, lanes).astype(np.float32)


@dataclass(frozen=True)
class _Geometry:
    workload: Workload
    m: int

    @cached_property
    def out(self) -> tuple[int, int, int]:
        return tuple(self.workload.anchor["out"])

    @cached_property
    def weight(self) -> tuple[int, ...]:
        return self.workload.inputs[self.workload.anchor.args[1]].shape

    @property
    def lanes(self) -> int:
        return self.weight[-1]

    @property
    def blocks(self) -> int:
        """Vectors of output channels."""
        return self.weight[0]

    @property
    def ci(self) -> int:
        return self.weight[3]

    @property
    def ci_vectors(self) -> int:
        return -(-self.ci // self.lanes)

    @property
    def alpha(self) -> int:
        return self.m + 2

    @property
    def th(self) -> int:
        return -(-self.out[1] // self.m)

    @property
    def tw(self) -> int:
        return -(-self.out[2] // self.m)

    @property
    def tiles(self) -> int:
        return self.out[0] * self.th * self.tw


def _partitions(g: _Geometry, profile: TargetProfile):
    """(split, tile rows of a task)."""
    fits = profile.memory.l2_bytes
    for rows in divisors(g.th):
        scratch = 4 * g.alpha**2 * rows * g.tw * (g.ci + g.blocks * g.lanes)
        tasks = g.out[0] * g.th // rows
        if scratch <= fits and (tasks >= profile.threads or rows == g.th):
            yield "tiles", rows
    if g.out[0] == 1 and g.tiles >= profile.threads and g.th % profile.threads:  # else rows of tiles are as equal shares
        if 4 * g.alpha**2 * -(-g.tiles // profile.threads) * (g.ci + g.blocks * g.lanes) <= fits:
            yield "shares", g.th
    yield "phases", g.th


def _register_tiles(g: _Geometry, tiles: int, profile: TargetProfile, parts: int = 1) -> list[tuple[int, int]]:
    """(tiles, vectors of output channels) of a product's accumulators, the cheapest first for the largest of ``parts`` shares."""
    registers = profile.core.vector_registers - 2
    sizes = {(wt, cov) for wt in range(1, min(tiles, 16) + 1) for cov in range(1, min(g.blocks, 6) + 1)
             if wt * cov + cov <= registers}
    even = {(Runs(tiles, wt).largest, Runs(g.blocks, cov).largest) for wt, cov in sizes}
    return sorted(even, key=lambda size: (_product_cost(g, _largest_share(tiles, size[0], parts), size, profile), -size[0]))


def _largest_share(tiles: int, wt: int, parts: int) -> int:
    """Of ``tiles`` that ``parts`` threads share where register tiles of ``wt`` end."""
    runs = Runs(tiles, wt)
    ends = [runs.start(runs.count * part // parts) for part in range(parts + 1)]
    return max(high - low for low, high in zip(ends, ends[1:]))


def _product_cost(g: _Geometry, tiles: int, size: tuple[int, int], profile: TargetProfile) -> float:
    """Cycles of one of the matrix products for a reduction step, from ports, latency and loads of its inner loops."""
    core = profile.core

    def step(wt: int, cov: int) -> float:
        loads = wt + cov if cov > 1 else wt * cov + cov
        return max(wt * cov / core.fma_per_cycle, core.fma_latency_cycles, loads / core.loads_per_cycle)

    wt, cov = size
    return sum(step(r, c) * n * k for (n, r), (k, c) in product(Runs(tiles, wt).sizes, Runs(g.blocks, cov).sizes))


def _cost(g: _Geometry, profile: TargetProfile, split: str, rows: int, wt: int, cov: int) -> float:
    """Cycles of a configuration: products while weights stream in, transforms, starts of tiles and of threads."""
    core, memory, threads = profile.core, profile.memory, profile.threads
    phases = split == "phases"
    if split == "shares":
        tiles, share = _largest_share(g.tiles, wt, threads), 1.0
    else:
        tiles = g.tiles if phases else rows * g.tw
        share = 1 / threads if phases else math.ceil(g.out[0] * g.th // rows / threads)
    starts = g.alpha**2 * Runs(tiles, wt).count * Runs(g.blocks, cov).count
    products = (g.alpha**2 * g.ci * _product_cost(g, tiles, (wt, cov), profile) + 20 * starts) * share
    transforms = 3 * tiles * (g.ci_vectors + g.blocks) * g.alpha**2 * share
    between = 4 * g.alpha**2 * tiles * g.lanes * (g.ci_vectors + g.blocks)
    if between > memory.l2_bytes / 2:
        transforms += between * share / 8
    weights = 4 * g.alpha**2 * g.ci * g.blocks * g.lanes
    dram = 1e3 * memory.dram_gb_per_s / core.frequency_mhz  # bytes a cycle, of all threads
    l2 = 1e3 * memory.l2_gb_per_s / core.frequency_mhz
    streamed = 0.0
    if weights > threads * memory.l2_bytes / 2:
        # what every task reads anew comes from the cache between, whose bandwidth not every profile gives
        streamed = max(weights / dram, 0 if phases else weights * share / math.sqrt(l2 * dram / threads))
    launches = (3 if phases else 1) * profile.overhead.kernel_us * core.frequency_mhz
    return max(products, streamed) + 0.1 * min(products, streamed) + transforms + launches


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    return _Builder(workload, config, profile).function()


class _Builder:
    """Writes the kernel. V and M are the transformed inputs and the products: [matrix][tile][channel]."""

    def __init__(self, workload: Workload, config: Config, profile: TargetProfile):
        self.g = g = _Geometry(workload, int(config["m"]))
        self.workload, self.config = workload, config
        self.wt, self.cov, self.rows = int(config["wt"]), int(config["cov"]), int(config["rows"])
        self.level = fetch_level(4 * g.ci * self.cov * g.lanes, profile)
        self.line_bytes, self.threads = profile.memory.line_bytes, profile.threads
        self.ci_lanes, self.co_lanes = g.ci_vectors * g.lanes, g.blocks * g.lanes
        if g.th % self.rows:
            raise Infeasible(f"{config.to_text()}: {g.th} rows of tiles do not divide by {self.rows}")

    def function(self) -> tirx.PrimFunc:
        inputs = as_read(self.workload.inputs, repack(self.workload, self.config))
        return function(self.workload, self._statements, inputs)

    def _statements(self, inputs, output) -> None:
        self.result, self.weight = output, inputs[self.workload.anchor.args[1]]
        self.tile, self.at = None, None  # the result tile in registers, and where in it the epilogue reads
        self.epilogue = expression(self.workload, inputs, self._anchor)
        {"phases": self._phases, "shares": self._shares, "tiles": self._tasks}[self.config["split"]]()

    def _anchor(self, call, values) -> Value:
        self.source, self.extent = values[call.args[0]]
        n, oh, ow = self.g.out
        return (lambda *index: self.tile[self.at]), (n, oh, ow, self.co_lanes)

    def _matrices(self, tiles: int, channels: int) -> tuple[tirx.Buffer, int]:
        """One matrix [tiles, channels] for each element of a tile, and the elements between two of them: no multiple of what
        would make all of them fall into the same cache sets."""
        stride = tiles * channels + self.g.lanes
        return T.alloc_buffer((self.g.alpha**2 * stride,), FLOAT), stride

    def _tasks(self) -> None:
        g, rows, tiles = self.g, self.rows, self.rows * self.g.tw
        with T.parallel(0, g.out[0] * g.th // rows) as task:
            batch, first = task // (g.th // rows), task % (g.th // rows) * rows
            border = T.alloc_buffer((rows * g.m + 2, g.tw * g.m + 2, self.ci_lanes), FLOAT)
            v = self._matrices(tiles, self.ci_lanes)
            self._copy(border, batch, first, 0, g.ci_vectors)
            with T.serial(0, rows) as r, T.serial(0, g.tw) as x, T.serial(0, g.ci_vectors) as c:
                self._transform_input(border, r, x, c, v, (r * g.tw + x) * self.ci_lanes + c * g.lanes)
            products = self._matrices(tiles, self.co_lanes)
            with T.serial(0, g.alpha**2) as xi:
                self._product(xi, tiles, v, products)
            with T.serial(0, rows) as r, T.serial(0, g.tw) as x, T.serial(0, g.blocks) as o:
                self._transform_output(products, (r * g.tw + x) * self.co_lanes + o * g.lanes, batch, first + r, x, o)

    def _shares(self) -> None:
        g, threads = self.g, self.threads
        runs = Runs(g.tiles, self.wt)
        most = _largest_share(g.tiles, self.wt, threads)
        with T.parallel(threads) as thread:
            first, after = (runs.start(tirx.floordiv((thread + n) * runs.count, threads)) for n in (0, 1))
            top = first // g.tw
            border = T.alloc_buffer((min(-(-most // g.tw) + 1, g.th) * g.m + 2, g.tw * g.m + 2, self.ci_lanes), FLOAT)
            v = self._matrices(most, self.ci_lanes)
            self._copy(border, 0, top, 0, g.ci_vectors, ((after - 1) // g.tw - top + 1) * g.m + 2)
            with T.serial(0, after - first) as tile, T.serial(0, g.ci_vectors) as c:
                row, column = (first + tile) // g.tw, (first + tile) % g.tw
                self._transform_input(border, row - top, column, c, v, tile * self.ci_lanes + c * g.lanes)
            products = self._matrices(most, self.co_lanes)
            with T.serial(0, g.alpha**2) as xi:
                self._product(xi, g.tiles, v, products, (thread, threads), first)
            with T.serial(0, after - first) as tile, T.serial(0, g.blocks) as o:
                row, column = (first + tile) // g.tw, (first + tile) % g.tw
                self._transform_output(products, tile * self.co_lanes + o * g.lanes, 0, row, column, o)

    def _phases(self) -> None:
        g = self.g
        v, products = self._matrices(g.tiles, self.ci_lanes), self._matrices(g.tiles, self.co_lanes)
        with T.parallel(0, g.ci_vectors) as c:
            border = T.alloc_buffer((g.th * g.m + 2, g.tw * g.m + 2, g.lanes), FLOAT)
            with T.serial(0, g.out[0]) as batch:
                self._copy(border, batch, 0, c, 1)
                with T.serial(0, g.th) as y, T.serial(0, g.tw) as x:
                    tile = (batch * g.th + y) * g.tw + x
                    self._transform_input(border, y, x, 0, v, tile * self.ci_lanes + c * g.lanes)
        with T.parallel(0, g.alpha**2) as xi:
            self._product(xi, g.tiles, v, products)
        with T.parallel(0, g.blocks) as o:
            with T.serial(0, g.out[0]) as batch, T.serial(0, g.th) as y, T.serial(0, g.tw) as x:
                tile = (batch * g.th + y) * g.tw + x
                self._transform_output(products, tile * self.co_lanes + o * g.lanes, batch, y, x, o)

    def _copy(self, border, batch, first_row, first_vector, vectors: int, rows: tirx.Expr | None = None) -> None:
        """Rows of the input with their border, from tile row ``first_row`` on: all that ``border`` holds, or only ``rows``."""
        g = self.g
        top, left, _, _ = self.workload.anchor["padding"]
        _, h, w, _ = self.extent
        height, width = int(border.shape[0]), int(border.shape[1])
        with T.serial(0, height if rows is None else rows) as y, T.serial(0, width) as x, T.serial(0, vectors) as c:
            row, column = first_row * g.m + y - top, x - left
            inside = tirx.all(row >= 0, row < h, column >= 0, column < w)

            def pixel(lane):
                value = self.source(batch, row, column, (first_vector + c) * g.lanes + lane)
                return tirx.if_then_else(inside, value, constant(0.0))

            vector(border, (y, x, c * g.lanes), pixel, g.lanes)

    def _transform_input(self, border, row, column, c, v, where) -> None:
        g, (matrices, stride) = self.g, v
        load = [
            [T.Bind(border[row * g.m + i, column * g.m + j, tirx.Ramp(c * g.lanes, 1, g.lanes)]) for j in range(g.alpha)]
            for i in range(g.alpha)
        ]
        columns = [_rows(_INPUT[g.m], [load[i][j] for i in range(g.alpha)]) for j in range(g.alpha)]
        for i in range(g.alpha):
            for j, value in enumerate(_rows(_INPUT[g.m], [columns[k][i] for k in range(g.alpha)])):
                T.buffer_store(matrices, value, [tirx.Ramp(where + (i * g.alpha + j) * stride, 1, g.lanes)])

    def _transform_output(self, products, where, batch, row, column, o) -> None:
        g, (matrices, stride) = self.g, products
        load = [
            [T.Bind(matrices[tirx.Ramp(where + (i * g.alpha + j) * stride, 1, g.lanes)]) for j in range(g.alpha)]
            for i in range(g.alpha)
        ]
        columns = [_columns(_OUTPUT[g.m], [load[i][j] for i in range(g.alpha)]) for j in range(g.alpha)]
        self.tile = scratch((g.m * g.m * g.lanes,))
        for i in range(g.m):
            for j, value in enumerate(_columns(_OUTPUT[g.m], [columns[k][i] for k in range(g.alpha)])):
                T.buffer_store(self.tile, value, [tirx.Ramp((i * g.m + j) * g.lanes, 1, g.lanes)])
        _, oh, ow = g.out
        for i in range(g.m):
            with _within(row * g.m + i, oh, i, g.m):
                for j in range(g.m):
                    with _within(column * g.m + j, ow, j, g.m):
                        self._write(batch, row * g.m + i, column * g.m + j, o * self.g.lanes, (i * g.m + j) * g.lanes)

    def _write(self, batch, y, x, channel, at: int) -> None:
        """A vector of the result tile, from ``at`` in it, through the epilogue."""

        def value(lane):
            self.at = at + lane
            return self.epilogue(batch, y, x, channel + lane)

        vector(self.result, (batch, y, x, channel), value, self.g.lanes)

    def _product(self, xi, tiles: int, v, products, part=None, first: tirx.Expr | int = 0) -> None:
        """Product number ``xi`` of ``tiles``, or of those of one thread, of whose matrices tile ``first`` is the first."""
        rows, columns = Runs(tiles, self.wt), Runs(self.g.blocks, self.cov)
        passes = rows.count if part is None else max(1, rows.count // part[1])

        def panel(block, cov: int) -> None:
            ahead = Ahead(self.weight, cov * self.g.lanes, self.g.ci, passes, self.line_bytes)
            rows.numbered(lambda tile, wt, number: self._micro(xi, tile - first, number, block, wt, cov, v, products, ahead), part)

        columns.each(panel)

    def _micro(self, xi, tile, number, block, wt: int, cov: int, v, products, ahead: Ahead) -> None:
        """A register tile of a product: ``wt`` tiles by ``cov`` vectors, the ``number``-th of its column. Meanwhile the
        weights of the column after it are fetched, each tile of this one its part."""
        g, (source, v_stride), (result, m_stride) = self.g, v, products
        acc = registers(wt, cov, g.lanes)
        following = (xi * g.blocks + block + cov) * g.ci * g.lanes
        with T.serial(0, g.ci) as k:
            ahead.fetch(following, number, k, self.level)
            left = [source[xi * v_stride + (tile + i) * self.ci_lanes + k] for i in range(wt)]
            right = [self.weight[xi, block + j, k, tirx.Ramp(0, 1, g.lanes)] for j in range(cov)]
            accumulate(acc, left, right)
        for (i, j), register in acc.items():
            where = xi * m_stride + (tile + i) * self.co_lanes + (block + j) * g.lanes
            T.buffer_store(result, register[tirx.Ramp(0, 1, g.lanes)], [tirx.Ramp(where, 1, g.lanes)])


def _within(at: tirx.Expr, extent: int, part: int, parts: int) -> ContextManager:
    """Statements for position ``at``, the ``part``-th of a tile: under a condition where the last tile reaches too far."""
    stack = ExitStack()
    if extent % parts and part >= extent % parts:
        stack.enter_context(T.If(at < extent))
        stack.enter_context(T.Then())
    return stack


def _sum(terms: Sequence[tuple[float, tirx.Expr]]) -> tirx.Expr:
    """Coefficients times vectors, of which one is not zero; positive ones first, so that nothing needs to be negated."""
    terms = sorted((t for t in terms if t[0]), key=lambda t: (t[0] < 0, abs(t[0]) != 1))
    total = _scaled(*terms[0])
    for coefficient, value in terms[1:]:
        total = total - _scaled(-coefficient, value) if coefficient < 0 else total + _scaled(coefficient, value)
    return total


def _scaled(coefficient: float, value: tirx.Expr) -> tirx.Expr:
    lanes = int(str(value.ty.dtype).split("x")[1])
    return value if coefficient == 1 else tirx.Broadcast(constant(coefficient), lanes) * value


def _sum_operations(coefficients: np.ndarray) -> int:
    """Of ``_sum``: a scaled first term is multiplied, the others are added, or multiplied and added at once."""
    some = coefficients[coefficients != 0]
    return len(some) - 1 + int(1 not in some)


def _pairs(rows: np.ndarray) -> list[tuple[int, ...]]:
    """Numbers of the rows: two that follow each other and differ in signs only together, others alone."""
    found: list[tuple[int, ...]] = []
    first = 0
    while first < len(rows):
        alike = first + 1 < len(rows) and bool((np.abs(rows[first]) == np.abs(rows[first + 1])).all())
        found.append((first, first + 1) if alike else (first,))
        first += len(found[-1])
    return found


def _rows(matrix: np.ndarray, values: Sequence[tirx.Expr]) -> list[tirx.Expr]:
    """matrix @ values. Two rows that differ in signs only share their sums: p = even + odd, q = even - odd."""
    results: list[tirx.Expr] = []
    for numbers in _pairs(matrix):
        p, *other = matrix[list(numbers)]
        for q in other:
            even = T.Bind(_sum([(c, v) for c, d, v in zip(p, q, values) if c == d]))
            odd = T.Bind(_sum([(c, v) for c, d, v in zip(p, q, values) if c != d]))
            results += [T.Bind(even + odd), T.Bind(even - odd)]
        if not other:
            results.append(T.Bind(_sum(list(zip(p, values)))))
    return results


def _rows_operations(matrix: np.ndarray) -> int:
    """Of ``_rows``."""
    count = 0
    for numbers in _pairs(matrix):
        p, *other = matrix[list(numbers)]
        count += sum(_sum_operations(p[p == q]) + _sum_operations(p[p != q]) + 2 for q in other)
        count += 0 if other else _sum_operations(p)
    return count


def _columns(matrix: np.ndarray, values: Sequence[tirx.Expr]) -> list[tirx.Expr]:
    """matrix @ values. Two columns that differ in signs only are added and subtracted once for all rows."""
    terms: list[tuple[np.ndarray, tirx.Expr]] = []
    for numbers in _pairs(matrix.T):
        if len(numbers) == 1:
            terms.append((matrix.T[numbers[0]], values[numbers[0]]))
        else:
            x, y = (values[n] for n in numbers)
            terms += zip(_added_and_subtracted(matrix, numbers), (T.Bind(x + y), T.Bind(x - y)))
    return [T.Bind(_sum([(column[row], v) for column, v in terms])) for row in range(len(matrix))]


def _added_and_subtracted(matrix: np.ndarray, numbers: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What a pair of columns' sum and what its difference counts in each row."""
    p, q = (matrix.T[n] for n in numbers)
    return np.where(p == q, p, 0), np.where(p != q, p, 0)


def _columns_operations(matrix: np.ndarray) -> int:
    """Of ``_columns``."""
    columns: list[np.ndarray] = []
    count = 0
    for numbers in _pairs(matrix.T):
        pair = len(numbers) == 2
        columns += _added_and_subtracted(matrix, numbers) if pair else [matrix.T[numbers[0]]]
        count += 2 * pair
    return count + sum(_sum_operations(row) for row in np.array(columns).T)
