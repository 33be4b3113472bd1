"""Concatenation, stacking, splitting, slicing and selection."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hwprune.graph.atoms import Field, Reason, Value
from hwprune.graph.rules import Call, aten, overloads, rule, unknown
from hwprune.graph.rules.elementwise import align, fields_of

Values = tuple[Value, ...]


@rule(*overloads("cat", "concat", "concatenate"))
def cat(call: Call) -> Value:
    """Labels are concatenated; parts without labels are of fixed size."""
    rank = len(call.shape)
    axis = call["dim"] % rank
    parts = [v for v in call["tensors"] if len(v.shape) == rank]  # an empty legacy tensor has rank 1
    found = {f and f.axes for f in (v.field(axis) for v in parts)}
    if None in found:
        cause = call.cause(Reason.UNIFORMITY, "concatenated with a part of fixed size")
        parts = [call.atoms.hold(v, [axis], cause) if _is_joint(v, axis) else v for v in parts]
    (own,) = found if len(found) == 1 and None not in found else {(axis,)}  # rotary halves stay heads by head_dim
    pieces = [call.atoms.axis(v, axis) if own == (axis,) else v.field(axis).ids for v in parts]
    fields = []
    if any(ids is not None for ids in pieces):
        pieces = [
            call.atoms.new_frozen(v.shape[axis], v.fixed) if ids is None else ids for v, ids in zip(parts, pieces)
        ]
        fields.append(Field(own, np.concatenate(pieces, axis=own.index(axis))))
    others = [(v.having(f for f in v.fields if axis not in f.axes), _letters(v, axis)) for v in parts]
    return call.result(fields + fields_of(align(call.atoms, others)))


@rule(*overloads("hstack", "vstack", "dstack", "column_stack"))
def cat_along(call: Call) -> Value:
    """Concatenations that name their axis, of tensors that have it."""
    axis = {"hstack": 1, "vstack": 0, "dstack": 2, "column_stack": 1}[call.op._schema.name.removeprefix("aten::")]
    if any(len(v.shape) != len(call.shape) for v in call["tensors"]) or len(call.shape) < 2:
        return unknown(call)
    return cat(replace(call, operands={**call.operands, "dim": axis}))


def _is_joint(value: Value, axis: int) -> bool:
    f = value.field(axis)
    return f is not None and len(f.axes) > 1


def _letters(value: Value, without: int) -> list[int | None]:
    return [None if a == without else a for a in range(len(value.shape))]


@rule(aten.stack.default)
def stack(call: Call) -> Value:
    """A new axis of fixed extent; the others meet index by index."""
    axis = call["dim"] % len(call.shape)
    operands = [(v, [a + (a >= axis) for a in range(len(v.shape))]) for v in call["tensors"]]
    return call.result(fields_of(align(call.atoms, operands)))


@rule(*overloads("split", "chunk", "split_with_sizes", "unsafe_split", "unsafe_chunk", "tensor_split", "split_copy"))
def split(call: Call) -> Values:
    """Each part has the labels of its indices. Equal parts need not stay equal: where the user's code asks for halves,
    the pruned graph says the sizes."""
    x = next(call.values())
    axis = int(call["dim"]) % len(x.shape)
    sizes = [shape[axis] for shape in call.shapes]
    bounds = np.cumsum([0, *sizes])
    return tuple(
        call.result(_cuts(call, x, axis, slice(bounds[i], bounds[i + 1])), i) for i in range(len(sizes))
    )


@rule(*overloads("unbind"))
def unbind(call: Call) -> Values:
    x = next(call.values())
    axis = int(call["dim"]) % len(x.shape)
    return tuple(_select(call, x, axis, i, result) for result, i in enumerate(range(x.shape[axis])))


@rule(*overloads("select"))
def select(call: Call) -> Value:
    x = next(call.values())
    axis = int(call["dim"]) % len(x.shape)
    return _select(call, x, axis, int(call["index"]) % x.shape[axis], 0)


@rule(*overloads("slice", "narrow"))
def slice_axis(call: Call) -> Value:
    """A part of an axis by position; one with steps, or of one index, keeps the axis whole."""
    x = next(call.values())
    axis, size = int(call["dim"]) % len(x.shape), x.shape[int(call["dim"]) % len(x.shape)]
    start, step = int(call["start"] or 0), int(call.operands.get("step") or 1)
    start = max(start + size, 0) if start < 0 else min(start, size)
    length = call.shape[axis]
    if x.field(axis) is not None and length < size and (step != 1 or length == 1):
        detail = f"every {step}th index is taken" if step != 1 else "one index is taken by number"
        x = call.atoms.hold(x, [axis], call.cause(Reason.UNIFORMITY, detail))
    return call.result(_cuts(call, x, axis, slice(start, start + length * step, step)))


@rule(*overloads("unfold"))
def unfold(call: Call) -> Value:
    """Windows along an axis, which stays whole; what is in a window is a new last axis."""
    x = next(call.values())
    axis = int(call["dimension"]) % len(x.shape)
    x = call.atoms.hold(x, [axis], call.cause(Reason.UNIFORMITY, "windows are taken along the axis"))
    return call.result([f for f in x.fields if axis not in f.axes])


@rule(*overloads("index_select"))
def index_select(call: Call) -> Value:
    x = call["self"]
    axis = int(call["dim"]) % max(len(x.shape), 1)
    x = call.atoms.hold(x, [axis], call.cause(Reason.UNIFORMITY, "indices are taken by number"))
    return call.result([f for f in x.fields if axis not in f.axes])


@rule(aten.glu.default)
def glu(call: Call) -> Value:
    """The first half times the sigmoid of the second."""
    x = call["self"]
    axis = int(call["dim"]) % len(x.shape)
    if x.field(axis) is not None:
        tie_parts(call, x, axis, 2)
    return call.result(_cuts(call, x, axis, slice(0, x.shape[axis] // 2)))


@rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(call: Call) -> Value:
    """Axes that are indexed by tensors stay whole; the others pass, around the axes of the indices."""
    x, indices = call["self"], list(call["indices"])
    indexed = [a for a, i in enumerate(indices) if i is not None]
    cause = call.cause(Reason.UNIFORMITY, "indices are taken by number")
    x = call.atoms.hold(x, indexed, cause)
    for i in indexed:
        call.atoms.freeze_value(indices[i], cause)
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    added = len(call.shape) - (len(x.shape) - len(indexed))
    first = indexed[0] if adjacent else 0
    place, rest = {}, [a for a in range(len(x.shape)) if a not in indexed]
    for position, a in enumerate(rest):
        place[a] = position + (added if position >= first else 0)
    return call.result(
        [Field(tuple(place[a] for a in f.axes), f.ids) for f in x.fields if not set(f.axes) & set(indexed)]
    )


def tie_parts(call: Call, x: Value, axis: int, parts: int) -> None:
    """Index j of every part goes together."""
    f = x.field(axis)
    ids = np.moveaxis(f.ids, f.axes.index(axis), 0)
    columns = ids.reshape(parts, ids.shape[0] // parts, *ids.shape[1:])
    call.atoms.unify(columns[1:], columns[:1])


def _cuts(call: Call, x: Value, axis: int, part: slice) -> list[Field]:
    """Labels of a part of an axis. A part of one index stays, because an axis of extent 1 broadcasts."""
    fields = []
    for f in x.fields:
        if axis not in f.axes:
            fields.append(f)
            continue
        position = f.axes.index(axis)
        ids = f.ids[(slice(None),) * position + (part,)]
        if ids.shape[position] > 1:
            fields.append(Field(f.axes, ids))
        else:
            call.atoms.freeze(ids, call.cause(Reason.UNIFORMITY, "one index is taken by number"))
    return fields


def _select(call: Call, x: Value, axis: int, index: int, result: int) -> Value:
    """The axis goes. One that is labelled on its own stays whole, because the index is a number in the user's code."""
    fields = []
    for f in x.fields:
        place = tuple(a - (a > axis) for a in f.axes if a != axis)
        if axis not in f.axes:
            fields.append(Field(place, f.ids))
        elif len(f.axes) == 1:
            call.atoms.freeze(f.ids, call.cause(Reason.UNIFORMITY, "an index is taken by number"))
        else:
            fields.append(Field(place, f.ids.take(index, axis=f.axes.index(axis))))
    return call.result(fields, result)
