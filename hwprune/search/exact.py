"""Exact search: the knapsack with pairwise terms as a mixed-integer program, solved by HiGHS with a certified gap.

One binary ``x[g, i]`` says that group g takes candidate i; one continuous product ``z[g, h, i, j]`` stands for
``x[g, i] * x[h, j]``. The products are linked by their marginals, ``sum_j z[g,h,i,j] = x[g,i]`` and
``sum_i z[g,h,i,j] = x[h,j]``: for each pair that describes the convex hull of the products, so the linear relaxation is
tight and the products need not be declared integer (Adams & Johnson, 1994).
"""

from __future__ import annotations

import time
import warnings

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from hwprune.errors import Infeasible
from hwprune.search.problem import Choice, Problem, Solution


def solve(problem: Problem, *, gap: float = 1e-3, time_limit_s: float = 60.0) -> Solution:
    """The allowed choice that keeps the most importance, up to a relative ``gap``.

    Raises Infeasible if no choice is allowed, or if none was found within ``time_limit_s``.
    """
    started = time.perf_counter()
    if problem.allows(problem.dense):
        value = problem.value_of(problem.dense)
        return Solution(problem.dense, value, value, time.perf_counter() - started)
    program = _Program(problem)
    result = program.run(relaxed=False, gap=gap, time_limit_s=time_limit_s)
    if result.x is None:
        raise Infeasible(f"no choice of widths was found inside the limits (HiGHS: {result.message})")
    choice = program.choice(result.x)
    bound = -float(result.mip_dual_bound) if result.mip_dual_bound is not None else None
    return Solution(
        choice, problem.value_of(choice), _at_least(bound, problem.value_of(choice)), time.perf_counter() - started
    )


def upper_bound(problem: Problem, *, time_limit_s: float = 60.0) -> float | None:
    """No allowed choice is worth more than this (the linear relaxation); None if it was not found in time."""
    if problem.allows(problem.dense):
        return problem.value_of(problem.dense)
    result = _Program(problem).run(relaxed=True, gap=0.0, time_limit_s=time_limit_s)
    return -float(result.fun) if result.status == 0 else None


def _at_least(bound: float | None, value: float) -> float | None:
    """A dual bound may lie below the value by the solver's tolerance."""
    return None if bound is None else max(bound, value)


class _Program:
    """Sparse matrices of the problem. Columns: the binaries group by group, then the products pair by pair."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.sizes = [len(w) for w in problem.widths]
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(int)
        self.pairs = sorted({key for limit in problem.limits for key in limit.terms.pair})
        self.pair_starts, at = {}, int(self.starts[-1])
        for g, h in self.pairs:
            self.pair_starts[g, h] = at
            at += self.sizes[g] * self.sizes[h]
        self.columns = at

    def run(self, *, relaxed: bool, gap: float, time_limit_s: float):
        # Values are scaled to a total of one, so that the solver's absolute tolerances mean the same for every criterion.
        self.scale = max(sum(float(np.abs(v).max(initial=0.0)) for v in self.problem.value), 1e-300)
        objective = np.zeros(self.columns)
        objective[: self.starts[-1]] = -np.concatenate(self.problem.value) / self.scale
        integrality = np.zeros(self.columns)
        if not relaxed:
            integrality[: self.starts[-1]] = 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns about HiGHS options it passes on without knowing them
            result = milp(
                objective,
                integrality=integrality,
                bounds=Bounds(0, 1),
                constraints=[self._links(), self._limits()],
                options={"mip_rel_gap": gap, "time_limit": time_limit_s, "presolve": True},
            )
        if result.fun is not None:
            result.fun *= self.scale
        if result.mip_dual_bound is not None:
            result.mip_dual_bound *= self.scale
        return result

    def choice(self, x: np.ndarray) -> Choice:
        return tuple(int(np.argmax(x[a:b])) for a, b in zip(self.starts, self.starts[1:]))

    def _links(self) -> LinearConstraint:
        """One width a group, the marginals of every pair, and what goes together."""
        rows, columns, entries, row = [], [], [], 0
        right = []
        for g, size in enumerate(self.sizes):
            rows += [row] * size
            columns += range(self.starts[g], self.starts[g] + size)
            entries += [1.0] * size
            right.append(1.0)
            row += 1
        for g, h in self.pairs:
            index = (
                np.arange(self.sizes[g] * self.sizes[h]).reshape(self.sizes[g], self.sizes[h]) + self.pair_starts[g, h]
            )
            for group, lines in ((g, index), (h, index.T)):
                for candidate, line in enumerate(lines):
                    rows += [row] * (len(line) + 1)
                    columns += [*line, self.starts[group] + candidate]
                    entries += [1.0] * len(line) + [-1.0]
                    right.append(0.0)
                    row += 1
        for first, *others in self.problem.ties:
            for other in others:
                rows += [row, row]
                columns += [self.starts[first], self.starts[other]]
                entries += [1.0, -1.0]
                right.append(0.0)
                row += 1
        matrix = sparse.csr_array((entries, (rows, columns)), shape=(row, self.columns))
        return LinearConstraint(matrix, right, right)

    def _limits(self) -> LinearConstraint:
        """One row a limit, scaled so that the limit is one."""
        matrix = np.zeros((len(self.problem.limits), self.columns))
        right = np.zeros(len(self.problem.limits))
        for row, limit in enumerate(self.problem.limits):
            for g, table in limit.terms.unary.items():
                matrix[row, self.starts[g] : self.starts[g + 1]] += table
            for key, table in limit.terms.pair.items():
                at = self.pair_starts[key]
                matrix[row, at : at + table.size] += table.ravel()
            matrix[row] /= limit.most
            right[row] = 1.0 - limit.terms.constant / limit.most
        return LinearConstraint(sparse.csr_array(matrix), -np.inf, right)
