"""What the API returns, as values: rows of the result table, points of the frontier, rows of a benchmark.

``Figure`` (of ``hwprune.plan``) is a number with its provenance. For a latency that is ``measured``, ``simulated`` or
``analytic``. A quantity that is counted and not timed (parameters, MACs, planned memory) says ``counted``; an accuracy
and a size of files on disk are ``measured``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hwprune.plan import Figure


@dataclass(frozen=True)
class ResultRow:
    """One quantity of the dense and of the pruned network, in ``unit``; None where it is unknown (``note`` says why)."""

    quantity: str
    unit: str
    dense: Figure | None
    pruned: Figure | None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Pruned over dense; None if either is unknown or the dense figure is zero."""
        if self.dense is None or self.pruned is None or self.dense.value == 0:
            return None
        return self.pruned.value / self.dense.value

    def to_json(self) -> dict[str, Any]:
        return {
            "quantity": self.quantity,
            "unit": self.unit,
            "dense": self.dense.model_dump() if self.dense else None,
            "pruned": self.pruned.model_dump() if self.pruned else None,
            "note": self.note,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "ResultRow":
        figures = {k: Figure.model_validate(data[k]) if data[k] else None for k in ("dense", "pruned")}
        return ResultRow(data["quantity"], data["unit"], figures["dense"], figures["pruned"], data.get("note", ""))


@dataclass(frozen=True)
class FrontierPoint:
    """One network that no other network of the search beats in both latency and importance kept.

    latency_us : predicted latency in microseconds.
    importance_kept : share of the total importance that is kept, 0 to 1.
    widths : units kept by group id; every prunable group is named.
    provenance : of the latency.
    chosen : whether this is the plan of the run.
    """

    latency_us: float
    importance_kept: float
    widths: dict[str, int]
    provenance: str
    size_bytes: int
    peak_memory_bytes: int
    macs: int
    chosen: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> "FrontierPoint":
        return FrontierPoint(**data)


@dataclass(frozen=True)
class BenchRow:
    """One timed program: median and the 10th and 90th percentile of its rounds, in microseconds.

    ratio : median over the first row's median.
    """

    name: str
    median_us: float
    low_us: float
    high_us: float
    provenance: str
    ratio: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class MeasureReport:
    """What ``measure`` did: distinct kernels of the networks looked at, and how many of them were timed just now."""

    kernels: int
    measured_now: int
    store: Path
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "store": str(self.store)}


@dataclass(frozen=True)
class GroupRow:
    """One prunable group: its units, what makes them (parameter and axis) and what reads them."""

    id: str
    width: int
    producers: tuple[tuple[str, int], ...]
    consumers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class FrozenRow:
    """``count`` of the ``total`` positions of a parameter's axis that cannot be pruned, why, and where in the source."""

    param: str
    dim: int
    count: int
    total: int
    reason: str
    detail: str
    where: str


@dataclass(frozen=True)
class InspectReport:
    """What can be pruned in a network and what cannot, with the reason.

    parameters : number of parameters. prunable_parameters : how many are in tensors with a prunable axis.
    """

    model: str
    input_shape: tuple[int, ...]
    parameters: int
    prunable_parameters: int
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
