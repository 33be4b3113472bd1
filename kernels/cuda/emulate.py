"""A GPU schedule as a program for the CPU: the same loops, with those over threads turned into serial ones.

The scheduled function gives every buffer its whole extent and every stage its own loop nest; threads and memories are
annotations on them. Run in order, it computes what the GPU computes provided that the GPU's barriers keep the stages
apart, which TVM's lowering sees to. It shows wrong indices, predicates, tiles and epilogues, not races.

Kernels for tensor cores are written for ``Emulated`` instead of a card: their threads run one after the other between
barriers, registers of all of them lie in memory, and a warp's instruction multiplies what lies in the registers in which
the card would look for it. A lane that holds another element than it should spoils the result.
"""

from __future__ import annotations

from typing import Callable

import tvm
from tvm import s_tir, tirx
from tvm.script.ir_builder import tirx as T

from hwprune.kernels import primfunc
from hwprune.kernels.cuda import tensor
from hwprune.kernels.cuda.ptx import TF32, Precision
from hwprune.kernels.loops import FLOAT, constant, vector
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import Workload

#: Without LLVM's loop vectorizer: for AVX2 it was seen to take `x[i % 4]` for eight neighbours of x (TVM 0.27).
_CPU = {"kind": "llvm", "opt-level": 1}


def build(functions: dict[str, tirx.PrimFunc]) -> tvm.runtime.Module:
    """Named functions with GPU schedules, or made by ``function``, for this machine's CPU, in one module."""
    module = tvm.IRModule({n: serial(f).with_attr("global_symbol", n) for n, f in functions.items()})
    return tirx.build(module, target=tvm.target.Target(_CPU))


