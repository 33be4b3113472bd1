"""Calibration by whole networks on a machine that something else disturbs now and then."""

import pytest
import torch
from torch import nn

from hwprune import costing
from hwprune.compile.lower import lower
from hwprune.costing import Costing, load_target
from hwprune.graph import trace
from hwprune.kernels import candidates
from hwprune.measure.estimate import Latency

X = torch.randn(1, 3, 8, 8)


def network(width):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3)).eval()
    return lower(trace(module, X), load_target("native"))


@pytest.fixture
def cost(tmp_path, monkeypatch):
    """A cost model that knows the kernels of both networks, 10 us each; ``cost.answers`` is what timing will say."""
    profile = load_target("native")
    with Costing(profile, tmp_path / "store.sqlite") as cost:
        for workload in [*network(32).workloads(), *network(16).workloads()]:
            config = candidates(workload, profile)[0].to_text()
            cost.store.record(workload, config, cost.measurer.context, Latency(10.0, 9.0, 11.0, 9, False), 1)
    with Costing(profile, tmp_path / "store.sqlite") as cost:
        cost.answers, cost.asked, cost.slept = [], [], []

        def time_networks(networks):
            cost.asked.append(len(networks))
            return [Latency(us, us, us, 9, False) for us in cost.answers.pop(0)]

        monkeypatch.setattr(cost.measurer, "time_networks", time_networks)
        monkeypatch.setattr(costing.time, "sleep", cost.slept.append)
        yield cost


def predicted(cost, network):
    return sum(e.latency_us for e in cost.model.predict(network.workloads())) + cost.model.network_overhead_us


def test_dense_and_latest_network_are_timed_in_one_run(cost):
    dense, narrow = network(32), network(16)
    cost.answers = [[40.0], [41.0, 30.0]]
    cost.calibrate(dense)
    assert predicted(cost, dense) == pytest.approx(40.0)
    cost.calibrate(narrow)
    assert predicted(cost, narrow) == pytest.approx(30.0)
    assert cost.asked == [1, 2] and cost.slept == []


def test_timing_of_a_disturbed_machine_is_repeated(cost):
    dense, narrow = network(32), network(16)
    cost.answers = [[40.0], [50.0, 37.0], [48.0, 36.0], [40.5, 30.0]]
    cost.calibrate(dense)
    cost.calibrate(narrow)
    assert predicted(cost, narrow) == pytest.approx(30.0)
    assert cost.asked == [1, 2, 2, 2] and len(cost.slept) == 2


def test_where_the_disturbance_stays_the_least_disturbed_timing_counts(cost):
    dense, narrow = network(32), network(16)
    cost.answers = [[40.0], [50.0, 37.0], [48.0, 36.0], [52.0, 40.0], [49.0, 37.5], [1.0, 1.0]]
    cost.calibrate(dense)
    cost.calibrate(narrow)
    assert predicted(cost, narrow) == pytest.approx(36.0) and cost.asked == [1, 2, 2, 2, 2]


def test_what_was_timed_is_found_again(cost):
    dense, narrow = network(32), network(16)
    cost.answers = [[40.0], [41.0, 30.0]]
    for n in (dense, narrow):
        cost.calibrate(n)
    cost._calibrated, cost.answers = [], []
    for n in (dense, narrow):
        cost.calibrate(n)
    assert predicted(cost, narrow) == pytest.approx(30.0)


def test_networks_are_timed_again_while_the_one_beside_them_is_slow(cost, monkeypatch):
    dense, narrow = (cost.measurer.program(network(width)) for width in (32, 16))
    answers = [[40.0, 30.0], [60.0, 45.0], [41.0, 31.0], [55.0, 41.0], [50.0, 37.0], [56.0, 42.0], [57.0, 43.0]]
    monkeypatch.setattr(cost.measurer, "time_programs", lambda programs: [Latency(us, us, us, 9, False) for us in answers.pop(0)])
    assert cost.timed(dense, [narrow]) == ([30.0], 40.0)
    assert cost.timed(dense, [narrow]) == ([31.0], 41.0) and len(cost.slept) == 1
    assert cost.timed(dense, [narrow]) == ([37.0], 50.0) and answers == []  # of four the least disturbed
