"""Kernels written as loops, for what a tensor expression and a schedule cannot say well.

Statements are made with TVM's IRBuilder inside ``function``; the element-wise operators around an anchor come from
``compute.expression``, the same expressions that scheduled kernels use.
"""

from __future__ import annotations

from typing import Callable, Sequence

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwprune.workload import TensorSpec, Workload

FLOAT = "float32"


def function(
    workload: Workload, body: Callable[[list, object], None], inputs: Sequence[TensorSpec] | None = None
) -> tirx.PrimFunc:
    """The function of ``workload`` whose statements ``body(inputs, output)`` makes.

    inputs : as the kernel reads them, where that is not as the workload has them.
    """
    specs = workload.inputs if inputs is None else inputs
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"tirx.noalias": True})
            buffers = [T.arg(f"x{i}", T.buffer(t.shape, t.dtype)) for i, t in enumerate(specs)]
            output = T.arg("y", T.buffer(workload.output.shape, FLOAT))
            body(buffers, output)
    return builder.get()


def scratch(shape: Sequence[int]):
    """A buffer of the task: on its stack."""
    return T.alloc_buffer(tuple(shape), FLOAT, scope="local")


def shared(total: int, parts: int) -> list[tuple[int, int]]:
    """``total`` in ``parts`` runs as equal as can be: at most two (how many, size of each), the larger size first."""
    size, larger = divmod(total, parts)
    return [(count, s) for count, s in ((larger, size + 1), (parts - larger, size)) if count and s]


class Runs:
    """An extent cut into tiles of at most two sizes, all of them or those of one thread."""

    def __init__(self, extent: int, largest: int):
        self.count = -(-extent // largest)
        self._sizes = shared(extent, self.count)

    def each(self, body: Callable[[tirx.Expr, int], None], part: tuple[tirx.Expr, int] | None = None) -> None:
        """``body(start, size)`` in a loop over the tiles.

        part : (number of a thread, how many there are): only the tiles of that thread.
        """
        before, start = 0, 0
        for count, size in self._sizes:
            low, high = (0, count) if part is None else self._clipped(part, before, count)
            with T.serial(low, high) as tile:
                body(start + tile * size, size)
            before, start = before + count, start + count * size

    def one(self, number: tirx.Expr, body: Callable[[tirx.Expr, int], None]) -> None:
        """``body(start, size)`` of tile ``number``."""
        (count, size), *rest = self._sizes
        if not rest:
            return body(number * size, size)
        with T.If(number < count):
            with T.Then():
                body(number * size, size)
            with T.Else():
                body(count * size + (number - count) * rest[0][1], rest[0][1])

    def _clipped(self, part: tuple[tirx.Expr, int], before: int, count: int):
        number, parts = part
        low, high = (tirx.floordiv(n * self.count, parts) - before for n in (number, number + 1))
        return tirx.max(low, 0), tirx.max(tirx.min(high, count), tirx.max(low, 0))


def vector(buffer, at, value: Callable[[tirx.Expr], tirx.Expr], lanes: int) -> None:
    """``buffer[at + lane] = value(lane)`` for all lanes at once; the last entry of ``at`` moves."""
    *outer, last = at if isinstance(at, (list, tuple)) else [at]
    with T.vectorized(lanes) as lane:
        T.buffer_store(buffer, value(lane), [*outer, last + lane])


def constant(value: float) -> tirx.Expr:
    return tirx.const(value, FLOAT)


def folded(buffer, lanes: int, combine: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]) -> tirx.Expr:
    """The lanes of ``buffer`` combined into its first: halves upon halves."""
    while lanes > 1:
        lanes //= 2
        vector(buffer, 0, lambda lane, lanes=lanes: combine(buffer[lane], buffer[lanes + lane]), lanes)
    return buffer[0]
