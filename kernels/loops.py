"""Kernels written as loops, for what a tensor expression and a schedule cannot say well.

Statements are made with TVM's IRBuilder inside ``function``; the element-wise operators around an anchor come from
``compute.expression``, the same expressions that scheduled kernels use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwprune.kernels.functions import as_type
from hwprune.target import TargetProfile
from hwprune.workload import DTYPE_BYTES, TensorSpec, Workload

#: What kernels compute in, where they do not say otherwise.
FLOAT = "float32"

#: Tiles of a panel that fetch the next one; those after them find it done.
_FETCHING = 8


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
            output = T.arg("y", T.buffer(workload.output.shape, workload.output.dtype))
            body(buffers, output)
    return builder.get()


def scratch(shape: Sequence[int], dtype: str = FLOAT):
    """A buffer of the task. TVM lays it on the stack if it is smaller than a kilobyte, else it is the thread pool's scratch
    memory: taken and given back wherever it is declared, so not within a loop that matters."""
    return T.alloc_buffer(tuple(shape), dtype)


Registers = Mapping[tuple[int, int], tirx.Buffer]


def registers(
    rows: int, vectors: int, lanes: int, start: float = 0.0, dtype: str = FLOAT, last: int | None = None
) -> Registers:
    """Accumulators of a tile, ``start``: (row, vector) -> a buffer of one vector. Each is small enough for the stack, from where
    LLVM takes it into a register whatever else happens in the loop.

    last : lanes of the last vector of each row, if they are others.
    """
    widths = [lanes] * (vectors - 1) + [last or lanes]
    found = {(i, j): scratch((width,), dtype) for i in range(rows) for j, width in enumerate(widths)}
    for register in found.values():
        T.buffer_store(register, tirx.Broadcast(constant(start, dtype), width_of(register)), [tirx.Ramp(0, 1, width_of(register))])
    return found


def width_of(register: tirx.Buffer) -> int:
    """Lanes of an accumulator."""
    return int(register.shape[0])


def accumulate(acc: Registers, left: Sequence[tirx.Expr], right: Sequence[tirx.Expr]) -> None:
    """acc[i, j] += left[i] * right[j]: left are numbers, right vectors of as many lanes as their accumulators."""
    columns = [T.Bind(vector) for vector in right]
    for i, number in enumerate(left):
        wide: dict[int, tirx.Var] = {}
        for j, column in enumerate(columns):
            lanes = width_of(acc[i, j])
            if lanes not in wide:
                wide[lanes] = T.Bind(tirx.Broadcast(number, lanes))
            whole = tirx.Ramp(0, 1, lanes)
            T.buffer_store(acc[i, j], acc[i, j][whole] + wide[lanes] * column, [whole])


@dataclass(frozen=True)
class Ahead:
    """What comes after a panel of constants, fetched while the panel is in use: in a network constants come from far.

    The panel is passed over by tiles; each of the first tiles fetches its part, a line or a fraction of one with each step
    of its reduction.

    buffer : constants, one panel after the other. width : of a panel, in elements for each of ``steps`` steps.
    tiles : that pass over a panel. line_bytes : of the caches.
    """

    buffer: tirx.Buffer
    width: int
    steps: int
    tiles: int
    line_bytes: int

    def fetch(self, following, number, step, level: int) -> None:
        """Fetch what tile ``number`` has to at ``step``, of the panel that begins with element ``following``.

        level : of the cache, see ``fetch_level``. The place may lie outside of the buffer: a prefetch never fails.
        """
        parts = min(_FETCHING, self.tiles)
        line = self.line_bytes // DTYPE_BYTES[str(self.buffer.dtype)]
        lines = -(-self.width // (parts * line))
        stride = -(-self.width // (parts * lines))
        start = following + tirx.min(number, parts - 1) * (self.steps * lines * stride)
        outer = [0] * (len(self.buffer.shape) - 1)
        for i in range(lines):
            prefetch(self.buffer, (*outer, start + (i * self.steps + step) * stride), level)


def prefetch(buffer, index: Sequence, level: int) -> None:
    """Ask for the line of ``buffer`` at ``index``, to be read soon; the place may lie outside of it. level : see ``fetch_level``."""
    flags = [tirx.const(n, "int32") for n in (0, level, 1)]  # a read, of data
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", T.address_of(buffer[tuple(index)]), *flags))


def fetch_level(panel_bytes: int, profile: TargetProfile) -> int:
    """LLVM's name for the cache that a panel of so many bytes is fetched into, beside the one in use: 3 the first, 2 the second."""
    return 3 if 2 * panel_bytes <= profile.memory.l1d_bytes else 2


