"""Table cost model: what was measured on the target, and a surrogate fitted on it for what was not.

A measured kernel is answered as it was measured, by the model ``table``. Any other one is answered by the analytic model
times a factor that ``surrogate`` finds from the measured ones, with its uncertainty as interval; such an answer is named
``surrogate``, and its provenance stays ``analytic``: nobody timed that kernel.

Kernels run alone find their operands nearer or farther than in a network. So whole networks are timed, too, and ``network``
says what a network takes beside the sum of its kernels: every kernel is answered times the slope that it finds.
"""

from __future__ import annotations

import math
from typing import Callable, Iterable, Protocol, Sequence

import numpy as np

from hwprune.cost.analytic import INTERVAL_FACTOR, AnalyticModel
from hwprune.cost.base import Estimate, ModelName, Provenance
from hwprune.cost.network import NetworkFit, Whole, fit_networks
from hwprune.cost.surrogate import Surrogate
from hwprune.cost.traits import Traits, traits_of
from hwprune.errors import NoLatency
from hwprune.workload import Workload

#: An interval reaches so many standard deviations to either side: 95 % of a normal distribution.
WITHIN = 1.96
#: A measurement so many standard deviations above what the others say of it is doubtful, if there are some others.
SURPRISING, _JUDGES = 2.5, 20


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
    analytic : stands below the surrogate; None to raise NoLatency for what was not measured.
    near_bytes : of a network's kernels, see ``network``.
    known : where what ``load`` gives comes from.
    """

    def __init__(
        self, load: Callable[[], Iterable[Measured]], analytic: AnalyticModel | None,
        near_bytes: Callable[[Sequence[Workload]], float] = lambda workloads: 0.0, known: Provenance = "measured",
    ):  # fmt: skip
        self._load, self._analytic, self._near_bytes, self._source = load, analytic, near_bytes, known
        self._name = "table" if known == "measured" else known
        self._fit = NetworkFit(intercept_us=analytic.network_overhead_us if analytic else 0.0)
        self._facts: dict[str, tuple[Traits, float]] = {}
        self.refresh()

    @property
    def kernel_overhead_us(self) -> float:
        """None: the start of a kernel is part of its measurement."""
        return 0.0

    @property
    def network_overhead_us(self) -> float:
        return self._fit.intercept_us

    def saved_us(self, workloads: Sequence[Workload]) -> float:
        """What a network of these kernels saves because it is small: its constants lie nearer than when they were measured."""
        return self._fit.saved_us_per_byte * self._near_bytes(workloads) if self._fit.saved_us_per_byte else 0.0

    def fit(self, networks: Sequence[tuple[Sequence[Workload], float]]) -> None:
        """Calibrate by whole networks: their kernels, and their measured latency in microseconds; see ``fit_networks``.

        Forgets earlier calibrations.
        """
        self._fit = fit_networks([Whole(self.isolated_us(ws), us, self._near_bytes(ws)) for ws, us in networks])
        self.refresh()

    def isolated_us(self, workloads: Sequence[Workload]) -> float:
        """Sum of what the kernels take when each runs alone."""
        return sum(e.latency_us for e in self.predict(workloads)) / self._fit.slope

    def refresh(self) -> None:
        """Read the measurements anew; the surrogate is fitted to them when it is asked."""
        self._found = list(self._load())
        self._measured = {
            m.workload.key: self._in_network(m.latency.latency_us, m.latency.low_us, m.latency.high_us, self._source, self._name)
            for m in self._found
        }
        self._fallback: dict[str, Estimate] = {}
        self._surrogate: Surrogate | None = None

    def is_measured(self, workload: Workload) -> bool:
        return workload.key in self._measured

    def predict(self, workloads: Sequence[Workload]) -> list[Estimate]:
        """Latency of each workload. NoLatency names one that was not measured, if there is no analytic model."""
        fresh = {w.key: w for w in workloads if w.key not in self._measured and w.key not in self._fallback}
        if fresh and self._analytic is None:
            raise NoLatency(f"no measurement of workload {next(iter(fresh))}; measure it with `hwprune measure`")
        if fresh:
            self._fallback.update(zip(fresh, self.estimate(list(fresh.values()))))
        return [self._measured.get(w.key) or self._fallback[w.key] for w in workloads]

    def estimate(self, workloads: Sequence[Workload]) -> list[Estimate]:
        """Latency of each workload by the model of what was not measured, whether it was measured or not."""
        traits, base = self._known(workloads)
        if not self._found:
            factor = INTERVAL_FACTOR
            return [self._in_network(t, t / factor, t * factor, "analytic", "analytic") for t in base.tolist()]
        ratios, spreads = self._fitted().predict(traits)
        middle, factor = base * np.exp(ratios), np.exp(WITHIN * spreads)
        columns = (middle, middle / factor, middle * factor)
        return [self._in_network(t, low, high, "analytic", "surrogate") for t, low, high in zip(*(c.tolist() for c in columns))]

    def uncertainty(self, workloads: Sequence[Workload]) -> np.ndarray:
        """Standard deviation of the logarithm of each latency, float64 [n]; 0 where it was measured."""
        estimates = self.predict(workloads)
        return np.array([0.0 if e.model == "table" else math.log(e.high_us / e.latency_us) / WITHIN for e in estimates])

    def doubtful(self) -> list[Workload]:
        """Measured kernels that took much longer than the others let expect, the most surprising first."""
        if len(self._found) < _JUDGES:
            return []
        surprise = self._fitted().surprise
        return [self._found[i].workload for i in np.argsort(-surprise) if surprise[i] > SURPRISING]

    def learned(self, workloads: Sequence[Workload], one: Workload) -> np.ndarray:
        """By how much the variance of the logarithm of each latency would go down if ``one`` were measured, float64 [n]."""
        if not self._found:
            return np.zeros(len(workloads))
        return self._fitted().learned(self._known(workloads)[0], self._known([one])[0][0])

    def _fitted(self) -> Surrogate:
        if self._surrogate is None:
            traits, base = self._known([m.workload for m in self._found])
            latency, low, high = np.array([(m.latency.latency_us, m.latency.low_us, m.latency.high_us) for m in self._found]).T
            self._surrogate = Surrogate(traits, np.log(latency / base), np.log(high / low) / (2 * WITHIN))
        return self._surrogate

    def _in_network(self, latency_us: float, low_us: float, high_us: float, provenance: Provenance, model: ModelName) -> Estimate:
        slope = self._fit.slope
        return Estimate(slope * latency_us, slope * low_us, slope * high_us, provenance, model)

    def _known(self, workloads: Sequence[Workload]) -> tuple[list[Traits], np.ndarray]:
        """Traits, and the analytic model's answer for kernels run alone, their start included as in a measurement: [n]."""
        fresh = [w for w in workloads if w.key not in self._facts]
        for w, latency in zip(fresh, self._analytic.latencies_us(fresh)):
            self._facts[w.key] = (traits_of(w), float(latency) + self._analytic.kernel_overhead_us)
        facts = [self._facts[w.key] for w in workloads]
        return [t for t, _ in facts], np.array([us for _, us in facts])
