"""What hangs on each group of a network: the figures that ``inspect`` puts beside groups and frozen axes.

A kernel depends on the groups at its inputs and at its outputs. Its MACs and its latency count for each of them, so a
group's share is the part of the network that becomes smaller with the group; the shares of all groups overlap.
Latencies are what the store holds, and the cost model's answer for the rest. Nothing is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from hwprune.compile.lower import lower
from hwprune.cost.base import Estimate, network_estimate, total
from hwprune.costing import Costing, load_target
from hwprune.errors import CompileError, NoLatency, StoreError, TargetError
from hwprune.graph.channels import ChannelGraph, Group
from hwprune.plan import Figure
from hwprune.progress import Progress
from hwprune.results import AxisRow, BranchRow, FrozenRow, GroupRow, InspectReport
from hwprune.search.tables import NetworkView


@dataclass(frozen=True)
class Work:
    """MACs and latency of each kernel of a network at full width, in the order in which they run.

    view : None where the network cannot be lowered, and then nothing is known.
    whole, parts : latency of the network, None where no cost model answers, and of its kernels, their start included.
    missing : why something is None.
    """

    target: str
    view: NetworkView | None = None
    macs: tuple[int, ...] = ()
    whole: Estimate | None = None
    parts: tuple[Estimate, ...] = ()
    missing: str = ""

    def of_network(self) -> dict[str, Any]:
        """Fields of ``InspectReport``."""
        known: dict[str, Any] = {"target": self.target, "missing": self.missing}
        if self.view is not None:
            known |= {"kernels": len(self.macs), "macs": sum(self.macs)}
        if self.whole is not None:
            measured = sum(e.provenance == "measured" for e in self.parts)
            known |= {"kernels_measured": measured, "latency_us": _figure(self.whole), "cost_model": self.whole.model}
        return known

    def of_group(self, group: str) -> dict[str, Any]:
        """Fields of ``GroupRow``."""
        return self._of(self.view.calls_of(group)) if self.view is not None else {}

    def of_branch(self, branch: str) -> dict[str, Any]:
        """Fields of ``BranchRow``."""
        return self._of(self.view.calls_in(branch)) if self.view is not None else {}

    def _of(self, calls: Sequence[int]) -> dict[str, Any]:
        if not calls:
            return {}
        macs, whole = sum(self.macs[i] for i in calls), sum(self.macs)
        known: dict[str, Any] = {"macs": macs, "macs_share": macs / whole if whole else None}
        if self.whole is not None:
            own = total([self.parts[i] for i in calls])
            share = own.latency_us / self.whole.latency_us
            known["latency_us"] = _figure(own)
            known["latency_share"] = Figure(value=share, provenance=self.whole.provenance)
        return known


def report(graph: ChannelGraph, work: Work, model: str, input_shape: Sequence[int]) -> InspectReport:
    """``graph`` and the work that hangs on its groups, as a value."""
    prunable = {s.name for g in graph.groups for s in g.params}
    sizes = {name: p.numel() for name, p in graph.traced.module.named_parameters()}
    return InspectReport(
        model,
        tuple(input_shape),
        sum(sizes.values()),
        sum(n for name, n in sizes.items() if name in prunable),
        tuple(_group_row(g, work) for g in graph.groups),
        tuple(FrozenRow(f.param, f.dim, f.count, f.total, f.reason.value, f.detail, f.where) for f in graph.frozen),
        tuple(BranchRow(b.id, b.inner, **work.of_branch(b.id)) for b in graph.blocks),
        **work.of_network(),
    )


def price(
    graph: ChannelGraph, target: str, threads: int | None, store: str | Path | None, progress: Progress, parts: int = 1
) -> Work:
    """The work of ``graph``'s network on ``target``; ``missing`` says what stands in the way, if anything does.

    parts : in which a batch runs, each as ``graph`` has it. Raises TargetError and StoreError for a target and a store that the user named. Nobody asked for the defaults: where
    they fail, only figures are missing.
    """
    try:
        profile = load_target(target, threads)
    except TargetError as err:
        if target != "native":
            raise
        return Work(target, missing=str(err))
    try:
        view = NetworkView(lower(graph.traced, profile, parts), graph)
    except CompileError as err:
        return Work(profile.name, missing=str(err))
    workloads = view.workloads({})
    macs = tuple(w.macs for w in workloads)
    try:
        with Costing(profile, store, progress, weights_bytes=view.network.weight_bytes()) as cost:
            cost.recall(view.network)
            start = cost.model.kernel_overhead_us
            parts = tuple(total([e], start) for e in cost.model.predict(workloads))
            return Work(profile.name, view, macs, network_estimate(cost.model, workloads), parts)
    except (NoLatency, StoreError) as err:
        if isinstance(err, StoreError) and store is not None:
            raise
        return Work(profile.name, view, macs, missing=str(err))


def _group_row(group: Group, work: Work) -> GroupRow:
    many = {(s.name, s.dim): s.index.shape[1] for s in group.params}
    makes, reads = (tuple(AxisRow(*a, many[a]) for a in axes) for axes in (group.producers, group.consumers))
    return GroupRow(group.id, group.width, makes, reads, **work.of_group(group.id))


def _figure(estimate: Estimate) -> Figure:
    return Figure(
        value=estimate.latency_us, provenance=estimate.provenance, low=estimate.low_us, high=estimate.high_us
    )
