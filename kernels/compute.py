"""Tensor expressions of workloads: what is computed, without how.

Activations are channels-last with their innermost axis padded to the vector width; weights arrive packed by
``hwprune.compile.constants``. Lanes beyond a tensor's logical width may hold anything: nothing reads them but element-wise
lanes of the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

from tvm import te, tirx

from hwprune.errors import UnsupportedOperator
from hwprune.kernels.functions import ELEMENTWISE, FLOAT16_TERMS, as_type, literal, single
from hwprune.kernels.movement import MOVEMENT
from hwprune.workload import ANCHORS, OpCall, Workload

Expr = Callable[..., tirx.Expr]
#: an expression and its shape
Value = tuple[Expr, tuple[int, ...]]
Anchor = Callable[[OpCall, Sequence[Value]], Value]


@dataclass
class Computation:
    """A workload as tensor expressions. ``padded`` is the anchor's input copy with its border, where it has one."""

    inputs: list[te.Tensor]
    output: te.Tensor

    def primfunc(self) -> tirx.PrimFunc:
        return te.create_prim_func([*self.inputs, self.output])


def compute(workload: Workload, anchors: Mapping[str, Callable] | None = None) -> Computation:
    """Build the expressions of ``workload``. UnsupportedOperator names an operator that has none.

    anchors : anchors by operator that a rule expresses its own way, such as a convolution as a matrix product.
    """
    inputs = [te.placeholder(t.shape, t.dtype, name=f"x{i}") for i, t in enumerate(workload.inputs)]
    expr, shape = _evaluated(workload, inputs, lambda call, values: _anchor(call, values, workload, anchors or {}))
    output = te.compute(shape, lambda *index: as_type(expr(*index), workload.output.dtype), name="Y")
    return Computation(inputs, output)


def has_plain_loops(workload: Workload) -> bool:
    """Whether ``compute`` has expressions for the anchor of ``workload``; others are written as loops by their rule only."""
    return workload.anchor is None or workload.anchor.op in ANCHOR_RULES


def _anchor(call: OpCall, values: Sequence[Value], workload: Workload, others: Mapping[str, Callable]) -> Value:
    rule = others.get(call.op) or ANCHOR_RULES.get(call.op)
    if rule is None:
        raise UnsupportedOperator(f"operator {call.op!r} has no tensor expression (workload {workload.key})")
    return rule(call, values, workload)


def expression(workload: Workload, buffers: Sequence[tirx.Buffer], anchor: Anchor) -> Expr:
    """The result of ``workload`` at an index, over buffers that hold its inputs.

    anchor : (call, values so far) -> expression and shape of the anchor's result, for kernels that compute it their way.
    """
    return _evaluated(workload, buffers, anchor)[0]


def _evaluated(workload: Workload, inputs: Sequence[te.Tensor | tirx.Buffer], anchor: Anchor) -> Value:
    values: list[Value] = [(_reader(x, workload.dtype), t.shape) for x, t in zip(inputs, workload.inputs)]
    for call in workload.ops:
        if call.op in ANCHORS:
            values.append(anchor(call, values))
        elif call.op in ELEMENTWISE:
            values.append(_elementwise(call, values))
        elif call.op in MOVEMENT:
            values.append(MOVEMENT[call.op](call, values))
        else:
            raise UnsupportedOperator(f"no kernel computes operator {call.op!r} (workload {workload.key})")
    expr, shape = values[-1]
    if tuple(workload.output.shape) != tuple(shape):
        raise UnsupportedOperator(f"workload {workload.key} computes shape {shape}, but declares {workload.output.shape}")
    return expr, shape


def chain(workload: Workload, buffers: Sequence[tirx.Buffer], anchor: Expr) -> Expr:
    """``expression`` where ``anchor`` says what the anchor gives at an index of the result."""
    return expression(workload, buffers, lambda call, values: ((lambda *i: as_type(anchor(*i), workload.dtype)), workload.output.shape))


def _reader(item: te.Tensor | tirx.Buffer, dtype: str) -> Expr:
    if isinstance(item, te.Tensor):
        return lambda *index: as_type(item(*index), dtype)
    return lambda *index: as_type(item[index], dtype)


