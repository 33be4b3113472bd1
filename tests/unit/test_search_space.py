"""Candidate widths and the tables of a network's calls."""

import itertools

import numpy as np
import pytest
from search_fakes import chain
from test_cost_analytic import make_profile

from hwprune.cost.analytic import AnalyticModel
from hwprune.cost.base import network_estimate
from hwprune.search.space import candidate_widths, knees, not_dominated
from hwprune.search.tables import NetworkView, grids, latency_terms, live_terms, size_terms


def test_dominated_widths_are_dropped():
    # Widths 1..8: 4 is as fast as 3, 6 is faster than 5.
    latency = np.array([1.0, 2.0, 3.0, 3.0, 5.0, 4.0, 6.0, 6.0])
    assert (not_dominated(latency) + 1).tolist() == [1, 2, 4, 6, 8]
    assert knees(np.arange(1, 9), latency, 16).tolist() == [1, 2, 4, 6, 8]


def test_the_dense_width_always_stays():
    assert knees(np.arange(1, 5), np.array([4.0, 3.0, 2.0, 9.0]), 4).tolist() == [3, 4]
    assert knees(np.array([7]), np.array([1.0]), 4).tolist() == [7]


def test_thinning_keeps_both_ends_and_the_edges_of_the_steps():
    widths = np.arange(1, 65)
    latency = np.ceil(widths / 8) * 10 + widths * 0.01  # a small slope on steps at multiples of eight
    chosen = knees(widths, latency, 9)
    assert chosen[0] == 1 and len(chosen) == 9
    assert all(w % 8 == 0 for w in chosen[1:])


def test_candidates_of_a_chain_are_at_the_vector_width():
    graph, network, _ = chain(32, 40)
    found = candidate_widths(NetworkView(network, graph), graph.full, AnalyticModel(make_profile()), most=8)
    assert found["layer1"].tolist() == [8, 16, 24, 32, 40]  # nothing reads it: only whole vectors matter
    assert (
        found["layer0"][-1] == 32 and found["layer0"][0] == 4
    )  # ceil(0.1 x 32); its reader's reduction is proportional
    assert len(found["layer0"]) <= 8


def test_terms_of_a_chain_are_exact_everywhere():
    graph, network, _ = chain(24, 16, 32)
    view, model = NetworkView(network, graph), AnalyticModel(make_profile())
    assert view.depends == [("layer0",), ("layer0", "layer1"), ("layer1", "layer2")]
    widths = [np.array([4, 8, 24]), np.array([8, 16]), np.array([5, 16, 32])]
    made = grids(view, list(graph.full), widths)
    latency, size = latency_terms(made, model), size_terms(made)
    for choice in itertools.product(range(3), range(2), range(3)):
        kept = {g: int(w[j]) for g, w, j in zip(graph.full, widths, choice)}
        workloads = view.workloads(kept)
        assert latency.at(choice) == pytest.approx(network_estimate(model, workloads).latency_us)
        assert size.at(choice) == pytest.approx(sum(w.weight_bytes for w in workloads))


def test_terms_of_a_concatenation_are_exact_for_products_of_two_widths():
    graph, network, _ = chain(24, 16, 8, 32, concat=True)
    view = NetworkView(network, graph)
    widths = [np.array([8, 24]), np.array([8, 16]), np.array([4, 8]), np.array([8, 32])]
    made = grids(view, list(graph.full), widths)
    size = size_terms(made)  # the last layer's weights: (a + b + c) x d
    for choice in itertools.product(range(2), repeat=4):
        kept = {g: int(w[j]) for g, w, j in zip(graph.full, widths, choice)}
        assert size.at(choice) == pytest.approx(network.weight_bytes(graph.shapes(kept)))
    assert (0, 2) not in size.pair  # two inputs side by side do not interact, and cost no table


def test_live_bytes_bound_the_memory_plan_and_their_terms_are_exact():
    graph, network, _ = chain(24, 16, 32)
    view = NetworkView(network, graph)
    dense = view.live_bytes({})
    assert dense.max() <= network.memory(graph.shapes({})).peak_bytes
    # Input 3 x 256 floats, then the outputs of two layers side by side: 24 + 16 and 16 + 32 channels.
    assert dense.tolist() == [3072 + 24 * 1024, 3072 + 40 * 1024, 3072 + 48 * 1024]
    widths = [np.array([8, 24]), np.array([8, 16]), np.array([8, 32])]
    steps = live_terms(view.live_bytes, list(graph.full), widths, most=40_000)
    assert len(steps) == 2  # the first step cannot exceed the limit
    for choice in itertools.product(range(2), repeat=3):
        kept = {g: int(w[j]) for g, w, j in zip(graph.full, widths, choice)}
        assert [s.at(choice) for s in steps] == view.live_bytes(kept)[1:].tolist()
