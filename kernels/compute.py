"""Tensor expressions of workloads: what is computed, without how.

Activations are channels-last with their innermost axis padded to the vector width; weights arrive packed by
``hwprune.compile.pack``. Lanes beyond a tensor's logical width may hold anything: nothing reads them but element-wise
lanes of the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

from tvm import te, tirx

from hwprune.compile.layouts import Layout, Views, parsed
from hwprune.errors import UnsupportedOperator
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


# --- types ------------------------------------------------------------------------------------------------------

#: Terms of a sum of products that is one of float16; longer ones are of float32, where a rule has no better way. The error grows
#: with the root of the terms: at 256 it is eleven times what storing the result rounds off.
FLOAT16_TERMS = 256
LOWEST_FLOAT16 = -65504.0


def dtype_of(x: tirx.Expr) -> str:
    return str(getattr(getattr(x, "ty", None), "dtype", None) or x.dtype)  # tensors and expressions keep it apart


def as_type(x: tirx.Expr, dtype: str) -> tirx.Expr:
    """``x`` converted where it is of another type."""
    return x if dtype_of(x) == dtype else tirx.Cast(dtype, x)


def _single(x: tirx.Expr) -> tirx.Expr:
    """``x`` in float32, for what float16 is too coarse for."""
    return as_type(x, "float32")


def _in_single(function: Callable) -> Callable:
    """A function of numbers that computes in float32 whatever its operands are."""
    return lambda x: as_type(function(_single(x)), dtype_of(x))


# --- element-wise -----------------------------------------------------------------------------------------------

def _const(x: tirx.Expr, value: float) -> tirx.Expr:
    dtype = dtype_of(x)
    if dtype.startswith("float16"):  # bounds may be beyond it: clamps, and what is less than any value
        value = max(LOWEST_FLOAT16, min(value, -LOWEST_FLOAT16))
    return tirx.const(value, dtype)


def _clip(x, low, high):
    if low is not None:
        x = tirx.max(x, _const(x, low))
    if high is not None:
        x = tirx.min(x, _const(x, high))
    return x


def exponential(x):
    """exp by range reduction and a polynomial, in vector operations only (libm's is called lane by lane).

    Cephes expf: exp(x) = 2^n exp(r), |r| <= ln 2 / 2; relative error below 2e-7 in float32.
    """
    x = tirx.max(tirx.min(x, _const(x, 88.37)), _const(x, -87.33))
    n = tirx.floor(x * _const(x, 1.44269504088896341) + _const(x, 0.5))
    r = x - n * _const(x, 0.693359375) + n * _const(x, 2.12194440e-4)
    poly = _const(x, 1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        poly = poly * r + _const(x, c)
    power = tirx.reinterpret("float32", (tirx.Cast("int32", n) + 127) << 23)
    return (poly * r * r + r + _const(x, 1.0)) * power


def _sigmoid(x):
    return _const(x, 1.0) / (_const(x, 1.0) + exponential(-x))


def _polynomial(x, first, *rest):
    """By Horner's rule, the coefficient of the highest power first."""
    value = _const(x, first)
    for c in rest:
        value = value * x + _const(x, c)
    return value


def _silu(x):
    """x sigmoid(x), with sigmoid(x) - 1/2 as an odd quotient of polynomials: half the instructions of one with an exponential.

    Absolute error of the sigmoid below 9e-8 and rounding; it is not relative to the sigmoid's own size where x < 0. Weighted least
    squares, reweighted until the error is even over 0 <= x <= 16.6 (Loeb's algorithm; Barrodale and Mason, 1970).
    """
    x = tirx.max(x, _const(x, -16.6))  # below, the sigmoid is that of -16.6, and x not larger
    clamped = tirx.min(x, _const(x, 16.6))
    square = clamped * clamped

    above = _polynomial(square, 4.2968427038658774e-08, 4.5462158595910296e-05, 0.00805384386330843, 0.2499997913837433)
    below = _polynomial(square, 9.085180940893167e-10, 3.6395063034433406e-06, 0.001477715210057795, 0.11554793268442154, 1.0)
    return x * (clamped * above / below + _const(x, 0.5))


def _erf(x):
    """A quotient of polynomials: absolute error below 5e-7. The coefficients are those of Eigen's ``erf``."""
    x = _clip(x, -4.0, 4.0)
    square = x * x

    above = _polynomial(square, -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
                       -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)
    below = _polynomial(square, -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
                       -1.42647390514189e-02)
    return x * above / below


def _gelu(x):
    return x * _const(x, 0.5) * (_const(x, 1.0) + _erf(x * _const(x, 0.7071067811865476)))


#: operator -> function of its operands' expressions and its OpCall
ELEMENTWISE: dict[str, Callable] = {
    "add": lambda c, a, b: a + b,
    "sub": lambda c, a, b: a - b,
    "mul": lambda c, a, b: a * b,
    "div": lambda c, a, b: a / b,
    "maximum": lambda c, a, b: tirx.max(a, b),
    "minimum": lambda c, a, b: tirx.min(a, b),
    "add_scalar": lambda c, a: a + _const(a, c["value"]),
    "mul_scalar": lambda c, a: a * _const(a, c["value"]),
    "rsub_scalar": lambda c, a: _const(a, c["value"]) - a,
    "relu": lambda c, a: tirx.max(a, _const(a, 0.0)),
    "clip": lambda c, a: _clip(a, c["low"], c["high"]),
    "leaky_relu": lambda c, a: tirx.max(a, _const(a, 0.0)) + tirx.min(a, _const(a, 0.0)) * _const(a, c["slope"]),
    "prelu": lambda c, a, w: tirx.max(a, _const(a, 0.0)) + tirx.min(a, _const(a, 0.0)) * w,
    "sigmoid": lambda c, a: _in_single(_sigmoid)(a),
    "silu": lambda c, a: _in_single(_silu)(a),
    "tanh": lambda c, a: _in_single(lambda x: _const(x, 2.0) * _sigmoid(x * _const(x, 2.0)) - _const(x, 1.0))(a),
    "exp": lambda c, a: _in_single(exponential)(a),
    "hardsigmoid": lambda c, a: _clip(a * _const(a, 1 / 6) + _const(a, 0.5), 0.0, 1.0),
    "hardswish": lambda c, a: a * _clip(a * _const(a, 1 / 6) + _const(a, 0.5), 0.0, 1.0),
    "gelu": lambda c, a: _in_single(_gelu)(a),
    "neg": lambda c, a: -a,
}


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


# --- data movement ----------------------------------------------------------------------------------------------

def _slice(call, values):
    """Strided slice of a physical axis: ``axis``, ``start``, ``step``; ``size`` is the physical result size."""
    expr, shape = values[call.args[0]]
    axis, start, step = call["axis"], call["start"], call["step"]
    limit = shape[axis] - 1

    def read(*index):
        at = index[axis] * step + start
        if (call["size"] - 1) * step + start > limit:  # lanes of padding may reach past the end
            at = tirx.min(at, limit)
        return expr(*index[:axis], at, *index[axis + 1:])

    return read, shape[:axis] + (call["size"],) + shape[axis + 1:]


def _pad(call, values):
    """Constant padding of a physical axis: source extent ``extent`` starts at ``before``; result size ``size``."""
    expr, shape = values[call.args[0]]
    axis, before, extent = call["axis"], call["before"], call["extent"]

    def read(*index):
        at = index[axis] - before
        inside = tirx.all(at >= 0, at < extent)
        value = expr(*index[:axis], at, *index[axis + 1:])
        return tirx.if_then_else(inside, value, _const(value, call["value"]))

    return read, shape[:axis] + (call["size"],) + shape[axis + 1:]


def _concat(call, values):
    """Concatenation along a physical axis; ``extents`` are the logical sizes of the operands; result size ``size``."""
    operands = [values[i] for i in call.args]
    axis, extents = call["axis"], call["extents"]

    def read(*index):
        result, end = None, sum(extents)
        for (expr, _), extent in reversed(list(zip(operands, extents))):
            end -= extent
            value = expr(*index[:axis], index[axis] - end, *index[axis + 1:])
            if result is None:  # the last operand serves the padding lanes too, clamped into its extent
                at = tirx.min(index[axis] - end, extent - 1)
                result = tirx.if_then_else(index[axis] >= end, expr(*index[:axis], at, *index[axis + 1:]), _const(value, 0.0))
            else:
                result = tirx.if_then_else(tirx.all(index[axis] >= end, index[axis] < end + extent), value, result)
        return result

    shape = list(operands[0][1])
    shape[axis] = call["size"]
    return read, tuple(shape)


def _relayout(call, values):
    """Copy between layouts. ``source``/``result`` name them; ``logical`` is the logical shape.

    nchw: logical order, unpadded. nhwc: channels last, padded. rows: logical order, innermost padded.
    flat: logical [N, C*H*W] in logical order, read from nhwc.
    """
    expr, shape = values[call.args[0]]
    logical = call["logical"]
    result = tuple(call["shape"])
    channels_last = call["source"] == "nhwc"

    def read(*index):
        if call["result"] == "nhwc":
            where = (index[0], index[3], index[1], index[2])
        elif call["result"] == "flat":
            n, c, h, w = logical
            f = index[1]
            where = (index[0], f // (h * w), f // w % h, f % w)
        else:
            where = index
        inside = [w < d for w, d, s in zip(where, logical, _extent_of(call["result"], result)) if s > d]
        source = (where[0], where[2], where[3], where[1]) if channels_last else where
        value = expr(*source)
        return tirx.if_then_else(tirx.all(*inside), value, _const(value, 0.0)) if inside else value

    return read, result


def _gather(call, values):
    """Copy through views. ``map`` is the chain of views (``hwprune.compile.layouts``) of the operand, which is one axis;
    ``order`` and ``merged`` are the result's layout, ``logical`` its logical shape."""
    expr, (size,) = values[call.args[0]]
    views, layout, logical = parsed(call["map"]), Layout(call["order"], call["merged"]), call["logical"]
    shape = tuple(call["shape"])
    outer = len(layout.order) - layout.merged
    inner = [logical[axis] for axis in layout.order[outer:]]

    def read(*index):
        where = [tirx.IntImm("int32", 0)] * len(logical)
        for axis, i in zip(layout.order[:outer], index):
            where[axis] = i
        if inner:
            last = index[-1]
            if shape[-1] > math.prod(inner):  # lanes of padding: any value of the row
                last = tirx.min(last, math.prod(inner) - 1)
            for axis, i in zip(layout.order[outer:], unravel(last, inner)):
                where[axis] = i
        return expr(address(views, where))

    return read, shape


def address(views: Views, where):
    """Place in the memory that a chain of views looks at, of the element at index ``where`` of the last one."""
    for number, view in reversed(list(enumerate(views))):
        at = tirx.IntImm("int32", view.offset)
        for axis, i in zip(view.axes, where):
            for (_, stride), digit in zip(axis, unravel(i, [extent for extent, _ in axis])):
                at = at + digit * stride
        where = unravel(at, views[number - 1].shape) if number else [at]
    return where[0]


def unravel(at, shape) -> list:
    """Index in row-major ``shape`` of the element number ``at``."""
    index = []
    for position, extent in enumerate(shape):
        step = math.prod(shape[position + 1 :])
        digit = at if step == 1 else tirx.floordiv(at, step)
        index.append(digit if position == 0 else tirx.floormod(digit, extent))
    return index


def _extent_of(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Size of each logical axis as far as the physical loop runs over it."""
    if layout == "nhwc":
        return shape[0], shape[3], shape[1], shape[2]
    if layout == "flat":
        return shape[0], shape[1], 1, 1
    return shape


MOVEMENT = {"slice": _slice, "pad": _pad, "concat": _concat, "relayout": _relayout, "gather": _gather}


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
        return tirx.if_then_else(tirx.all(*inside), value, _const(value, border)) if inside else value

    return te.compute((n, h + top + bottom, w + left + right, channels), read, name="P")


def _products(a: tirx.Expr, b: tirx.Expr, axes: Sequence) -> tirx.Expr:
    """The sum over ``axes`` of a times b; in float32 where it has too many terms for float16."""
    if math.prod(int(axis.dom.extent) for axis in axes) > FLOAT16_TERMS:
        a, b = _single(a), _single(b)
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
        return te.max(value, axis=[ry, rx]) if is_max else te.sum(_single(value), axis=[ry, rx])

    acc = te.compute((n, oh, ow, channels), reduced, name="C")
    finished = pooled(call, (shape[1], shape[2]))
    return (lambda b, y, x, c: as_type(finished(acc[b, y, x, c], y, x), workload.dtype)), (n, oh, ow, channels)


def pooled(call: OpCall, size: tuple[int, int]) -> Callable[[tirx.Expr, tirx.Expr, tirx.Expr], tirx.Expr]:
    """What a pool over an input of ``size`` makes of the maximum or sum (in float32) of its window at row y and column x."""
    if call["kind"] == "max":
        return lambda value, y, x: value
    if call["divide"] == "all":
        return lambda value, y, x: value * _const(value, 1.0 / call["divisor"])
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
    acc = te.compute(shape, lambda *i: te.sum(_single(expr(i[0], ry, rx, i[-1])), axis=[ry, rx]), name="C")
    return (lambda *i: as_type(acc(*i) * _const(acc, 1.0 / (h * w)), workload.dtype)), shape


ANCHOR_RULES = {
    "conv2d": _conv2d,
    "depthwise": _depthwise,
    "dense": _dense,
    "pool2d": _pool2d,
    "global_pool": _global_pool,
}
