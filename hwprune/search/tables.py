"""From a lowered network to the search problem's tables: what each call costs at each candidate width.

A call (one kernel of the network) depends on the groups at its inputs and outputs. Its cost is expanded around the dense
network: the dense cost, the change when one group moves, the further change when two move together (a cut-HDMR of
second order; Rabitz & Alis, 1999). For calls of up to two groups that is exact. With more, as behind a concatenation,
it is exact at the dense network and wherever at most two of the groups move, and for costs that are sums of products of
two widths; whoever uses the solution evaluates it exactly afterwards.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Callable, Mapping, Sequence

import numpy as np

from hwprune.compile.lower import Call, Network
from hwprune.compile.memory import Step, aligned, lifetimes
from hwprune.cost.base import CostModel
from hwprune.graph.blocks import Block, without
from hwprune.graph.channels import ChannelGraph
from hwprune.graph.trace import Traced
from hwprune.search.problem import Terms
from hwprune.workload import TensorSpec, Workload

Widths = Mapping[str, int]

#: Of a call with many groups, pairs whose joint change is below this share of its arithmetic and traffic are left out.
_NEGLIGIBLE = 0.005


class NetworkView:
    """A lowered network as the search sees it: the workloads of its calls as a function of the groups' widths.

    depends : by call, the groups on which its workload depends; a call in a residual branch without groups of its own
        depends on the branch itself.
    """

    def __init__(self, network: Network, graph: ChannelGraph, lower: Callable[[Traced], Network] | None = None):
        """lower : fuses a network with fewer branches as ``network`` was; needed where branches may go."""
        self.network, self.graph, self._lower = network, graph, lower
        self._branch = [self._branch_of(call) for call in network.calls]
        self.depends = [self._groups_of(call, branch) for call, branch in zip(network.calls, self._branch)]
        self._cache: dict[tuple, Workload] = {}
        self._without: dict[tuple[str, ...], NetworkView] = {}

    def _branch_of(self, call: Call) -> Block | None:
        """The branch that a call goes with: the one that its first operator lies in."""
        first = call.nodes[0].name if call.nodes else None
        return next((block for block in self.graph.blocks if first in block.branch), None)

    def _groups_of(self, call: Call, branch: Block | None) -> tuple[str, ...]:
        """Groups on which the shape of any node that it reads depends, in the order in which they are met."""
        shape = self.graph.traced.shape
        met = [g for n in call.reads for dim in range(len(shape(n))) for ids, _ in self.graph.terms(n, dim)[1] for g in ids]
        alone = branch is not None and not set(branch.inner) & set(met)
        return tuple(dict.fromkeys([*met, branch.id] if alone else met))

    def workload(self, index: int, widths: Widths) -> Workload | None:
        """What call ``index`` computes when each group keeps ``widths[group]`` units (all, where it is not named);
        None where it goes with its branch."""
        branch = self._branch[index]
        if branch is not None and not all(widths.get(name, 1) for name in (branch.id, *branch.inner)):
            return None
        index %= len(self.depends) // self.network.parts  # the parts of a batch are alike
        key = (index, *(widths.get(g) for g in self.depends[index]))
        if key not in self._cache:
            self._cache[key] = self.network.calls[index].workload(self.graph.shapes(widths))
        return self._cache[key]

    def at(self, widths: Widths) -> "NetworkView":
        """The view of the network without the branches that go."""
        removed = self.graph.removed(widths)
        key = tuple(block.id for block in removed)
        if key and key not in self._without:
            self._without[key] = NetworkView(self._lower(without(self.graph.traced, removed)), self.graph)
        return self._without[key] if key else self

    def workloads(self, widths: Widths) -> list[Workload]:
        """Of all calls, as the network with these widths is fused: without a branch, what read it may be fused anew."""
        view = self.at(widths)
        return [view.workload(i, widths) for i in range(len(view.depends))]

    def calls_in(self, branch: str) -> list[int]:
        """The calls that go with a residual branch."""
        return [i for i, block in enumerate(self._branch) if block is not None and block.id == branch]

    def calls_of(self, group: str) -> list[int]:
        return [i for i, groups in enumerate(self.depends) if group in groups]

    def live_bytes(self, widths: Widths) -> np.ndarray:
        """int64 [calls]: bytes of activations that are alive while each call runs, inputs and outputs included.

        No placement can have a lower peak than the largest of them; the compiler's own may have a higher one.
        """
        workloads = {call.name: self.workload(i, widths) for i, call in enumerate(self.network.calls)}
        made = {name: aligned(w.output.size_bytes) if w is not None else 0 for name, w in workloads.items()}
        outside = self.network.ends()
        live = np.zeros(len(made), dtype=np.int64)
        for name, (first, last) in self._lifetimes.items():
            live[first : last + 1] += made[name]
        shapes = self.graph.shapes(widths)
        fixed = sum(TensorSpec(self.network.whole_shape(n, shapes)).size_bytes for n in self.network.inputs)
        return live + fixed + sum(made[n] for n in outside if n in made)

    @cached_property
    def _lifetimes(self) -> dict[str, tuple[int, int]]:
        steps = [
            Step(call.name, 0, tuple(b for b in emitted.bindings if isinstance(b, str)))
            for call, emitted in zip(self.network.calls, self.network.emitted())
        ]
        return lifetimes(steps, set(self.network.ends()))


@dataclass(frozen=True)
class CallGrid:
    """The workloads of one call around the dense one; group numbers as in ``Problem``. None where the call is gone."""

    dense: Workload
    unary: dict[int, list[Workload | None]]
    pair: dict[tuple[int, int], list[list[Workload | None]]]

    def all(self) -> list[Workload]:
        flat = [w for row in self.unary.values() for w in row]
        flat += [w for grid in self.pair.values() for row in grid for w in row]
        return [self.dense, *(w for w in flat if w is not None)]


def grids(view: NetworkView, groups: Sequence[str], widths: Sequence[np.ndarray]) -> list[CallGrid]:
    """One grid a call. ``widths``: candidate widths of each of ``groups``, the last of each being the dense one."""
    number = {g: n for n, g in enumerate(groups)}
    parts = view.network.parts
    of_a_part = [
        _grid(view, call, sorted(number[g] for g in names if g in number), groups, widths)
        for call, names in enumerate(view.depends[: len(view.depends) // parts])
    ]
    return of_a_part * parts


def _grid(
    view: NetworkView, call: int, moving: list[int], groups: Sequence[str], widths: Sequence[np.ndarray]
) -> CallGrid:
    def workload(*pairs: tuple[int, int]) -> Workload | None:
        return view.workload(call, {groups[g]: int(w) for g, w in pairs})

    dense = workload()
    unary = {g: [workload((g, w)) for w in widths[g]] for g in moving}
    joint = list(itertools.combinations(moving, 2))
    if len(moving) > 2:
        joint = [
            p for p in joint if _interact(dense, *(unary[g][0] for g in p), workload(*((g, widths[g][0]) for g in p)))
        ]
    pair = {(g, h): [[workload((g, a), (h, b)) for b in widths[h]] for a in widths[g]] for g, h in joint}
    return CallGrid(dense, unary, pair)


def _interact(dense: Workload, first: Workload | None, second: Workload | None, both: Workload | None) -> bool:
    """Whether moving two groups together changes arithmetic or traffic by other than the sum of moving each."""
    for size in (lambda w: w.macs if w else 0, lambda w: w.bytes_moved if w else 0):
        joint = size(both) - size(first) - size(second) + size(dense)
        if abs(joint) > _NEGLIGIBLE * max(size(dense), 1):
            return True
    return False


def terms(call_grids: Sequence[CallGrid], cost: Callable[[Workload], float], constant: float = 0.0) -> Terms:
    """The sum over all calls of ``cost`` of their workloads, plus ``constant``. A call that is gone costs nothing."""

    def of(workload: Workload | None) -> float:
        return cost(workload) if workload is not None else 0.0

    unary: dict[int, np.ndarray] = {}
    pair: dict[tuple[int, int], np.ndarray] = {}
    for grid in call_grids:
        base = cost(grid.dense)
        constant += base
        moved = {g: np.array([of(w) for w in row]) - base for g, row in grid.unary.items()}
        for g, change in moved.items():
            unary[g] = unary.get(g, 0.0) + change
        for (g, h), rows in grid.pair.items():
            joint = np.array([[of(w) for w in row] for row in rows]) - base - moved[g][:, None] - moved[h][None, :]
            if np.any(joint):
                pair[g, h] = pair.get((g, h), 0.0) + joint
    return Terms(constant, unary, pair)


def latency_terms(call_grids: Sequence[CallGrid], model: CostModel, *, pessimistic: bool = False) -> Terms:
    """Latency of the network in microseconds, its overheads included.

    pessimistic : take the upper end of the interval for whatever was neither measured nor simulated.
    """
    distinct = list({w.key: w for grid in call_grids for w in grid.all()}.values())
    cost = {}
    for workload, estimate in zip(distinct, model.predict(distinct)):
        guarded = pessimistic and estimate.provenance == "analytic"
        cost[workload.key] = model.kernel_overhead_us + (estimate.high_us if guarded else estimate.latency_us)
    return terms(call_grids, lambda w: cost[w.key], model.network_overhead_us)


def size_terms(call_grids: Sequence[CallGrid], constant: float = 0.0) -> Terms:
    """Bytes of the packed weights."""
    return terms(call_grids, lambda w: w.weight_bytes, constant)


def live_terms(
    live_bytes: Callable[[Widths], np.ndarray], groups: Sequence[str], widths: Sequence[np.ndarray], most: float
) -> list[Terms]:
    """Bytes of live activations at each step of the program, one Terms a step that can exceed ``most``.

    live_bytes : widths -> float64 [steps]. An activation's channels belong to one group, or to several side by side, so
        its size is a sum over groups, up to the padding of a concatenation.
    """
    dense = np.asarray(live_bytes({}), dtype=np.float64)
    critical = np.flatnonzero(dense > most)
    if critical.size == 0:
        return []
    moved = {
        g: np.array([live_bytes({name: int(w)})[critical] for w in candidates], dtype=np.float64) - dense[critical]
        for g, (name, candidates) in enumerate(zip(groups, widths))
    }
    rows: dict[tuple, Terms] = {}
    for step in range(critical.size):
        unary = {g: change[:, step] for g, change in moved.items() if np.any(change[:, step])}
        key = (dense[critical[step]], *((g, *u) for g, u in unary.items()))
        rows.setdefault(key, Terms(float(dense[critical[step]]), unary, {}))
    return list(rows.values())
