"""Bytes that a scheduled kernel moves between levels of the memory, from its loops.

The scheduled function is lowered to plain loops over buffers. What a loop touches is its *footprint*: for each buffer, the
box of elements that its accesses reach while the loops within run and those around stand still, in whole cache lines. A
cache of some size serves a loop if the footprint fits, or if one iteration's does: then what the next iteration shares
with it is still there, and each byte of the loop's footprint comes from the level behind once. Otherwise every iteration
fetches its own (the analysis of Wolf and Lam, 1991, with boxes instead of reuse vectors). Caches are thought to be fully
associative and to keep what was used last. Buffers small enough for registers or the nearest lines of the stack are free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Iterable, Mapping, Sequence

import tvm
from tvm import s_tir, tirx
from tvm.s_tir import transform

from hwprune.cost.intervals import Interval, Span, Where, interval, number_of
from hwprune.errors import NoLatency

LINE_BYTES = 64
#: Buffers of a kernel up to this size hold accumulators and staged operands: registers.
_REGISTER_BYTES = 2048
#: Of each dimension of a buffer: lowest and highest index reached, and how many different ones at most.
Box = list[Span]


def _constant(value: int) -> Interval:
    return interval(value, {})


@dataclass(frozen=True)
class Access:
    """Where a load or store reaches. ``buffer``: its number in ``Loops.buffers``."""

    buffer: int
    indices: tuple[Interval, ...]


@dataclass
class Loop:
    """A loop, or a sequence where ``var`` is None. ``tasks``: its iterations are shared among the threads.

    Of a bound that varies, the largest value counts.
    """

    var: tirx.Var | None = None
    low: Interval = _constant(0)
    extent: Interval = _constant(1)
    tasks: bool = False
    children: list["Loop | Access"] = field(default_factory=list)

    def of(self, extent: int) -> "Loop":
        """The same loop, as one thread runs it, with so many iterations."""
        return Loop(self.var, self.low, _constant(extent), False, self.children)

    @property
    def body(self) -> "Loop":
        return Loop(children=self.children)


class Loops:
    """The loops of one scheduled function, run by ``threads`` threads.

    buffers : what is touched, the function's arguments first, in their order. arguments : how many of these there are.
    """

    def __init__(self, function: tirx.PrimFunc, threads: int):
        self.threads = threads
        self.root = Loop()
        plain = _lowered(function)
        self.buffers: list[tirx.Buffer] = list(plain.params)
        self.arguments = len(self.buffers)
        self._bound: dict[int, Interval] = {}
        self._seen: dict[tuple, tuple[list, dict[int, Box]]] = {}
        self._number = {b: n for n, b in enumerate(self.buffers)}
        self._statement(plain.body, self.root)

    # -- bytes

    def footprint(self) -> dict[int, int]:
        """Bytes of each buffer (by number) that the kernel touches at all, in whole lines."""
        return self._footprint(self.root, {})

    def traffic(self, cache_bytes: int, *, shared: bool) -> dict[int, int]:
        """Bytes of each buffer (by number) that pass between a cache and what lies behind it, once at least.

        shared : the cache is one for all threads, and bytes are those of all of them; else it is each thread's own, and
            bytes are those of the thread with the most work.
        """
        return self._traffic(self.root, {}, cache_bytes, shared)

    def _traffic(self, node: Loop, fixed: Where, cache: int, shared: bool) -> dict[int, int]:
        if node.tasks:
            return self._of_tasks(node, fixed, cache, shared)
        whole = self._footprint(node, fixed)
        if sum(whole.values()) <= cache and not _holds_tasks(node):
            return whole
        if node.var is None:
            accesses = [c for c in node.children if isinstance(c, Access)]
            loops = [self._traffic(c, fixed, cache, shared) for c in node.children if isinstance(c, Loop)]
            return _sum([*loops, self._footprint(Loop(children=accesses), fixed)])
        inside = {**fixed, number_of(node.var): _at(node.low, fixed)}
        if sum(self._footprint(node.body, inside).values()) <= cache:
            return whole
        extent = node.extent(fixed)[1]
        return {n: extent * count for n, count in self._traffic(node.body, inside, cache, shared).items()}

    def _of_tasks(self, node: Loop, fixed: Where, cache: int, shared: bool) -> dict[int, int]:
        extent = node.extent(fixed)[1]
        waves = -(-extent // self.threads)
        if not shared:
            return self._traffic(node.of(waves), fixed, cache, shared)
        whole = self._footprint(node.of(extent), fixed)
        if sum(whole.values()) <= cache:
            return whole
        inside = {**fixed, number_of(node.var): _at(node.low, fixed)}
        one = self._footprint(node.body, inside)
        each = self._traffic(node.body, inside, cache // min(self.threads, extent), shared)
        # threads run abreast: what all of them read comes once for all, what is a task's own once for each
        return {n: max(whole[n], (waves if whole[n] == one[n] else extent) * count) for n, count in each.items()}

    def _footprint(self, node: Loop, fixed: Where) -> dict[int, int]:
        return {n: _box_bytes(box, self.buffers[n]) for n, box in self._boxes([node], fixed).items()}

    def _boxes(self, nodes: Iterable["Loop | Access"], where: Where) -> dict[int, Box]:
        found: dict[int, Box] = {}
        for node in nodes:
            if isinstance(node, Access):
                parts = {node.buffer: [index(where) for index in node.indices]}
            elif node.var is None:
                parts = self._within(node, where)
            else:
                low, extent = node.low(where)[1], max(node.extent(where)[1], 1)
                parts = self._within(node, {**where, number_of(node.var): (low, low + extent - 1, extent)})
            for number, box in parts.items():
                found[number] = _joined(found[number], box) if number in found else box
        return found

    def _within(self, node: Loop, where: Where) -> dict[int, Box]:
        """Boxes of what is in a loop; caches of different sizes ask for the same ones."""
        key = id(node.children), tuple(where.items())
        if key not in self._seen:
            self._seen[key] = node.children, self._boxes(node.children, where)  # a list that is kept keeps its id
        return self._seen[key][1]

    # -- reading the function; both sides of a condition count as taken, borders are thin

    def _statement(self, s: Any, into: Loop) -> None:
        if isinstance(s, tirx.SeqStmt):
            for part in s.seq:
                self._statement(part, into)
        elif isinstance(s, tirx.For):
            loop = Loop(
                s.loop_var, interval(s.min, self._bound), interval(s.extent, self._bound), s.kind == tirx.ForKind.PARALLEL
            )
            self._statement(s.body, loop)
            if loop.children:
                into.children.append(loop)
        elif isinstance(s, tirx.IfThenElse):
            self._expression(s.condition, into)
            for case in (s.then_case, s.else_case):
                if case is not None:
                    self._statement(case, into)
        elif isinstance(s, tirx.BufferStore):
            self._expression(s.value, into)
            self._access(s.buffer, s.indices, into)
        elif isinstance(s, tirx.Bind):
            self._expression(s.value, into)
            self._bind(s.var, s.value)
        elif isinstance(s, tirx.Evaluate):
            self._expression(s.value, into)
        elif isinstance(s, tirx.AttrStmt):
            self._statement(s.body, into)
        elif not isinstance(s, (tirx.AllocBuffer, tirx.DeclBuffer, tirx.AssertStmt)):
            raise NoLatency(f"a statement of the kernel is not understood: {type(s).__name__}")

    def _expression(self, e: Any, into: Loop) -> None:
        if isinstance(e, tvm.ir.TensorLoad):
            self._access(e.source, e.indices, into)
        elif isinstance(e, tirx.Let):
            self._expression(e.value, into)
            self._bind(e.var, e.value)
            self._expression(e.body, into)
        else:
            for part in _parts(e):
                self._expression(part, into)

    def _bind(self, var: tirx.Var, value: Any) -> None:
        """Let ``var`` stand for ``value``, which is looked at where an index uses it: most are vectors of data."""
        read: list[Interval] = []

        def bound(where: Where) -> Span:
            if not read:
                read.append(interval(value, self._bound))
            return read[0](where)

        self._bound[number_of(var)] = bound

    def _access(self, buffer: tirx.Buffer, indices: Sequence[Any], into: Loop) -> None:
        if buffer not in self._number:
            if math.prod(map(int, buffer.shape)) * _item_bytes(buffer) <= _REGISTER_BYTES:
                return
            self._number[buffer] = len(self.buffers)
            self.buffers.append(buffer)
        into.children.append(Access(self._number[buffer], tuple(interval(i, self._bound) for i in indices)))


def _at(low: Interval, fixed: Where) -> Span:
    """A loop's variable in its first iteration."""
    first = low(fixed)[1]
    return first, first, 1


