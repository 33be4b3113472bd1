"""Candidate widths: the knees of latency over width.

Latency over a group's width is a staircase. A width is dominated if a wider one is no slower; what remains are the right
edges of the stairs. Where they are more than the search can take, the edge that is missed least is dropped, one by one
(as Visvalingam and Whyatt, 1993, thin a line: by the area that goes with a point).
"""

from __future__ import annotations

import math
from typing import Mapping, Sequence

import numpy as np

from hwprune.cost.base import CostModel
from hwprune.search.tables import NetworkView

#: Widths of one group that are looked at; of wider groups, equally spaced ones.
_LOOKED_AT = 256


def candidate_widths(
    view: NetworkView, widths: Mapping[str, int], model: CostModel, *, most: int = 16, min_share: float = 0.1
) -> dict[str, np.ndarray]:
    """Candidate widths of each group, int64, ascending, its full width last.

    Parameters
    ----------
    widths : full width by group.
    model : a smooth one, such as the analytic: its stairs are those of vectors and tiles. The scatter of measurements would
        make stairs of its own, other ones with every search.
    most : candidates a group, at least 2.
    min_share : the narrowest candidate keeps at least this share of the units, and always one.
    """
    allowed = {g: _looked_at(full, math.ceil(min_share * full)) for g, full in widths.items()}
    curves = _curves(view, allowed, model)
    return {g: knees(allowed[g], curves[g], most) for g in widths}


def knees(widths: np.ndarray, latency_us: np.ndarray, most: int) -> np.ndarray:
    """The at most ``most`` of ``widths`` [n, ascending] worth considering, given the latency [n] at each."""
    edges = not_dominated(latency_us)
    widths, latency_us = widths[edges], latency_us[edges]
    kept = np.arange(len(widths))
    while len(kept) > max(most, 2):
        w, t = widths[kept], latency_us[kept]
        # Without an edge its users fall to the one below (units lost), or pay for the one above (time lost).
        loss = (w[1:-1] - w[:-2]) * (t[2:] - t[1:-1])
        kept = np.delete(kept, 1 + np.argmin(loss))
    return widths[kept]


def not_dominated(latency_us: np.ndarray) -> np.ndarray:
    """Positions whose latency is below that of every later (wider) one; the last is always among them."""
    best_later = np.minimum.accumulate(latency_us[::-1])[::-1]
    return np.flatnonzero(np.append(latency_us[:-1] < best_later[1:], True))


def _looked_at(full: int, least: int) -> np.ndarray:
    least = max(1, min(least, full))
    step = max(1, (full - least + 1) // _LOOKED_AT)
    return np.arange(full, least - 1, -step)[::-1]


def _curves(view: NetworkView, allowed: Mapping[str, Sequence[int]], model: CostModel) -> dict[str, np.ndarray]:
    """Latency of the calls that depend on a group at each of its widths, all other groups dense: microseconds."""
    asked = {
        group: [[view.workload(call, {group: int(w)}) for call in view.calls_of(group)] for w in candidates]
        for group, candidates in allowed.items()
    }
    distinct = list({w.key: w for rows in asked.values() for row in rows for w in row}.values())
    latency = {w.key: e.latency_us for w, e in zip(distinct, model.predict(distinct))}
    return {group: np.array([sum(latency[w.key] for w in row) for row in rows]) for group, rows in asked.items()}