def function(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    """What the kernel of ``config`` does, as a function that ``build`` takes."""
    if config.rule == tensor.name:
        return tensor.written(workload, profile, config, Emulated)
    return primfunc(workload, profile, config)


def serial(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """``function`` with its thread loops serial and its memories those of a CPU."""
    names = _block_names(function.body)
    if not names:  # loops for a CPU already
        return function
    sch = s_tir.Schedule(function)
    for name in names:
        block = sch.get_sblock(name)
        if sch.get(block).writes[0].source.scope() != "global":
            sch.set_scope(block, 0, "global")
    scheduled = sch.mod["main"]
    return scheduled.with_body(_without_threads(scheduled.body))


def _children(node: tirx.Stmt) -> list[tirx.Stmt]:
    if isinstance(node, tirx.SeqStmt):
        return list(node.seq)
    if isinstance(node, s_tir.SBlockRealize):
        return [node.block]
    if isinstance(node, (tirx.For, s_tir.SBlock)):
        return [node.body]
    return []


def _block_names(node: tirx.Stmt) -> list[str]:
    own = [node.name_hint] if isinstance(node, s_tir.SBlock) and node.name_hint != "root" else []
    return own + [name for child in _children(node) for name in _block_names(child)]


def _without_threads(node: tirx.Stmt) -> tirx.Stmt:
    """The statement with its thread loops serial."""
    if isinstance(node, tirx.SeqStmt):
        return tirx.SeqStmt([_without_threads(child) for child in node.seq])
    if isinstance(node, s_tir.SBlockRealize):
        return s_tir.SBlockRealize(node.iter_values, node.predicate, _without_threads(node.block))
    if isinstance(node, s_tir.SBlock):
        body = _without_threads(node.body)
        return s_tir.SBlock(node.iter_vars, node.reads, node.writes, node.name_hint, body, node.init,
                            node.alloc_buffers, node.match_buffers, node.annotations)  # fmt: skip
    if isinstance(node, tirx.For):
        bound = node.kind == tirx.ForKind.THREAD_BINDING
        kind, thread = (tirx.ForKind.SERIAL, None) if bound else (tirx.ForKind(node.kind), node.thread_binding)
        return tirx.For(node.loop_var, node.min, node.extent, kind, _without_threads(node.body), thread, node.annotations)
    return node


class Emulated:
    """The methods of ``ptx.Card``, on a CPU."""

    def __init__(self, warps: int, warp_size: int):
        self.warp_count, self.warp_size = warps, warp_size
        self.warp = self.lane = None

    def launch(self, blocks: int, body: Callable[[tirx.Expr], None]) -> None:
        self.each(blocks, body)

    def shared(self, words: int, dtype: str):
        return T.alloc_buffer((words,), dtype)

    def registers(self, count: int, dtype: str) -> "EmulatedRegisters":
        return EmulatedRegisters(T.alloc_buffer((self.warp_count, self.warp_size, count), dtype), self)

    def warps(self, body: Callable[[], None]) -> None:
        with T.serial(self.warp_count) as self.warp:
            body()

    def lanes(self, body: Callable[[], None]) -> None:
        with T.serial(self.warp_size) as self.lane:
            body()

    def threads(self, body: Callable[[], None]) -> None:
        self.warps(lambda: self.lanes(body))

    def each(self, count: int, body: Callable[[tirx.Expr], None]) -> None:
        with T.serial(count) as i:
            body(i)

    unrolled = each

    def when(self, condition, body: Callable[[], None]) -> None:
        with T.If(condition), T.Then():
            body()

    def copy(self, target, at, source, offset, valid=None) -> None:
        with T.serial(4) as i:
            word = source[offset + i]
            word = word if target.dtype == source.dtype else tirx.reinterpret(target.dtype, word)
            if valid is not None:
                word = tirx.if_then_else(i < valid, word, tirx.const(0, target.dtype))
            T.buffer_store(target, word, [at + i])

    def commit(self) -> None:
        """Copies are done as they start. That they are waited for long enough is ``pipeline``'s to show."""

    def wait(self, pending: int) -> None:
        pass

    def barrier(self) -> None:
        pass

    def round(self, precision: Precision, result: "EmulatedRegisters", at, values) -> None:
        if precision is TF32:
            result.store(at, tirx.reinterpret("uint32", values[0]) + _word(0x1000) & _word(0xFFFFE000))
            return
        low, high = (tirx.Cast("uint32", tirx.reinterpret("uint16", tirx.Cast("float16", v))) for v in values)
        result.store(at, low | high << _word(16))

    def multiply(
        self, precision: Precision, sums: "EmulatedRegisters", c, left: "EmulatedRegisters", a, right: "EmulatedRegisters", b
    ) -> None:
        """After PTX ISA, matrix fragments: rows r and r + 8 of a 16 x 8 result, k at a time."""
        lane_of = _tf32_lane if precision is TF32 else _float16_lane
        with T.serial(8) as row, T.serial(8) as column, T.serial(16 // precision.instructions) as k:
            y_lane, q = row * 4 + column // 2, column % 2
            lane, high, part = lane_of(k)
            factor = _factor(right.of(column * 4 + lane, b + high), part)
            for h in range(2):
                value = _factor(left.of(row * 4 + lane, a + h + 2 * high), part)
                for parity in range(2):
                    with T.If(q == parity), T.Then():
                        sums.store_of(y_lane, c[2 * h + parity], sums.of(y_lane, c[2 * h + parity]) + value * factor)


def _word(value: int):
    return tirx.const(value, "uint32")


def _tf32_lane(k) -> tuple:
    """m16n8k8, TF32: the lane of its row or column that holds ``k``, whether in its higher register, and in which part of it."""
    return k % 4, k // 4, None


def _float16_lane(k) -> tuple:
    """m16n8k16, float16: as above; two neighbours share a register, the first in its lower half."""
    return k % 8 // 2, k // 8, k % 2


def _factor(register, part):
    """The factor in a register: of a whole one, tensor cores ignore what TF32 does not have."""
    if part is None:
        return tirx.reinterpret(FLOAT, register & _word(0xFFFFE000))
    half = register >> tirx.Cast("uint32", part * 16) & _word(0xFFFF)
    return tirx.Cast(FLOAT, tirx.reinterpret("float16", tirx.Cast("uint16", half)))


class EmulatedRegisters:
    """Registers of all threads, seen from the one that runs."""

    def __init__(self, buffer, machine: Emulated):
        self.buffer, self.machine = buffer, machine

    def __getitem__(self, at):
        return self.of(self.machine.lane, at)

    def of(self, lane, at):
        return self.buffer[self.machine.warp, lane, at]

    def store(self, at, value) -> None:
        self.store_of(self.machine.lane, at, value)

    def store_of(self, lane, at, value) -> None:
        T.buffer_store(self.buffer, value, [self.machine.warp, lane, at])

    def load(self, at, source, offset) -> None:
        vector(self.buffer, [self.machine.warp, self.machine.lane, at], lambda lane: source[offset + lane], 4)

    def clear(self) -> None:
        with T.serial(int(self.buffer.shape[-1])) as i:
            self.store(i, constant(0.0))