# --- element-wise -----------------------------------------------------------------------------------------------

def _elementwise(call: OpCall, values) -> tuple[Expr, tuple[int, ...]]:
    operands = [values[i] for i in call.args]
    shape = _broadcast([s for _, s in operands])
    function = ELEMENTWISE[call.op]

    def expr(*index):
        return function(call, *(_read_broadcast(e, s, index) for e, s in operands))

    return expr, shape


def _broadcast(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    return tuple(max(dims) for dims in zip(*padded))


def _read_broadcast(expr: Expr, shape: tuple[int, ...], index):
    own = index[len(index) - len(shape):]
    return expr(*(tirx.IntImm("int32", 0) if d == 1 else i for i, d in zip(own, shape)))


# --- anchors ----------------------------------------------------------------------------------------------------

def padded_input(call: OpCall, values, channels: int):
    """The convolution's or pool's input with its border, NHWC over the logical channels."""
    expr, shape = values[call.args[0]]
    top, left, bottom, right = call["padding"]
    nchw = call.get("layout", "nhwc") == "nchw"
    n, h, w = (shape[0], shape[2], shape[3]) if nchw else shape[:3]
    border = call.get("border", 0.0)

    def read(b, y, x, c):
        y, x = y - top, x - left
        value = expr(b, c, y, x) if nchw else expr(b, y, x, c)
        inside = [cond for cond, needed in ((y >= 0, top), (y < h, bottom), (x >= 0, left), (x < w, right)) if needed]
        return tirx.if_then_else(tirx.all(*inside), value, literal(value, border)) if inside else value

    return te.compute((n, h + top + bottom, w + left + right, channels), read, name="P")


def _products(a: tirx.Expr, b: tirx.Expr, axes: Sequence) -> tirx.Expr:
    """The sum over ``axes`` of a times b; in float32 where it has too many terms for float16."""
    if math.prod(int(axis.dom.extent) for axis in axes) > FLOAT16_TERMS:
        a, b = single(a), single(b)
    return te.sum(a * b, axis=list(axes))


def _conv2d(call: OpCall, values, workload: Workload):
    """Direct convolution. Weight packed [co/v, kh, kw, ci/groups, v]; result NHWC with co padded to v."""
    (weight, wshape), groups = values[call.args[1]], call["groups"]
    blocks, kh, kw, ci, v = wshape
    padded = padded_input(call, values, ci * groups)
    sy, sx = call["stride"]
    dy, dx = call["dilation"]
    n, ph, pw, _ = padded.shape
    oh, ow = (int(ph) - dy * (kh - 1) - 1) // sy + 1, (int(pw) - dx * (kw - 1) - 1) // sx + 1
    ry, rx, rc = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx"), te.reduce_axis((0, ci), "rc")
    per_group = call["channels"] // groups

    def at(o, lane):
        if groups == 1:
            return rc
        if per_group % v == 0:
            return o // (per_group // v) * ci + rc
        # lanes of one vector belong to several groups: a gather, correct if not quick
        return tirx.min((o * v + lane) // per_group, groups - 1) * ci + rc

    acc = te.compute(
        (int(n), oh, ow, blocks, v),
        lambda b, y, x, o, lane: _products(
            padded[b, y * sy + ry * dy, x * sx + rx * dx, at(o, lane)], weight(o, ry, rx, rc, lane), [ry, rx, rc]
        ),
        name="C",
    )
    return (lambda b, y, x, c: as_type(acc[b, y, x, c // v, c % v], workload.dtype)), (int(n), oh, ow, blocks * v)


def _depthwise(call: OpCall, values, workload: Workload):
    """Depthwise convolution. Weight packed [kh, kw, co]; ``multiplier`` outputs per input channel."""
    weight, (kh, kw, co) = values[call.args[1]]
    multiplier = call["multiplier"]
    _, shape = values[call.args[0]]
    channels = shape[1] if call.get("layout") == "nchw" else shape[3]
    padded = padded_input(call, values, channels)
    sy, sx = call["stride"]
    dy, dx = call["dilation"]
    n, ph, pw, _ = padded.shape
    oh, ow = (int(ph) - dy * (kh - 1) - 1) // sy + 1, (int(pw) - dx * (kw - 1) - 1) // sx + 1
    ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")

    def channel(c):
        at = c if multiplier == 1 else c // multiplier
        return tirx.min(at, channels - 1) if co > channels * multiplier else at

    acc = te.compute(
        (int(n), oh, ow, co),
        lambda b, y, x, c: _products(
            padded[b, y * sy + ry * dy, x * sx + rx * dx, channel(c)], weight(ry, rx, c), [ry, rx]
        ),
        name="C",
    )
    return (lambda *i: as_type(acc(*i), workload.dtype)), (int(n), oh, ow, co)


def _dense(call: OpCall, values, workload: Workload):
    """Matrix product of rows [M, K padded] with a weight packed [O/v, K, v]; result [M, O padded]."""
    rows, rshape = values[call.args[0]]
    weight, (blocks, k, v) = values[call.args[1]]
    m = rshape[0]
    rc = te.reduce_axis((0, k), "rc")
    acc = te.compute(
        (m, blocks, v), lambda r, o, lane: _products(rows(r, rc), weight(o, rc, lane), [rc]), name="C"
    )
    return (lambda r, c: as_type(acc[r, c // v, c % v], workload.dtype)), (m, blocks * v)


def _pool2d(call: OpCall, values, workload: Workload):
    """Max or average pooling of NHWC. ``kind`` is max or avg; avg divides by the count of ``divide``: all or inside."""
    _, shape = values[call.args[0]]
    (kh, kw), (sy, sx), (dy, dx) = call["kernel"], call["stride"], call["dilation"]
    padded = padded_input(call, values, shape[3])
    n, ph, pw, channels = (int(d) for d in padded.shape)
    oh, ow = call["out"]
    ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")
    is_max = call["kind"] == "max"

    is_max = call["kind"] == "max"

    def reduced(b, y, x, c):
        value = padded[b, y * sy + ry * dy, x * sx + rx * dx, c]
        return te.max(value, axis=[ry, rx]) if is_max else te.sum(single(value), axis=[ry, rx])

    acc = te.compute((n, oh, ow, channels), reduced, name="C")
    finished = pooled(call, (shape[1], shape[2]))
    return (lambda b, y, x, c: as_type(finished(acc[b, y, x, c], y, x), workload.dtype)), (n, oh, ow, channels)


def pooled(call: OpCall, size: tuple[int, int]) -> Callable[[tirx.Expr, tirx.Expr, tirx.Expr], tirx.Expr]:
    """What a pool over an input of ``size`` makes of the maximum or sum (in float32) of its window at row y and column x."""
    if call["kind"] == "max":
        return lambda value, y, x: value
    if call["divide"] == "all":
        return lambda value, y, x: value * literal(value, 1.0 / call["divisor"])
    (kh, kw), (sy, sx), (top, left, _, _) = call["kernel"], call["stride"], call["padding"]

    def covered(at, stride, before, kernel, extent):
        start = at * stride - before
        return tirx.min(start + kernel, extent) - tirx.max(start, 0)

    def average(value, y, x):
        count = covered(y, sy, top, kh, size[0]) * covered(x, sx, left, kw, size[1])
        return value / tirx.Cast("float32", count)

    return average


def _global_pool(call: OpCall, values, workload: Workload):
    """Mean over height and width: [N, H, W, C] -> [N, 1, 1, C], or [N, C] without ``keep``."""
    expr, (n, h, w, channels) = values[call.args[0]]
    ry, rx = te.reduce_axis((0, h), "ry"), te.reduce_axis((0, w), "rx")
    shape = (n, 1, 1, channels) if call["keep"] else (n, channels)
    acc = te.compute(shape, lambda *i: te.sum(single(expr(i[0], ry, rx, i[-1])), axis=[ry, rx]), name="C")
    return (lambda *i: as_type(acc(*i) * literal(acc, 1.0 / (h * w)), workload.dtype)), shape


ANCHOR_RULES = {
    "conv2d": _conv2d,
    "depthwise": _depthwise,
    "dense": _dense,
    "pool2d": _pool2d,
    "global_pool": _global_pool,
}
