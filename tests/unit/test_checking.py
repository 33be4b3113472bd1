"""How random networks are drawn and errors counted."""

import numpy as np
import pytest

from hwprune.checking import accuracy, random_widths, spread_out

CANDIDATES = {"a": np.array([0, 4, 8, 16]), "b": np.arange(8, 65, 8)}


def test_random_networks_take_candidate_widths_and_are_drawn_again_the_same():
    drawn = random_widths({g: w[w > 0] for g, w in CANDIDATES.items()}, 40, seed=3)
    assert all(n["a"] in (4, 8, 16) and n["b"] in CANDIDATES["b"] for n in drawn)
    assert len({tuple(n.items()) for n in drawn}) > 10
    assert drawn == random_widths({g: w[w > 0] for g, w in CANDIDATES.items()}, 40, seed=3)
    assert drawn != random_widths({g: w[w > 0] for g, w in CANDIDATES.items()}, 40, seed=4)


def test_random_networks_differ_in_size():
    kept = [n["b"] / 64 for n in random_widths({"b": CANDIDATES["b"]}, 100)]
    assert np.quantile(kept, 0.1) < 0.4 < 0.8 < np.quantile(kept, 0.9)


def test_errors_by_hand():
    found = accuracy([110.0, 190.0, 300.0], [100.0, 200.0, 300.0], [101.0, 202.0, 309.0])
    assert found.median == pytest.approx(0.05) and found.percentile_95 == pytest.approx(0.095)  # 10 %, -5 %, 0
    assert found.bias == pytest.approx(0.0) and found.spearman == 1.0 and found.networks == 3
    assert found.retest == pytest.approx(0.01)


def test_two_networks_have_no_rank_correlation():
    assert accuracy([1.0, 2.0], [1.0, 2.0], [1.0, 2.0]).spearman is None


def test_some_of_all_sizes_are_taken():
    assert spread_out([5.0, 1.0, 4.0, 2.0, 3.0], 3) == [1, 4, 0]
    assert spread_out([2.0, 1.0], 5) == [1, 0]
