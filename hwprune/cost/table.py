"""Table cost model: what was measured on the target, and a calibrated analytic model for what was not.

A measured kernel is answered as it was measured. Any other one is answered by the analytic model times a factor, which
is interpolated between the measured kernels of its *family*: the same operators on the same spatial shape at other
widths. Kernels of a family differ in how well the analytic model describes them by a smooth amount, so the logarithm of
measured over analytic is interpolated, with weights of inverse squared distance (Shepard, 1968) in the logarithms of
output width and reduction length. Such an answer is still named ``analytic``, with an interval that widens with the
distance to the nearest measured kernel.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Protocol, Sequence

import numpy as np

from hwprune.cost.analytic import AnalyticModel
from hwprune.cost.base import Estimate
from hwprune.errors import NoLatency
from hwprune.workload import Workload

#: The interval of a calibrated answer is a factor exp(NEAR + FAR * distance in octaves), at most the analytic model's.
#: Rough: between neighbours of a family a tuned kernel's efficiency was seen to move by 10 to 20 %.
NEAR, FAR = 0.15, 0.15
_LOG_WIDEST = math.log(2.0)


class Measured(Protocol):
    """What the table reads of a measurement: microseconds of one kernel, start of the kernel included."""

    latency_us: float
    low_us: float
    high_us: float


Lookup = Callable[[Workload], "Measured | None"]


class TableModel:
    """CostModel over measurements. See the module docstring.

    Parameters
    ----------
    lookup : the best measurement of a workload on this target, device and thread count; None if there is none.
    analytic : answers what was not measured; None to raise NoLatency instead.
    overheads_us : (per kernel, per network) as calibrated against a compiled network. By default a kernel costs in a
        network what it costs alone (its start is part of the measurement), and the network what the profile says.
    """

    def __init__(self, lookup: Lookup, analytic: AnalyticModel | None, overheads_us: tuple[float, float] | None = None):
        self._lookup = lookup
        self._analytic = analytic
        default = (0.0, analytic.network_overhead_us if analytic else 0.0)
        self._kernel_us, self._network_us = overheads_us or default
        self._measured: dict[str, Estimate] = {}
        self._fallback: dict[str, Estimate] = {}
        self._points: dict[Any, dict[str, tuple[tuple[float, float], float]]] = {}

    @property
    def kernel_overhead_us(self) -> float:
        return self._kernel_us

    @property
    def network_overhead_us(self) -> float:
        return self._network_us

    def predict(self, workloads: Sequence[Workload]) -> list[Estimate]:
        """Latency of each workload. NoLatency names one that was not measured, if there is no analytic model."""
        unknown = {w.key: w for w in workloads if w.key not in self._measured and w.key not in self._fallback}
        fresh = {key: w for key, w in unknown.items() if not self._take(w)}
        if fresh and self._analytic is None:
            raise NoLatency(f"no measurement of workload {next(iter(fresh))}; measure it with `hwprune measure`")
        self._estimate(list(fresh.values()))
        return [self._measured.get(w.key) or self._fallback[w.key] for w in workloads]

    def is_measured(self, workload: Workload) -> bool:
        return workload.key in self._measured or self._take(workload)

    def refresh(self) -> None:
        """Forget every answer that was not measured: the store may have learned since, and calibration with it."""
        self._fallback.clear()

    def _take(self, workload: Workload) -> bool:
        """Look the workload up; if it was measured, remember it and let it calibrate its family."""
        found = self._lookup(workload)
        if found is None:
            return False
        self._measured[workload.key] = Estimate(found.latency_us, found.low_us, found.high_us, "measured")
        if self._analytic is not None:
            ratio = math.log(found.latency_us / float(self._isolated_us([workload])[0]))
            self._points.setdefault(family(workload), {})[workload.key] = (position(workload), ratio)
        return True

    def _isolated_us(self, workloads: Sequence[Workload]) -> np.ndarray:
        """The analytic model's answer for kernels run alone, their start included as in a measurement."""
        return self._analytic.latencies_us(workloads) + self._analytic.kernel_overhead_us

    def _estimate(self, workloads: list[Workload]) -> None:
        if not workloads:
            return
        for workload, base in zip(workloads, self._isolated_us(workloads)):
            ratio, spread = self._calibration(workload)
            latency, factor = float(base) * math.exp(ratio), math.exp(spread)
            self._fallback[workload.key] = Estimate(latency, latency / factor, latency * factor, "analytic")

    def _calibration(self, workload: Workload) -> tuple[float, float]:
        """Logarithms of the factor on the analytic answer and of the interval's half width."""
        points = self._points.get(family(workload))
        if not points:
            return self._general_ratio(workload), _LOG_WIDEST
        where = np.array([p for p, _ in points.values()])
        ratios = np.array([r for _, r in points.values()])
        squared = ((where - np.array(position(workload))) ** 2).sum(axis=1)
        weights = 1.0 / (squared + 1e-6)
        distance = math.sqrt(squared.min())
        return float(weights @ ratios / weights.sum()), min(_LOG_WIDEST, NEAR + FAR * distance)

    def _general_ratio(self, workload: Workload) -> float:
        """Median over all measured kernels with the same anchor, else over all, else none."""
        anchor = _anchor_name(workload)
        ratios = [(name[0], r) for name, points in self._points.items() for _, r in points.values()]
        same = [r for name, r in ratios if name == anchor]
        chosen = same or [r for _, r in ratios]
        return float(np.median(chosen)) if chosen else 0.0


def family(workload: Workload) -> tuple:
    """What a workload shares with itself at other widths: operators, kernel window, spatial shape."""
    anchor = workload.anchor
    window = tuple(anchor.get(name) for name in ("stride", "padding", "dilation", "kernel", "kind")) if anchor else ()
    spatial = tuple(t.shape[:-1] for t in workload.inputs if t.role == "data")
    kernels = tuple(t.shape[1:3] if len(t.shape) == 5 else len(t.shape) for t in workload.inputs if t.role == "weight")
    names = tuple(c.op for c in workload.ops)
    return _anchor_name(workload), names, window, spatial, kernels, workload.output.shape[:-1]


def position(workload: Workload) -> tuple[float, float]:
    """Place of a workload in its family: log2 of its output width and of its reduction length (or input width)."""
    weights = [t.shape for t in workload.inputs if t.role == "weight" and len(t.shape) >= 3]
    if weights:
        inner = math.prod(weights[0][1:-1])
    else:
        inner = max((t.shape[-1] for t in workload.inputs), default=1)
    return math.log2(workload.output.shape[-1]), math.log2(max(inner, 1))


def _anchor_name(workload: Workload) -> str:
    return workload.anchor.op if workload.anchor else "elementwise"
