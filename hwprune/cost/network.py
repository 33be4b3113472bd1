"""From kernels to networks: what a network takes beside the sum of its kernels run alone.

Kernels are measured with their constants as far away as they are in the dense network. A network that is much smaller has its
constants in a nearer cache: of F bytes that pass through a cache of C bytes in every inference a share of 1 - F/C is still
there the next time (as with random replacement), so F (1 - F/C) bytes come from nearer. How much time a byte saves is
measured: three or more networks of different sizes are timed as a whole, and

    latency = slope * sum of kernels - saved_us_per_byte * near bytes + intercept

is fitted to them. The slope is for activations that come from farther away than in a kernel run alone, and for threads that
wait for each other; the intercept is what an inference costs in itself. Two networks give a line, one a slope alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

#: What a kernel in a network may take over what it takes alone, at the margin.
_SLOPES = (0.7, 1.6)

#: Before any network is timed: slope 1 with this deviation; an intercept of this share of a network; a byte saves as much as
#: between memory of 20 GB/s and a cache that costs nothing. Whole networks are timed to about the last figure.
_SLOPE_STD, _INTERCEPT_STD, _SAVED_STD, _TIMING_STD = 0.3, 0.02, 50e-6, 0.01


@dataclass(frozen=True)
class Whole:
    """A network that was timed. alone_us : sum of its kernels. near_bytes : see the module docstring."""

    alone_us: float
    measured_us: float
    near_bytes: float = 0.0


@dataclass(frozen=True)
class NetworkFit:
    slope: float = 1.0
    intercept_us: float = 0.0
    saved_us_per_byte: float = 0.0


def fit_networks(networks: Sequence[Whole]) -> NetworkFit:
    """The first is the dense one. Of two, the last is met exactly; of more, all count alike, in shares of what they take."""
    if len(networks) < 3:
        return _line_through(networks)
    alone, measured, near = np.array([(n.alone_us, n.measured_us, n.near_bytes) for n in networks]).T
    design = np.stack([alone, np.ones(len(alone)), -near], axis=1) / measured[:, None] / _TIMING_STD
    expected, deviations = np.array([1.0, 0.0, 0.0]), np.array([_SLOPE_STD, _INTERCEPT_STD * np.median(measured), _SAVED_STD])
    rows = np.vstack([design, np.diag(1 / deviations)])
    values = np.concatenate([np.full(len(alone), 1 / _TIMING_STD), expected / deviations])
    slope, intercept, saved = np.linalg.lstsq(rows, values, rcond=None)[0]
    if not _SLOPES[0] <= slope <= _SLOPES[1]:
        return _line_through(networks)
    return NetworkFit(float(slope), float(intercept), max(0.0, float(saved)))


def _line_through(networks: Sequence[Whole]) -> NetworkFit:
    """The line through the first and the last; a slope alone for one, for two of nearly one size, and for what no cache explains."""
    first, last = networks[0], networks[-1]
    if abs(last.alone_us - first.alone_us) > 0.1 * first.alone_us:
        slope = (last.measured_us - first.measured_us) / (last.alone_us - first.alone_us)
        if _SLOPES[0] <= slope <= _SLOPES[1]:
            return NetworkFit(slope, last.measured_us - slope * last.alone_us)
    return NetworkFit(last.measured_us / last.alone_us)
