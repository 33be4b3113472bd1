"""Normalizations. Where statistics run over a pruned axis, they are those of what is kept (see ``hwprune.prove``)."""

from __future__ import annotations

from hwprune.graph.atoms import Field, Value
from hwprune.graph.rules import Call, aten, overloads, rule
from hwprune.graph.rules.elementwise import Operand, align, fields_of

_CHANNEL = 1


@rule(*overloads("batch_norm", "instance_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"))
def batch_norm(call: Call) -> Value:
    """Scale, shift and running statistics follow the channel; instance statistics are per channel anyway."""
    value = _per_channel(call, call["input"], ["weight", "bias", "running_mean", "running_var"])
    return value if len(call.shapes) == 1 else (value, *(Value(s, (), value.fixed) for s in call.shapes[1:]))


@rule(aten.group_norm.default)
def group_norm(call: Call) -> Value:
    """All groups stay, and stay of one size: unit j is the j-th channel of every group."""
    x, groups = call["input"], int(call["num_groups"])
    ids = call.atoms.axis(x, _CHANNEL)
    if ids is not None and groups > 1:
        columns = ids.reshape(groups, -1)
        call.atoms.unify(columns[1:], columns[:1])
    return _per_channel(call, x, ["weight", "bias"])


@rule(aten.layer_norm.default, aten.rms_norm.default)
def layer_norm(call: Call) -> Value:
    """Scale and shift follow the last axes."""
    x = call["input"]
    operands: list[Operand] = [(x, list(range(len(x.shape))))]
    for name in ("weight", "bias"):
        w = call.operands.get(name)
        if w is not None:
            first = len(x.shape) - len(w.shape)
            operands.append((w, [first + i if size > 1 else None for i, size in enumerate(w.shape)]))
    return call.result(fields_of(align(call.atoms, operands)))


@rule(aten._weight_norm.default)
def weight_norm(call: Call) -> Value:
    """A weight by direction and length: its length along one axis is that of what is kept along the others."""
    v, g = call["v"], call["g"]
    operands: list[Operand] = [(w, [i if size > 1 else None for i, size in enumerate(w.shape)]) for w in (v, g)]
    return call.result(fields_of(align(call.atoms, operands)))


def _per_channel(call: Call, x: Value, names: list[str]) -> Value:
    ids = call.atoms.axis(x, _CHANNEL)
    fields = [f for f in x.fields if _CHANNEL not in f.axes] + ([] if ids is None else [Field((_CHANNEL,), ids)])
    operands: list[Operand] = [(x.having(fields), list(range(len(x.shape))))]
    for name in names:
        w = call.operands.get(name)
        if w is not None:
            operands.append((w, [_CHANNEL if w.shape[0] > 1 else None]))
    return call.result(fields_of(align(call.atoms, operands)))
