"""Predicted beside measured: which networks are drawn, and how errors are counted."""

from __future__ import annotations

from typing import Mapping, Sequence

import numpy as np

from hwprune.results import Accuracy

#: Shares of the units that random networks keep on average, and how far (in logarithms) single groups stray from them.
_SHARES, _STRAY = (0.25, 1.0), 0.35


def random_widths(candidates: Mapping[str, np.ndarray], count: int, seed: int = 0) -> list[dict[str, int]]:
    """``count`` choices among the candidate widths of each group, ascending, the last one being the full width.

    Networks differ in the share of units that they keep, as the points of a frontier do, and within a network groups do.
    """
    draw = np.random.default_rng(seed)
    chosen = []
    for _ in range(count):
        share = draw.uniform(*_SHARES)
        wanted = {g: share * w[-1] * np.exp(draw.normal(0, _STRAY)) for g, w in candidates.items()}
        chosen.append({g: int(w[np.argmin(np.abs(w - wanted[g]))]) for g, w in candidates.items()})
    return chosen


def spread_out(sizes: Sequence[float], count: int) -> list[int]:
    """Positions of ``count`` of ``sizes``, from the smallest to the largest, evenly by rank; all if there are fewer."""
    order = np.argsort(sizes, kind="stable")
    return [int(order[round(i)]) for i in np.linspace(0, len(order) - 1, min(count, len(order)))]


def accuracy(predicted_us: Sequence[float], measured_us: Sequence[float], again_us: Sequence[float]) -> Accuracy:
    """Of predictions of networks that were measured twice; all three in microseconds, [networks], NaN where a second measurement
    is still to come."""
    from scipy.stats import spearmanr

    predicted, measured, again = (np.asarray(x, dtype=np.float64) for x in (predicted_us, measured_us, again_us))
    errors = predicted / measured - 1
    rank = float(spearmanr(predicted, measured).statistic) if len(measured) > 2 else None
    return Accuracy(
        len(measured), float(np.median(np.abs(errors))), float(np.quantile(np.abs(errors), 0.95)), float(np.median(errors)),
        rank, float(np.nanmedian(np.abs(again / measured - 1))),
    )  # fmt: skip
