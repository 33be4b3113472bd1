"""Groups as golden texts, shapes against the pruned network, reasons for what is frozen."""

import math

import networkx
import numpy as np
import pytest
import torch
from graph_networks import NETWORKS, network
from torch import nn

from hwprune.errors import PlanError, UsageError
from hwprune.graph import Reason, analyze, trace


def graph_of(name, **options):
    module, x = network(name)
    return analyze(trace(module, x), **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_groups(name, golden):
    golden(f"groups_{name}", graph_of(name).text())


@pytest.mark.parametrize("name", ["option_a", "inverted", "attention"])
def test_sizes_are_constant_plus_terms(name):
    graph = graph_of(name)
    widths = {g.id: g.width - 1 for g in graph.groups}
    shape = graph.shapes(widths)
    dense = graph.shapes({})
    for node in graph.traced.graph.nodes:
        if isinstance(node.meta.get("val"), torch.Tensor):
            assert dense(node.name) == graph.traced.shape(node.name)
            for dim, size in enumerate(shape(node.name)):
                const, terms = graph.terms(node.name, dim)
                assert size == const + sum(m * math.prod(widths[g] for g in ids) for ids, m in terms)


def test_values_and_parameters_of_a_group_lie_where_shapes_say():
    graph = graph_of("dense")
    for group in graph.groups:
        for s in group.values:
            const, terms = graph.terms(s.name, s.dim)
            assert dict(terms)[(group.id,)] == s.index.shape[1]
            assert s.index.shape[0] == group.width
            assert s.index.dtype == np.int64
    group = graph.group("body.b.0")
    assert group.slice_of("body.norm.weight", 0).index[:, 0].tolist() == [6, 7, 8, 9]


def test_networkx_holds_axes_groups_and_couplings():
    graph = graph_of("dense")
    assert networkx.is_bipartite(graph.nx)
    assert graph.nx.nodes["group", "body.a.0"]["width"] == 6
    assert graph.nx.edges[("axis", "body.norm.weight", 0), ("group", "body.b.0")]["multiplicity"] == 1
    assert graph.couplings() == [["body.a.0", "body.b.0"], ["body.c"]]


def test_kept_params_are_positions_of_the_axes_that_shrink():
    graph = graph_of("dense")
    kept = graph.kept_params({"body.b.0": [1, 3]})
    assert kept["body.norm.weight"][0].tolist() == [0, 1, 2, 3, 4, 5, 7, 9]
    assert kept["body.b.0.weight"][0].tolist() == [1, 3]
    assert "body.a.0.weight" not in kept


def test_unknown_width_and_group_are_refused():
    graph = graph_of("dense")
    with pytest.raises(PlanError, match="8 units and cannot keep 9"):
        graph.shapes({"body.c": 9})
    with pytest.raises(PlanError, match="did you mean 'body.c'"):
        graph.shapes({"body.d": 1})


def test_input_and_output_are_frozen():
    frozen = {(f.param, f.dim): f.reason for f in graph_of("flat").frozen}
    assert frozen == {
        ("features.0.0.weight", 1): Reason.NETWORK_INPUT,
        ("fc2.weight", 0): Reason.NETWORK_OUTPUT,
        ("fc2.bias", 0): Reason.NETWORK_OUTPUT,
    }


def test_zero_padded_channels_are_constants():
    (axis,) = [f for f in graph_of("option_a").frozen if f.param == "conv2.weight" and f.dim == 0]
    assert (axis.reason, axis.count, axis.total) == (Reason.CONSTANT, 8, 16)
    assert "graph_networks.py" in axis.where


def test_unknown_operator_freezes_and_names_the_line():
    (axis,) = [f for f in graph_of("unknown").frozen if f.param == "body.a.0.weight" and f.dim == 0]
    assert axis.reason is Reason.UNKNOWN_OPERATOR and "cummax" in axis.detail
    assert axis.where.startswith("body (") and "graph_networks.py:" in axis.where


def test_custom_operator_freezes():
    @torch.library.custom_op("hwprune_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(lambda x: torch.empty_like(x))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c(self.b(twice(self.a(x))))

    graph = analyze(trace(Network(), torch.randn(2, 3)))
    assert [g.id for g in graph.groups] == ["b"]
    assert {f.reason for f in graph.frozen if f.param == "a.weight" and f.dim == 0} == {Reason.CUSTOM_FUNCTION}


def test_user_freezes_what_a_module_makes():
    graph = graph_of("residual", freeze=["body.a"])
    assert [g.id for g in graph.groups] == ["body.stem.0", "body.b"]
    frozen = [f for f in graph.frozen if f.reason is Reason.USER]
    assert {(f.param, f.dim) for f in frozen} >= {("body.a.0.weight", 0), ("body.b.weight", 1)}
    assert graph_of("residual", freeze=["body.*"]).groups == ()
    with pytest.raises(UsageError, match="'bodi.a' names no module"):
        graph_of("residual", freeze=["bodi.a"])


def test_reading_one_channel_by_number_freezes():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.a(x)
            return self.b(x * x[:, 3:4])

    graph = analyze(trace(Network(), torch.randn(2, 3)))
    assert graph.groups == ()
    (axis,) = [f for f in graph.frozen if f.param == "a.weight" and f.dim == 0]
    assert axis.reason is Reason.UNIFORMITY and "one index" in axis.detail


def test_label_meeting_a_fixed_axis_freezes():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x) + x)

    graph = analyze(trace(Network(), torch.randn(2, 8)))
    assert graph.groups == ()
    assert {f.reason for f in graph.frozen if f.param == "b.weight" and f.dim == 1} == {Reason.NETWORK_INPUT}
