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
            "dense": _json(self.dense),
            "pruned": _json(self.pruned),
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
    """What ``measure`` did.

    kernels : distinct ones that the network's candidate widths can make. measured : those in the store, ``measured_now`` of them
        new.
    half_width : of the 95 % interval of a kernel's latency, as a share of it; mean over all of them by the time they take.
    """

    kernels: int
    measured: int
    measured_now: int
    half_width: float
    store: Path
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "store": str(self.store)}


@dataclass(frozen=True)
class Accuracy:
    """How far predictions are from what was measured; errors are shares, 0.01 is one per cent.

    median, percentile_95 : of the absolute error. bias : median of the error, positive where predictions are too long.
    spearman : rank correlation; None of fewer than three networks.
    retest : median absolute error of the measurement itself, the networks being timed a second time.
    """

    networks: int
    median: float
    percentile_95: float
    bias: float
    spearman: float | None
    retest: float


@dataclass(frozen=True)
class CheckedNetwork:
    """One random pruned network, in microseconds.

    predicted_us, low_us, high_us : from its measured kernels. before_us : before these were measured for this check, when
        ``unknown`` of its ``kernels`` distinct ones were the surrogate's. measured_us, again_us : timed as a whole, twice.
    """

    widths: dict[str, int]
    kernels: int
    unknown: int
    before_us: float
    predicted_us: float
    low_us: float
    high_us: float
    measured_us: float
    again_us: float


@dataclass(frozen=True)
class CheckReport:
    """Predictions beside measurements. before, after : the accuracy before and after the networks' kernels were measured."""

    networks: list[CheckedNetwork]
    before: Accuracy
    after: Accuracy
    store: Path
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "store": str(self.store)}

    def lines(self) -> tuple[str, ...]:
        return (f"{self.kernels} kernels, {self.measured_now} timed now in {self.seconds:.1f} s", f"store: {self.store}")


@dataclass(frozen=True)
class BundleReport:
    """What was packed for a device: the file and its size, distinct workloads, and kernels (their schedules)."""

    path: Path
    size_bytes: int
    workloads: int
    kernels: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}

    def lines(self) -> tuple[str, ...]:
        return (
            f"{self.path}: {self.workloads} kernels in {self.kernels} schedules, {self.size_bytes / 1e6:.1f} MB, built in {self.seconds:.1f} s",
            f"on the device: tar xf {self.path.name} && ./measure",
            "then here: hwprune measure --import results.json",
        )


@dataclass(frozen=True)
class AxisRow:
    """A parameter's axis that a group's units lie on, ``multiplicity`` positions of it for each unit."""

    param: str
    dim: int
    multiplicity: int = 1


@dataclass(frozen=True, kw_only=True)
class Share:
    """The work of some of a network's kernels, at full width.

    macs_share, latency_share : of the whole network, 0 to 1. The share's provenance is that of the weakest kernel of the
        network, since all of them are in its denominator; that of ``latency_us`` is of the weakest of these.

    None where unknown; ``InspectReport.missing`` says why.
    """

    macs: int | None = None
    macs_share: float | None = None
    latency_us: Figure | None = None
    latency_share: Figure | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "latency_us": _json(self.latency_us), "latency_share": _json(self.latency_share)}


@dataclass(frozen=True)
class GroupRow(Share):
    """One prunable group: its units, the axes that make them, the axes that read them, and the work that hangs on them.

    The work is that of all kernels that depend on the group's width. A kernel depends on the groups at its inputs and at
    its outputs and counts for each of them, so the shares of all groups add up to more than 1.
    """

    id: str
    width: int
    producers: tuple[AxisRow, ...]
    consumers: tuple[AxisRow, ...]


@dataclass(frozen=True)
class BranchRow(Share):
    """One residual branch that may go as a whole, the groups that go with it, and the work of its kernels."""

    id: str
    groups: tuple[str, ...]


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
    groups, frozen, branches : in the order of the graph.
    target : profile that the latencies are for. kernels : of the network, ``kernels_measured`` of them in the store.
    macs, latency_us : of the whole network at full width, the latter with its start. cost_model : which one answered, of several
        the least trustworthy.
    missing : why there are no latencies, or neither latencies nor MACs; empty if nothing is missing.
    """

    model: str
    input_shape: tuple[int, ...]
    parameters: int
    prunable_parameters: int
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]
    branches: tuple[BranchRow, ...] = ()
    target: str = ""
    kernels: int | None = None
    kernels_measured: int | None = None
    macs: int | None = None
    latency_us: Figure | None = None
    cost_model: str | None = None
    missing: str = ""

    def to_json(self) -> dict[str, Any]:
        groups, branches = ([row.to_json() for row in rows] for rows in (self.groups, self.branches))
        return {**asdict(self), "groups": groups, "branches": branches, "latency_us": _json(self.latency_us)}


def _json(figure: Figure | None) -> dict[str, Any] | None:
    return figure.model_dump() if figure is not None else None
