"""Timing in turn."""

import itertools

import numpy as np
import pytest

from hwprune import timing
from hwprune.timing import interleaved, rows, timed_in_turn


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(timing, "_PAUSE_S", 0.0)
    monkeypatch.setattr(timing, "_REST_S", 0.0)


def fixed(us: float):
    return lambda runs: np.full(runs, us)


def test_rows_have_the_median_of_rounds_and_the_ratio_to_the_first():
    first, second = rows(["a", "b"], np.array([[1.0, 4.0], [2.0, 6.0], [9.0, 5.0]]))
    assert (first.median_us, second.median_us, second.ratio) == (2.0, 5.0, 2.5)
    assert first.low_us < first.median_us < first.high_us


def test_contenders_run_in_turn():
    order = []

    def timer(name):
        return lambda runs: (order.append(name), np.full(runs, 1e5))[1]

    interleaved([("a", timer("a")), ("b", timer("b"))], rounds=3)
    assert [name for name, _ in itertools.groupby(order)][-6:] == ["a", "b"] * 3


@pytest.mark.parametrize("answers, left_out", [([True] * 20, 0), ([False, *[True] * 20], 1), ([True, False, *[True] * 20], 1)])
def test_a_round_counts_if_the_machine_is_calm_before_and_after_it(answers, left_out):
    asked = iter(answers)
    figures, out = timed_in_turn([("a", fixed(1e5))], rounds=3, calm=lambda: next(asked))
    assert figures.shape == (3, 1) and out == left_out


def test_what_was_timed_on_a_calm_machine_counts_alone():
    us, calm = iter([1e5, 1e5, 1.0, 2.0, 3.0, 9.0, 9.0, 9.0]), iter([True, True, False, True, True])
    figures, out = timed_in_turn([("a", lambda runs: np.full(runs, next(us)))], rounds=2, calm=lambda: next(calm))
    assert out == 1 and figures[:, 0].tolist() == [2.0, 9.0]


def test_a_machine_that_is_never_calm_is_timed_all_the_same():
    figures, left_out = timed_in_turn([("a", fixed(1e5))], rounds=2, calm=lambda: False)
    assert figures.shape == (8, 1) and left_out == 0
