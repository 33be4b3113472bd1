"""The comparison with timed convolutions: halves, what is fitted, and what is reported, on rows made by a formula."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.simulated import Fitted, Row, fit, halves, profile_of, quality, results

from hwprune.cost.simulated import Simulation

TRUE = Fitted(copies_gb_per_s=2.5, l2_gb_per_s=20.0, factor=1.4)


def rows(noise: float = 0.0) -> list[Row]:
    """Convolutions of a board that is as ``TRUE`` says, up to ``noise``."""
    profile, rng = profile_of("rk3399"), np.random.default_rng(0)
    found = []
    for number in range(60):
        cycles, near, copied = 10 ** rng.uniform(5, 7), 10 ** rng.uniform(5, 8), 10 ** rng.uniform(4, 7)
        row = Row(f"row {number}", 0.0, int(cycles * 3.5), int(copied), "", Simulation(cycles, int(near), 0, 0))
        timed = TRUE.factor * row.predicted_us(profile, TRUE) * float(np.exp(noise * rng.standard_normal()))
        found.append(Row(row.title, timed, row.macs, row.copied_bytes, "", row.simulation))
    return found


def test_halves_are_disjoint_whole_and_always_the_same():
    made = rows()
    first, second = halves(made)
    assert {r.title for r in first} | {r.title for r in second} == {r.title for r in made} and len(first) == len(second) == 30
    assert halves(list(reversed(made))) == (first, second)


def test_what_made_the_rows_is_found():
    found = fit(rows(), profile_of("rk3399"))
    assert (found.copies_gb_per_s, found.l2_gb_per_s, found.factor) == pytest.approx((2.5, 20.0, 1.4), rel=0.02)


def test_a_factor_is_no_error_and_one_row_in_ten_is_left_out():
    timed = np.arange(1.0, 12.0)
    assert quality(timed, timed / 3) == pytest.approx((1.0, 0.0), abs=1e-9)
    off = timed.copy()
    off[-1] *= 7
    rank, error = quality(off, timed)
    assert rank == pytest.approx(1.0) and error == pytest.approx(0.0, abs=1e-9)
    assert quality(timed, timed[::-1])[0] == pytest.approx(-1.0)


def test_each_half_is_reported_by_the_other():
    comparisons, worst = results("rk3399", rows(noise=0.05))
    assert [line[:4] for line in comparisons] == [
        ["rk3399", "first half", "second half", 30], ["rk3399", "second half", "first half", 30],
        ["rk3399", "the other half", "every row", 60],
    ]  # fmt: skip
    by_flops, fitted = float(comparisons[2][11]), float(comparisons[2][14])
    assert fitted < 0.12 < by_flops
    assert len(worst) == 10 and abs(float(worst[0][4]) - 1) >= abs(float(worst[9][4]) - 1) - 0.02
