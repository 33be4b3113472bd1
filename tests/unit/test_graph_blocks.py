"""Residual branches: which are offered, and that a network without them is proved, trains, and is fused as it was priced."""

import numpy as np
import pytest
import torch
from graph_networks import NETWORKS, network
from torch import nn
from torch.nn import functional as F

from hwprune.compile.lower import lower
from hwprune.errors import PlanError
from hwprune.graph import analyze, trace
from hwprune.prove import prove
from hwprune.prune import prune
from hwprune.search.tables import NetworkView
from hwprune.target import load


class Basic(nn.Module):
    """ResNet's block; a projection where widths differ."""

    def __init__(self, i, o, inplace=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, o, 3, padding=1), nn.BatchNorm2d(o)
        self.short = nn.Sequential(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o)) if i != o else nn.Identity()
        self.inplace = inplace

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), self.inplace)))
        y += self.short(x)
        return F.relu(y, self.inplace)


class Encoder(nn.Module):
    """Two branches in one module, behind norms, the second scaled."""

    def __init__(self, c):
        super().__init__()
        self.norm1, self.mix = nn.LayerNorm(c), nn.Linear(c, c)
        self.norm2, self.up, self.down = nn.LayerNorm(c), nn.Linear(c, 10), nn.Linear(10, c)
        self.scale = nn.Parameter(torch.rand(c))

    def forward(self, x):
        x = x + self.mix(self.norm1(x))
        return x + self.scale * self.down(F.gelu(self.up(self.norm2(x))))


