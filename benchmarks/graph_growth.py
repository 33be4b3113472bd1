"""How analysis grows with the size of the network: 100, 1,000 and 10,000 exported nodes.

    python -m benchmarks.graph_growth

Two families, each of one block repeated: a residual convolutional network, and a transformer with a fused projection.
Reported is what hwprune adds to ``torch.export``: propagation, gathering, and asking every shape once.
"""

from __future__ import annotations

import argparse
import gc
import time
from typing import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import report
from hwprune.graph import ChannelGraph, analyze, trace

SIZES = (100, 1_000, 10_000)
HEADER = ("family", "nodes", "parameters", "groups", "torch.export s", "analysis s", "ms a node", "all shapes s")


class Residual(nn.Module):
    """conv-bn-relu-conv-bn-add-relu."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm_a, self.norm_b = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))


class Transformer(nn.Module):
    """Pre-norm block: attention with a fused projection, then two linear layers."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm_a, self.norm_b = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm_a(x)).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))
        return x + self.down(F.gelu(self.up(self.norm_b(x))))


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    # name: (stem, block, input shape)
    "residual": (lambda: nn.Conv2d(3, 64, 3, padding=1), lambda: Residual(64), (1, 3, 8, 8)),
    "transformer": (lambda: nn.Linear(32, 96), lambda: Transformer(96, 3), (1, 8, 32)),
}


def network(family: str, nodes: int) -> tuple[nn.Module, torch.Tensor]:
    """The family's block as often as gives about ``nodes`` exported nodes, parameters included."""
    stem, block, shape = FAMILIES[family]
    one, two = (_nodes(nn.Sequential(stem(), *(block() for _ in range(n))), torch.randn(shape)) for n in (1, 2))
    count = max(round((nodes - one) / (two - one)) + 1, 1)
    return nn.Sequential(stem(), *(block() for _ in range(count))).eval(), torch.randn(shape)


def _nodes(module: nn.Module, x: torch.Tensor) -> int:
    return len(trace(module, x).graph.nodes)


def measure(family: str, nodes: int) -> list[object]:
    """One row of the table."""
    module, x = network(family, nodes)
    start = time.perf_counter()
    traced = trace(module, x)
    exported = time.perf_counter() - start
    gc.collect()
    start = time.perf_counter()
    graph = analyze(traced)
    analyzed = time.perf_counter() - start
    count = len(traced.graph.nodes)
    parameters = sum(p.numel() for p in module.parameters())
    return [
        family, count, parameters, len(graph.groups), f"{exported:.2f}", f"{analyzed:.2f}",
        f"{1e3 * analyzed / count:.3f}", f"{_all_shapes(graph):.3f}",
    ]  # fmt: skip


def _all_shapes(graph: ChannelGraph) -> float:
    """Seconds for the shapes of all nodes at half of each width, as the search asks for them."""
    start = time.perf_counter()
    shape = graph.shapes({g.id: max(g.width // 2, 1) for g in graph.groups})
    for node in graph.traced.graph.nodes:
        if isinstance(node.meta.get("val"), torch.Tensor):
            shape(node.name)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="exported nodes, about")
    sizes = parser.parse_args().sizes
    measure(next(iter(FAMILIES)), 50)  # imports and first uses are not part of any row
    rows = []
    for family in FAMILIES:
        for size in sizes:
            rows.append(measure(family, size))
            print(*rows[-1], sep="\t", flush=True)
    report.write(
        "graph_growth", "Growth of the analysis with the network", "python -m benchmarks.graph_growth",
        [("Analysis", HEADER, rows)],
        ["Analysis is what hwprune adds to torch.export: labels through all nodes, and groups. One run each."],
    )  # fmt: skip


if __name__ == "__main__":
    main()
