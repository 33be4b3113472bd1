"""Every kind of network: prune random halves, prove, train a step, save and load."""

import copy
from functools import lru_cache

import numpy as np
import pytest
import torch
from graph_networks import NETWORKS, OptionA, network
from torch import nn

from hwprune.errors import PlanError, ProofError, UsageError
from hwprune.graph import analyze, trace
from hwprune.prove import prove
from hwprune.prune import Rewrite, prune

#: Networks whose own forward cannot say what the pruned one computes: a number in it, or a scale made of a size.
AS_GRAPH = ("literal", "one_head", *(INNER := ("attention", "attention_by_hand", "rotary", "multi_query")))


@lru_cache(maxsize=None)
def analyzed(name):
    module, x = network(name)
    return module, x, analyze(trace(module, x))


def halves(graph, seed=0):
    rng = np.random.default_rng(seed)
    return {g.id: sorted(rng.choice(g.width, g.width // 2, replace=False).tolist()) for g in graph.groups}


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_network_computes_what_it_should(name):
    dense, x, graph = analyzed(name)
    before = copy.deepcopy(dense.state_dict())
    kept = halves(graph)
    pruned, _ = prune(dense, graph, kept)
    report = prove(dense, pruned, graph, kept, seed=1)
    assert report.passed and report.relative_error < 1e-10
    assert all(torch.equal(before[k], v) for k, v in dense.state_dict().items())
    shape = graph.shapes({g: len(units) for g, units in kept.items()})
    state = pruned.state_dict()
    for node, fqn in graph.traced.targets.items():
        assert fqn not in state or tuple(state[fqn].shape) == shape(node)
    if name not in AS_GRAPH:
        assert type(pruned) is type(dense)


@pytest.mark.parametrize("name", INNER)
def test_network_stays_what_it_is_where_whole_heads_go(name):
    dense, _, graph = analyzed(name)
    kept = {group: units for group, units in halves(graph).items() if ":inner" not in group}
    assert len(kept) < len(graph.groups)
    pruned, _ = prune(dense, graph, kept)
    assert type(pruned) is type(dense) and prove(dense, pruned, graph, kept).relative_error < 1e-10


def test_scale_that_hardly_shows_is_not_overlooked():
    """The default scale of attention follows the size of a head; with small scores it changes the sixth digit."""
    dense, x = network("attention")
    with torch.no_grad():
        dense.qkv.weight *= 1e-2
    graph = analyze(trace(dense, x))
    kept = {"qkv:inner": [0, 3]}
    pruned, (rewrite,) = prune(dense, graph, kept)
    assert "scaled_dot_product_attention" in rewrite.old
    assert prove(dense, pruned, graph, kept).relative_error < 1e-12


def test_heads_and_head_dimensions_go_each_by_their_own():
    dense, _, graph = analyzed("attention_scaled")
    qkv = {axis.dim: axis for axis in graph.group("qkv").params if axis.name == "qkv.weight"}[0]
    inner = graph.group("qkv:inner").slice_of("qkv.weight", 0)
    assert qkv.index.shape == (3, 12) and inner.index.shape == (4, 9)
    for heads, dims in (([0, 2], [1]), ([1], [0, 1, 3]), ([0, 1, 2], [2, 3])):
        kept = {"qkv": heads, "qkv:inner": dims}
        pruned, rewrites = prune(dense, graph, kept)
        assert prove(dense, pruned, graph, kept).relative_error < 1e-10
        assert type(pruned) is type(dense) and (pruned.heads, pruned.head_dim) == (len(heads), len(dims))
        assert pruned.qkv.out_features == 3 * len(heads) * len(dims) == graph.shapes({"qkv": len(heads), "qkv:inner": len(dims)})("linear_1")[-1]
        assert pruned.scale == dense.scale == 0.5
        rows = pruned.qkv.weight.reshape(3, len(heads), len(dims), 12)
        assert torch.equal(rows, dense.qkv.weight.reshape(3, 3, 4, 12)[:, heads][:, :, dims])


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_network_trains_saves_and_loads(name, tmp_path):
    dense, x, graph = analyzed(name)
    pruned, _ = prune(dense, graph, halves(graph))
    pruned.train()
    pruned(x).square().mean().backward()
    assert all(p.grad is not None for p in pruned.parameters())
    torch.optim.SGD(pruned.parameters(), 0.1).step()
    again, _ = prune(dense, graph, halves(graph))
    torch.save(pruned.state_dict(), tmp_path / "weights.pt")
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), pruned.eval()(x))


def test_attributes_say_what_the_tensors_are():
    dense, x, graph = analyzed("inverted")
    pruned, rewrites = prune(dense, graph, {"body.1.0": [0, 5, 7]})
    depthwise = pruned.body[2][0]
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (3, 3, 3)
    assert pruned.body[2][1].num_features == 3
    assert pruned.body[3].down.in_channels == 3 and pruned.body[3].up.out_channels == 3
    assert Rewrite("body.2.0", "groups", 12, 3) in rewrites
    assert dense.body[2][0].groups == 12


def test_recurrent_module_stays_one():
    dense, x, graph = analyzed("recurrent")
    pruned, rewrites = prune(dense, graph, {"embed": [0, 3, 4], "lstm": [1, 6], "cell": [0, 2]})
    assert (pruned.lstm.input_size, pruned.lstm.hidden_size, pruned.gru.input_size) == (3, 2, 4)
    assert (pruned.cell.hidden_size, pruned.fc.in_features) == (2, 2)
    assert all(w is getattr(pruned.lstm, n) for n, w in zip(pruned.lstm._flat_weights_names, pruned.lstm._flat_weights))
    assert Rewrite("lstm", "hidden_size", 8, 2) in rewrites
    bias = dense.lstm.bias_hh_l1_reverse.view(4, 8)[:, [1, 6]].ravel()
    torch.testing.assert_close(pruned.lstm.bias_hh_l1_reverse, bias)


def test_projection_of_a_recurrent_module_goes():
    dense, x, graph = analyzed("projected")
    pruned, rewrites = prune(dense, graph, {"h": [0, 4]})
    assert (pruned.lstm.proj_size, pruned.lstm.hidden_size) == (2, 8)
    assert {f.detail for f in graph.frozen if f.param == "lstm.bias_ih_l0"} == {"hidden_size must stay above proj_size"}


def test_kept_units_are_the_ones_asked_for():
    dense, x, graph = analyzed("flat")
    pruned, _ = prune(dense, graph, {"features.2": [1, 4]})
    torch.testing.assert_close(pruned.features[2].weight, dense.features[2].weight[[1, 4]])
    torch.testing.assert_close(pruned.fc1.weight, dense.fc1.weight.view(12, 6, 16)[:, [1, 4]].reshape(12, 32))


def test_everything_kept_is_the_dense_network():
    dense, x, graph = analyzed("residual")
    pruned, rewrites = prune(dense, graph, {})
    assert rewrites == []
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), dense(x))


