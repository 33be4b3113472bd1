"""Embedding tables, and tensors that a forward pass makes from nothing."""

from __future__ import annotations

from hwprune.graph.atoms import Field, Reason, SILENT_CAUSE, Value
from hwprune.graph.rules import Call, aten, overloads, rule


@rule(aten.embedding.default)
def embedding(call: Call) -> Value:
    """[vocabulary, D] at indices: the table's second axis labels the last axis; the vocabulary stays."""
    weight, indices = call["weight"], call["indices"]
    call.atoms.freeze_axes(weight, [0], SILENT_CAUSE)
    call.atoms.freeze_value(indices, call.cause(Reason.UNIFORMITY, "used as indices"))
    ids = call.atoms.axis(weight, 1)
    fixed = call.cause(Reason.NETWORK_INPUT, "one row per index")
    return Value(call.shape, () if ids is None else (Field((len(call.shape) - 1,), ids),), fixed)


@rule(*overloads("embedding_bag"))
def embedding_bag(call: Call) -> tuple[Value, ...]:
    """Rows of the table by bag; the other three results are places."""
    rows = call["per_sample_weights"]
    if rows is not None:
        call.atoms.freeze_value(rows, call.cause(Reason.UNIFORMITY, "one weight per index"))
    call.atoms.freeze_value(call["offsets"], call.cause(Reason.UNIFORMITY, "used as indices"))
    first = embedding(call)
    return first, *(Value(shape, (), first.fixed) for shape in call.shapes[1:])


@rule(aten.one_hot.default)
def one_hot(call: Call) -> Value:
    """A new last axis, one index for each class."""
    return call.result(call["self"].fields)


@rule(*overloads("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"))
def filled(call: Call) -> Value:
    """One value everywhere: its axes take the size of what they meet."""
    fields = tuple(Field((a,), call.atoms.new(size)) for a, size in enumerate(call.shape) if size > 1)
    return Value(call.shape, fields, call.cause(Reason.CONSTANT, f"{call.name} makes an axis of extent 1"), True)


@rule(*overloads("arange", "scalar_tensor", "eye", "linspace", "rand", "randn"))
def literal(call: Call) -> Value:
    """Of the size that the user's code says."""
    cause = call.cause(Reason.CONSTANT, f"{call.name} makes a tensor of a fixed size")
    return Value(call.shape, (), cause, True)
