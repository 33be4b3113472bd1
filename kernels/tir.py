"""Statements of hand-written kernels: loops, scratch memory and vectors, as Python functions that build TIR."""

from __future__ import annotations

from typing import Callable, Sequence

from tvm import tirx

_KINDS = {
    "serial": tirx.ForKind.SERIAL, "parallel": tirx.ForKind.PARALLEL, "vectorized": tirx.ForKind.VECTORIZED,
    "unrolled": tirx.ForKind.UNROLLED,
}  # fmt: skip


class Block:
    """A list of statements under construction. Methods that take a function give it a new scope to fill.

    What the rest of hwprune writes as expressions (``kernels.compute``) can be stored through it as it is.
    """

    def __init__(self) -> None:
        self._statements: list[tirx.Stmt] = []

    def stmt(self) -> tirx.Stmt:
        if len(self._statements) == 1:
            return self._statements[0]
        return tirx.SeqStmt(self._statements) if self._statements else tirx.Evaluate(tirx.IntImm("int32", 0))

    def add(self, statement: tirx.Stmt) -> None:
        self._statements.append(statement)

    def alloc(self, name: str, shape: Sequence[int], scope: str = "global") -> tirx.Buffer:
        """Scratch memory until the end of this scope; ``local`` stands for registers."""
        buffer = tirx.decl_buffer(tuple(shape), "float32", name=name, scope=scope)
        self.add(tirx.AllocBuffer(buffer))
        return buffer

    def store(self, buffer: tirx.Buffer, value: tirx.Expr, *index) -> None:
        self.add(tirx.BufferStore(buffer, value, list(index)))

    def let(self, name: str, value: tirx.Expr) -> tirx.Var:
        """A name for ``value``, which is computed once."""
        var = tirx.Var(name, value.ty)
        self.add(tirx.Bind(var, value))
        return var

    def loop(self, extent: int, body: Callable[["Block", tirx.Var | int], None], kind: str = "serial", name: str = "i") -> None:
        """``body(scope, i)`` for i below ``extent``; no loop for a single turn that is not parallel."""
        if extent == 1 and kind != "parallel":
            scope: Block = Block()
            body(scope, tirx.IntImm("int32", 0))
            self.add(scope.stmt())
            return
        var, scope = tirx.Var(name, "int32"), Block()
        body(scope, var)
        self.add(tirx.For(var, 0, extent, _KINDS[kind], scope.stmt()))

    def when(self, condition: tirx.Expr | bool, body: Callable[["Block"], None]) -> None:
        scope = Block()
        body(scope)
        self.add(tirx.IfThenElse(condition, scope.stmt(), None))


def lanes_at(start, count: int) -> tirx.Expr:
    """Index of ``count`` neighbouring elements from ``start`` on."""
    return tirx.Ramp(start, 1, count)


def vector(value: float, count: int) -> tirx.Expr:
    return tirx.Broadcast(tirx.FloatImm("float32", value), count)


def function(buffers: Sequence[tirx.Buffer], body: tirx.Stmt) -> tirx.PrimFunc:
    """A kernel over ``buffers``, its result last."""
    attrs = {"global_symbol": "main", "tirx.noalias": True}
    return tirx.PrimFunc(list(buffers), body).with_attrs(attrs)

