"""Greedy search: from the dense network, take the narrowing that loses the least importance for what it saves.

For problems too large for the exact solver, and to compare with it. What it returns is allowed; how far it may be from
the best is said by the bound of the linear relaxation.
"""

from __future__ import annotations

import time
from typing import Callable

import numpy as np

from hwprune.errors import Infeasible
from hwprune.search.exact import upper_bound
from hwprune.search.problem import Choice, Problem, Solution

#: Saves re-evaluating: a step of at least this share of the remaining excess ends the descent.
_ENOUGH = 1e-9

#: Passes over all groups of the local improvement. Two sufficed wherever it was tried; more find nothing.
_PASSES = 4

Allowed = Callable[[Choice], bool]


def solve(
    problem: Problem, *, allowed: Allowed | None = None, bound: bool = True, time_limit_s: float = 60.0
) -> Solution:
    """A good allowed choice.

    Parameters
    ----------
    allowed : a stricter test than the problem's own, such as an exact re-evaluation of the network; asked wherever the
        problem itself allows.
    bound : whether to compute the upper bound (one linear program).

    Raises Infeasible if the descent ends at the smallest network without meeting the limits.
    """
    started = time.perf_counter()
    fits = _test(problem, allowed)
    choice = _descend(problem, fits)
    choice = _improve(problem, choice, fits, started + time_limit_s)
    limit = upper_bound(problem, time_limit_s=time_limit_s) if bound else None
    value = problem.value_of(choice)
    return Solution(choice, value, None if limit is None else max(limit, value), time.perf_counter() - started)


def _test(problem: Problem, allowed: Allowed | None) -> Allowed:
    return lambda choice: problem.allows(choice) and (allowed is None or allowed(choice))


def _descend(problem: Problem, fits: Allowed) -> Choice:
    choice = problem.dense
    own = [[limit.terms.only(g) for limit in problem.limits] for g in range(len(choice))]
    while not fits(choice):
        step = _best_step(problem, choice, own)
        if step is None:
            raise Infeasible("the smallest network allowed by the candidate widths exceeds the limits")
        choice = problem.moved(choice, *step)
    return choice


def _best_step(problem: Problem, choice: Choice, own) -> tuple[int, int] | None:
    """The narrowing (group, candidate) with the least importance lost for each unit of excess removed."""
    excess = np.array([limit.terms.at(choice) / limit.most - 1 for limit in problem.limits])
    # All limits hold in the problem's own terms: the stricter test wants a little more of everything.
    weights = np.where(excess > 0, 1.0, 0.0) if (excess > 0).any() else np.ones(len(excess))
    tied = {g for tie in problem.ties for g in tie}
    best, best_ratio = None, np.inf
    for group, at in enumerate(choice):
        least = 1 if group in tied else 0  # what goes together is looked at below
        if at <= least:
            continue
        saved = np.zeros(at - least)
        for weight, over, limit, terms in zip(weights, excess, problem.limits, own[group]):
            if weight:
                along = terms.along(group, choice, len(problem.widths[group]))
                saved += _worth((along[at] - along[least:at]) / limit.most, over)
        lost = problem.value[group][at] - problem.value[group][least:at]
        ratio = np.where(saved > _ENOUGH, lost / np.maximum(saved, _ENOUGH), np.inf)
        candidate = int(np.argmin(ratio))
        if ratio[candidate] < best_ratio:
            best, best_ratio = (group, least + candidate), ratio[candidate]
    for group, *_ in (tie for tie in problem.ties if choice[tie[0]] > 0):
        without = problem.moved(choice, group, 0)
        saved = sum(
            weight * _worth(over + 1 - limit.terms.at(without) / limit.most, over)
            for weight, over, limit in zip(weights, excess, problem.limits)
        )
        lost = problem.value_of(choice) - problem.value_of(without)
        if saved > _ENOUGH and lost / saved < best_ratio:
            best, best_ratio = (group, 0), lost / saved
    return best or _any_narrower(choice)


def _worth(saving, over: float):
    """More than is needed is worth nothing."""
    return np.minimum(saving, over) if over > 0 else saving


def _any_narrower(choice: Choice) -> tuple[int, int] | None:
    """No single step helps (a plateau): narrow the widest group by one candidate and look again."""
    group = int(np.argmax(choice)) if choice else 0
    return (group, choice[group] - 1) if choice and choice[group] > 0 else None


def _improve(problem: Problem, choice: Choice, fits: Allowed, deadline: float) -> Choice:
    """Widen single groups, then widen one at the cost of another, as long as importance is gained."""
    for _ in range(_PASSES):
        before = choice
        choice = _widen(problem, choice, fits)
        choice = _exchange(problem, choice, fits, deadline)
        if choice == before or time.perf_counter() > deadline:
            return choice
    return choice


def _widen(problem: Problem, choice: Choice, fits: Allowed) -> Choice:
    while True:
        wider = [problem.moved(choice, g, j + 1) for g, j in enumerate(choice) if j + 1 < len(problem.widths[g])]
        best = next((c for c in sorted(wider, key=problem.value_of, reverse=True) if fits(c)), None)
        if best is None:
            return choice
        choice = best


def _exchange(problem: Problem, choice: Choice, fits: Allowed, deadline: float) -> Choice:
    for up in range(len(choice)):
        for to in range(choice[up] + 1, len(problem.widths[up])):
            wider = problem.moved(choice, up, to)
            gain = problem.value_of(wider) - problem.value_of(choice)
            traded = _pay(problem, wider, up, gain, fits)
            if traded is not None:
                choice = traded
                break
        if time.perf_counter() > deadline:
            break
    return choice


def _pay(problem: Problem, wider: Choice, up: int, gain: float, fits: Allowed) -> Choice | None:
    """``wider`` with one other group narrowed until it fits, if that costs less than ``gain``."""
    best, least = None, gain * (1 - 1e-9)
    for down in range(len(wider)):
        if down == up:
            continue
        for to in range(wider[down] - 1, -1, -1):
            narrower = problem.moved(wider, down, to)
            cost = problem.value_of(wider) - problem.value_of(narrower)
            if cost >= least:
                break
            if narrower[up] == wider[up] and fits(narrower):
                best, least = narrower, cost
                break
    return best
