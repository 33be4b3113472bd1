"""The table answers what was measured, the surrogate the rest, and without a model it refuses."""

from dataclasses import dataclass

import pytest
from stopwatch import least_seconds
from test_cost_analytic import conv, make_profile

from hwprune.cost.analytic import AnalyticModel
from hwprune.cost.base import Estimate, network_estimate
from hwprune.cost.table import TableModel
from hwprune.cost.traits import family
from hwprune.errors import NoLatency
from hwprune.workload import Workload


@dataclass
class Measurement:
    workload: Workload
    latency: Estimate


def measured(workload: Workload, latency_us: float) -> Measurement:
    return Measurement(workload, Estimate(latency_us, 0.98 * latency_us, 1.05 * latency_us, "measured"))


def isolated(workload: Workload) -> float:
    """The analytic answer with the kernel's start (1 us in the toy profile), which a measurement includes."""
    return AnalyticModel(make_profile()).predict([workload])[0].latency_us + 1.0


def table(*measurements: Measurement) -> TableModel:
    return TableModel(lambda: measurements, AnalyticModel(make_profile()))


def test_measured_is_answered_as_measured():
    w = conv(16, 16)
    assert table(measured(w, 50.0)).predict([w]) == [Estimate(50.0, 49.0, 52.5, "measured")]


def test_without_measurements_the_analytic_model_answers():
    w = conv(16, 16)
    (estimate,) = table().predict([w])
    assert estimate.latency_us == pytest.approx(isolated(w)) and estimate.provenance == "analytic"


def test_other_widths_of_a_measured_family_follow_it_and_say_who_answers():
    near, far = conv(16, 24), conv(64, 64)
    model = table(*(measured(conv(16, co), 1.5 * isolated(conv(16, co))) for co in (8, 16, 32)))
    for workload, estimate in zip((near, far), model.predict([near, far])):
        assert estimate.latency_us == pytest.approx(1.5 * isolated(workload), rel=0.1)
        assert (estimate.provenance, estimate.model) == ("analytic", "surrogate")
    widths = [e.high_us / e.latency_us for e in model.predict([near, far])]
    assert widths[0] < widths[1]  # the interval widens with the distance to what was measured


def test_between_two_measurements_the_factor_is_between_theirs():
    small, middle, large = conv(16, 16), conv(32, 32), conv(64, 64)
    model = table(measured(small, 1.2 * isolated(small)), measured(large, 1.8 * isolated(large)))
    assert 1.25 < model.predict([middle])[0].latency_us / isolated(middle) < 1.75


def test_another_family_leans_towards_the_factor_of_its_kind():
    w = conv(16, 16, side=32)
    model = table(*(measured(conv(16, co), 1.4 * isolated(conv(16, co))) for co in (8, 16, 32)))
    assert family(w) != family(conv(16, 16))
    own, other = model.predict([conv(16, 24), w])
    assert 1.2 < other.latency_us / isolated(w) < 1.4
    assert other.high_us / other.latency_us > own.high_us / own.latency_us


def test_model_of_a_sum_is_the_least_trustworthy_of_its_terms():
    known, unknown = conv(16, 16), conv(16, 32)
    model = table(measured(known, 50.0))
    assert network_estimate(model, [known]).model == "table"
    assert network_estimate(model, [known, unknown]).model == "surrogate"
    assert network_estimate(table(), [known]).model == "analytic"


def test_surrogate_can_be_asked_of_what_was_measured():
    w = conv(16, 16)
    model = table(measured(w, 50.0), measured(conv(16, 32), 90.0))
    (estimate,) = model.estimate([w])
    assert estimate.model == "surrogate" and estimate.low_us < 50.0 < estimate.high_us
    assert model.uncertainty([w, conv(16, 24)])[0] == 0.0 < model.uncertainty([conv(16, 24)])[0]


def test_refresh_learns_what_was_measured_since():
    known: list[Measurement] = []
    model, w = TableModel(lambda: known, AnalyticModel(make_profile())), conv(16, 16)
    assert model.predict([w])[0].provenance == "analytic" and not model.is_measured(w)
    known.append(measured(w, 77.0))
    model.refresh()
    assert model.predict([w])[0].latency_us == 77.0 and model.is_measured(w)


def test_no_model_for_what_was_not_measured_raises():
    model = TableModel(lambda: [measured(conv(16, 16), 50.0)], None)
    assert model.predict([conv(16, 16)])[0].latency_us == 50.0
    with pytest.raises(NoLatency, match="hwprune measure"):
        model.predict([conv(16, 32)])


def test_network_is_the_sum_and_as_trustworthy_as_its_weakest_term():
    known, unknown = conv(16, 16), conv(16, 32)
    model = table(measured(known, 50.0))
    assert network_estimate(model, [known, known]) == Estimate(102.0, 100.0, 107.0, "measured")  # 2 us a network
    assert network_estimate(model, [known, unknown]).provenance == "analytic"


def test_whole_networks_calibrate_slope_and_overhead():
    small, large = conv(16, 16), conv(16, 32)
    model = table(measured(small, 50.0), measured(large, 100.0))
    model.fit([([small, large], 170.0), ([small], 60.0)])  # 1.1 a microsecond, and 5 us
    assert network_estimate(model, [small, large]).latency_us == pytest.approx(170.0)
    assert network_estimate(model, [small]).latency_us == pytest.approx(60.0)
    assert model.isolated_us([small, large]) == pytest.approx(150.0)
    model.fit([([small, large], 165.0)])  # one network: a slope alone
    assert network_estimate(model, [small]).latency_us == pytest.approx(55.0)
    model.fit([([small, large], 165.0), ([large], 10.0)])  # nothing explains a slope of 3: the last network's ratio
    assert network_estimate(model, [large]).latency_us == pytest.approx(10.0)


def test_three_networks_and_more_are_fitted_with_what_small_ones_save():
    """2 % and 3 us more than the kernels alone, but 10 us less for every megabyte that lies near."""
    sizes = [conv(16, co) for co in range(8, 72, 8)]
    near = {w.key: i * 2e5 for i, w in enumerate(reversed(sizes))}
    kernels = [measured(w, 100.0 + 40 * i) for i, w in enumerate(sizes)]
    model = TableModel(lambda: kernels, AnalyticModel(make_profile()), lambda ws: sum(near[w.key] for w in ws))
    truth = {m.workload.key: 1.02 * m.latency.latency_us + 3.0 - 10e-6 * near[m.workload.key] for m in kernels}
    model.fit([([w], truth[w.key]) for w in sizes[::2]])
    for w in sizes[1::2]:
        assert network_estimate(model, [w]).latency_us == pytest.approx(truth[w.key], rel=0.005)
        assert model.saved_us([w]) == pytest.approx(10e-6 * near[w.key], rel=0.25)


def test_a_thousand_predictions_take_under_20_ms():
    model = table(*(measured(conv(i, i), 2 * isolated(conv(i, i))) for i in range(8, 64, 8)))
    workloads = [conv(1 + i % 60, 1 + i % 50) for i in range(1000)]

    def forget():
        model.refresh()
        [w.key for w in workloads]

    assert least_seconds(lambda: model.predict(workloads), 0.02, before=forget) < 0.02
