"""Gather classes of atoms into groups: equal signatures together, everything else frozen with its reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Iterator

import numpy as np

from hwprune.graph.atoms import Cause, Field, Reason, Value
from hwprune.graph.channels import AxisSlice, FrozenAxis, Group, Terms
from hwprune.graph.propagate import Labels
from hwprune.graph.trace import Traced


@dataclass(frozen=True)
class _Axis:
    """One labelled axis. Axes with the same ``key`` have the very same labels."""

    node: str
    param: str | None
    dim: int
    ids: np.ndarray
    key: int


def gather(traced: Traced, labels: Labels) -> tuple[tuple[Group, ...], tuple[FrozenAxis, ...], dict]:
    """Groups in the order of the graph, frozen axes, and the terms of every labelled axis by (node name, dim)."""
    classes = labels.classes
    axes = list(_axes(traced, labels))
    distinct = {axis.key: classes[axis.ids] for axis in axes}
    frozen_by = labels.atoms.frozen_by(classes)
    causes = list(labels.atoms.causes)
    group_of = _group_numbers(distinct, frozen_by)
    params = _by_use(traced, axes)
    group_of, unit_of, ids = _order(params, classes, group_of, frozen_by, causes, labels.atoms.readers())
    terms = _terms(axes, distinct, group_of, unit_of, ids)
    groups = _build(traced, axes, params, terms, ids, labels.atoms.readers())
    frozen = _frozen(traced, params, distinct, frozen_by, causes)
    return groups, frozen, {(axis.node, axis.dim): terms[axis.key] for axis in axes}


def _axes(traced: Traced, labels: Labels) -> Iterator[_Axis]:
    keys: dict[int, tuple[int, np.ndarray, int]] = {}
    for node, value in labels.values.items():
        if not isinstance(value, Value):
            continue
        for f in value.fields:
            if id(f.ids) not in keys:
                position, ids = _single(f, labels.classes)
                keys[id(f.ids)] = (position, ids, len(keys))
            position, ids, key = keys[id(f.ids)]
            yield _Axis(node, traced.targets.get(node), f.axes[position], ids, key)


def _single(f: Field, classes: np.ndarray) -> tuple[int, np.ndarray]:
    """The axis along which a settled field varies (the longest, if along none), and its labels there."""
    if len(f.axes) == 1:
        return 0, f.ids
    own = classes[f.ids]
    varying = [a for a in range(own.ndim) if (own != own.take([0], axis=a)).any()]
    position = varying[0] if varying else int(np.argmax(own.shape))
    return position, np.moveaxis(f.ids, position, 0).reshape(own.shape[position], -1)[:, 0]


def _group_numbers(distinct: dict[int, np.ndarray], frozen_by: np.ndarray) -> np.ndarray:
    """Provisional group of each class, -1 where frozen: classes with one signature, which is the multiset of the axes
    that they lie on, compared by a 64-bit hash."""
    signature = np.zeros(len(frozen_by), dtype=np.uint64)
    for key, own in distinct.items():
        found, counts = np.unique(own, return_counts=True)
        signature[found] += _mix(np.uint64(key + 1) * np.uint64(1 << 32) + counts.astype(np.uint64))
    free = frozen_by < 0
    numbers = np.full(len(frozen_by), -1)
    if free.any():
        numbers[free] = np.unique(signature[free], return_inverse=True)[1]
    return numbers


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _by_use(traced: Traced, axes: list[_Axis]) -> list[_Axis]:
    """Axes of parameters and buffers in the order in which the graph first uses them."""
    first: dict[str, tuple[int, int]] = {}
    for number, node in enumerate(traced.graph.nodes):
        for place, source in enumerate(node.all_input_nodes):
            first.setdefault(source.name, (number, place))
    own = [axis for axis in axes if axis.param is not None]
    return sorted(own, key=lambda axis: (first.get(axis.node, (1 << 60, 0)), axis.dim))


def _order(params, classes, group_of, frozen_by, causes, reads) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Final group numbers in graph order, units in the order of the group's first producing axis, and group ids.

    A group of one unit cannot lose any: it is frozen.
    """
    final = np.full(len(group_of), -1)
    units = np.zeros(len(group_of), dtype=np.int64)
    names: list[str] = []
    done: set[int] = set()
    rank: dict[str, int] = {}
    for a in params:
        rank[a.node] = max(rank.get(a.node, 0), a.dim + 1)
    makers = [a for a in params if not reads[a.ids].any()]
    anchors = [a for a in makers if rank[a.node] > 1]
    for axis in [*anchors, *makers, *params]:
        own = classes[axis.ids]
        for number in _in_order(group_of[own]):
            if number < 0 or number in done:
                continue
            done.add(number)
            members = _in_order(own[group_of[own] == number])
            if len(members) == 1:
                detail = f"the {int((own == members[0]).sum())} indices can only go together"
                causes.append(Cause(Reason.UNIFORMITY, detail, axis.param))
                frozen_by[members] = len(causes) - 1
                continue
            final[members], units[members] = len(names), np.arange(len(members))
            names.append(axis.param.rpartition(".")[0] or axis.param)
    return final, units, names


