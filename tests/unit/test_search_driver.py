"""The search as a whole, on a chain of convolutions and a device that measures by a formula."""

import numpy as np
import pytest
from search_fakes import Device, chain
from test_cost_analytic import make_profile

from hwprune.budget import parse_bytes, parse_latency
from hwprune.cost.analytic import AnalyticModel
from hwprune.cost.base import Estimate
from hwprune.errors import BudgetError, UsageError
from hwprune.search.driver import SETTLED, Search, Settings
from hwprune.search.tables import NetworkView


def search(widths=(32, 24, 48, 16), device=None, concat=False, **settings):
    graph, network, scores = chain(*widths, concat=concat)
    model = device.model if device else AnalyticModel(make_profile())
    view, prior = NetworkView(network, graph), AnalyticModel(make_profile())
    return Search(view, scores, model, Settings(**settings), device, network.at, prior).run()


class Oracle(Device):
    """A device whose every kernel is known from the start."""

    def __init__(self):
        super().__init__()
        self.model = self
        self.kernel_overhead_us, self.network_overhead_us = 0.0, 5.0

    def predict(self, workloads):
        return [Estimate(t, t, t, "measured") for t in (1.1 * self.latency_us(w) for w in workloads)]

    def measure(self, workloads, effort="quick"):
        pass

    def uncertain(self, of, most):
        return []

    def calibrate(self, network):
        pass


@pytest.mark.parametrize("strategy", ["exact", "greedy"])
@pytest.mark.parametrize("concat", [False, True])
def test_analytic_search_meets_the_budget_and_says_how_far_it_may_be_from_the_best(strategy, concat):
    outcome = search(strategy=strategy, latency=parse_latency("0.4x"), concat=concat)
    dense, chosen = outcome.dense.latency, outcome.chosen.latency
    assert chosen.latency_us <= 0.4 * dense.latency_us * (1 + 1e-6)
    assert chosen.provenance == dense.provenance == "analytic"
    assert outcome.gap is None or 0 <= outcome.gap < 0.1
    assert set(outcome.widths) == {"layer0", "layer1", "layer2", "layer3"}


def test_without_a_budget_half_the_dense_latency():
    outcome = search()
    assert 0.3 < outcome.chosen.latency.latency_us / outcome.dense.latency.latency_us <= 0.5


def test_measured_search_ends_on_measurements_alone():
    device = Device()
    outcome = search(device=device, latency=parse_latency("0.5x"))
    assert outcome.dense.latency.provenance == outcome.chosen.latency.provenance == "measured"
    assert outcome.chosen.latency.latency_us <= 0.5 * outcome.dense.latency.latency_us
    assert len(outcome.rounds) <= 12
    # Timed as a whole, the network takes what was predicted.
    alone, whole = device.networks[-1]
    assert outcome.chosen.latency.latency_us == pytest.approx(whole, rel=0.005)
    assert device.efforts[0] == "tune" and "tune" in device.efforts[1:]  # the dense network and the chosen one


class Moody(Device):
    """A device on which each network that is timed takes another multiple of what its kernels say."""

    def __init__(self, *factors):
        super().__init__()
        self.factors = factors

    def network_us(self, workloads):
        return super().network_us(workloads) * self.factors[min(len(self.networks), len(self.factors) - 1)]


@pytest.mark.parametrize("factors", [(1, 0.8, 0.8, 1.25), (1, 0.8, 1.25, 1.25), (1, 0.8, 1, 1.25), (1, 1.25, 0.8, 1.25)])
def test_the_plan_meets_its_budget_under_the_last_calibration(factors):
    outcome = search(device=Moody(*factors), latency=parse_latency("0.5x"))
    assert outcome.chosen.latency.latency_us <= 0.5 * outcome.dense.latency.latency_us * (1 + 1e-6)


