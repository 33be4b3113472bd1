"""Atoms: the smallest prunable things, and the values whose axes they label.

An atom stands for one index of one axis of one parameter. Every value of the graph carries, on the axes that follow a
parameter's axis, an array with the atom behind each index. Rules move these arrays the way the data goes and unify
atoms that must go together; a class of unified atoms is removed as a whole or not at all.

Most labelled axes are labelled one by one. A reshape that splits an axis (heads x head_dim, groups x channels) leaves a
label that depends on several axes at once: a ``Field`` over more than one axis. What such a field keeps must stay a
box, which ``settle`` arranges by unifying along all of its axes but one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


class Reason(str, Enum):
    """Why an axis cannot be pruned. The list is closed."""

    NETWORK_OUTPUT = "network output"
    NETWORK_INPUT = "network input"
    UNKNOWN_OPERATOR = "unknown operator"
    CUSTOM_FUNCTION = "custom function"
    UNIFORMITY = "uniformity"
    CONSTANT = "constant"
    USER = "user"


@dataclass(frozen=True)
class Cause:
    """One reason with its detail and place (module and file:line). ``reason`` None: nobody expects to prune it (a
    kernel's height), so no report names it."""

    reason: Reason | None
    detail: str = ""
    where: str = ""


SILENT_CAUSE = Cause(None)


@dataclass(frozen=True)
class Field:
    """Atom ids over the axes ``axes`` (ascending) of a value; ``ids.shape`` is the value's extent along them."""

    axes: tuple[int, ...]
    ids: np.ndarray


@dataclass(frozen=True)
class Value:
    """One tensor of the graph, by shape and labels.

    fields : disjoint in their axes; an axis of no field is of fixed size.
    fixed : why the axes of no field are of fixed size.
    weight : computed from parameters and constants alone.
    """

    shape: tuple[int, ...]
    fields: tuple[Field, ...] = ()
    fixed: Cause = SILENT_CAUSE
    weight: bool = False

    def field(self, axis: int) -> Field | None:
        for f in self.fields:
            if axis in f.axes:
                return f
        return None

    def having(self, fields: Iterable[Field], shape: Sequence[int] | None = None) -> "Value":
        return replace(self, fields=tuple(fields), shape=tuple(self.shape if shape is None else shape))


def spread(ids: np.ndarray, axes: Sequence, onto: Sequence, sizes: Sequence[int]) -> np.ndarray:
    """``ids`` over ``axes`` broadcast to the axes ``onto`` (a superset, any order) of extents ``sizes``."""
    order = sorted(range(len(axes)), key=lambda i: onto.index(axes[i]))
    shape = [size if axis in axes else 1 for axis, size in zip(onto, sizes)]
    return np.broadcast_to(ids.transpose(order).reshape(shape), tuple(sizes))


def compact(axes: Sequence[int], ids: np.ndarray) -> Field | None:
    """A field without the axes along which its ids do not vary; None if nothing is left."""
    kept = list(axes)
    for position in reversed(range(len(kept))):
        first = ids.take([0], axis=position)
        if len(kept) > 1 and (ids.shape[position] == 1 or (ids == first).all()):
            ids = first.squeeze(position)
            del kept[position]
    order = np.argsort(kept)
    if ids.size < 2:
        return None
    return Field(tuple(kept[i] for i in order), np.ascontiguousarray(ids.transpose(order)))


@dataclass
class Atoms:
    """Allocates atoms and collects what rules say about them. Everything is an array; no loop runs over channels.

    inner : of a joint label (heads x head_dim), the inner axis stays free and the outer one is tied, where either may.
    """

    inner: bool = False
    count: int = 0
    where: str = ""  # place in the user's source of the node at hand
    causes: list[Cause] = field(default_factory=list)
    _left: list[np.ndarray] = field(default_factory=list)
    _right: list[np.ndarray] = field(default_factory=list)
    _frozen: list[tuple[np.ndarray, int]] = field(default_factory=list)
    _read: list[np.ndarray] = field(default_factory=list)

    def new(self, number: int) -> np.ndarray:
        self.count += number
        return np.arange(self.count - number, self.count, dtype=np.int64)

    def new_frozen(self, number: int, cause: Cause) -> np.ndarray:
        ids = self.new(number)
        self.freeze(ids, cause)
        return ids

    def unify(self, a: np.ndarray, b: np.ndarray) -> None:
        """Atoms at equal positions (after broadcasting) are removed together."""
        if a is b:
            return
        a, b = np.broadcast_arrays(a, b)
        self._left.append(a.ravel())
        self._right.append(b.ravel())

    def freeze(self, ids: np.ndarray, cause: Cause) -> None:
        self.causes.append(cause)
        self._frozen.append((ids.ravel(), len(self.causes) - 1))

    def read(self, ids: np.ndarray) -> None:
        """These atoms of a parameter read a channel: zeroing them is what removing the channel amounts to."""
        self._read.append(ids.ravel())

    def axis(self, value: Value, axis: int) -> np.ndarray | None:
        """The labels of one axis alone, ``[size]``; a joint field is first tied along its other axes."""
        f = value.field(axis)
        if f is None:
            return None
        position = f.axes.index(axis)
        ids = np.moveaxis(f.ids, position, 0).reshape(f.ids.shape[position], -1)
        if ids.shape[1] > 1:
            self.unify(ids[:, 1:], ids[:, :1])
        return np.ascontiguousarray(ids[:, 0])

    def along(self, f: Field, axes: Sequence[int]) -> Field:
        """The labels of a joint field along ``axes`` (some of its own), tied along all of its others."""
        ids = f.ids
        for position in reversed([i for i, a in enumerate(f.axes) if a not in axes]):
            first = ids.take([0], axis=position)
            self.unify(ids, first)
            ids = first.squeeze(position)
        return Field(tuple(a for a in f.axes if a in axes), ids)

    def hold(self, value: Value, axes: Iterable[int], cause: Cause) -> Value:
        """``axes`` stay whole: labels along them alone are frozen; a joint label is tied along them and goes on as the
        label of its other axes (whole heads go where head dimensions stay)."""
        held = set(axes)
        fields = []
        for f in value.fields:
            rest = [a for a in f.axes if a not in held]
            if not rest:
                self.freeze(f.ids, cause)
            fields.append(f if len(rest) in (0, len(f.axes)) else self.along(f, rest))
        return value.having(fields)

    def freeze_axes(self, value: Value, axes: Iterable[int], cause: Cause) -> None:
        """Freeze every field that touches one of ``axes``."""
        wanted = set(axes)
        for f in value.fields:
            if wanted & set(f.axes):
                self.freeze(f.ids, cause)

    def freeze_value(self, value: Value, cause: Cause) -> None:
        self.freeze_axes(value, range(len(value.shape)), cause)

    # -- what follows is asked once propagation is over

    def classes(self) -> np.ndarray:
        """Class of each atom, ``[count]``."""
        if not self._left:
            return np.arange(self.count)
        left, right = np.concatenate(self._left), np.concatenate(self._right)
        self._left, self._right = [left], [right]
        links = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(self.count, self.count))
        return connected_components(links, directed=False)[1].astype(np.int64)

    def frozen_by(self, classes: np.ndarray) -> np.ndarray:
        """Index into ``causes`` of the cause that freezes each class, -1 where none does. A cause that can be named
        goes before a silent one, and an earlier one before a later one."""
        number = int(classes.max()) + 1 if len(classes) else 0
        never = len(self.causes)
        silent, named = np.full(number, never), np.full(number, never)
        for ids, cause in self._frozen:
            target = silent if self.causes[cause].reason is None else named
            hit = classes[ids]
            target[hit] = np.minimum(target[hit], cause)
        return np.where(named < never, named, np.where(silent < never, silent, -1))

    def readers(self) -> np.ndarray:
        """Mask over atoms of those that read a channel, ``[count]``."""
        mask = np.zeros(self.count, dtype=bool)
        for ids in self._read:
            mask[ids] = True
        return mask
