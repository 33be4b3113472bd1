"""A chain of convolutions as the search sees it, and a device that measures it by a formula."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
from test_cost_analytic import conv, make_profile

from hwprune.compile.memory import Step, place
from hwprune.cost.analytic import AnalyticModel
from hwprune.cost.base import Estimate
from hwprune.cost.sampling import choose
from hwprune.cost.table import TableModel
from hwprune.workload import TensorSpec, Workload

SIDE = 16


class Graph:
    """Layers with one group each, by name and width."""

    def __init__(self, widths: dict[str, int]):
        self.groups = tuple(SimpleNamespace(id=g, width=w) for g, w in widths.items())
        self.full, self.blocks = dict(widths), ()
        self.traced = SimpleNamespace(shape=lambda node: (1, 3 if node == "input" else self.full[node], SIDE, SIDE))

    def shapes(self, widths):
        kept = {**self.full, **widths}
        return lambda node: (1, 3 if node == "input" else kept[node], SIDE, SIDE)

    def removed(self, widths):
        return ()

    def terms(self, node, dim):
        return (0, (((node,), 1),)) if dim == 1 and node in self.full else (self.traced.shape(node)[dim], ())


@dataclass(frozen=True)
class Call:
    name: str
    reads: tuple[str, ...]  # its inputs, then itself
    bindings: tuple[str, ...] = field(default=())
    nodes = ()

    def workload(self, shapes) -> Workload:
        *inputs, own = self.reads
        return conv(sum(shapes(i)[1] for i in inputs), shapes(own)[1], SIDE)


class Network:
    """``reads``: layer -> the layers whose outputs it reads side by side."""

    inputs, outputs, parts = ("input",), (), 1

    def __init__(self, reads: dict[str, tuple[str, ...]], graph: Graph):
        self.graph, self.widths = graph, {}
        self.calls = tuple(Call(name, (*inputs, name), inputs) for name, inputs in reads.items())

    def workloads(self, shapes=None):
        return [c.workload(shapes or self.graph.shapes(self.widths)) for c in self.calls]

    def at(self, widths):
        """The same network, pruned to ``widths``."""
        pruned = copy(self)
        pruned.widths = widths
        return pruned

    def emitted(self, shapes=None):
        return self.calls

    def ends(self):
        return {"input": (0, 0)}

    def whole_shape(self, node, shapes):
        return shapes(node)

    def weight_bytes(self, shapes):
        return sum(w.weight_bytes for w in self.workloads(shapes))

    def memory(self, shapes):
        steps = [Step(c.name, c.workload(shapes).output.size_bytes, c.bindings) for c in self.calls]
        return place(steps, {"input": TensorSpec((1, 3, SIDE, SIDE)).size_bytes}, ())


def chain(*widths: int, concat: bool = False) -> tuple[Graph, Network, dict[str, np.ndarray]]:
    """A chain of layers of these widths; with ``concat`` the last reads all others. Scores are random, but the same."""
    names = [f"layer{i}" for i in range(len(widths))]
    graph = Graph(dict(zip(names, widths)))
    reads = {n: (names[i - 1] if i else "input",) for i, n in enumerate(names)}
    if concat:
        reads[names[-1]] = tuple(names[:-1])
    rng = np.random.default_rng(0)
    return graph, Network(reads, graph), {n: rng.exponential(size=w) for n, w in zip(names, widths)}


class Device:
    """Measures kernels: half again as slow as the analytic model says, and by a twist that it does not know."""

    def __init__(self):
        self.analytic = AnalyticModel(make_profile())
        self.measured: dict[str, SimpleNamespace] = {}
        self.efforts: list[str] = []
        self.networks: list[tuple[list[Workload], float]] = []
        self.model = TableModel(lambda: list(self.measured.values()), self.analytic)

    def latency_us(self, workload: Workload) -> float:
        twist = 1.0 + 0.2 * np.sin(workload.output.shape[-1] + workload.inputs[1].shape[3])
        return 1.5 * twist * (self.analytic.predict([workload])[0].latency_us + 1.0)

    def measure(self, workloads, effort="quick"):
        self.efforts.append(effort)
        for w in workloads:
            value = self.latency_us(w)
            self.measured[w.key] = SimpleNamespace(workload=w, latency=Estimate(value, value, value, "measured"))
        self.model.refresh()

    def uncertain(self, of, most):
        return choose(self.model, of, most)

    def calibrate(self, network):
        """A network takes 5 us and 10 % more than its kernels alone."""
        workloads = network.workloads()
        self.networks.append((workloads, self.network_us(workloads)))
        self.model.fit(self.networks)

    def network_us(self, workloads) -> float:
        return 5.0 + 1.1 * sum(map(self.latency_us, workloads))
