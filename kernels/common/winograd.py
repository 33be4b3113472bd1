"""Winograd's F(m x m, 3x3): a 3x3 convolution as (m+2)^2 matrix products over tiles of m x m pixels.

input tile d -> B'dB, one element a matrix; each matrix times its transformed weights; result tile A'mA. The weights
G g G' are transformed when the network is compiled. F(4,3) multiplies a quarter of what a direct convolution does,
F(2,3) 4/9. Rounding errors grow with m: the rule is not exact (``hwprune compile --exact`` leaves it out).

Two partitions for the threads: ``tiles``, where a task takes rows of tiles through all three steps in cache, and
``phases``, where each step is shared out by itself (transforms by channels, products by matrices), so that every
weight is read once in all.

Source: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2015.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Callable, Sequence

import numpy as np
from tvm import tirx

from hwprune.errors import Infeasible
from hwprune.kernels.compute import Expr, expression
from hwprune.kernels.schedule import Config, Repack, divisors
from hwprune.kernels.tir import Block, function, lanes_at, vector
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "winograd"
#: its result differs from a direct convolution's by more than rounding of single additions does
exact = False

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
    if anchor is None or anchor.op != "conv2d":
        return None
    _, kh, kw, ci, _ = workload.inputs[anchor.args[1]].shape
    plain = anchor["stride"] == (1, 1) and anchor["dilation"] == (1, 1) and anchor["groups"] == 1
    if (kh, kw) != (3, 3) or not plain or anchor.get("layout", "nhwc") != "nhwc" or ci < profile.lanes:
        return None
    offered = []
    for m in (4, 2):
        base = _Geometry(workload, m, profile)
        for split, rows in _partitions(base, profile):
            tiles = base.tiles if split == "phases" else rows * base.tw
            for wt, cov in _register_tiles(base, tiles, profile)[:3]:
                config = Config.make(name, m=m, split=split, rows=rows, wt=wt, cov=cov)
                offered.append((_cost(base, profile, split, rows, wt, cov), config))
    offered.sort(key=lambda item: item[0])
    return [config for _, config in offered]


def repack(workload: Workload, config: Config) -> dict[int, Repack]:
    """The convolution's weight, transformed: [m+2, m+2, co/v, ci, v]."""
    number = workload.anchor.args[1]
    blocks, _, _, ci, lanes = workload.inputs[number].shape
    m = int(config["m"])
    return {number: Repack(f"{name} {m}", ((m + 2) ** 2, blocks, ci, lanes), _transform_weight[m])}


def _weight_transform(m: int) -> Callable[[np.ndarray], np.ndarray]:
    def transform(packed: np.ndarray) -> np.ndarray:
        blocks, _, _, ci, lanes = packed.shape
        g = _WEIGHT[m]
        return np.einsum("ik,jl,oklcv->ijocv", g, g, packed.astype(np.float64)).reshape(-1, blocks, ci, lanes).astype(np.float32)

    return transform


_transform_weight = {m: _weight_transform(m) for m in _WEIGHT}


@dataclass(frozen=True)
class _Geometry:
    workload: Workload
    m: int
    profile: TargetProfile

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
    yield "phases", g.th


def _register_tiles(g: _Geometry, tiles: int, profile: TargetProfile) -> list[tuple[int, int]]:
    """(tiles, vectors of output channels) of a product's accumulators, the cheapest first."""
    registers = profile.core.vector_registers - 2
    sizes = [(wt, cov) for wt in range(1, min(tiles, 16) + 1) for cov in range(1, min(g.blocks, 6) + 1)
             if wt * cov + cov <= registers]
    return sorted(sizes, key=lambda size: (_product_cost(g, tiles, size, profile), -size[0]))


