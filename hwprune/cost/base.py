"""The CostModel protocol and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, Sequence

from hwprune.workload import Workload

Provenance = Literal["measured", "simulated", "analytic"]

#: From the most to the least trustworthy. A sum is only as good as its weakest term.
PROVENANCES: tuple[Provenance, ...] = ("measured", "simulated", "analytic")

ModelName = Literal["table", "surrogate", "simulated", "analytic"]

#: Likewise. The surrogate's provenance is that of the model it corrects: what it says of a kernel nobody measured.
MODELS: tuple[ModelName, ...] = ("table", "surrogate", "simulated", "analytic")

_MODEL_OF: dict[Provenance, ModelName] = {"measured": "table", "simulated": "simulated", "analytic": "analytic"}


@dataclass(frozen=True)
class Estimate:
    """Latency of one kernel or network, in microseconds, with an interval that is meant to hold 95 % of the time.

    model : which cost model answered; by default the one that goes with the provenance. Of a sum, the least trustworthy.
    """

    latency_us: float
    low_us: float
    high_us: float
    provenance: Provenance
    model: ModelName | None = None

    def __post_init__(self) -> None:
        if self.model is None:
            object.__setattr__(self, "model", _MODEL_OF[self.provenance])


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
    """Latency of a network that runs ``workloads`` one after the other.

    A model may have ``saved_us(workloads)``: what they take less together than their sum.
    """
    saved_us = model.saved_us(workloads) if hasattr(model, "saved_us") else 0.0
    fixed_us = model.network_overhead_us + model.kernel_overhead_us * len(workloads) - saved_us
    return total(model.predict(workloads), fixed_us)


def total(parts: Sequence[Estimate], fixed_us: float = 0.0) -> Estimate:
    """Sum of ``parts``, of which there is at least one, and of ``fixed_us`` microseconds."""
    return Estimate(
        latency_us=fixed_us + sum(e.latency_us for e in parts),
        low_us=fixed_us + sum(e.low_us for e in parts),
        high_us=fixed_us + sum(e.high_us for e in parts),
        provenance=weakest([e.provenance for e in parts]),
        model=max((e.model for e in parts), key=MODELS.index),
    )
