"""Table cost model: what was measured on the target, and a calibrated analytic model for what was not.

A measured kernel is answered as it was measured. Any other one is answered by the analytic model times a factor, which
is interpolated between the measured kernels of its *family*: the same operators on the same spatial shape at other
widths. Kernels of a family differ in how well the analytic model describes them by a smooth amount, so the logarithm of
measured over analytic is interpolated, with weights of inverse squared distance (Shepard, 1968) in the logarithms of
output width and reduction length. Such an answer is still named ``analytic``, with an interval that widens with the
distance to the nearest measured kernel.

Kernels run alone find their operands in a near cache; in a network they do not always, and the more the larger the
network is. So whole networks are timed, too, and ``fit`` puts a line through what they take over the sum of their
kernels: every kernel is answered times the line's slope, and its intercept is the network's overhead.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Iterable, Protocol, Sequence

import numpy as np

from hwprune.cost.analytic import AnalyticModel
from hwprune.cost.base import Estimate, Provenance
from hwprune.errors import NoLatency
from hwprune.workload import Workload

#: The interval of a calibrated answer is a factor exp(NEAR + FAR * distance in octaves), at most the analytic model's.
#: Rough: between neighbours of a family a tuned kernel's efficiency was seen to move by 10 to 20 %.
NEAR, FAR = 0.15, 0.15
#: What a kernel in a network may take over what it takes alone, at the margin.
_SLOPES = (0.7, 1.6)
_LOG_WIDEST = math.log(2.0)


class Interval(Protocol):
    latency_us: float
    low_us: float
    high_us: float


class Measured(Protocol):
    """What the table reads of a measurement: microseconds of one kernel run alone, its start included."""

    workload: Workload
    latency: Interval


class TableModel:
    """CostModel over measurements. See the module docstring.

    Parameters
    ----------
    load : all best measurements on this target, device and thread count; asked again at every ``refresh``.
    analytic : answers what was not measured; None to raise NoLatency instead.
    known : where what ``load`` gives comes from.
    """

    def __init__(
        self, load: Callable[[], Iterable[Measured]], analytic: AnalyticModel | None, known: Provenance = "measured"
    ):
        self._load, self._analytic, self._known = load, analytic, known
        self._slope, self._intercept_us = 1.0, analytic.network_overhead_us if analytic else 0.0
        self.refresh()

    @property
    def kernel_overhead_us(self) -> float:
        """None: the start of a kernel is part of its measurement."""
        return 0.0

    @property
    def network_overhead_us(self) -> float:
        return self._intercept_us

    def fit(self, networks: Sequence[tuple[float, float]]) -> None:
        """Calibrate by whole networks: (sum of their kernels run alone, measured latency), in microseconds.

        The first is the dense one, the last the one that matters most. Forgets earlier calibrations.
        """
        self._slope, self._intercept_us = line_through(networks)
        self.refresh()

    def isolated_us(self, workloads: Sequence[Workload]) -> float:
        """Sum of what the kernels take when each runs alone."""
        return sum(e.latency_us for e in self.predict(workloads)) / self._slope

    def refresh(self) -> None:
        """Read the measurements anew, and with them the calibration of everything else."""
        found = list(self._load())
        self._measured = {
            m.workload.key: self._in_network(m.latency.latency_us, m.latency.low_us, m.latency.high_us, self._known)
            for m in found
        }
        self._fallback: dict[str, Estimate] = {}
        self._points = self._calibrate(found) if self._analytic is not None else {}

    def is_measured(self, workload: Workload) -> bool:
        return workload.key in self._measured

    def predict(self, workloads: Sequence[Workload]) -> list[Estimate]:
        """Latency of each workload. NoLatency names one that was not measured, if there is no analytic model."""
        fresh = {w.key: w for w in workloads if w.key not in self._measured and w.key not in self._fallback}
        if fresh and self._analytic is None:
            raise NoLatency(f"no measurement of workload {next(iter(fresh))}; measure it with `hwprune measure`")
        if fresh:
            self._estimate(list(fresh.values()))
        return [self._measured.get(w.key) or self._fallback[w.key] for w in workloads]

    def _in_network(self, latency_us: float, low_us: float, high_us: float, provenance: Provenance) -> Estimate:
        return Estimate(self._slope * latency_us, self._slope * low_us, self._slope * high_us, provenance)

    def _isolated_us(self, workloads: Sequence[Workload]) -> np.ndarray:
        """The analytic model's answer for kernels run alone, their start included as in a measurement."""
        return self._analytic.latencies_us(workloads) + self._analytic.kernel_overhead_us

    def _calibrate(self, found: Sequence[Measured]) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
        """Family -> positions [points, 2] of its measured kernels, and log of measured over analytic [points]."""
        points: dict[Any, list[tuple[float, float, float]]] = {}
        for m, analytic_us in zip(found, self._isolated_us([m.workload for m in found])):
            ratio = math.log(m.latency.latency_us / float(analytic_us))
            points.setdefault(family(m.workload), []).append((*position(m.workload), ratio))
        return {name: (np.array(rows)[:, :2], np.array(rows)[:, 2]) for name, rows in points.items()}

    def _estimate(self, workloads: list[Workload]) -> None:
        """Answer and remember workloads that were not measured, a family at a time."""
        families: dict[Any, list[int]] = {}
        for i, workload in enumerate(workloads):
            families.setdefault(family(workload), []).append(i)
        base = self._isolated_us(workloads)
        for name, members in families.items():
            ratios, spreads = self._calibration(name, np.array([position(workloads[i]) for i in members]))
            for i, latency, factor in zip(members, base[members] * np.exp(ratios), np.exp(spreads)):
                self._fallback[workloads[i].key] = self._in_network(
                    float(latency), float(latency / factor), float(latency * factor), "analytic"
                )

    def _calibration(self, name: tuple, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the factor on the analytic answer and of the interval's half width, at positions [n, 2]."""
        if name not in self._points:
            return np.full(len(where), self._general_ratio(name[0])), np.full(len(where), _LOG_WIDEST)
        measured_at, ratios = self._points[name]
        squared = ((where[:, None, :] - measured_at[None, :, :]) ** 2).sum(axis=2)
        weights = 1.0 / (squared + 1e-6)
        spread = np.minimum(_LOG_WIDEST, NEAR + FAR * np.sqrt(squared.min(axis=1)))
        return weights @ ratios / weights.sum(axis=1), spread

    def _general_ratio(self, anchor: str) -> float:
        """Median over all measured kernels with the same anchor, else over all, else none."""
        same = [ratios for name, (_, ratios) in self._points.items() if name[0] == anchor]
        chosen = same or [ratios for _, ratios in self._points.values()]
        return float(np.median(np.concatenate(chosen))) if chosen else 0.0


def line_through(networks: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and intercept of the line through the first and the last (alone, measured) pair.

    One pair, or two of nearly one size, give a slope alone; so does a slope that no cache explains.
    """
    (first_alone, first), (alone, measured) = networks[0], networks[-1]
    if abs(alone - first_alone) > 0.1 * first_alone:
        slope = (measured - first) / (alone - first_alone)
        if _SLOPES[0] <= slope <= _SLOPES[1]:
            return slope, measured - slope * alone
    return measured / alone, 0.0


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
