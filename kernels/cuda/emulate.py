"""A GPU schedule as a program for the CPU: the same loops, with those over threads turned into serial ones.

The scheduled function gives every buffer its whole extent and every stage its own loop nest; threads and memories are
annotations on them. Run in order, it computes what the GPU computes provided that the GPU's barriers keep the stages
apart, which TVM's lowering sees to. It shows wrong indices, predicates, tiles and epilogues, not races.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx


#: Without LLVM's loop vectorizer: for AVX2 it was seen to take `x[i % 4]` for eight neighbours of x (TVM 0.27).
_CPU = {"kind": "llvm", "opt-level": 1}


def build(functions: dict[str, tirx.PrimFunc]) -> tvm.runtime.Module:
    """Named functions with GPU schedules, for this machine's CPU, in one module."""
    module = tvm.IRModule({n: serial(f).with_attr("global_symbol", n) for n, f in functions.items()})
    return tirx.build(module, target=tvm.target.Target(_CPU))


def serial(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """``function`` with its thread loops serial and its memories those of a CPU. Tensor-core intrinsics are refused."""
    sch = s_tir.Schedule(function)
    for name in _block_names(function.body):
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
