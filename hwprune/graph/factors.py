"""The inner units of joint axes: head dimensions beside heads.

Where a reshape factors an axis (heads x head_dim), what stays must be a box. One pass of propagation leaves the heads
free and ties the dimensions inside of each; a second one leaves the dimensions free and ties the heads. A group of the
second pass is taken beside those of the first where, on every axis that it touches, the two cross: each unit of the one
shares equally many indices with each unit of the other. An index then stays if both of its units do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Mapping

import numpy as np

from hwprune.graph.channels import FrozenAxis, Group, Terms
from hwprune.graph.trace import Traced

Key = tuple[str, int]  # node name, dim
Gathered = tuple[tuple[Group, ...], tuple[FrozenAxis, ...], dict[Key, Terms]]


@dataclass(frozen=True)
class _Crossing:
    """One axis of an inner group: its indices, and the outer group that they share it with, if any."""

    own: np.ndarray
    outer: int
    multiplicity: int


def with_inner_groups(traced: Traced, outer: Gathered, inner: Gathered) -> Gathered:
    """``outer``, and the groups of ``inner`` that cross some of its groups and contradict none."""
    groups, frozen, axes = outer
    taken = list(groups)
    labels = {key: list(terms.labels) for key, terms in axes.items()}
    terms = {key: (t.const, dict(t.groups)) for key, t in axes.items()}
    names = {g.id for g in groups}
    lies_on: dict[str, list[Key]] = {}
    for key, t in inner[2].items():
        for (group_id,), _ in t.groups:
            lies_on.setdefault(group_id, []).append(key)
    for number, group in enumerate(inner[0]):
        crossings = _crossings(number, group, {key: inner[2][key] for key in lies_on[group.id]}, axes)
        if crossings is None:
            continue
        name = _name(group.id, names)
        names.add(name)
        for key, crossing in crossings.items():
            layer = np.full((len(crossing.own), 2), -1)
            layer[crossing.own, 0] = len(taken)
            layer[crossing.own, 1] = inner[2][key].labels[0][crossing.own, 1]
            labels.setdefault(key, []).append(layer)
            const, parts = terms.get(key, (len(crossing.own), {}))
            width, m = group.width, crossing.multiplicity
            if crossing.outer < 0:
                const, parts[name,] = const - width * m, m
            else:
                other = groups[crossing.outer].id
                parts[other,] -= width * m
                parts[other, name] = m
            terms[key] = (const, parts)
        taken.append(replace(group, id=name))
    merged = {
        key: Terms(terms[key][0], tuple((ids, m) for ids, m in terms[key][1].items() if m), tuple(layers))
        for key, layers in labels.items()
    }
    nodes: dict[str, list[str]] = {}
    for node, target in traced.targets.items():
        nodes.setdefault(target, []).append(node)
    still = (f for f in frozen if not any(_freed(f, merged.get((n, f.dim)), len(groups)) for n in nodes[f.param]))
    return tuple(taken), tuple(still), merged


def _crossings(number: int, group: Group, inner: Mapping[Key, Terms], outer: Mapping[Key, Terms]) -> Any:
    """How an inner group lies on each of its axes; None if it is no factor of what the outer groups have there."""
    found: dict[Key, _Crossing] = {}
    for key, terms in inner.items():
        own = terms.labels[0][:, 0] == number
        units = terms.labels[0][own, 1]
        beside = outer[key].labels[0][own] if key in outer else np.full((len(units), 2), -1)
        others = np.unique(beside[:, 0])
        if len(others) > 1:
            return None
        if others[0] < 0:
            found[key] = _Crossing(own, -1, len(units) // group.width)
            continue
        table = np.zeros((int(beside[:, 1].max()) + 1, group.width), dtype=np.int64)
        np.add.at(table, (beside[:, 1], units), 1)
        if table.min() == 0 or table.min() != table.max():
            return None
        found[key] = _Crossing(own, int(others[0]), int(table[0, 0]))
    crosses = any(c.outer >= 0 for c in found.values())
    alone = any(c.outer < 0 for c in found.values())
    return found if crosses and alone else None


def _name(made_by: str, names: set[str]) -> str:
    base = f"{made_by.split('#')[0]}:inner"
    number = 1
    while (name := base if number == 1 else f"{base}#{number}") in names:
        number += 1
    return name


def _freed(frozen: FrozenAxis, terms: Terms | None, outer: int) -> bool:
    """Whether what was frozen of an axis can go as inner units after all: those numbered from ``outer`` on."""
    if terms is None:
        return False
    outside = np.any([(layer[:, 0] >= 0) & (layer[:, 0] < outer) for layer in terms.labels], axis=0)
    inside = np.any([layer[:, 0] >= outer for layer in terms.labels], axis=0)
    return int((inside & ~outside).sum()) >= frozen.count
