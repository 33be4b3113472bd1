"""Comparisons of vectors: similarities and distances over an axis, which may lose units.

As in a product, the axis goes from both. The result is that of what is kept, as for a norm (see ``hwprune.prove``).
"""

from __future__ import annotations

from hwprune.graph.atoms import Value
from hwprune.graph.rules import Call, aten, rule
from hwprune.graph.rules.contraction import contract
from hwprune.graph.rules.elementwise import Letter, Operand


#: Operators that compare their first two operands over one axis, by where that axis is when no ``dim`` says it.
COMPARED = {
    aten.cosine_similarity.default: 1,
    aten.pairwise_distance.default: -1,
    aten.linalg_vecdot.default: -1,
    aten.cdist.default: -1,
}


@rule(aten.cosine_similarity.default, aten.pairwise_distance.default, aten.linalg_vecdot.default)
def similarity(call: Call) -> Value:
    """Element by element over one axis; the others broadcast."""
    values = list(call.values())[:2]
    rank = max(len(v.shape) for v in values)
    keeps = bool(call.operands.get("keepdim"))
    axis = int(call.operands.get("dim", -1)) % rank
    out: list[Letter] = [("one" if a == axis else a) for a in range(rank) if a != axis or keeps]
    operands: list[Operand] = []
    for v in values:
        first = rank - len(v.shape)
        operands.append((v, [first + i if size > 1 else None for i, size in enumerate(v.shape)]))
    return contract(call, operands, out)


@rule(aten.cdist.default)
def cdist(call: Call) -> Value:
    """[.., i, k] and [.., j, k] -> [.., i, j]."""
    rank = len(call.shape)
    operands: list[Operand] = []
    for v, own in ((call["x1"], "i"), (call["x2"], "j")):
        lead = [rank - len(v.shape) + a if size > 1 else None for a, size in enumerate(v.shape[:-2])]
        operands.append((v, [*lead, own, "k"]))
    return contract(call, operands, [*range(rank - 2), "i", "j"])
