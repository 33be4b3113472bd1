"""Convolutions and matrix products as one product of padded matrices, the form in which GPU rules schedule them.

    C[m, n] = sum over k of A[m, k] * B[k, n]

m runs over pixels of all images (or rows), n over output channels, k over kernel rows, columns and input channels
(implicit GEMM: A is gathered while it is fetched and never stored). All three are padded to whole tiles with zeros, so
tiles need no edges; the result's padding is never read.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import s_tir, te, tirx

from hwprune.kernels.compute import Computation, compute, padded_input
from hwprune.workload import OpCall, Workload


@dataclass(frozen=True)
class Product:
    """Extents of a workload's product, before padding.

    contiguous : whether aligned vectors of k lie next to each other in memory and share their border condition.
    """

    m: int
    n: int
    k: int
    lanes: int
    contiguous: bool

    @staticmethod
    def of(workload: Workload) -> "Product | None":
        """The product that ``workload`` computes; None if it is no single one, as grouped convolutions are not."""
        anchor = workload.anchor
        if anchor is None or anchor.op not in ("conv2d", "dense") or anchor.get("groups", 1) != 1:
            return None
        weight = workload.inputs[anchor.args[1]].shape
        lanes = weight[-1]
        if anchor.op == "dense":
            return Product(workload.output.shape[0], weight[0] * lanes, weight[1], lanes, weight[1] % lanes == 0)
        blocks, kh, kw, ci, _ = weight
        n, oh, ow = anchor["out"][:3]
        nchw = anchor.get("layout", "nhwc") == "nchw"
        return Product(n * oh * ow, blocks * lanes, kh * kw * ci, lanes, ci % lanes == 0 and not nchw)


def rounded(value: int, tile: int) -> int:
    return -(-value // tile) * tile


def product(workload: Workload, tile: tuple[int, int, int]) -> Computation:
    """``workload`` over matrices padded to multiples of ``tile`` (m, n, k). The blocks are A, B, C and the result Y."""
    builder = _Builder(Product.of(workload), tile)
    return compute(workload, {"conv2d": builder.conv2d, "dense": builder.dense})


def pixels_first(sch: s_tir.Schedule, workload: Workload) -> None:
    """Let the result's block run over (pixel of all images, channel), so that tiles of pixels cross rows and images."""
    if len(workload.output.shape) == 4:
        _, oh, ow, _ = workload.output.shape
        sch.transform_block_layout("Y", lambda b, y, x, c: ((b * oh + y) * ow + x, c))


class _Builder:
    def __init__(self, shape: Product, tile: tuple[int, int, int]):
        self.shape = shape
        self.m, self.n, self.k = (rounded(v, t) for v, t in zip((shape.m, shape.n, shape.k), tile))

    def dense(self, call: OpCall, values, workload: Workload):
        rows, _ = values[call.args[0]]
        weight, (blocks, _, v) = values[call.args[1]]
        acc = self._sum(lambda m, k: rows(m, k), lambda k, n: weight(n // v, k, n % v))
        return (lambda r, c: acc[r, c]), (self.shape.m, blocks * v)

    def conv2d(self, call: OpCall, values, workload: Workload):
        weight, (blocks, kh, kw, ci, v) = values[call.args[1]]
        padded = padded_input(call, values, ci)
        (sy, sx), (dy, dx) = call["stride"], call["dilation"]
        n, ph, pw, _ = (int(d) for d in padded.shape)
        oh, ow = (ph - dy * (kh - 1) - 1) // sy + 1, (pw - dx * (kw - 1) - 1) // sx + 1

        def factor(m, k):
            y, x = m // ow % oh * sy + k // (kw * ci) * dy, m % ow * sx + k // ci % kw * dx
            return padded[m // (oh * ow), y, x, k % ci]

        def kernel(k, n):
            return weight(n // v, k // (kw * ci), k // ci % kw, k % ci, n % v)

        acc = self._sum(factor, kernel)
        return (lambda b, y, x, c: acc[(b * oh + y) * ow + x, c]), (n, oh, ow, blocks * v)

    def _sum(self, factor, kernel):
        shape, zero = self.shape, tirx.const(0.0, "float32")

        def a(m, k):
            return _where([(m, shape.m, self.m), (k, shape.k, self.k)], factor(m, k), zero)

        def b(k, n):
            return _where([(n, shape.n, self.n), (k, shape.k, self.k)], kernel(k, n), zero)

        left, right = te.compute((self.m, self.k), a, name="A"), te.compute((self.k, self.n), b, name="B")
        axis = te.reduce_axis((0, self.k), "k")
        return te.compute((self.m, self.n), lambda m, n: te.sum(left[m, axis] * right[axis, n], axis=[axis]), name="C")


def block_tiles(sch: s_tir.Schedule, bm: int, bn: int):
    """Cut the result into tiles of bm x bn, one a block: the loop over blocks, and the two within a tile."""
    m, channel = sch.get_loops("Y")
    mo, mi = sch.split(m, [None, bm])
    no, ni = sch.split(channel, [None, bn])
    sch.reorder(mo, no, mi, ni)
    at = sch.fuse(mo, no)
    sch.bind(at, "blockIdx.x")
    return at, (mi, ni)


def _where(limits, value, otherwise):
    """``value`` where each index is below its limit; limits that the whole padded extent satisfies are not asked."""
    inside = [index < limit for index, limit, extent in limits if limit < extent]
    return tirx.if_then_else(tirx.all(*inside), value, otherwise) if inside else value
