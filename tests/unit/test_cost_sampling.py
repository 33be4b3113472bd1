"""Active sampling: what is uncertain and takes time is measured first, and neighbours are not measured twice over."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_cost_analytic import conv, make_profile

from hwprune.cost.analytic import AnalyticModel
from hwprune.cost.base import Estimate
from hwprune.cost.sampling import choose, half_width, surface
from hwprune.cost.table import TableModel

WIDTHS = range(8, 72, 8)
GRID = [conv(ci, co) for ci in WIDTHS for co in WIDTHS]


class Device:
    """Kernels take twice what the analytic model says."""

    def __init__(self):
        self.found: list[SimpleNamespace] = []
        self.analytic = AnalyticModel(make_profile())
        self.model = TableModel(lambda: self.found, self.analytic)

    def measure(self, *workloads):
        for w in workloads:
            us = 2 * (self.analytic.latencies_us([w])[0] + 1)
            self.found.append(SimpleNamespace(workload=w, latency=Estimate(us, 0.99 * us, 1.01 * us, "measured")))
        self.model.refresh()


@pytest.fixture
def device():
    found = Device()
    found.measure(conv(8, 8), conv(8, 64), conv(64, 8))
    return found


def test_surface_counts_each_call_once_however_many_kernels_it_may_become():
    of = surface([[conv(8, 8), conv(8, 16)], [conv(8, 8)], [conv(16, 16)]])
    assert len(of.workloads) == 3 and of.weights.sum() == pytest.approx(3.0)
    assert of.weights[0] == pytest.approx(1.5)  # half of the first call, and the second


def test_kernels_near_the_network_that_is_looked_at_matter_more():
    center = conv(32, 32)
    of = surface([GRID], [center])
    weight = {w.key: x for w, x in zip(of.workloads, of.weights)}
    assert weight[center.key] == max(of.weights)
    assert weight[conv(32, 24).key] > weight[conv(32, 8).key] > weight[conv(8, 8).key]


def test_the_most_uncertain_microseconds_come_first(device):
    of = surface([GRID])
    first = choose(device.model, of, 1)[0]
    time = np.array([e.latency_us for e in device.model.predict(of.workloads)])
    doubt = time * device.model.uncertainty(of.workloads)
    assert first.key == of.workloads[int(np.argmax(doubt))].key


def test_nothing_measured_is_chosen_again(device):
    device.measure(*GRID[5:])
    assert {w.key for w in choose(device.model, surface([GRID]), 50)} <= {w.key for w in GRID[:5]}
    device.measure(*GRID[:5])
    assert choose(device.model, surface([GRID]), 50) == []


def test_what_a_measurement_will_make_known_is_foreseen(device):
    """What choices are made by is what the model then learns, up to its correction of all uncertainty."""
    rest = [w for w in GRID if not device.model.is_measured(w)]
    (one,) = choose(device.model, surface([GRID]), 1)
    foreseen = device.model.uncertainty(rest) ** 2 - device.model.learned(rest, one)
    correction = device.model._fitted().correction
    device.measure(one)
    learned = device.model.uncertainty(rest) ** 2 * (correction / device.model._fitted().correction) ** 2
    others = [i for i, w in enumerate(rest) if w.key != one.key]
    assert np.allclose(foreseen[others], learned[others], rtol=0.02)


def test_measuring_what_is_chosen_makes_the_surface_more_certain_than_measuring_at_random(device):
    of, draw = surface([GRID]), np.random.default_rng(0)
    other = Device()
    other.measure(conv(8, 8), conv(8, 64), conv(64, 8))
    before = half_width(device.model.predict(of.workloads), of.weights)
    device.measure(*choose(device.model, of, 6))
    other.measure(*(GRID[i] for i in draw.choice(len(GRID), 6, replace=False)))
    chosen, random = (half_width(d.model.predict(of.workloads), of.weights) for d in (device, other))
    assert chosen < random < before


def test_half_width_by_hand():
    estimates = [Estimate(10.0, 8.0, 12.0, "analytic"), Estimate(30.0, 30.0, 30.0, "measured")]
    assert half_width(estimates, np.array([1.0, 1.0])) == pytest.approx(2 / 40)
    assert half_width(estimates, np.array([3.0, 1.0])) == pytest.approx(6 / 60)