def test_user_attribute_is_rewritten():
    dense, x, graph = analyzed("attention")
    pruned, rewrites = prune(dense, graph, {"qkv": [0, 2]})
    assert (pruned.heads, pruned.head_dim) == (2, 4)
    assert Rewrite("", "heads", 3, 2) in rewrites


def test_size_that_forward_hard_codes_gives_the_graph_and_names_the_line():
    dense, x, graph = analyzed("literal")
    pruned, rewrites = prune(dense, graph, halves(graph))
    (rewrite,) = rewrites
    assert rewrite.attribute == "forward" and "graph_networks.py:" in rewrite.old
    assert set(pruned.state_dict()) == set(dense.state_dict())


def test_scale_of_attention_stays_the_dense_one():
    dense, x, graph = analyzed("one_head")
    (group,) = [g.id for g in graph.groups if ("k.weight", 0) in g.producers]
    kept = {group: [0, 3, 5]}
    pruned, (rewrite,) = prune(dense, graph, kept)
    assert rewrite.attribute == "forward" and "scaled_dot_product_attention" in rewrite.old
    with torch.no_grad():
        q, k, v = (dense.q(x)[..., kept[group]], dense.k(x)[..., kept[group]], dense.v(x))
        expected = dense.fc(((q @ k.transpose(1, 2) * 8**-0.5).softmax(-1) @ v).mean(1))
        torch.testing.assert_close(pruned(x), expected)


