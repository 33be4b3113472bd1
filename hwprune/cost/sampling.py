"""Active sampling: which kernels to measure next, so that the cost surface becomes certain where it matters.

A network's cost surface is the latency of every kernel that its candidate widths can make: thousands, of which minutes
suffice for some hundred. What counts is time: of the kernels whose uncertainty, in microseconds of a network, is largest,
the first is taken; that it will be known makes its neighbours more certain, as the surrogate's own covariance says; then the
next one is taken. That needs no measurement in between, since what a Gaussian process does not know depends on where it was
told something, not on what (Krause, Singh and Guestrin, Near-Optimal Sensor Placements in Gaussian Processes, JMLR 2008).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

import numpy as np

from hwprune.cost.base import Estimate
from hwprune.cost.traits import position
from hwprune.workload import Workload

if TYPE_CHECKING:
    from hwprune.cost.table import TableModel

#: Octaves of a width within which kernels matter to a search that looks at one of them.
_NEARBY = 0.7


@dataclass(frozen=True)
class Surface:
    """Distinct kernels, and how much each of them matters, float64 [n]: how often a network is expected to run it."""

    workloads: list[Workload]
    weights: np.ndarray


def surface(calls: Sequence[Sequence[Workload]], around: Sequence[Workload | None] = ()) -> Surface:
    """Of a network whose calls may become any of ``calls[i]``.

    around : the workload of each call in the network where a search is looking (None where it has none): kernels matter the
        less the farther their widths are from there. Without it all of a call's kernels matter alike.
    """
    weights: dict[str, float] = defaultdict(float)
    distinct: dict[str, Workload] = {}
    for i, workloads in enumerate(calls):
        distinct.update((w.key, w) for w in workloads)
        own = {w.key: 1.0 for w in workloads}
        center = around[i] if around else None
        if center is not None:
            at = np.array(position(center))
            own = {w.key: float(np.exp(-np.sum((np.array(position(w)) - at) ** 2) / (2 * _NEARBY**2))) for w in workloads}
        total = sum(own.values())
        for key, weight in own.items():
            weights[key] += weight / total
    return Surface(list(distinct.values()), np.array([weights[key] for key in distinct]))


def half_width(estimates: Sequence[Estimate], weights: np.ndarray) -> float:
    """How far the ends of the intervals are from the answers, as a share: mean over all kernels, by the time they take."""
    latency, high = np.array([(e.latency_us, e.high_us) for e in estimates]).T
    return float(((high - latency) * weights).sum() / (latency * weights).sum())


def choose(model: "TableModel", of: Surface, most: int) -> list[Workload]:
    """Up to ``most`` kernels of the surface to measure next, the most worthwhile first; fewer where fewer are unknown."""
    rows = [i for i, w in enumerate(of.workloads) if not model.is_measured(w)]
    unknown = [of.workloads[i] for i in rows]
    if not unknown:
        return []
    time = np.array([e.latency_us for e in model.predict(unknown)]) * of.weights[rows]
    variance = model.uncertainty(unknown) ** 2
    left, chosen = np.ones(len(unknown)), []  # left: of the variance, as if choices told independent things
    for _ in range(min(most, len(unknown))):
        best = int(np.argmax(time * np.sqrt(variance * left)))
        chosen.append(unknown[best])
        left *= 1.0 - np.minimum(model.learned(unknown, unknown[best]) / variance, 1.0)
        time[best] = 0.0  # it will be known
    return chosen
