"""Linear layers, matrix products and einsum: sums over index letters that operands share."""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

from hwprune.graph.atoms import Reason, Value
from hwprune.graph.rules import Call, aten, rule, unknown
from hwprune.graph.rules.elementwise import Letter, Operand, align, fields_of


@rule(aten.linear.default)
def linear(call: Call) -> Value:
    x, weight, bias = call["input"], call["weight"], call["bias"]
    rank = len(x.shape)
    out = [*range(rank - 1), "out"] if len(weight.shape) == 2 else [*range(rank - 1)]
    operands = [(x, [*range(rank - 1), "in"]), (weight, ["out", "in"] if len(weight.shape) == 2 else ["in"])]
    if bias is not None:
        operands.append((bias, ["out"]))
    return contract(call, operands, out)


@rule(aten.addmm.default)
def addmm(call: Call) -> Value:
    bias = call["self"]
    letters = ["i", "j"][2 - len(bias.shape) :]
    operands = [(call["mat1"], ["i", "k"]), (call["mat2"], ["k", "j"])]
    return contract(call, [*operands, (bias, [x if s > 1 else None for x, s in zip(letters, bias.shape)])], ["i", "j"])


@rule(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default)
def matmul(call: Call) -> Value:
    a, b = list(call.values())[:2]
    batch = max(len(a.shape), len(b.shape)) - 2

    def letters(value: Value, last: list[Letter]) -> list[Letter]:
        lead = len(value.shape) - len(last)
        sizes = value.shape[:lead]
        return [batch - lead + i if size > 1 else None for i, size in enumerate(sizes)] + last

    left = letters(a, ["i", "k"] if len(a.shape) > 1 else ["k"])
    right = letters(b, ["k", "j"] if len(b.shape) > 1 else ["k"])
    out = [*range(max(batch, 0))] + (["i"] if len(a.shape) > 1 else []) + (["j"] if len(b.shape) > 1 else [])
    return contract(call, [(a, left), (b, right)], out)


@rule(aten.einsum.default)
def einsum(call: Call) -> Value:
    terms, out = _letters(call["equation"], [len(value.shape) for value in call["tensors"]])
    if any(len(set(term)) < len(term) for term in terms):
        return unknown(call)  # a diagonal
    operands = [
        (value, [x if size > 1 else None for x, size in zip(term, value.shape)])
        for value, term in zip(call["tensors"], terms)
    ]
    return contract(call, operands, list(out))


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[list[Letter]], list[Letter]]:
    """Letters of the operands and of the result; axes of an ellipsis are numbered from its end."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    written = [term.partition("...") for term in left.split(",")]
    terms = [
        [*first, *range(len(first) + len(last) - rank, 0), *last] if dots else [*first]
        for (first, dots, last), rank in zip(written, ranks)
    ]
    rest = sorted({x for term in terms for x in term if isinstance(x, int)})
    if not arrow:  # the letters that are met once, in the order of the alphabet
        letters = left.replace(",", "").replace(".", "")
        return terms, [*rest, *sorted(x for x in set(letters) if letters.count(x) == 1)]
    first, dots, last = right.partition("...")
    return terms, [*first, *(rest if dots else []), *last]


def contract(call: Call, operands: Sequence[Operand], out: Sequence[Letter]) -> Value:
    """Align the operands; a summed letter is read by the operand that is a weight. Between two activations it goes from
    both, and the sum is over what is left.

    A joint label over a summed letter and a kept one (head_dim and heads) is tied along the summed one: whole heads
    are what can go (the other way round where ``Atoms.inner`` says so).
    """
    operands = [(_whole(call, value, letters, out), letters) for value, letters in operands]
    fields = []
    for letters, ids in align(call.atoms, operands):
        if letters[0] in out:
            fields.append((tuple(out.index(x) for x in letters), ids))
            continue
        readers = [(v, ls) for v, ls in operands if v.weight and any(x in ls for x in letters)]
        for value, own in readers[-1:]:  # of two weights, the layer's own; the other one is computed from parameters
            for f in value.fields:
                if own[f.axes[0]] in letters:
                    call.atoms.read(f.ids)
    return call.result(fields_of(fields))


def _whole(call: Call, value: Value, letters: Sequence[Letter], out: Sequence[Letter]) -> Value:
    fields = []
    for f in value.fields:
        kept = [a for a in f.axes if letters[a] in out]
        if kept and len(kept) < len(f.axes):
            fields.append(call.atoms.along(f, [a for a in f.axes if a not in kept] if call.atoms.inner else kept))
        else:
            fields.append(f)
    if any(f is not before for f, before in zip(fields, value.fields)):
        value = replace(value, fixed=call.cause(Reason.UNIFORMITY, "summed over inside each unit of an outer axis"))
    return value.having(fields)