def _holds_tasks(node: Loop) -> bool:
    return any(isinstance(c, Loop) and (c.tasks or _holds_tasks(c)) for c in node.children)


def _joined(a: Box, b: Box) -> Box:
    """The smallest box around both; different indices add up, at most to all of the box."""
    sides = [(min(x[0], y[0]), max(x[1], y[1]), x[2] + y[2]) for x, y in zip(a, b)]
    return [(low, high, min(count, high - low + 1)) for low, high, count in sides]


def _box_bytes(box: Box, buffer: tirx.Buffer) -> int:
    """Bytes of a box of ``buffer`` in whole lines: runs of elements that lie side by side."""
    run, runs, joined = 1, 1, True
    for (_, _, count), extent in zip(reversed(box), reversed([int(n) for n in buffer.shape])):
        count = min(count, extent)
        if joined:
            run *= count
            joined = count == extent
        else:
            runs *= count
    return runs * -(-run * _item_bytes(buffer) // LINE_BYTES) * LINE_BYTES


def _item_bytes(buffer: tirx.Buffer) -> int:
    return tvm.DataType(str(buffer.dtype)).itemsize


def _sum(parts: Sequence[Mapping[int, int]]) -> dict[int, int]:
    found: dict[int, int] = {}
    for part in parts:
        for number, count in part.items():
            found[number] = found.get(number, 0) + count
    return found


#: The function's blocks go, its own buffers become as large as they are.
_OF_BLOCKS = (
    "CanonicalizeLoop", "LowerInitBlock", "PlanAndUpdateBufferAllocationLocation", "ConvertBlocksToOpaque",
    "CompactBufferAllocation", "LowerOpaqueBlock",
)  # fmt: skip


def _lowered(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function as plain loops over buffers. One that was written as such keeps its buffers, and TVM takes long to find that out."""
    module = tvm.IRModule({"main": function})
    for name in (*(_OF_BLOCKS if isinstance(function.body, s_tir.SBlockRealize) else ()), "StmtSimplify"):
        module = getattr(transform, name)()(module)
    return module["main"]


def _parts(e: Any) -> Iterable[Any]:
    """The operands of an expression."""
    if isinstance(e, tvm.ir.Call):
        return e.args
    names = _OPERANDS.get(type(e))
    if names is None:
        names = () if isinstance(e, _LEAVES) else tuple(n for n in _NAMES if hasattr(e, n))
        _OPERANDS[type(e)] = names
    return [part for name in names if not isinstance(part := getattr(e, name), (int, float, str))]


_NAMES = ("a", "b", "value", "condition", "true_value", "false_value", "base")
_LEAVES = (tirx.IntImm, tirx.FloatImm, tirx.Var)
#: Kind of expression -> names of its operands, as far as any was met.
_OPERANDS: dict[type, tuple[str, ...]] = {}
