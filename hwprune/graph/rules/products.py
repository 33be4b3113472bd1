"""Products that are met less often than linear layers: batched with a sum, over named axes, bilinear."""

from __future__ import annotations

from hwprune.graph.atoms import Value
from hwprune.graph.rules import Call, aten, rule
from hwprune.graph.rules.contraction import contract
from hwprune.graph.rules.elementwise import Letter


@rule(aten.baddbmm.default)
def baddbmm(call: Call) -> Value:
    added = call["self"]
    letters = ["b", "i", "j"][3 - len(added.shape) :]
    lead = (added, [x if size > 1 else None for x, size in zip(letters, added.shape)])
    return contract(call, [lead, (call["batch1"], ["b", "i", "k"]), (call["batch2"], ["b", "k", "j"])], ["b", "i", "j"])


@rule(aten.addmv.default)
def addmv(call: Call) -> Value:
    added = (call["self"], ["i" if size > 1 else None for size in call["self"].shape])
    return contract(call, [added, (call["mat"], ["i", "k"]), (call["vec"], ["k"])], ["i"])


@rule(aten.tensordot.default)
def tensordot(call: Call) -> Value:
    """Pairs of axes are summed over; the others of the first operand, then of the second, are left."""
    a, b = call["self"], call["other"]
    left: list[Letter] = [("a", i) for i in range(len(a.shape))]
    right: list[Letter] = [("b", i) for i in range(len(b.shape))]
    summed = set()
    for i, j in zip(call["dims_self"], call["dims_other"]):
        right[j % len(right)] = left[i % len(left)]
        summed.add(left[i % len(left)])
    return contract(call, [(a, left), (b, right)], [x for x in [*left, *right] if x not in summed])


@rule(aten.inner.default)
def inner(call: Call) -> Value:
    a, b = call["self"], call["other"]
    left = [("a", i) for i in range(len(a.shape) - 1)]
    right = [("b", i) for i in range(len(b.shape) - 1)]
    return contract(call, [(a, [*left, "k"]), (b, [*right, "k"])], [*left, *right])


@rule(aten.bilinear.default)
def bilinear(call: Call) -> Value:
    """x1 W x2 for each output; the weight is [out, in1, in2]."""
    x1, x2, weight, bias = (call[name] for name in ("input1", "input2", "weight", "bias"))
    lead = [*range(len(x1.shape) - 1)]
    operands = [(x1, [*lead, "i"]), (x2, [*lead, "j"]), (weight, ["out", "i", "j"])]
    return contract(call, operands + ([] if bias is None else [(bias, ["out"])]), [*lead, "out"])
