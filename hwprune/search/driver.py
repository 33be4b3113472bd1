"""The search as a whole: solve, measure what the solution uses, solve again until the plan stands on measurements.

Measuring every kernel at every pair of widths would take hours; a solution uses a few dozen. So the first solution stands
on estimates, what is most uncertain around it is measured, then each solution's own kernels, which also tells more of the
rest, and so on. The search has
settled when every kernel of a solution was known by measurement before the solver chose it, or when nothing better than
a fully measured solution is left within ``SETTLED``. On a target that cannot be measured here the first solution is
final, and its provenance says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from hwprune.budget import Budget, format_bytes, format_us
from hwprune.compile.lower import Network
from hwprune.cost.base import CostModel, network_estimate
from hwprune.cost.sampling import surface
from hwprune.errors import BudgetError, HwpruneError, Infeasible, UsageError
from hwprune.graph.blocks import Block
from hwprune.progress import SILENT, Progress
from hwprune.results import FrontierPoint
from hwprune.search import exact, greedy, pareto
from hwprune.search.outcome import Learner, NetworkFigures, Outcome, Settings
from hwprune.search.problem import Choice, Limit, Problem, Solution, importance_kept
from hwprune.search.space import candidate_widths
from hwprune.search.tables import CallGrid, NetworkView, Widths, grids, latency_terms, live_terms, size_terms
from hwprune.workload import Workload

#: A measured solution this close to the bound is taken: estimates of what is not measured are no better than that.
SETTLED = 0.003

#: Above this many product variables the exact solver takes minutes; the candidates of each group are thinned instead.
_MOST_PRODUCTS = 60_000

#: Of the points beside the chosen one. Near the dense network a percent of importance is all that there is to lose.
_FRONTIER_GAP = 0.003

#: A network this close to the latency limit, timed as a whole, makes good use of it.
_CLOSE = 0.97

#: Networks that are timed as a whole for that, at most.
_CALIBRATIONS = 3

#: Kernels measured for points of the frontier beside the chosen one.
_FRONTIER_KERNELS = 24

#: The uniformly narrowed network whose kernels are measured first, so that every family is known at two widths.
_PROBED_SHARE = 0.5

#: Kernels around the first solution that are measured because they are uncertain: in all as many as a network has, so many at
#: once.
_EXPLORED_AT_ONCE = 8


@dataclass
class Search:
    """One search. ``run`` is the only entry.

    scores : importance by group id, float64 [width].
    learn : makes ``model`` know more by measuring; None where the target cannot be measured here.
    lowered : the network of given widths, lowered as it will be compiled; needed with ``learn``.
    prior : what the candidate widths are chosen by, before anything is measured; ``model`` by default.
    """

    view: NetworkView
    scores: Mapping[str, np.ndarray]
    model: CostModel
    settings: Settings
    learn: Learner | None = None
    lowered: Callable[[Widths], Network] | None = None
    prior: CostModel | None = None
    progress: Progress = SILENT
    _asked: set[tuple[str, str]] = field(default_factory=set)
    _rounds: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> Outcome:
        """Raises BudgetError, saying what is reachable, if no allowed network meets the budgets."""
        if not self.scores:
            raise UsageError("the network has no prunable group; `hwprune inspect` says what is frozen and why")
        self._know(self.view.workloads({}), "tune")
        if self.learn is not None:
            self.learn.calibrate(self.view.network)
        self._resolve()
        self._choose_reachable()
        self._probe()
        solution = self._settle_in_network()
        widths = self._widths_of(solution)
        frontier = self._frontier(widths)
        chosen = self.figures(widths)
        return Outcome(
            widths, self.dense, chosen, self._kept(widths), solution.gap, frontier,
            {g: [int(x) for x in w] for g, w in zip(self.groups, self.widths)}, self._rounds,
        )  # fmt: skip

    def figures(self, widths: Widths) -> NetworkFigures:
        """Exact figures of the network with ``widths``, under what the cost model knows now."""
        workloads = self.view.workloads(widths)
        shapes, network = self.view.graph.shapes(widths), self.view.at(widths).network
        return NetworkFigures(
            network_estimate(self.model, workloads), sum(w.macs for w in workloads),
            network.weight_bytes(shapes), network.memory(shapes).peak_bytes,
        )  # fmt: skip

    # -- budgets

    def _resolve(self) -> None:
        """The dense network's figures, and with them the limits by resource, in microseconds or bytes."""
        self.dense = self.figures({})
        s, dense = self.settings, _resources(self.dense)
        asked = {"latency": s.latency, "memory": s.memory, "size": s.size}
        if not any(asked.values()):
            asked["latency"] = Budget("0.5x", relative=0.5)
        self.budgets = {name: b for name, b in asked.items() if b is not None}
        self.limits = {name: b.resolve(dense[name]) for name, b in self.budgets.items()}

    def _choose_reachable(self) -> None:
        """Candidate widths under which the budgets can be met."""
        for share in self.settings.min_shares:
            self._choose_candidates(share)
            figures = self._smallest_figures()
            over = self._over(figures)
            if not over:
                return
            if share != self.settings.min_shares[-1]:
                self.progress.say(
                    f"no network that keeps {share:.0%} of every group meets the budget; narrower ones are allowed"
                )
        name = next(iter(over))
        raise BudgetError(self._refusal(name, _resources(figures)[name], figures.latency.provenance))

    def _smallest_figures(self) -> NetworkFigures:
        smallest = {g: int(w[0]) for g, w in zip(self.groups, self.widths)}
        if self._over(self.figures(smallest)):
            self._know(self.view.workloads(smallest))  # refuse on measurements, not on estimates
        return self.figures(smallest)

    def _refusal(self, name: str, reached: float, provenance: str) -> str:
        dense, show = _resources(self.dense)[name], format_us if name == "latency" else format_bytes
        budget, limit = self.budgets[name], self.limits[name]
        asked = f"{budget.text!r}" + (f" ({show(limit)})" if budget.relative is not None else "")
        kind = f", {provenance}" if name == "latency" else ""
        share = math.ceil(reached / dense * 100) / 100
        return (
            f"the {name} budget {asked} cannot be reached: the smallest allowed network takes {show(reached)}, which is "
            f"{reached / dense:.2g}x of the dense network's {show(dense)}{kind}; ask for {share:.2f}x or more"
        )

    def _over(self, figures: NetworkFigures) -> dict[str, float]:
        """By how much (a factor above 1) each limit is exceeded; empty if none is."""
        used = _resources(figures)
        return {name: used[name] / most for name, most in self.limits.items() if used[name] > most * (1 + 1e-6)}

    # -- the problem

    def _choose_candidates(self, min_share: float) -> None:
        full = {g: len(s) for g, s in self.scores.items()}
        self.groups, most = tuple(full), self.settings.candidates
        while True:
            found = candidate_widths(self.view, full, self.prior or self.model, most=most, min_share=min_share)
            self.widths = tuple(self._may_go(g, found[g]) for g in self.groups)
            self._grids: list[CallGrid] = grids(self.view, self.groups, self.widths)
            products = Problem(self.groups, self.widths, (), self._limits({}, False)).products
            if products <= _MOST_PRODUCTS or most <= 4:
                break
            most = max(4, most * 3 // 4)
            self.progress.say(f"the search space is large ({products} pairs of widths): at most {most} widths a group")
        self.value = tuple(importance_kept(self.scores[g], w) for g, w in zip(self.groups, self.widths))
        self.total = sum(float(np.sum(s)) for s in self.scores.values())
        number = {g: n for n, g in enumerate(self.groups)}
        self._ties = tuple(tuple(number[g] for g in (b.id, *b.inner)) for b in self._blocks)

    @property
    def _blocks(self) -> tuple[Block, ...]:
        """The residual branches that the search may take out."""
        return self.view.graph.blocks if self.settings.branches else ()

    def _may_go(self, group: str, widths: np.ndarray) -> np.ndarray:
        """The candidates of a group, and none of its units where it may go with a residual branch."""
        goes = any(group in (block.id, *block.inner) for block in self._blocks)
        return np.concatenate([[0], widths]) if goes else widths

    def _problem(self, tight: Mapping[str, float], pessimistic: bool = False) -> Problem:
        return Problem(self.groups, self.widths, self.value, self._limits(tight, pessimistic), self._ties)

    def _limits(self, tight: Mapping[str, float], pessimistic: bool) -> tuple[Limit, ...]:
        """Latency always takes part, for the frontier; without a budget its limit is what the dense network takes."""
        most = {name: limit * tight.get(name, 1.0) for name, limit in self.limits.items()}
        latency = latency_terms(self._grids, self.model, pessimistic=pessimistic)
        limits = [Limit("latency", latency, most.get("latency", latency.constant * (1 + 1e-9)), "us")]
        if "size" in most:
            limits.append(Limit("size", size_terms(self._grids), most["size"], "bytes"))
        if "memory" in most:
            steps = live_terms(self.view.live_bytes, self.groups, self.widths, most["memory"])
            limits += [Limit("memory", step, most["memory"], "bytes") for step in steps]
        return tuple(limits)

    # -- measuring

    def _know(self, workloads: Sequence[Workload], effort: str = "quick") -> int:
        """Measure those of ``workloads`` that nobody asked for with this effort yet; how many that were."""
        if self.learn is None:
            return 0
        fresh = list({w.key: w for w in workloads if (w.key, effort) not in self._asked}.values())
        if fresh:
            self.learn.measure(fresh, effort)
            self._asked.update((w.key, e) for w in fresh for e in {effort, "quick"})
        return len(fresh)

    def _probe(self) -> None:
        """Learn what the solver is about to stand on: a narrowed network, then what is most uncertain around a first solution."""
        if self.learn is None:
            return
        kept = {g: w[w > 0] for g, w in zip(self.groups, self.widths)}
        narrowed = self.view.workloads({g: int(w[np.argmin(np.abs(w - _PROBED_SHARE * w[-1]))]) for g, w in kept.items()})
        self._know(narrowed)
        widths = self._widths_of(self._solve_tight({}, pessimistic=False))
        around = [self.view.workload(call, widths) for call in range(len(self._grids))]
        nearby = surface([grid.all() for grid in self._grids], around)
        left = len({w.key for w in narrowed})
        while left > 0:
            uncertain = self.learn.uncertain(nearby, min(left, _EXPLORED_AT_ONCE))
            if not uncertain:
                return
            left -= max(1, self._know(uncertain))

    # -- solving

    def _solve(self, problem: Problem, *, gap: float, time_limit_s: float) -> Solution:
        if self.settings.strategy == "exact":
            return exact.solve(problem, gap=gap, time_limit_s=time_limit_s)
        return greedy.solve(problem, time_limit_s=time_limit_s)

    def _settle_in_network(self) -> Solution:
        """Settle, tune the solution's kernels, time them as one network, and settle again if that changes the picture.

        Each timing moves the figures of the solutions before it, so that which of them meets the limits is known last.
        """
        settled: list[Solution] = []
        for _ in range(_CALIBRATIONS):
            solution = self._settle()
            if self.learn is None:
                return solution
            settled.append(solution)
            widths = self._widths_of(solution)
            self._know(self.view.workloads(widths), "tune")
            self.learn.calibrate(self.lowered(widths))
            self._resolve()
            figures = self.figures(widths)
            limit = self.limits.get("latency", 0.0)
            if not self._over(figures) and figures.latency.latency_us >= _CLOSE * limit:
                return solution
            used = limit / figures.latency.latency_us
            self._rounds[-1]["calibrated"] = {"latency_us": figures.latency.latency_us, "limit_over_latency": used}
        allowed = [s for s in settled if not self._over(self.figures(self._widths_of(s)))]
        return max(allowed, key=lambda s: s.value) if allowed else self._settle()

    def _widths_of(self, solution: Solution) -> dict[str, int]:
        return {g: int(w[j]) for g, w, j in zip(self.groups, self.widths, solution.choice)}

    def _settle(self) -> Solution:
        """A solution whose kernels are all known and which meets the limits when evaluated exactly."""
        s = self.settings
        best: Solution | None = None
        tight: dict[str, float] = {}
        with self.progress.task("search", total=None) as task:
            for number in range(2 * s.rounds):
                if number == s.rounds and best is not None:
                    return best
                # Half of the rounds trust estimates; if that did not end, the other half distrusts them.
                solution = self._solve_tight(tight, pessimistic=number >= s.rounds)
                fresh, over, best = self._look(solution, best)
                task.note(f"round {number + 1}: {fresh} kernels measured")
                task.advance()
                if not over and fresh == 0:
                    return replace(solution, bound=None) if tight else solution
                if best is not None and fresh == 0 or self._close(best, solution, tight):
                    return best
                if fresh == 0:
                    tight = {**tight, **{name: tight.get(name, 1.0) / factor * 0.999 for name, factor in over.items()}}
        if best is None:
            raise HwpruneError(
                f"the search did not settle in {2 * s.rounds} rounds; loosen the budget a little and try again"
            )
        return best

    def _solve_tight(self, tight: Mapping[str, float], pessimistic: bool) -> Solution:
        s = self.settings
        try:
            return self._solve(self._problem(tight, pessimistic), gap=s.gap, time_limit_s=s.time_limit_s)
        except Infeasible as err:
            if not tight and not pessimistic:
                raise HwpruneError(
                    f"the search found nothing inside the budgets in {s.time_limit_s:g} s: {err}"
                ) from None
            smallest: Choice = (0,) * len(self.groups)  # known to meet the budgets, see _choose_reachable
            return Solution(smallest, float(sum(v[0] for v in self.value)), None)

    def _look(self, solution: Solution, best: Solution | None) -> tuple[int, dict[str, float], Solution | None]:
        """Measure a solution and evaluate it: kernels measured, limits exceeded, and the best allowed one so far."""
        widths = self._widths_of(solution)
        fresh = self._know(self.view.workloads(widths))
        figures = self.figures(widths)
        over = self._over(figures)
        self._rounds.append({
            "value": solution.value / max(self.total, 1e-300), "gap": solution.gap, "seconds": round(solution.seconds, 3),
            "kernels_measured": fresh, "latency_us": figures.latency.latency_us, "provenance": figures.latency.provenance,
            "exceeds": over,
        })  # fmt: skip
        if not over and (best is None or solution.value > best.value):
            best = solution
        return fresh, over, best

    def _close(self, best: Solution | None, latest: Solution, tight: Mapping[str, float]) -> bool:
        return (
            best is not None and not tight and latest.bound is not None and best.value >= latest.bound * (1 - SETTLED)
        )

    # -- the frontier

    def _frontier(self, chosen: dict[str, int]) -> list[FrontierPoint]:
        problem = self._problem({})
        latency = problem.limits[0].terms
        limits = pareto.sweep_limits(
            latency.at(problem.smallest), latency.at(problem.dense), self.settings.frontier_points
        )
        with self.progress.task("frontier", total=len(limits)) as task:

            def solve(p: Problem) -> Solution:
                task.advance()
                return self._solve(p, gap=_FRONTIER_GAP, time_limit_s=self.settings.time_limit_s / 6)

            choices = pareto.sweep(problem, limits, solve)
        candidates = [problem.widths_of(c) for c in choices]
        self._measure_neighbours(chosen, candidates)
        points = [self._point(w, w == chosen) for w in [chosen, *(w for w in candidates if w != chosen)]]
        return _front_with(points[0], points)

    def _measure_neighbours(self, chosen: dict[str, int], candidates: list[dict[str, int]]) -> None:
        """Measure the points next to the chosen one, as far as that takes few kernels."""

        def distance(widths: dict[str, int]) -> float:
            return abs(math.log(self.figures(widths).latency.latency_us / self.figures(chosen).latency.latency_us))

        left = _FRONTIER_KERNELS
        for widths in sorted(candidates, key=distance)[:3]:
            workloads = self.view.workloads(widths)
            if len({(w.key, "quick") for w in workloads} - self._asked) <= left:
                left -= self._know(workloads)

    def _point(self, widths: dict[str, int], chosen: bool) -> FrontierPoint:
        f = self.figures(widths)
        return FrontierPoint(
            f.latency.latency_us, self._kept(widths), widths, f.latency.provenance, f.weight_bytes, f.peak_memory_bytes,
            f.macs, chosen,
        )  # fmt: skip

    def _kept(self, widths: Widths) -> float:
        if self.total == 0:
            return 1.0
        return float(sum(importance_kept(s, np.array([widths[g]]))[0] for g, s in self.scores.items()) / self.total)


def _resources(figures: NetworkFigures) -> dict[str, float]:
    return {"latency": figures.latency.latency_us, "memory": figures.peak_memory_bytes, "size": figures.weight_bytes}


def _front_with(chosen: FrontierPoint, points: list[FrontierPoint]) -> list[FrontierPoint]:
    """The non-dominated points. A point that would hide the chosen one stands on estimates that were not followed up."""

    def hides(p: FrontierPoint) -> bool:
        better = p.latency_us <= chosen.latency_us and p.importance_kept >= chosen.importance_kept
        return better and p is not chosen

    return pareto.non_dominated(
        [p for p in points if not hides(p)], lambda p: p.latency_us, lambda p: p.importance_kept
    )
