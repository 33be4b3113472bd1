"""Random networks of the supported operators: whatever the analysis lets go, the pruned network is proved.

``pytest --hypothesis-profile=long`` tries ten times as many.
"""

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import SIDE, STEPS, RandomNetwork

from hwprune.graph import analyze, trace
from hwprune.prove import prove
from hwprune.prune import prune
from hwprune.testing.rules import random_units

step = st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 11), st.integers(0, 11))


@settings(max_examples=settings().max_examples // 2, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(step, min_size=2, max_size=8), st.integers(0, 1), st.integers(0, 2**16))
def test_proof_of_a_random_network_holds(steps, head, seed):
    torch.manual_seed(seed)
    dense = RandomNetwork(steps, head).eval()
    graph = analyze(trace(dense, torch.randn(2, 3, SIDE, SIDE)))
    random = np.random.default_rng(seed)
    kept = random_units(graph, random)
    for block in graph.blocks:
        if random.random() < 0.5:
            kept |= {name: [] for name in (block.id, *block.inner)}
    pruned, _ = prune(dense, graph, kept)
    report = prove(dense, pruned, graph, kept, seed=seed)
    assert report.relative_error < 1e-5
    shape = graph.shapes({g: len(units) for g, units in kept.items()})
    own = dict(pruned.named_parameters()) | dict(pruned.named_buffers())
    gone = graph.gone({g: len(units) for g, units in kept.items()})
    for node, fqn in graph.traced.targets.items():
        assert fqn not in own or node in gone or tuple(own[fqn].shape) == shape(node)


def test_factor_that_forward_holds_as_a_number_is_not_taken_for_another():
    """The two rows of the view are what can go; the module's own forward would still make two of them."""
    torch.manual_seed(0)
    dense = RandomNetwork([("transposed", 5, 2), ("grouped", 11, 2), ("shuffle", 8, 10)], 0).eval()
    graph = analyze(trace(dense, torch.randn(2, 3, SIDE, SIDE)))
    kept = {"steps.0.parts.0": [0]}
    pruned, (rewrite,) = prune(dense, graph, kept)
    assert rewrite.attribute == "forward" and "random_networks.py:" in rewrite.old
    assert prove(dense, pruned, graph, kept).passed