def _in_order(numbers: np.ndarray) -> np.ndarray:
    """Distinct numbers in the order of their first appearance."""
    found, first = np.unique(numbers, return_index=True)
    return found[np.argsort(first)]


def _terms(axes, distinct, group_of, unit_of, ids) -> dict[int, Terms]:
    unique_ids = _unique(ids)
    terms = {}
    for key, own in distinct.items():
        groups = group_of[own]
        present = np.unique(groups[groups >= 0])
        parts = []
        for number in present.tolist():
            own_units = np.unique(own[groups == number])
            parts.append(((unique_ids[number],), int((groups == number).sum()) // len(own_units)))
        labels = np.stack([groups, unit_of[own]], axis=1)
        terms[key] = Terms(int((groups < 0).sum()), tuple(parts), (labels,))
    return terms


def _unique(names: list[str]) -> list[str]:
    count: Counter[str] = Counter()
    result = []
    for name in names:
        count[name] += 1
        result.append(name if count[name] == 1 else f"{name}#{count[name]}")
    return result


def _build(traced, axes, params, terms, ids, reads) -> tuple[Group, ...]:
    names = _unique(ids)
    number = {name: i for i, name in enumerate(names)}
    slices: dict[str, dict[str, list]] = {n: {"params": [], "values": [], "makes": [], "reads": []} for n in names}
    index: dict[tuple[int, str], np.ndarray] = {}
    trainable = set(traced.exported.graph_signature.inputs_to_parameters)
    values = [axis for axis in axes if axis.param is None]
    for axis in [*params, *values]:
        for (name,), multiplicity in terms[axis.key].groups:
            if (axis.key, name) not in index:
                index[axis.key, name] = _index(terms[axis.key].labels[0], number[name], multiplicity)
            own = slices[name]
            if axis.param is None:
                own["values"].append(AxisSlice(axis.node, axis.dim, index[axis.key, name]))
                continue
            own["params"].append(AxisSlice(axis.param, axis.dim, index[axis.key, name]))
            if reads[axis.ids].any():
                own["reads"].append((axis.param, axis.dim))
            elif axis.node in trainable:
                own["makes"].append((axis.param, axis.dim))
    return tuple(
        Group(
            id=name,
            width=len(own["params"][0].index),
            params=tuple(own["params"]),
            values=tuple(own["values"]),
            producers=tuple(own["makes"]),
            consumers=tuple(own["reads"]),
        )
        for name, own in slices.items()
    )


def _index(labels: np.ndarray, number: int, multiplicity: int) -> np.ndarray:
    """Positions of each unit, ``[width, multiplicity]``, ascending within a unit."""
    positions = np.flatnonzero(labels[:, 0] == number)
    order = np.argsort(labels[positions, 1], kind="stable")
    return positions[order].reshape(-1, multiplicity).astype(np.int64)


def _frozen(traced, params, distinct, frozen_by, causes: list[Cause]) -> tuple[FrozenAxis, ...]:
    trainable = set(traced.exported.graph_signature.inputs_to_parameters)
    found: dict[tuple[str, int], Any] = {}
    for axis in params:
        if axis.node not in trainable:
            continue
        own = frozen_by[distinct[axis.key]]
        reasons: dict[Cause, int] = {}
        for number, count in zip(*np.unique(own[own >= 0], return_counts=True)):
            cause = causes[number]
            if cause.reason is not None:
                reasons[cause] = reasons.get(cause, 0) + int(count)
        found[axis.param, axis.dim] = [
            FrozenAxis(axis.param, axis.dim, count, len(own), cause.reason, cause.detail, cause.where)
            for cause, count in reasons.items()
        ]
    return tuple(f for rows in found.values() for f in rows)
