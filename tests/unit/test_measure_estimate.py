"""From rounds to a latency: low quantile, drift by the reference kernel, noise flagged."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.measure.estimate import DRIFT_BOUNDS, estimate, estimate_together

STILL = np.full(21, 10.0)


def test_constant_samples_are_their_value():
    found = estimate(np.full(21, 50.0), STILL, 10.0)
    assert (found.latency_us, found.low_us, found.high_us) == (50.0, 50.0, 50.0)
    assert found.rounds == 21 and not found.noisy


def test_latency_is_the_lower_quartile():
    found = estimate(np.arange(1.0, 22.0), STILL, 10.0)  # 1 .. 21: quartile at 6, 5 % at 2, 75 % at 16
    assert (found.latency_us, found.low_us, found.high_us) == pytest.approx((6.0, 2.0, 16.0))
    assert found.noisy


def test_a_slow_machine_is_corrected_by_its_reference():
    samples = np.full(21, 50.0)
    assert estimate(samples * 1.2, STILL * 1.2, 10.0).latency_us == pytest.approx(50.0)
    assert estimate(samples / 1.2, STILL / 1.2, 10.0).latency_us == pytest.approx(50.0)


def test_correction_is_bounded():
    assert estimate(np.full(9, 50.0), STILL * 100, 10.0).latency_us == pytest.approx(50.0 * DRIFT_BOUNDS[0])
    assert estimate(np.full(9, 50.0), STILL / 100, 10.0).latency_us == pytest.approx(50.0 * DRIFT_BOUNDS[1])


def test_burst_in_a_few_rounds_does_not_move_the_latency():
    samples = np.full(21, 50.0)
    samples[3:7] = 400.0
    reference = STILL.copy()
    reference[5:9] = 70.0
    found = estimate(samples, reference, 10.0)
    assert found.latency_us == 50.0 and not found.noisy


def test_noise_is_flagged():
    generator = np.random.default_rng(0)
    assert estimate(50 * (1 + 0.2 * generator.random(21)), STILL, 10.0).noisy
    assert not estimate(50 * (1 + 0.05 * generator.random(21)), STILL, 10.0).noisy


def test_interval_holds_the_latency():
    generator = np.random.default_rng(1)
    for _ in range(50):
        found = estimate(generator.gamma(4, 10, 15), generator.gamma(50, 0.2, 15), 10.0)
        assert found.low_us <= found.latency_us <= found.high_us


def test_programs_that_are_compared_are_taken_from_the_same_calm_rounds():
    """A slow phase hits the second program alone in some rounds and both in others; the ratio must not move."""
    rng = np.random.default_rng(0)
    slow = rng.random((2, 80)) < np.array([[0.3], [0.5]])
    samples = np.array([[100.0], [50.0]]) * (1 + 0.2 * slow) * (1 + 0.002 * rng.random((2, 80)))
    first, second = estimate_together(samples, np.full(80, 9.0), 9.0)
    assert abs(second.latency_us / first.latency_us - 0.5) < 0.005 and abs(first.latency_us - 100) < 1
    assert second.low_us <= second.latency_us <= second.high_us
    drifted = estimate_together(samples * 1.1, np.full(80, 9.9), 9.0)
    assert abs(drifted[0].latency_us - first.latency_us) < 1
