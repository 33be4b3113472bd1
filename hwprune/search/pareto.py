"""The frontier: not one network, but those that no other beats in both latency and importance."""

from __future__ import annotations

from typing import Callable, Iterable, TypeVar

import numpy as np

from hwprune.errors import Infeasible
from hwprune.search.problem import Choice, Problem, Solution

Item = TypeVar("Item")


def sweep_limits(smallest: float, dense: float, points: int) -> list[float]:
    """``points`` limits between the smallest network's figure and the dense one's, geometrically spaced, ascending.

    Both ends are included; latencies are ratios to a user, hence geometric.
    """
    if points < 2 or not 0 < smallest < dense:
        return [dense]
    return [float(x) for x in np.geomspace(smallest * (1 + 1e-9), dense, points)]


def sweep(
    problem: Problem, limits: Iterable[float], solve: Callable[[Problem], Solution], *, name: str = "latency"
) -> list[Choice]:
    """The best choice under each limit on the resource ``name``; limits that nothing meets are left out."""
    choices: list[Choice] = []
    for most in limits:
        try:
            choice = solve(problem.with_most(name, most)).choice
        except Infeasible:
            continue
        if choice not in choices:
            choices.append(choice)
    return choices


def non_dominated(items: Iterable[Item], cost: Callable[[Item], float], value: Callable[[Item], float]) -> list[Item]:
    """Those of ``items`` that no other beats, by ascending cost; value then ascends strictly, too."""
    front: list[Item] = []
    for item in sorted(items, key=lambda i: (cost(i), -value(i))):
        if not front or value(item) > value(front[-1]):
            front.append(item)
    return front
