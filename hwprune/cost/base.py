"""The CostModel protocol and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, Sequence

from hwprune.workload import Workload

Provenance = Literal["measured", "simulated", "analytic"]

#: From the most to the least trustworthy. A sum is only as good as its weakest term.
PROVENANCES: tuple[Provenance, ...] = ("measured", "simulated", "analytic")


@dataclass(frozen=True)
class Estimate:
    """Latency of one kernel or network, in microseconds, with an interval that is meant to hold 95 % of the time."""

    latency_us: float
    low_us: float
    high_us: float
    provenance: Provenance


class CostModel(Protocol):
    """Predicts kernels; a network is the sum of its kernels plus ``network_overhead_us``.

    A workload that the model has neither measured nor a stated model for raises ``NoLatency``; it is never zero.
    """

    def predict(self, workloads: Sequence[Workload]) -> list[Estimate]: ...

    @property
    def kernel_overhead_us(self) -> float:
        """Added once per kernel of a network (what a kernel costs in a network beyond its own isolated latency)."""

    @property
    def network_overhead_us(self) -> float:
        """Added once per inference."""


def weakest(provenances: Sequence[Provenance]) -> Provenance:
    """Provenance of a quantity computed from several others."""
    return max(provenances, key=PROVENANCES.index)


def network_estimate(model: CostModel, workloads: Sequence[Workload]) -> Estimate:
    """Latency of a network that runs ``workloads`` one after the other."""
    return total(
        model.predict(workloads), model.network_overhead_us + model.kernel_overhead_us * len(workloads)
    )


def total(parts: Sequence[Estimate], fixed_us: float = 0.0) -> Estimate:
    """Sum of ``parts``, of which there is at least one, and of ``fixed_us`` microseconds."""
    return Estimate(
        latency_us=fixed_us + sum(e.latency_us for e in parts),
        low_us=fixed_us + sum(e.low_us for e in parts),
        high_us=fixed_us + sum(e.high_us for e in parts),
        provenance=weakest([e.provenance for e in parts]),
    )
