"""What `hwprune measure` does: make a network's cost surface known, and check predictions against whole networks."""

from __future__ import annotations

import time
from typing import Mapping, Sequence

import numpy as np

from hwprune.checking import accuracy, random_widths, spread_out
from hwprune.cost.base import network_estimate
from hwprune.cost.sampling import Surface, half_width, surface
from hwprune.costing import Costing
from hwprune.progress import Progress
from hwprune.results import CheckedNetwork, CheckReport, MeasureReport
from hwprune.search.space import candidate_widths
from hwprune.search.tables import NetworkView, Widths, grids
from hwprune.workload import Workload

#: Networks that calibrate the model, beside the dense one: uniform ones that keep these shares of the units, and random ones of
#: different sizes. In uniform ones some kernel runs many times, and its error counts as often; in random ones errors even out.
_SHARES = (0.75, 0.5, 0.25)
RANDOM_CALIBRATORS, _CALIBRATION_SEED = 5, 20_001
#: Kernels that are chosen at once. Fewer know more of those before them, and the model is asked of the whole surface each time.
_BATCH = 8
#: Networks that are timed in turn, in one run.
_IN_TURN = 8


def measure_surface(
    view: NetworkView, cost: Costing, *, within: float, time_limit_s: float, progress: Progress
) -> MeasureReport:
    """Measure kernels, the most uncertain first, until they are known to ``within`` (a share, see ``MeasureReport``) on average
    or ``time_limit_s`` seconds have passed."""
    started = time.perf_counter()
    widths = widths_of(view, cost)
    of = cost_surface(view, widths)
    networks = calibrating_networks(view, cost, widths)
    first = distinct([*of.workloads, *(w for chosen in networks for w in view.workloads(chosen))])
    known = sum(cost.model.is_measured(w) for w in first)
    cost.measure(view.workloads({}), "tune")
    cost.measure(distinct([w for chosen in networks for w in view.workloads(chosen)]))
    calibrate(view, cost, networks)

    def reached() -> float:
        return half_width(cost.model.predict(of.workloads), of.weights)

    with progress.task("measuring the most uncertain kernels") as task:
        while reached() > within and time.perf_counter() - started < time_limit_s:
            batch = cost.uncertain(of, _BATCH)
            if not batch:
                break
            cost.measure(batch)
            task.advance(len(batch))
            task.note(f"known to {reached():.1%}")
    measured = sum(cost.model.is_measured(w) for w in first)
    return MeasureReport(
        len(of.workloads), sum(cost.model.is_measured(w) for w in of.workloads), measured - known, reached(), cost.store.path,
        time.perf_counter() - started,
    )  # fmt: skip


def widths_of(view: NetworkView, cost: Costing) -> dict[str, np.ndarray]:
    """Candidate widths of every group."""
    return candidate_widths(view, {g.id: g.width for g in view.graph.groups}, cost.prior)


def cost_surface(view: NetworkView, widths: Mapping[str, np.ndarray]) -> Surface:
    """Every kernel that the network can have under these candidate widths."""
    return surface([grid.all() for grid in grids(view, tuple(widths), tuple(widths.values()))])


def check(view: NetworkView, cost: Costing, *, networks: int, seed: int, progress: Progress) -> CheckReport:
    """Predict ``networks`` random pruned networks, measure their kernels, predict them again, and time each twice as a whole."""
    started = time.perf_counter()
    widths = widths_of(view, cost)
    cost.measure(view.workloads({}))
    calibrating = calibrating_networks(view, cost, widths)
    cost.measure(distinct([w for chosen in calibrating for w in view.workloads(chosen)]))
    whole = calibrate(view, cost, calibrating)
    drawn = random_widths(widths, networks, seed)
    kernels = [view.workloads(chosen) for chosen in drawn]
    unknown = [sum(not cost.model.is_measured(w) for w in distinct(ws)) for ws in kernels]
    before = [network_estimate(cost.model, ws) for ws in kernels]
    cost.measure(distinct([w for ws in kernels for w in ws]))
    cost.model.fit(whole)
    after = [network_estimate(cost.model, ws) for ws in kernels]
    with progress.task("timing whole networks", total=2 * networks) as task:
        first, again = (time_in_turn(view, cost, drawn, task.advance) for _ in range(2))
    rows = [
        CheckedNetwork(chosen, len(distinct(ws)), n, b.latency_us, a.latency_us, a.low_us, a.high_us, once, twice)
        for chosen, ws, n, b, a, once, twice in zip(drawn, kernels, unknown, before, after, first, again)
    ]
    found = [accuracy([e.latency_us for e in estimates], first, again) for estimates in (before, after)]
    return CheckReport(rows, *found, cost.store.path, time.perf_counter() - started)


def calibrating_networks(view: NetworkView, cost: Costing, candidates: Mapping[str, np.ndarray]) -> list[dict[str, int]]:
    """The networks on which calibration stands, the dense one first."""
    drawn = random_widths(candidates, 2 * RANDOM_CALIBRATORS, _CALIBRATION_SEED)
    return [*uniform_networks(candidates), *(drawn[i] for i in of_all_sizes(view, cost, drawn))]


def uniform_networks(candidates: Mapping[str, np.ndarray]) -> list[dict[str, int]]:
    """The dense network, and those that keep about a share of all groups."""
    nearest = [{g: int(w[np.argmin(np.abs(w - share * w[-1]))]) for g, w in candidates.items()} for share in _SHARES]
    return [{}, *nearest]


def of_all_sizes(view: NetworkView, cost: Costing, networks: Sequence[Widths]) -> list[int]:
    """Positions of some of ``networks``, small and large ones by what is known of them before any measurement."""
    sizes = [network_estimate(cost.prior, view.workloads(chosen)).latency_us for chosen in networks]
    return spread_out(sizes, RANDOM_CALIBRATORS)


def calibrate(view: NetworkView, cost: Costing, networks: Sequence[Widths]) -> list[tuple[list[Workload], float]]:
    """Fit what networks take beside the sum of their kernels to these, whose kernels are all measured; what it was fitted to."""
    whole = [(view.workloads(chosen), us) for chosen, us in zip(networks, time_in_turn(view, cost, networks))]
    cost.model.fit(whole)
    return whole


def time_in_turn(view: NetworkView, cost: Costing, networks: Sequence[Widths], done=lambda count: None) -> list[float]:
    """Microseconds of each network, linked from the best kernels that were measured."""
    found: list[float] = []
    for start in range(0, len(networks), _IN_TURN):
        group = networks[start : start + _IN_TURN]
        found += time_group(view, cost, group)[0]
        done(len(group))
    return found


def time_group(view: NetworkView, cost: Costing, networks: Sequence[Widths]) -> tuple[list[float], float]:
    """Microseconds of each network, and of the dense one, all timed in turn in one run."""
    dense, *programs = (cost.measurer.program(view.network, view.graph.shapes(chosen)) for chosen in ({}, *networks))
    return cost.timed(dense, programs)


def distinct(workloads: Sequence[Workload]) -> list[Workload]:
    return list({w.key: w for w in workloads}.values())
