"""Element-wise operators with broadcasting, and the alignment of labels that they share with contractions."""

from __future__ import annotations

from dataclasses import replace
from typing import Hashable, Sequence

import numpy as np

from hwprune.graph.atoms import Atoms, Cause, Field, Reason, Value, spread
from hwprune.graph.rules import Call, aten, overloads, rule

Letter = Hashable
Operand = tuple[Value, Sequence[Letter]]  # a value and the index letter of each of its axes (None: broadcast)


def align(atoms: Atoms, operands: Sequence[Operand]) -> list[tuple[tuple[Letter, ...], np.ndarray]]:
    """Unify the labels of operands that share index letters, as in an einsum.

    Where one operand has labels on a letter and another has the same extent without labels, that extent is fixed, and
    so are the labels. A joint label (heads and head_dim) of which a part is fixed stays free on the rest; where a
    weight has labels on its inner letters alone (a norm inside each head), those stay whole and the outer units go.
    With ``Atoms.inner``, whatever has labels on outer letters alone (scores of attention) stays whole along them.

    Returns
    -------
    list of (letters, ids) : ids over the extents of the letters.
    """
    sizes = {
        letter: size
        for value, letters in operands
        for letter, size in zip(letters, value.shape)
        if letter is not None and size > 1
    }
    operands = _outer(atoms, operands)
    labelled = [
        (tuple(letters[a] for a in f.axes), f.ids) for value, letters in operands for f in value.fields
    ]
    joined = []
    for letters in _connected([ls for ls, _ in labelled]):
        extent = [sizes[letter] for letter in letters]
        parts = [ids if ls == letters else spread(ids, ls, letters, extent) for ls, ids in labelled if ls[0] in letters]
        for other in parts[1:]:
            atoms.unify(parts[0], other)
        for cause in _fixed(operands, letters):
            atoms.freeze(parts[0], cause)
        joined.append((letters, parts[0]))
    return joined


def _outer(atoms: Atoms, operands: Sequence[Operand]) -> list[Operand]:
    """Operands whose joint labels are tied along the letters that stay whole."""
    joint = [tuple(own[a] for a in f.axes) for value, own in operands for f in value.fields if len(f.axes) > 1]
    if not joint:
        return list(operands)
    whole = {
        letter
        for value, own in operands
        for axis, letter in enumerate(own)
        if letter is not None and value.shape[axis] > 1 and value.field(axis) is None
    }
    for value, own in operands:
        for letters in (tuple(own[a] for a in f.axes) for f in value.fields if value.weight or atoms.inner):
            if any(set(letters) <= set(js[:-1] if atoms.inner else js[1:]) for js in joint):
                whole |= set(letters)
    cause = Cause(Reason.UNIFORMITY, "every slice of an outer axis uses it, and those go whole", atoms.where)
    reduced = []
    for value, own in operands:
        held = [a for a, letter in enumerate(own) if letter in whole]
        if any(set(f.axes) & set(held) and not set(f.axes) <= set(held) for f in value.fields):
            fields = [
                f if not set(f.axes) & set(held) or set(f.axes) <= set(held)
                else atoms.along(f, [a for a in f.axes if a not in held])
                for f in value.fields
            ]  # fmt: skip
            value = replace(value, fields=tuple(fields), fixed=cause)
        reduced.append((value, own))
    return reduced


def _connected(sets: list[tuple[Letter, ...]]) -> list[tuple[Letter, ...]]:
    """Merge sets of letters that overlap; letters keep the order of their first appearance."""
    merged: list[list[Letter]] = []
    for letters in sets:
        touching = [m for m in merged if set(m) & set(letters)]
        if len(touching) == 1 and set(letters) <= set(touching[0]):
            continue
        union = list(dict.fromkeys([x for m in touching for x in m] + list(letters)))
        merged = [m for m in merged if m not in touching] + [union]
    return [tuple(m) for m in merged]


def _fixed(operands: Sequence[Operand], letters: tuple[Letter, ...]) -> list[Cause]:
    return [
        value.fixed
        for value, own in operands
        for axis, letter in enumerate(own)
        if letter in letters and value.shape[axis] > 1 and value.field(axis) is None
    ]


def broadcast(call: Call, operands: Sequence[Value], index: int = 0) -> Value:
    """The result of an element-wise operator over ``operands``."""
    shape = call.shapes[index]
    lettered = []
    for value in operands:
        offset = len(shape) - len(value.shape)
        lettered.append((value, [offset + i if size > 1 else None for i, size in enumerate(value.shape)]))
    return call.result(fields_of(align(call.atoms, lettered)), index)


def fields_of(joined: list[tuple[tuple[int, ...], np.ndarray]]) -> list[Field]:
    fields = []
    for axes, ids in joined:
        order = np.argsort(axes)
        plain = list(order) == list(range(len(axes)))
        fields.append(Field(axes, ids) if plain else Field(tuple(axes[i] for i in order), ids.transpose(order)))
    return fields


#: Element-wise operators that PyTorch does not tag as pointwise.
UNTAGGED = (
    "dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout",
    "feature_alpha_dropout", "native_dropout", "hardswish",
    "hardswish_", "log_sigmoid", "selu", "selu_", "masked_fill", "masked_fill_", "rsub", "where", "square", "positive",
    "fill_", "zero_", "copy_", "copy", "contiguous", "clone", "detach", "detach_", "alias", "to", "_to_copy", "type_as",
    "float", "double", "half", "zeros_like", "ones_like", "full_like", "lift_fresh_copy", "lift_fresh",
    "empty_like", "rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_", "uniform_", "normal_",
    "exponential_", "broadcast_tensors", "real", "imag", "complex", "polar",
)  # fmt: skip


@rule("pointwise", *overloads(*UNTAGGED))
def pointwise(call: Call) -> Value | tuple[Value, ...]:
    operands = list(call.values())
    results = tuple(broadcast(call, operands, i) for i in range(len(call.shapes)))
    return results if len(results) != 1 else results[0]


@rule(aten.prelu.default)
def prelu(call: Call) -> Value:
    """The slope's only axis follows axis 1 of the input."""
    x, slope = call["self"], call["weight"]
    shared = 1 if slope.shape and slope.shape[0] > 1 else None
    joined = align(call.atoms, [(x, list(range(len(x.shape)))), (slope, [shared] * len(slope.shape))])
    return call.result(fields_of(joined))