class Parallel(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.b = nn.Linear(c, c), nn.Sequential(nn.Linear(c, 6), nn.ReLU(), nn.Linear(6, c))

    def forward(self, x):
        return x + self.a(x) + self.b(x)


class Whole(nn.Module):
    """A long skip around blocks; a mask written in place inside of a branch."""

    def __init__(self):
        super().__init__()
        self.stem, self.outer, self.inner = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.stem(x)
        y = self.outer(x)
        mask = torch.ones_like(y)
        mask[:, :2] = 0
        y = y + self.inner(y) * mask
        return (x + y).sum(1)


class Mutated(nn.Module):
    """The branch writes, through a view, into what the shortcut reads."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.stem(x)
        return (x + self.branch(x.view(-1, 8).relu_()).view_as(x)).sum(1)


def body(*parts, channels):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


OWN = {
    "basic": (lambda: body(Basic(8, 8), Basic(8, 12), Basic(12, 12), channels=12), (2, 3, 8, 8)),
    "in_place": (lambda: body(Basic(8, 8, True), Basic(8, 12, True), Basic(12, 12, True), channels=12), (2, 3, 8, 8)),
    "encoder": (lambda: nn.Sequential(nn.Linear(6, 8), Encoder(8), Encoder(8), nn.Linear(8, 5)), (2, 4, 6)),
    "parallel": (lambda: nn.Sequential(nn.Linear(6, 8), Parallel(8), nn.Linear(8, 5)), (2, 4, 6)),
    "whole": (Whole, (2, 4, 6)),
    "mutated": (Mutated, (2, 4, 6)),
}


def analyzed(name):
    if name in NETWORKS:
        module, x = network(name)
        return module, analyze(trace(module, x))
    torch.manual_seed(0)
    factory, shape = OWN[name]
    module = factory().eval()
    return module, analyze(trace(module, torch.randn(shape)))


def without(graph, *blocks):
    return {name: [] for block in blocks for name in (block.id, *block.inner)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("basic", {"block:1": ("1.conv1",), "block:2": ("2.conv1",), "block:3": ("3.conv1",)}),
        ("encoder", {"block:1": (), "block:1#2": ("1.up",), "block:2": (), "block:2#2": ("2.up",)}),
        ("parallel", {"block:1": (), "block:1#2": ("1.b.0",)}),
        ("whole", {"block:(top)": ()}),  # the outer one holds another
        ("mutated", {}),
    ],
)
def test_branches_that_may_go_and_the_groups_inside(name, expected):
    _, graph = analyzed(name)
    assert {b.id: b.inner for b in graph.blocks} == expected


def test_frozen_branches_are_not_offered():
    torch.manual_seed(0)
    traced = trace(OWN["basic"][0]().eval(), torch.randn(2, 3, 8, 8))
    assert [b.id for b in analyze(traced, ["2.*"]).blocks] == ["block:1", "block:3"]


@pytest.mark.parametrize("name", [*OWN, *NETWORKS])
def test_networks_without_some_branches_are_proved_and_train(name):
    dense, graph = analyzed(name)
    for seed in range(2 if graph.blocks else 0):
        rng = np.random.default_rng(seed)
        kept = without(graph, *(b for b in graph.blocks if rng.random() < (0.5, 1.0)[seed]))
        for g in graph.groups:
            kept.setdefault(g.id, sorted(rng.choice(g.width, max(g.width // 2, 1), replace=False).tolist()))
        pruned, _ = prune(dense, graph, kept)
        assert prove(dense, pruned, graph, kept, seed=seed).relative_error < 1e-10
        parameters = dict(pruned.named_parameters())
        gone = {t for n, t in graph.traced.targets.items() if n in graph.gone({g: len(k) for g, k in kept.items()})}
        assert not gone & set(parameters)
        pruned.train()
        pruned(*graph.traced.example_inputs).square().mean().backward()
        again, _ = prune(dense, graph, kept)
        again.load_state_dict(pruned.state_dict())


def test_module_stays_what_it_is_where_a_block_is_a_module():
    dense, graph = analyzed("basic")
    pruned, rewrites = prune(dense, graph, without(graph, *graph.blocks))
    assert [type(m).__name__ for m in pruned] == ["Conv2d", "ReLU", "Sequential", "ReLU", "AdaptiveAvgPool2d", "Flatten", "Linear"]
    assert [(r.module, r.attribute, r.old, r.new) for r in rewrites] == [
        ("1", "module", "Basic", "ReLU"), ("2", "module", "Basic", "Sequential"), ("3", "module", "Basic", "ReLU"),
    ]  # fmt: skip
    assert "2.short.0.weight" in pruned.state_dict()


def test_one_of_two_branches_of_a_module_goes_from_the_graph():
    dense, graph = analyzed("encoder")
    pruned, (rewrite,) = prune(dense, graph, without(graph, graph.blocks[0]))
    assert isinstance(pruned, torch.fx.GraphModule) and "block:1" in rewrite.old
    both, _ = prune(dense, graph, without(graph, *graph.blocks[:2]))
    assert isinstance(both[1], nn.Identity)


def test_a_branch_goes_with_its_groups_or_not_at_all():
    dense, graph = analyzed("basic")
    with pytest.raises(PlanError, match="'block:1' goes as a whole, so that '1.conv1'"):
        prune(dense, graph, {"block:1": []})
    with pytest.raises(PlanError, match="group '1.conv1' would keep no unit"):
        prune(dense, graph, {"1.conv1": []})
    with pytest.raises(PlanError, match="group '0' would keep no unit"):
        graph.check({"0": []})


@pytest.mark.parametrize("name", ["basic", "in_place"])
def test_view_without_branches_is_the_pruned_network_as_it_is_compiled(name):
    dense, graph = analyzed(name)
    profile = load("x86")
    view = NetworkView(lower(graph.traced, profile), graph, lambda smaller: lower(smaller, profile))
    for number in range(2 ** len(graph.blocks)):
        kept = without(graph, *(b for i, b in enumerate(graph.blocks) if number >> i & 1))
        for g in graph.groups:
            kept.setdefault(g.id, list(range(max(g.width // 2, 1))))
        pruned, _ = prune(dense, graph, kept)
        expected = lower(trace(pruned, graph.traced.example_inputs), profile).workloads()
        own = view.workloads({g: len(k) for g, k in kept.items()})
        assert sorted(w.key for w in own) == sorted(w.key for w in expected)


def test_call_of_a_branch_costs_nothing_once_it_is_gone():
    _, graph = analyzed("basic")
    view = NetworkView(lower(graph.traced, load("x86")), graph)
    calls = view.calls_of("1.conv1")
    assert len(calls) == 2 and all(view.workload(i, {"1.conv1": 0}) is None for i in calls)
    assert all(view.workload(i, {"2.conv1": 0}) is not None for i in calls)
