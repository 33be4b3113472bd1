"""The search problem as arrays: a multiple-choice knapsack with pairwise terms.

Each group takes one of its candidate widths. A width is worth the importance that it keeps. A resource (latency, size,
bytes that are live at one step) is a constant, plus a term of each group's choice, plus a term of each pair of choices:
a layer's latency depends on the widths of the groups at its input and at its output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Mapping, Sequence

import numpy as np

Choice = tuple[int, ...]  # index of the chosen candidate width, one entry a group


@dataclass(frozen=True)
class Terms:
    """A resource as a function of the choice.

    unary : group index -> float64 [candidates of the group].
    pair : (g, h) with g < h -> float64 [candidates of g, candidates of h].
    """

    constant: float
    unary: Mapping[int, np.ndarray]
    pair: Mapping[tuple[int, int], np.ndarray]

    def at(self, choice: Sequence[int]) -> float:
        total = self.constant + sum(table[choice[g]] for g, table in self.unary.items())
        return float(total + sum(table[choice[g], choice[h]] for (g, h), table in self.pair.items()))

    def along(self, group: int, choice: Sequence[int], candidates: int) -> np.ndarray:
        """float64 [candidates]: the part that depends on ``group``'s choice, all others being as in ``choice``."""
        total = np.zeros(candidates) + self.unary.get(group, 0.0)
        for (g, h), table in self.pair.items():
            if g == group:
                total = total + table[:, choice[h]]
            elif h == group:
                total = total + table[choice[g], :]
        return total

    def only(self, group: int) -> "Terms":
        """The terms that ``group`` takes part in; much faster to ask than all when only this group moves."""
        pair = {key: table for key, table in self.pair.items() if group in key}
        return Terms(0.0, {g: t for g, t in self.unary.items() if g == group}, pair)


@dataclass(frozen=True)
class Limit:
    """A resource that must not exceed ``most``; both in ``unit`` (``us`` or ``bytes``)."""

    name: str
    terms: Terms
    most: float
    unit: str


@dataclass(frozen=True)
class Problem:
    """See the module docstring.

    groups : ids. widths : int64 [candidates], ascending, the last one is the dense width.
    value : float64 [candidates], importance kept at each candidate width, ascending.
    ties : groups whose first candidate is to keep nothing, and which keep nothing together: those of a residual branch.
    """

    groups: tuple[str, ...]
    widths: tuple[np.ndarray, ...]
    value: tuple[np.ndarray, ...]
    limits: tuple[Limit, ...]
    ties: tuple[tuple[int, ...], ...] = ()

    @property
    def dense(self) -> Choice:
        return tuple(len(w) - 1 for w in self.widths)

    @property
    def smallest(self) -> Choice:
        return (0,) * len(self.widths)

    @property
    def products(self) -> int:
        """Number of product variables that a linear formulation needs."""
        pairs = {key for limit in self.limits for key in limit.terms.pair}
        return sum(len(self.widths[g]) * len(self.widths[h]) for g, h in pairs)

    def value_of(self, choice: Choice) -> float:
        return float(sum(v[j] for v, j in zip(self.value, choice)))

    def widths_of(self, choice: Choice) -> dict[str, int]:
        return {g: int(w[j]) for g, w, j in zip(self.groups, self.widths, choice)}

    def excess(self, choice: Choice) -> float:
        """Sum over the limits of how far the choice is above them, relative to them; zero if it is allowed."""
        return sum(max(0.0, limit.terms.at(choice) / limit.most - 1) for limit in self.limits)

    def allows(self, choice: Choice, tolerance: float = 1e-9) -> bool:
        return self.excess(choice) <= tolerance and self.is_tied(choice)

    def is_tied(self, choice: Choice) -> bool:
        return all(len({choice[g] == 0 for g in tie}) == 1 for tie in self.ties)

    def moved(self, choice: Choice, group: int, candidate: int) -> Choice:
        """``choice`` with another candidate for ``group``; what goes or stays with it follows, as narrow as it can be."""
        changed = list(choice)
        changed[group] = candidate
        for other in self._tied_to.get(group, ()):
            if (changed[other] == 0) != (candidate == 0):
                changed[other] = 0 if candidate == 0 else 1
        return tuple(changed)

    @cached_property
    def _tied_to(self) -> dict[int, tuple[int, ...]]:
        return {g: tie for tie in self.ties for g in tie}

    def with_most(self, name: str, most: float) -> "Problem":
        """The same problem with another limit on the resource called ``name``."""
        return replace(self, limits=tuple(replace(x, most=most) if x.name == name else x for x in self.limits))


@dataclass(frozen=True)
class Solution:
    """A choice that is allowed, its value, and an upper bound on the value of any allowed choice (None if unknown)."""

    choice: Choice
    value: float
    bound: float | None
    seconds: float = 0.0

    @property
    def gap(self) -> float | None:
        """Relative distance to the bound: 0.01 means that nothing allowed is worth more than 1 % more."""
        if self.bound is None:
            return None
        return max(0.0, self.bound - self.value) / max(abs(self.value), 1e-12)


def importance_kept(scores: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """float64 [len(widths)]: sum of the ``k`` largest of ``scores`` [units] for each ``k`` in ``widths``."""
    descending = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    return np.concatenate([[0.0], np.cumsum(descending)])[np.asarray(widths)]


def top_units(scores: np.ndarray, count: int) -> tuple[int, ...]:
    """Indices, ascending, of the ``count`` largest scores; of equal ones the first."""
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    return tuple(sorted(int(i) for i in order[:count]))
