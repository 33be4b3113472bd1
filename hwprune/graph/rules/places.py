"""Elements taken from, and put at, places that are computed: gather, scatter and their kin.

The axis along which places count stays whole; the other axes meet index by index.
"""

from __future__ import annotations

from hwprune.graph.atoms import Field, Reason, Value
from hwprune.graph.rules import Call, aten, overloads, rule, unknown
from hwprune.graph.rules.elementwise import align, fields_of


@rule(aten.gather.default, aten.take_along_dim.default)
def gather(call: Call) -> Value:
    """Indices of the shape of the result; those of ``take_along_dim`` broadcast."""
    if call["dim"] is None:
        return unknown(call)
    x, index = call["self"], call.operands.get("index", call.operands.get("indices"))
    return call.result(_others_met(call, [x, index]))


@rule(*overloads("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_"))
def scatter(call: Call) -> Value:
    src = call.operands.get("src")
    operands = [call["self"], call["index"], *([src] if isinstance(src, Value) else [])]
    return call.result(_others_met(call, operands))


@rule(*overloads("index_add", "index_add_", "index_copy", "index_copy_"))
def index_add(call: Call) -> Value:
    """Slices of ``source`` go to the places of ``index``, which has one axis."""
    return call.result(_others_met(call, [call["self"], call["source"]]))


@rule(aten.diagonal.default)
def diagonal(call: Call) -> Value:
    """Two axes go, and a last one comes."""
    x = call["self"]
    pair = {call["dim1"] % len(x.shape), call["dim2"] % len(x.shape)}
    x = call.atoms.hold(x, pair, call.cause(Reason.UNIFORMITY, "the diagonal is taken along the axis"))
    place = {a: i for i, a in enumerate(a for a in range(len(x.shape)) if a not in pair)}
    return call.result([Field(tuple(place[a] for a in f.axes), f.ids) for f in x.fields if not pair & set(f.axes)])


def _others_met(call: Call, operands: list[Value]) -> list[Field]:
    """The labels of all axes but ``dim``. One on which the extents differ is cut short by position, and stays whole."""
    rank = len(call.shape)
    along = call["dim"] % max(rank, 1)
    shapes = [v.shape for v in operands]
    cut = {a for a in range(rank) if a != along and len({s[a] for s in shapes} - {1}) > 1}
    held = {along, *cut}
    cause = call.cause(Reason.UNIFORMITY, "elements are taken and put by number")
    met = []
    for v in operands:
        v = call.atoms.hold(v, held, cause)
        v = v.having(f for f in v.fields if not held & set(f.axes))
        met.append((v, [None if a in held or size == 1 else a for a, size in enumerate(v.shape)]))
    return fields_of(align(call.atoms, met))
