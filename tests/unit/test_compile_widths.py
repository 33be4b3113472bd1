"""The widths law: what the search predicts for some widths is what the compiler makes of the network pruned to them.

``network.workloads(graph.shapes(widths))`` of the dense network is, kernel by kernel, ``lower(trace(pruned))``.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_networks import NETWORKS, SqueezeExcite, conv, network
from torch import nn

from hwprune.bundled import MODELS
from hwprune.compile.lower import lower
from hwprune.graph import trace
from hwprune.graph.channels import analyze
from hwprune.prune import prune
from hwprune.target import load_file, shipped_folder

PROFILE = load_file(shipped_folder() / "x86.toml")


class Plain(nn.Module):
    """VGG with pools and a flattened head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 20), conv(20, 24), nn.MaxPool2d(2), conv(24, 33), nn.AvgPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(33 * 4, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 10))

    def forward(self, x):
        return self.head(self.body(x))


class Mobile(nn.Module):
    """Inverted bottlenecks with depthwise convolutions, a gate and a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16)
        self.block = nn.Sequential(
            conv(16, 40, 1), conv(40, 40, 3, groups=40), SqueezeExcite(40, 12), nn.Conv2d(40, 16, 1)
        )
        self.last = nn.Sequential(conv(16, 32, groups=16), nn.Hardswish())
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(self.last(x + self.block(x)).mean((2, 3)))


class Shortcuts(nn.Module):
    """Residual blocks with an identity and an option-A shortcut, and a concatenation of both stages."""

    def __init__(self):
        super().__init__()
        self.stem, self.a1, self.a2 = conv(3, 16), conv(16, 24), nn.Conv2d(24, 16, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.last = nn.Conv2d(48, 20, 1)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.a2(self.a1(x)) + x)
        y = self.b2(F.relu(self.b1(x))) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        return self.last(torch.cat([F.max_pool2d(x, 2), F.relu(y)], 1)).mean((2, 3))


class Transformer(nn.Module):
    """Patches, a class token, positions, two layers with fused and separate projections, the token's head."""

    def __init__(self, width=24):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 5, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.projections = nn.Linear(width, 3 * width), nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 40), nn.Linear(40, width)
        self.head = nn.Linear(width, 10)

    def heads(self, x):
        return x.view(x.shape[0], x.shape[1], 3, -1).transpose(1, 2)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norms[0](x)).reshape(n, t, 3, 3, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).reshape(n, t, -1))
        y = self.norms[1](x)
        q, k, v = (self.heads(p(y)) for p in self.projections[:3])
        y = torch.softmax(q @ k.transpose(-1, -2) * 0.3, -1) @ v
        x = x + self.projections[3](y.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norms[2](x))))
        return self.head(x[:, 0])


class ConvNext(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 24, 2, 2), nn.Conv2d(24, 24, 7, padding=3, groups=24)
        self.norm, self.up, self.down = nn.LayerNorm(24), nn.Linear(24, 40), nn.Linear(40, 24)
        self.scale, self.head = nn.Parameter(torch.ones(24, 1, 1)), nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.conv(x).permute(0, 2, 3, 1)))))
        return self.head((x + self.scale * y.permute(0, 3, 1, 2)).mean((2, 3)))


OWN = {
    "bundled": (MODELS["digits_resnet"].build, (1, 1, 8, 8)),
    "plain": (Plain, (1, 3, 8, 8)),
    "mobile": (Mobile, (2, 3, 8, 8)),
    "shortcuts": (Shortcuts, (1, 3, 8, 8)),
    "transformer": (Transformer, (2, 3, 8, 8)),
    "convnext": (ConvNext, (1, 3, 8, 8)),
}
#: networks of the graph tests that the compiler has kernels for
SHARED = ("flat", "option_a", "residual", "inverted", "dense", "inception")


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    if name in NETWORKS:
        return network(name)
    torch.manual_seed(0)
    factory, shape = OWN[name]
    return factory().eval(), torch.randn(shape)


def random_kept(graph, seed: int, least: int = 1) -> dict[str, np.ndarray]:
    """Some units of each group, at least ``least``; a third of the groups stay whole."""
    generator = np.random.default_rng(seed)
    kept = {}
    for group in graph.groups:
        if generator.random() < 0.67:
            width = int(generator.integers(min(least, group.width), group.width + 1))
            kept[group.id] = np.sort(generator.choice(group.width, width, replace=False))
    return kept


@pytest.fixture(scope="module")
def dense():
    """name -> (module, input, channel graph, lowered network), made once."""
    made = {}

    def of(name: str):
        if name not in made:
            module, x = build(name)
            traced = trace(module, x)
            made[name] = (module, x, analyze(traced), lower(traced, PROFILE))
        return made[name]

    return of


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [*OWN, *SHARED])
def test_predicted_kernels_are_the_compiled_ones(dense, name, seed):
    module, x, graph, network = dense(name)
    # one head is in the order of any layout: a copy falls away that more of them need, which no width tells beforehand
    kept = random_kept(graph, seed, least=2 if name == "transformer" else 1)
    pruned, _ = prune(module, graph, kept)
    compiled = lower(trace(pruned, x), PROFILE)
    shapes = graph.shapes({group: len(units) for group, units in kept.items()})

    predicted = network.workloads(shapes)
    assert Counter(w.key for w in predicted) == Counter(w.key for w in compiled.workloads())
    assert sum(w.macs for w in predicted) == compiled.macs()
    assert network.weight_bytes(shapes) == compiled.weight_bytes()
    assert network.memory(shapes).workspace_bytes == compiled.memory().workspace_bytes
    assert network.memory(shapes).peak_bytes == compiled.memory().peak_bytes


@pytest.mark.parametrize("name", [*OWN, *SHARED])
def test_all_widths_whole_is_the_dense_network(dense, name):
    _, _, graph, network = dense(name)
    assert network.workloads(graph.shapes({})) == network.workloads()


@pytest.mark.parametrize("name", OWN)
def test_every_value_that_a_kernel_depends_on_is_declared(dense, name):
    """The search asks for a kernel's latency once per width of what ``reads`` names."""
    _, _, graph, network = dense(name)
    shapes = graph.shapes({group.id: max(1, group.width // 3) for group in graph.groups})
    for call in network.calls:
        asked = set()

        def spy(node, asked=asked):
            asked.add(node)
            return shapes(node)

        call.workload(spy)
        assert asked <= set(call.reads), f"{call.name} asks for {asked - set(call.reads)}"