def _product_cost(g: _Geometry, tiles: int, size: tuple[int, int], profile: TargetProfile) -> float:
    """Cycles of one of the matrix products for a reduction step, from ports, latency and loads of its inner loops."""
    core = profile.core

    def step(wt: int, cov: int) -> float:
        loads = wt + cov if cov > 1 else wt * cov + cov
        return max(wt * cov / core.fma_per_cycle, core.fma_latency_cycles, loads / 2)

    wt, cov = size
    rows, columns = [(wt, tiles // wt)], [(cov, g.blocks // cov)]
    rows += [(tiles % wt, 1)] if tiles % wt else []
    columns += [(g.blocks % cov, 1)] if g.blocks % cov else []
    return sum(step(r, c) * n * k for r, n in rows for c, k in columns)


def _cost(g: _Geometry, profile: TargetProfile, split: str, rows: int, wt: int, cov: int) -> float:
    """Cycles of a configuration: products, transforms, and weights that do not stay in a core's cache."""
    tiles = g.tiles if split == "phases" else rows * g.tw
    tasks = 1 if split == "phases" else g.out[0] * g.th // rows
    share = 1 / profile.threads if split == "phases" else math.ceil(tasks / profile.threads)
    products = g.alpha**2 * g.ci * _product_cost(g, tiles, (wt, cov), profile) * share
    transforms = tiles * (g.ci_vectors + g.blocks) * g.alpha**2 * 4 * share
    weights = 4 * g.alpha**2 * g.ci * g.blocks * g.lanes
    streamed = weights * share if split == "phases" else weights * (share if weights > profile.memory.l2_bytes / 2 else 0.25)
    return products + transforms + streamed / 16


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    return _Builder(workload, profile, config).function()


class _Builder:
    """Writes the kernel. V and M are the transformed inputs and the products: [matrix][tile][channel]."""

    def __init__(self, workload: Workload, profile: TargetProfile, config: Config):
        self.g = g = _Geometry(workload, int(config["m"]), profile)
        self.workload, self.profile, self.config = workload, profile, config
        self.wt, self.cov, self.rows = int(config["wt"]), int(config["cov"]), int(config["rows"])
        if g.th % self.rows:
            raise Infeasible(f"{config.to_text()}: {g.th} rows of tiles do not divide by {self.rows}")
        packed = repack(workload, config)
        shapes = [packed[i].shape if i in packed else t.shape for i, t in enumerate(workload.inputs)]
        self.buffers = [tirx.decl_buffer(s, "float32", name=f"x{i}") for i, s in enumerate(shapes)]
        self.result = tirx.decl_buffer(workload.output.shape, "float32", name="Y")
        self.tile: tirx.Buffer | None = None  # the result tile in registers that the epilogue reads
        self.at: tirx.Expr | None = None
        self.source: Expr | None = None
        self.epilogue = expression(workload, self.buffers, self._anchor)

    def _anchor(self, call, values) -> tuple[Expr, tuple[int, ...]]:
        self.source, _ = values[call.args[0]]
        n, oh, ow = self.g.out
        return (lambda *index: self.tile[self.at]), (n, oh, ow, self.g.blocks * self.g.lanes)

    def function(self) -> tirx.PrimFunc:
        body = Block()
        if self.config["split"] == "phases":
            self._phases(body)
        else:
            self._tasks(body)
        return function([*self.buffers, self.result], body.stmt())

    def _stride(self, tiles: int, channels: int) -> int:
        """Elements between matrices: not a multiple of what makes all of them fall into the same cache sets."""
        return tiles * channels + self.g.lanes

    def _tasks(self, body: Block) -> None:
        g, rows = self.g, self.rows
        tiles = rows * g.tw
        v_stride, m_stride = self._stride(tiles, g.ci_vectors * g.lanes), self._stride(tiles, g.blocks * g.lanes)

        def task(scope: Block, number) -> None:
            batch, first = number // (g.th // rows), number % (g.th // rows) * rows
            border = scope.alloc("P", (rows * g.m + 2, g.tw * g.m + 2, g.ci_vectors * g.lanes))
            v = scope.alloc("V", (g.alpha**2 * v_stride,))
            self._copy(scope, border, batch, first, 0, g.ci_vectors)
            scope.loop(rows, lambda s, r: s.loop(g.tw, lambda s, x: s.loop(g.ci_vectors, lambda s, c: self._transform_input(
                s, border, r, x, c, v, v_stride, (r * g.tw + x) * (g.ci_vectors * g.lanes) + c * g.lanes))))
            products = scope.alloc("M", (g.alpha**2 * m_stride,))
            scope.loop(g.alpha**2, lambda s, xi: self._product(s, xi, tiles, v, v_stride, products, m_stride))
            scope.loop(rows, lambda s, r: s.loop(g.tw, lambda s, x: s.loop(g.blocks, lambda s, o: self._transform_output(
                s, products, m_stride, (r * g.tw + x) * (g.blocks * g.lanes) + o * g.lanes, batch, first + r, x, o))))

        body.loop(g.out[0] * g.th // rows, task, "parallel", "task")

    def _phases(self, body: Block) -> None:
        g = self.g
        v_stride, m_stride = self._stride(g.tiles, g.ci_vectors * g.lanes), self._stride(g.tiles, g.blocks * g.lanes)
        v = body.alloc("V", (g.alpha**2 * v_stride,))
        products = body.alloc("M", (g.alpha**2 * m_stride,))

        def each_tile(scope: Block, batch, what: Callable) -> None:
            scope.loop(g.th, lambda s, y: s.loop(g.tw, lambda s, x: what(s, y, x, (batch * g.th + y) * g.tw + x)))

        def inputs(scope: Block, c) -> None:
            border = scope.alloc("P", (g.th * g.m + 2, g.tw * g.m + 2, g.lanes))

            def image(s: Block, batch) -> None:
                self._copy(s, border, batch, 0, c, 1)
                each_tile(s, batch, lambda s, y, x, t: self._transform_input(
                    s, border, y, x, 0, v, v_stride, t * (g.ci_vectors * g.lanes) + c * g.lanes))

            scope.loop(g.out[0], image)

        def outputs(scope: Block, o) -> None:
            scope.loop(g.out[0], lambda s, batch: each_tile(s, batch, lambda s, y, x, t: self._transform_output(
                s, products, m_stride, t * (g.blocks * g.lanes) + o * g.lanes, batch, y, x, o)))

        body.loop(g.ci_vectors, inputs, "parallel", "c")
        body.loop(g.alpha**2, lambda s, xi: self._product(s, xi, g.tiles, v, v_stride, products, m_stride), "parallel", "xi")
        body.loop(g.blocks, outputs, "parallel", "o")

    def _copy(self, scope: Block, border: tirx.Buffer, batch, first_row, first_vector, vectors: int) -> None:
        """Rows of the input with their border, from tile row ``first_row`` on."""
        g = self.g
        top, left, _, _ = self.workload.anchor["padding"]
        n, h, w, _ = self.workload.inputs[self.workload.anchor.args[0]].shape if self.workload.anchor.args[0] < len(
            self.workload.inputs) else (0, *self._input_extent(), 0)
        height, width = int(border.ty.shape[0]), int(border.ty.shape[1])

        def pixel(s: Block, y, x) -> None:
            row, column = first_row * g.m + y - top, x - left

            def lane(s: Block, i, c) -> None:
                value = self.source(batch, row, column, (first_vector + c) * g.lanes + i)
                inside = tirx.all(row >= 0, row < h, column >= 0, column < w)
                s.store(border, tirx.if_then_else(inside, value, tirx.FloatImm("float32", 0.0)), y, x, c * g.lanes + i)

            s.loop(vectors, lambda s, c: s.loop(g.lanes, lambda s, i: lane(s, i, c), "vectorized"))

        scope.loop(height, lambda s, y: s.loop(width, lambda s, x: pixel(s, y, x)))

    def _input_extent(self) -> tuple[int, int]:
        top, left, bottom, right = self.workload.anchor["padding"]
        return self.g.out[1] + 2 - top - bottom, self.g.out[2] + 2 - left - right

    def _transform_input(self, s: Block, border, row, column, c, v, stride: int, where) -> None:
        g = self.g
        load = [[s.let("d", border[row * g.m + i, column * g.m + j, lanes_at(c * g.lanes, g.lanes)]) for j in range(g.alpha)]
                for i in range(g.alpha)]
        columns = [_rows(s, _INPUT[g.m], [load[i][j] for i in range(g.alpha)]) for j in range(g.alpha)]
        for i in range(g.alpha):
            for j, value in enumerate(_rows(s, _INPUT[g.m], [columns[k][i] for k in range(g.alpha)])):
                s.store(v, value, lanes_at(where + (i * g.alpha + j) * stride, g.lanes))

    def _transform_output(self, s: Block, products, stride: int, where, batch, row, column, o) -> None:
        g = self.g
        n, oh, ow = g.out
        load = [[s.let("p", products[lanes_at(where + (i * g.alpha + j) * stride, g.lanes)]) for j in range(g.alpha)]
                for i in range(g.alpha)]
        columns = [_columns(s, _OUTPUT[g.m], [load[i][j] for i in range(g.alpha)]) for j in range(g.alpha)]
        self.tile = s.alloc("T", (g.m * g.m * g.lanes,), "local")
        for i in range(g.m):
            for j, value in enumerate(_columns(s, _OUTPUT[g.m], [columns[k][i] for k in range(g.alpha)])):
                s.store(self.tile, value, lanes_at((i * g.m + j) * g.lanes, g.lanes))

        def write(s: Block, i: int, j: int) -> None:
            def lane(s: Block, at) -> None:
                self.at = (i * g.m + j) * g.lanes + at
                y, x, channel = row * g.m + i, column * g.m + j, o * g.lanes + at
                s.store(self.result, self.epilogue(batch, y, x, channel), batch, y, x, channel)

            s.loop(g.lanes, lane, "vectorized")

        def write_row(s: Block, i: int) -> None:
            for j in range(g.m):
                if ow % g.m and j >= ow % g.m:
                    s.when(column * g.m + j < ow, lambda s: write(s, i, j))
                else:
                    write(s, i, j)

        for i in range(g.m):
            if oh % g.m and i >= oh % g.m:
                s.when(row * g.m + i < oh, lambda s: write_row(s, i))
            else:
                write_row(s, i)

    def _product(self, s: Block, xi, tiles: int, v, v_stride: int, products, m_stride: int) -> None:
        g = self.g

        def columns(s: Block, first, cov: int) -> None:
            s.loop(tiles // self.wt, lambda s, t: self._micro(s, xi, t * self.wt, first, self.wt, cov, v, v_stride, products, m_stride))
            if tiles % self.wt:
                self._micro(s, xi, tiles // self.wt * self.wt, first, tiles % self.wt, cov, v, v_stride, products, m_stride)

        s.loop(g.blocks // self.cov, lambda s, o: columns(s, o * self.cov, self.cov))
        if g.blocks % self.cov:
            columns(s, g.blocks // self.cov * self.cov, g.blocks % self.cov)

    def _micro(self, s: Block, xi, tile, block, wt: int, cov: int, v, v_stride: int, products, m_stride: int) -> None:
        """A register tile of a product: ``wt`` tiles by ``cov`` vectors."""
        g = self.g
        weight = self.buffers[self.workload.anchor.args[1]]
        acc = s.alloc("acc", (wt * cov * g.lanes,), "local")
        slots = [[lanes_at((i * cov + j) * g.lanes, g.lanes) for j in range(cov)] for i in range(wt)]
        for i in range(wt):
            for j in range(cov):
                s.store(acc, vector(0.0, g.lanes), slots[i][j])

        def step(s: Block, k) -> None:
            u = [s.let("u", weight[xi, block + j, k, lanes_at(0, g.lanes)]) for j in range(cov)]
            for i in range(wt):
                x = v[xi * v_stride + (tile + i) * (g.ci_vectors * g.lanes) + k]
                d = s.let("x", tirx.Broadcast(x, g.lanes))
                for j in range(cov):
                    s.store(acc, acc[slots[i][j]] + d * u[j], slots[i][j])

        s.loop(g.ci, step, name="k")
        for i in range(wt):
            for j in range(cov):
                where = xi * m_stride + (tile + i) * (g.blocks * g.lanes) + (block + j) * g.lanes
                s.store(products, acc[slots[i][j]], lanes_at(where, g.lanes))


def _scaled(coefficient: float, value: tirx.Expr, lanes: int) -> tirx.Expr:
    return value if coefficient == 1 else vector(coefficient, lanes) * value


def _sum(terms: Sequence[tuple[float, tirx.Expr]]) -> tirx.Expr | None:
    """Coefficients times values; positive ones first, so that nothing needs to be negated."""
    terms = sorted((t for t in terms if t[0]), key=lambda t: (t[0] < 0, abs(t[0]) != 1))
    if not terms:
        return None
    lanes = _lanes_of(terms[0][1])
    first, value = terms[0]
    total = _scaled(first, value, lanes)
    for coefficient, value in terms[1:]:
        if coefficient < 0:
            total = total - _scaled(-coefficient, value, lanes)
        else:
            total = total + _scaled(coefficient, value, lanes)
    return total


def _lanes_of(value: tirx.Expr) -> int:
    return int(str(value.ty.dtype).split("x")[1])


def _rows(s: Block, matrix: np.ndarray, values: Sequence[tirx.Expr]) -> list[tirx.Expr]:
    """matrix @ values. Two rows that differ in signs only share their sums: p = even + odd, q = even - odd."""
    results: list[tirx.Expr] = []
    i = 0
    while i < len(matrix):
        p, q = matrix[i], matrix[i + 1] if i + 1 < len(matrix) else None
        if q is not None and (np.abs(p) == np.abs(q)).all():
            even = s.let("even", _sum([(c, v) for c, d, v in zip(p, q, values) if c == d]))
            odd = s.let("odd", _sum([(c, v) for c, d, v in zip(p, q, values) if c != d]))
            results += [s.let("r", even + odd), s.let("r", even - odd)]
            i += 2
        else:
            results.append(s.let("r", _sum(list(zip(p, values)))))
            i += 1
    return results


def _columns(s: Block, matrix: np.ndarray, values: Sequence[tirx.Expr]) -> list[tirx.Expr]:
    """matrix @ values. Two columns that differ in signs only are added and subtracted once for all rows."""
    terms: list[tuple[np.ndarray, tirx.Expr]] = []
    i = 0
    while i < len(values):
        p, q = matrix[:, i], matrix[:, i + 1] if i + 1 < len(values) else None
        if q is not None and (np.abs(p) == np.abs(q)).all():
            terms.append((np.where(p == q, p, 0), s.let("plus", values[i] + values[i + 1])))
            terms.append((np.where(p != q, p, 0), s.let("minus", values[i] - values[i + 1])))
            i += 2
        else:
            terms.append((p, values[i]))
            i += 1
    return [s.let("r", _sum([(column[row], v) for column, v in terms])) for row in range(len(matrix))]
