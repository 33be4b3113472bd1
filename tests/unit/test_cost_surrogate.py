"""The surrogate: true to what was measured, doubtful away from it, quick, and no wiser than its data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cost_analytic import conv

from hwprune.cost.surrogate import Surrogate
from hwprune.cost.traits import traits_of
from hwprune.workload import OpCall, TensorSpec, Workload


def grid(cis, cos, side=16):
    return [traits_of(conv(ci, co, side)) for ci in cis for co in cos]


def pool(channels: int) -> Workload:
    shape = TensorSpec((1, 8, 8, channels))
    return Workload((shape,), (OpCall.make("pool2d", 0, kernel=(2, 2), stride=(2, 2), padding=(0, 0), kind="max"),), shape)


def surface(t) -> float:
    """A smooth one with a step at 32 channels."""
    out, reduction = t.position
    return 0.4 + 0.1 * np.sin(out) + 0.05 * reduction + (0.1 if out > 5 else 0.0)


def fitted(points, noise=0.01) -> Surrogate:
    return Surrogate(points, np.array([surface(t) for t in points]), np.full(len(points), noise))


def test_measured_points_are_met_up_to_their_noise():
    points = grid((8, 16, 24, 48), (8, 16, 32, 40, 64))
    mean, deviation = fitted(points).predict(points)
    expected = np.array([surface(t) for t in points])
    assert np.abs(mean - expected).max() < 0.03
    assert np.all(np.abs(mean - expected) < 2 * deviation)


def test_widths_between_are_interpolated():
    mean, _ = fitted(grid((8, 16, 32, 64), (8, 16, 32, 64))).predict(grid((24, 48), (24, 48)))
    assert np.abs(mean - [surface(t) for t in grid((24, 48), (24, 48))]).max() < 0.08


def test_uncertainty_grows_away_from_data():
    model = fitted(grid((16, 20, 24), (16, 24)))
    known, near, far = (model.predict([traits_of(conv(*widths))])[1][0] for widths in ((16, 16), (32, 32), (200, 400)))
    other_place = model.predict([traits_of(conv(16, 16, side=64))])[1][0]
    other_operator = model.predict([traits_of(pool(16))])[1][0]
    assert known < near < far < other_operator
    assert known < other_place < other_operator


def test_a_measurement_makes_its_surroundings_more_certain():
    points = grid((8, 64), (8, 64))
    ask = grid((16, 32), (16, 32))
    before = fitted(points).predict(ask)[1]
    after = fitted([*points, *grid((24,), (24,))]).predict(ask)[1]
    assert np.all(after < before)


def test_noisy_measurements_count_less():
    points = grid((16,), (16, 32, 48, 64))
    ratios = np.array([0.0, 0.0, 0.1, 0.0])
    trusted, doubted = (
        Surrogate(points, ratios, np.array([0.01, 0.01, spread, 0.01])).predict([points[2]])[0][0] for spread in (0.01, 0.3)
    )
    assert abs(doubted) < 0.5 * abs(trusted)


def test_a_measurement_that_the_others_do_not_believe_is_surprising_and_counts_little():
    points = grid((8, 16, 32, 64), (8, 16, 32, 64))
    ratios = np.array([surface(t) for t in points])
    disturbed = ratios.copy()
    disturbed[5] += np.log(1.8)
    fine, model = (Surrogate(points, r, np.full(len(points), 0.01)) for r in (ratios, disturbed))
    assert np.argmax(model.surprise) == 5 and model.surprise[5] > 2.5 > np.abs(fine.surprise).max()
    ask = grid((20,), (20, 24))
    assert np.abs(model.predict(ask)[0] - fine.predict(ask)[0]).max() < 0.1


def test_what_scatters_more_than_expected_widens_all_intervals():
    points = grid(range(8, 72, 8), range(8, 72, 8))
    draw = np.random.default_rng(0)
    calm, wild = (Surrogate(points, draw.normal(0, std, len(points)), np.zeros(len(points))) for std in (0.03, 0.5))
    assert calm.correction < 1.0 < wild.correction


def test_intervals_hold_on_a_surface_drawn_from_the_model():
    """95 % intervals of points left out hold most of the time, on levels and noise of the sizes that are expected."""
    draw = np.random.default_rng(1)
    everything = grid(range(8, 72, 4), range(8, 136, 8))
    values = np.array([surface(t) for t in everything]) + draw.normal(0, 0.06, len(everything))
    order = draw.permutation(len(everything))
    told, asked = order[:60], order[60:]
    model = Surrogate([everything[i] for i in told], values[told], np.full(60, 0.02))
    mean, deviation = model.predict([everything[i] for i in asked])
    assert 0.88 < np.mean(np.abs(mean - values[asked]) < 1.96 * deviation) <= 1.0


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 256), st.integers(4, 256), st.floats(-2.0, 2.0))
def test_a_level_shift_moves_every_answer_towards_it(ci, co, shift):
    points = grid((8, 32, 64), (8, 32, 64))
    ask = [traits_of(conv(ci, co))]
    base = np.array([surface(t) for t in points])
    low, high = (Surrogate(points, base + s, np.zeros(len(points))).predict(ask)[0][0] for s in (0.0, shift))
    assert high - low == pytest.approx(shift, abs=0.25 * abs(shift) + 1e-9)