def test_halves_of_one_size_stay_the_users_forward_and_others_become_the_graph():
    dense, x, graph = analyzed("cross_stage")
    first, second = [g for g in graph.groups if g.id.startswith("body.cv1")]
    assert (first.width, second.width) == (6, 6)
    equal, unequal = {first.id: [0, 1], second.id: [2, 5]}, {first.id: [0], second.id: [1, 2, 3]}
    assert type(prune(dense, graph, equal)[0]) is type(dense)
    pruned, (rewrite,) = prune(dense, graph, unequal)
    assert rewrite.attribute == "forward"
    assert prove(dense, pruned, graph, unequal).passed


def test_exported_module_prunes_as_the_module_does():
    dense, x, graph = analyzed("attention")
    exported = torch.export.export(dense, (x,)).module(check_guards=False)
    module = torch.fx.GraphModule(exported, exported.graph)
    own = analyze(trace(module, x))
    assert [(g.id, g.width) for g in own.groups] == [(g.id, g.width) for g in graph.groups]
    kept = halves(graph)
    pruned, _ = prune(module, own, kept)
    assert prove(module, pruned, own, kept).passed
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), prune(dense, graph, kept)[0](x))


def test_exported_module_keeps_its_free_batch():
    dense, x, graph = analyzed("option_a")
    free = torch.export.export(dense, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    exported = free.module(check_guards=False)
    module = torch.fx.GraphModule(exported, exported.graph)
    own = analyze(trace(module, x))
    kept = halves(own)
    pruned, _ = prune(module, own, kept)
    assert prove(module, pruned, own, kept).passed
    assert pruned(torch.randn(7, 3, 8, 8)).shape == (7, 5)


def test_hard_coded_network_takes_any_batch():
    dense, x, graph = analyzed("literal")
    pruned, _ = prune(dense, graph, halves(graph))
    assert pruned(torch.randn(5, 3, 8, 8)).shape == (5, 5)


def test_kept_flags_and_dtype():
    module, x = network("flat")
    module.fc1.weight.requires_grad_(False)
    module = module.double().train()
    graph = analyze(trace(module, x.double()))
    assert module.training
    pruned, _ = prune(module, graph, halves(graph))
    assert pruned.training and pruned.features[0].training
    assert not pruned.fc1.weight.requires_grad and pruned.fc2.weight.requires_grad
    assert pruned.fc1.weight.dtype == torch.float64


def test_proof_finds_a_wrong_slice():
    dense, x, graph = analyzed("option_a")
    kept = halves(graph)
    pruned, _ = prune(dense, graph, kept)
    with torch.no_grad():
        pruned.conv2.weight += 0.1
    with pytest.raises(ProofError, match="off by"):
        prove(dense, pruned, graph, kept)
    assert not prove(dense, pruned, graph, kept, check=False).passed


def test_proof_with_other_units_fails():
    dense, x, graph = analyzed("flat")
    pruned, _ = prune(dense, graph, {"fc1": [0, 1, 2]})
    with pytest.raises(ProofError):
        prove(dense, pruned, graph, {"fc1": [0, 1, 3]})


def test_proof_takes_given_inputs_of_the_traced_shape_only():
    dense, x, graph = analyzed("flat")
    pruned, _ = prune(dense, graph, {"fc1": [0, 1]})
    assert prove(dense, pruned, graph, {"fc1": [0, 1]}, inputs=x).passed
    with pytest.raises(UsageError, match=r"\(2, 3, 8, 8\)"):
        prove(dense, pruned, graph, {"fc1": [0, 1]}, inputs=x[:1])


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"fc3": [0]}, "no pruning group 'fc3'; did you mean"),
        ({"fc1": []}, "keep no unit"),
        ({"fc1": [0, 12]}, "units 0..11"),
        ({"fc1": [1, 1]}, "at most once"),
    ],
)
def test_bad_plans_are_refused(kept, message):
    dense, x, graph = analyzed("flat")
    with pytest.raises(PlanError, match=message):
        prune(dense, graph, kept)


def test_module_that_does_not_fit_the_graph_is_refused():
    _, _, graph = analyzed("flat")
    with pytest.raises(PlanError, match="trace this module"):
        prune(OptionA(), graph, {})


def test_tied_weights_stay_tied():
    dense, x, graph = analyzed("shared")
    pruned, _ = prune(dense, graph, halves(graph))
    assert pruned.body.a.weight is pruned.body.b.weight
    assert isinstance(pruned.body.a.weight, nn.Parameter)
