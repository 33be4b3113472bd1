"""Scaled dot-product attention: whole heads (whole key-value groups) go; of a single head, its dimensions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hwprune.graph.atoms import Field, Reason, Value
from hwprune.graph.rules import Call, aten, rule
from hwprune.graph.rules.contraction import contract
from hwprune.graph.rules.elementwise import Operand


@rule(aten.scaled_dot_product_attention.default)
def attention(call: Call) -> Value:
    """softmax(q k^T) v. The default scale depends on the head's size; a pruned network keeps the dense one's."""
    q, k, v, mask = (call[name] for name in ("query", "key", "value", "attn_mask"))
    rank = len(q.shape)
    if call["enable_gqa"] and q.shape[-3] != k.shape[-3] > 1:  # a single one is shared by however many heads there are
        k, v = (_repeated(call, x, q.shape[-3] // x.shape[-3]) for x in (k, v))
    lead = [*range(rank - 2)]
    scores_of: list[Operand] = [(q, [*lead, "i", "d"]), (k, [*lead, "j", "d"])]
    if mask is not None:
        names = [*lead, "i", "j"][rank - len(mask.shape) :]
        scores_of.append((mask, [n if size > 1 else None for n, size in zip(names, mask.shape)]))
    shape = (*q.shape[:-1], k.shape[-2])
    scores = contract(replace(call, shapes=(shape,)), scores_of, [*lead, "i", "j"])
    scores = call.atoms.hold(scores, [rank - 1], call.cause(Reason.UNIFORMITY, "softmax runs over the axis"))
    return contract(call, [(scores, [*lead, "i", "j"]), (v, [*lead, "j", "e"])], [*lead, "i", "e"])


def _repeated(call: Call, value: Value, times: int) -> Value:
    """Each key-value head serves ``times`` consecutive query heads."""
    axis = len(value.shape) - 3
    fields = [
        Field(f.axes, np.repeat(f.ids, times, axis=f.axes.index(axis)) if axis in f.axes else f.ids)
        for f in value.fields
    ]
    return value.having(fields, (*value.shape[:axis], value.shape[axis] * times, *value.shape[axis + 1 :]))
