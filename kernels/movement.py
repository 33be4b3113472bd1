"""Operators that move data and compute nothing, as expressions: each element of the result is one of the operand's.

Each takes its OpCall and the values so far (an expression and its shape each) and gives such a value.
"""

from __future__ import annotations

import math

from tvm import tirx

from hwprune.compile.layouts import Layout, Views, parsed
from hwprune.kernels.functions import literal


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
        return tirx.if_then_else(inside, value, literal(value, call["value"]))

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
                result = tirx.if_then_else(index[axis] >= end, expr(*index[:axis], at, *index[axis + 1:]), literal(value, 0.0))
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
        return tirx.if_then_else(tirx.all(*inside), value, literal(value, 0.0)) if inside else value

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