def shared(total: int, parts: int) -> list[tuple[int, int]]:
    """``total`` in ``parts`` runs as equal as can be: at most two (how many, size of each), the larger size first."""
    size, larger = divmod(total, parts)
    return [(count, s) for count, s in ((larger, size + 1), (parts - larger, size)) if count and s]


class Runs:
    """An extent cut into tiles of at most two sizes, all of them or those of one thread.

    sizes : (how many, size) of each, the larger size first.
    """

    def __init__(self, extent: int, largest: int):
        self.count = -(-extent // largest)
        self.sizes = shared(extent, self.count)
        self.largest = self.sizes[0][1]

    def start(self, number: int | tirx.Expr) -> int | tirx.Expr:
        """Where tile ``number`` begins; the extent itself for the number after the last."""
        (larger, size), *rest = self.sizes
        if not rest:
            return number * size
        least = tirx.min if isinstance(number, tirx.Expr) else min
        return number * rest[0][1] + least(number, larger)

    def each(self, body: Callable[[tirx.Expr, int], None], part: tuple[tirx.Expr, int] | None = None) -> None:
        """``body(start, size)`` in a loop over the tiles.

        part : (number of a thread, how many there are): only the tiles of that thread, which lie side by side.
        """
        self.numbered(lambda start, size, number: body(start, size), part)

    def numbered(self, body: Callable[[tirx.Expr, int, tirx.Expr], None], part: tuple[tirx.Expr, int] | None = None) -> None:
        """``body(start, size, number)``, as ``each``; the first of the tiles has number 0."""
        before, start = 0, 0
        first = 0 if part is None else tirx.floordiv(part[0] * self.count, part[1])
        for count, size in self.sizes:
            low, high = (0, count) if part is None else self._clipped(part, before, count)
            with T.serial(0, high - low) as turn:  # from zero: TVM 0.27 miscounts a loop from elsewhere within another one
                tile = low + turn
                body(start + tile * size, size, tile + before - first)
            before, start = before + count, start + count * size

    def turns(self, body: Callable[[tirx.Expr, int], None], part: tuple[tirx.Expr, int]) -> None:
        """``body(start, size)`` of every ``threads``-th tile, from the thread's own number on: part = (thread, threads)."""
        thread, threads = part
        before, start = 0, 0
        for count, size in self.sizes:
            first = tirx.floormod(thread - before, threads)
            with T.serial(0, tirx.floordiv(count - first + threads - 1, threads)) as turn:
                body(start + (first + turn * threads) * size, size)
            before, start = before + count, start + count * size

    def one(self, number: tirx.Expr, body: Callable[[tirx.Expr, int], None]) -> None:
        """``body(start, size)`` of tile ``number``."""
        (count, size), *rest = self.sizes
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
    """``buffer[at + lane] = value(lane)`` for all lanes at once, as the buffer's type; the last entry of ``at`` moves."""
    *outer, last = at if isinstance(at, (list, tuple)) else [at]
    with T.vectorized(lanes) as lane:
        T.buffer_store(buffer, as_type(value(lane), str(buffer.dtype)), [*outer, last + lane])


def constant(value: float, dtype: str = FLOAT) -> tirx.Expr:
    return tirx.const(value, dtype)


def folded(buffer, lanes: int, combine: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]) -> tirx.Expr:
    """The lanes of ``buffer`` combined into its first: halves upon halves."""
    while lanes > 1:
        lanes //= 2
        vector(buffer, 0, lambda lane, lanes=lanes: combine(buffer[lane], buffer[lanes + lane]), lanes)
    return buffer[0]
