"""Criteria: formulas against arithmetic written out, and what they refuse."""

import numpy as np
import pytest
import torch
from graph_networks import network
from torch import nn

from hwprune.errors import DataError, UsageError
from hwprune.graph import analyze, trace
from hwprune.importance import CRITERIA
from hwprune.importance.gather import layer_adaptive


def two_layers():
    """x -> a (3 hidden units) -> b."""
    module = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, -1.0]]))
        module[2].weight.copy_(torch.tensor([[1.0, -1.0, 3.0], [0.0, 2.0, -1.0]]))
    return module, analyze(trace(module, torch.randn(1, 2)))


def batches(count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(4, 2, generator=generator), torch.tensor([0, 1, 1, 0])) for _ in range(count)]


def test_layer_adaptive_is_the_share_of_what_is_left():
    # sorted descending: 4, 3, 1; 4/4, 3/(4+3), 1/(4+3+1)
    np.testing.assert_allclose(layer_adaptive(np.array([1.0, 4.0, 3.0])), [1 / 8, 1.0, 3 / 7])
    np.testing.assert_allclose(layer_adaptive(np.zeros(3)), 0)


@pytest.mark.parametrize(
    ("name", "sums"),
    [("l1", [1 + 1, 3 + 3, 1 + 4]), ("l2", [1 + 1, 5 + 5, 1 + 10])],
)
def test_magnitude_sums_rows_that_make_and_columns_that_read(name, sums):
    _, graph = two_layers()
    np.testing.assert_allclose(CRITERIA[name].score(graph, None)["0"], layer_adaptive(np.array(sums, dtype=float)))


def test_taylor_is_the_first_order_change_of_the_loss():
    module, graph = two_layers()
    expected = np.zeros(3)
    for x, y in batches():
        module.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        w = module[2].weight
        expected += (w * w.grad).sum(0).abs().detach().numpy() / 2
    module.zero_grad()
    np.testing.assert_allclose(CRITERIA["taylor"].score(graph, batches())["0"], expected, rtol=1e-6)
    assert all(p.grad is None for p in module.parameters())


def test_taylor_predicts_the_loss_of_a_small_removal():
    """A unit whose outgoing weights are tiny changes the loss by its score."""
    module, graph = two_layers()
    with torch.no_grad():
        module[2].weight[:, 1] *= 1e-3
    (x, y), = batches(1)
    score = CRITERIA["taylor"].score(graph, [(x, y)])["0"][1]
    with torch.no_grad():
        before = nn.functional.cross_entropy(module(x), y)
        module[2].weight[:, 1] = 0
        after = nn.functional.cross_entropy(module(x), y)
    assert score == pytest.approx(abs(float(after - before)), rel=1e-2)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("net", ["option_a", "inverted"])
def test_scores_are_finite_non_negative_and_complete(name, net):
    module, x = network(net)
    graph = analyze(trace(module, x), freeze=["body.3"] if net == "inverted" else ())
    data = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))]
    before = {k: v.clone() for k, v in module.state_dict().items()}
    scores = CRITERIA[name].score(graph, data)
    assert list(scores) == [g.id for g in graph.choices]
    for g in graph.choices:
        assert scores[g.id].shape == (g.width,) and scores[g.id].dtype == np.float64
        assert np.isfinite(scores[g.id]).all() and (scores[g.id] >= 0).all() and scores[g.id].max() > 0
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_batchnorm_scale_orders_units_and_names_groups_without_one():
    module, x = network("option_a")
    with torch.no_grad():
        module.bn1.weight.copy_(torch.arange(16.0) - 7.5)
    graph = analyze(trace(module, x))
    scores = CRITERIA["bn"].score(graph, None)["conv1"]
    assert set(np.argsort(scores)[:2]) == {7, 8} and set(np.argsort(scores)[-2:]) == {0, 15}
    with pytest.raises(UsageError, match="no BatchNorm scale in 0;"):
        CRITERIA["bn"].score(two_layers()[1], None)


def test_random_follows_the_seed():
    _, graph = two_layers()
    random = CRITERIA["random"]
    np.testing.assert_array_equal(random.score(graph, None, seed=3)["0"], random.score(graph, None, seed=3)["0"])
    assert (random.score(graph, None, seed=3)["0"] != random.score(graph, None, seed=4)["0"]).any()


def test_taylor_refuses_what_it_cannot_use():
    _, graph = two_layers()
    with pytest.raises(UsageError, match="needs data"):
        CRITERIA["taylor"].score(graph, None)
    with pytest.raises(UsageError, match="no batches"):
        CRITERIA["taylor"].score(graph, [])
    with pytest.raises(DataError, match="nan"):
        CRITERIA["taylor"].score(graph, [(torch.full((2, 2), torch.nan), torch.tensor([0, 1]))])