def test_measuring_again_finds_everything_known():
    device = Device()
    first = search(device=device)
    known = len(device.measured)
    second = search(device=device)
    assert second.importance_kept >= first.importance_kept * (1 - SETTLED)
    assert len(device.measured) <= known * 1.25
    third, fourth = search(device=device), search(device=device)
    assert fourth.widths == third.widths and third.importance_kept >= second.importance_kept


def test_measured_search_is_close_to_one_that_knows_every_latency():
    lazy = search(device=Device(), latency=parse_latency("0.5x"))
    full = search(device=Oracle(), latency=parse_latency("0.5x"))
    assert lazy.importance_kept >= 0.97 * full.importance_kept


def test_all_budgets_hold_together():
    outcome = search(latency=parse_latency("0.6x"), memory=parse_bytes("0.7x"), size=parse_bytes("10kB"))
    assert outcome.chosen.latency.latency_us <= 0.6 * outcome.dense.latency.latency_us * (1 + 1e-6)
    assert outcome.chosen.peak_memory_bytes <= 0.7 * outcome.dense.peak_memory_bytes
    assert outcome.chosen.weight_bytes <= 10_000


def test_memory_alone_may_leave_latency_as_it_is():
    outcome = search(memory=parse_bytes("0.9x"))
    assert outcome.chosen.peak_memory_bytes <= 0.9 * outcome.dense.peak_memory_bytes
    assert outcome.chosen.latency.latency_us <= outcome.dense.latency.latency_us


@pytest.mark.parametrize(
    ("budget", "parts"),
    [
        (dict(latency=parse_latency("0.001x")), ["latency", "'0.001x'", "x of the dense network's", "analytic"]),
        (dict(latency=parse_latency("1us")), ["latency", "'1us'", "us"]),
        (dict(memory=parse_bytes("100B")), ["memory", "'100B'", "kB"]),
        (dict(size=parse_bytes("10B")), ["size", "'10B'"]),
    ],
)
def test_unreachable_budget_says_what_is_reachable(budget, parts):
    with pytest.raises(BudgetError) as err:
        search(**budget)
    assert all(part in str(err.value) for part in parts) and "or more" in str(err.value)


def test_what_the_refusal_names_is_reachable():
    with pytest.raises(BudgetError) as err:
        search(latency=parse_latency("0.001x"))
    share = str(err.value).split("ask for ")[1].split(" ")[0]
    assert search(latency=parse_latency(share)).chosen.latency.latency_us > 0


def test_frontier_is_monotone_and_has_the_chosen_point():
    outcome = search(device=Device())
    latency = [p.latency_us for p in outcome.frontier]
    kept = [p.importance_kept for p in outcome.frontier]
    assert latency == sorted(latency) and kept == sorted(kept) and len(set(latency)) == len(latency) > 4
    (chosen,) = [p for p in outcome.frontier if p.chosen]
    assert chosen.widths == outcome.widths


def test_all_scores_zero_is_no_division_by_zero():
    graph, network, scores = chain(16, 16)
    zero = {g: np.zeros_like(s) for g, s in scores.items()}
    outcome = Search(NetworkView(network, graph), zero, AnalyticModel(make_profile()), Settings()).run()
    assert outcome.importance_kept == 1.0


def test_nothing_to_prune_and_unknown_strategy_are_usage_errors():
    graph, network, _ = chain(16, 16)
    with pytest.raises(UsageError, match="no prunable group"):
        Search(NetworkView(network, graph), {}, AnalyticModel(make_profile()), Settings()).run()
    with pytest.raises(UsageError, match="'exakt'.*exact"):
        Settings(strategy="exakt")


def test_groups_keep_a_third_unless_the_budget_needs_less():
    easy = search(latency=parse_latency("0.6x"))
    assert min(easy.widths[f"layer{i}"] / w for i, w in enumerate((32, 24, 48, 16))) >= 0.3
    hard = search(latency=parse_latency("0.2x"))
    assert hard.chosen.latency.latency_us <= 0.2 * hard.dense.latency.latency_us * (1 + 1e-6)
