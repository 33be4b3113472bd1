"""Exact and greedy search against brute force on random small problems with pairwise terms."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.errors import Infeasible
from hwprune.search import exact, greedy
from hwprune.search.pareto import non_dominated, sweep, sweep_limits
from hwprune.search.problem import Limit, Problem, Terms, importance_kept, top_units


def random_problem(seed: int, groups: int = 4, limits: int = 1) -> Problem:
    """Costs as layers have them: products of widths, plus noise that makes them neither convex nor monotone."""
    rng = np.random.default_rng(seed)
    widths = tuple(np.unique(rng.integers(1, 40, rng.integers(2, 5))) for _ in range(groups))
    value = tuple(importance_kept(rng.exponential(size=w[-1]), w) for w in widths)

    def terms() -> Terms:
        pairs = [p for p in itertools.combinations(range(groups), 2) if rng.random() < 0.6]
        unary = {g: widths[g] * rng.random() + rng.random(len(widths[g])) for g in range(groups)}
        pair = {
            (g, h): np.outer(widths[g], widths[h]) * rng.random() * 0.1 + rng.random((len(widths[g]), len(widths[h])))
            for g, h in pairs
        }
        return Terms(float(rng.random()), unary, pair)

    made = []
    for i in range(limits):
        t = terms()
        dense = t.at(tuple(len(w) - 1 for w in widths))
        made.append(Limit("latency" if i == 0 else f"memory{i}", t, dense * rng.uniform(0.2, 1.05), "us"))
    return Problem(tuple(f"g{i}" for i in range(groups)), widths, value, tuple(made))


def tied_problem(seed: int, groups: int = 5) -> Problem:
    """Some of the groups may keep nothing: two of them together, another one alone, and then they cost nothing."""
    problem = random_problem(seed, groups)
    ties = ((0, 1), (3,))
    widths, value = list(problem.widths), list(problem.value)
    for g in (0, 1, 3):
        widths[g], value[g] = np.append(0, widths[g]), np.append(0.0, value[g])
    (limit,) = problem.limits

    def grown(table: np.ndarray, pair: tuple[int, ...]) -> np.ndarray:
        return np.pad(table, [(1, 0) if g in (0, 1, 3) else (0, 0) for g in pair])

    unary = {g: grown(t, (g,)) for g, t in limit.terms.unary.items()}
    pair = {key: grown(t, key) for key, t in limit.terms.pair.items()}
    limit = Limit(limit.name, Terms(limit.terms.constant, unary, pair), limit.most, limit.unit)
    return Problem(problem.groups, tuple(widths), tuple(value), (limit,), ties)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_what_keeps_nothing_keeps_nothing_together(seed):
    problem = tied_problem(seed)
    best = exactly_the_best(problem)
    if best is None:
        return
    near = greedy.solve(problem)
    assert problem.allows(near.choice) and near.value <= best * (1 + 1e-9) and near.value >= 0.5 * best


def exactly_the_best(problem: Problem) -> float | None:
    """What brute force finds, None where nothing is allowed; the exact solver is held to it."""
    best = brute_force(problem)
    if best is None:
        with pytest.raises(Infeasible):
            exact.solve(problem)
        return None
    solution = exact.solve(problem, gap=0.0)
    assert problem.allows(solution.choice, tolerance=1e-5)
    assert solution.value == pytest.approx(best, rel=1e-6)
    assert solution.bound >= best * (1 - 1e-6)
    return best


def brute_force(problem: Problem) -> float | None:
    choices = itertools.product(*(range(len(w)) for w in problem.widths))
    return max((problem.value_of(c) for c in choices if problem.allows(c)), default=None)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3))
def test_exact_equals_brute_force(seed, groups, limits):
    exactly_the_best(random_problem(seed, groups, limits))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 2))
def test_greedy_is_allowed_and_never_beats_the_bound(seed, groups, limits):
    problem = random_problem(seed, groups, limits)
    best = brute_force(problem)
    try:
        solution = greedy.solve(problem)
    except Infeasible:
        return  # greedy descends along one path; only the exact solver proves that nothing is allowed
    assert problem.allows(solution.choice)
    assert solution.value <= best * (1 + 1e-9)
    assert solution.bound >= best * (1 - 1e-6)
    assert solution.gap >= 0


def test_greedy_is_close_to_exact_on_average():
    ratios = []
    for seed in range(30):
        problem = random_problem(seed, groups=5)
        best = brute_force(problem)
        if best:
            ratios.append(greedy.solve(problem, bound=False).value / best)
    assert np.mean(ratios) > 0.97


def test_greedy_heeds_a_stricter_test():
    problem = random_problem(3, groups=4)
    loose = greedy.solve(problem, bound=False)
    strict = greedy.solve(
        problem, allowed=lambda c: problem.limits[0].terms.at(c) <= 0.9 * problem.limits[0].most, bound=False
    )
    assert strict.value < loose.value


def test_nothing_allowed_is_infeasible():
    problem = random_problem(1).with_most("latency", 1e-6)
    for solver in (exact, greedy):
        with pytest.raises(Infeasible):
            solver.solve(problem)


def test_dense_is_the_answer_when_it_fits():
    problem = random_problem(1).with_most("latency", 1e9)
    assert exact.solve(problem).choice == greedy.solve(problem).choice == problem.dense


@pytest.mark.parametrize("seed", range(5))
def test_frontier_is_monotone(seed):
    problem = random_problem(seed, groups=5)
    latency = problem.limits[0].terms
    limits = sweep_limits(latency.at(problem.smallest), latency.at(problem.dense), 8)
    front = non_dominated(sweep(problem, limits, exact.solve), latency.at, problem.value_of)
    costs, values = [latency.at(c) for c in front], [problem.value_of(c) for c in front]
    assert costs == sorted(costs) and len(set(costs)) == len(costs)
    assert values == sorted(values) and len(set(values)) == len(values)
    assert front[-1] == problem.dense or values[-1] == pytest.approx(problem.value_of(problem.dense))


def test_along_is_the_slice_of_at():
    problem = random_problem(7, groups=5)
    terms, choice = problem.limits[0].terms, problem.dense
    for group, widths in enumerate(problem.widths):
        along = terms.only(group).along(group, choice, len(widths))
        whole = [terms.at(choice[:group] + (j,) + choice[group + 1 :]) for j in range(len(widths))]
        assert np.diff(along) == pytest.approx(np.diff(whole))


def test_importance_of_a_width_is_the_sum_of_the_largest_scores():
    scores = np.array([0.5, 3.0, 1.0, 3.0])
    assert importance_kept(scores, np.array([0, 1, 2, 3, 4])).tolist() == [0.0, 3.0, 6.0, 7.0, 7.5]
    assert top_units(scores, 1) == (1,)
    assert top_units(scores, 3) == (1, 2, 3)
