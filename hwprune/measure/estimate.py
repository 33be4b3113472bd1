"""From samples to a latency.

A machine's speed drifts within a minute by more than the differences that matter here. So measurements come in rounds,
a reference kernel is timed in each, the latency is a low quantile over rounds (what the code takes when nothing disturbs
it), and it is scaled by what the same quantile of the reference says of the machine's speed during these rounds. Rounds
are not corrected one by one: a burst of disturbance that hits one of the two would be taken for drift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: The quantile over rounds that is called the latency, and those of its interval.
QUANTILE, LOW, HIGH = 0.25, 0.05, 0.75

#: The drift correction is trusted within these bounds; beyond them the machine was disturbed, not slow: something else ran
#: on its cores, and kernels do not all suffer alike from that.
DRIFT_BOUNDS = (0.8, 1.25)

#: A measurement whose interval is wider than this share of its latency, or of a disturbed machine, is flagged, not hidden.
NOISY = 0.10


@dataclass(frozen=True)
class Latency:
    """Microseconds: the estimate, its interval over rounds, the number of rounds, and whether it is noisy."""

    latency_us: float
    low_us: float
    high_us: float
    rounds: int
    noisy: bool


def estimate(samples_us: np.ndarray, reference_us: np.ndarray, baseline_us: float) -> Latency:
    """Latency from one value a round.

    Parameters
    ----------
    samples_us : [rounds] mean latency of the kernel in each round.
    reference_us : [rounds] mean latency of the reference kernel in the same rounds.
    baseline_us : the reference kernel's latency on this device when undisturbed.
    """
    return _latency(samples_us, np.quantile(samples_us, QUANTILE), np.quantile(reference_us, QUANTILE), baseline_us)


def undisturbed(reference_us: np.ndarray) -> float:
    """The reference kernel's latency when undisturbed, from rounds [rounds] of nothing else: a low quantile of them."""
    return float(np.quantile(reference_us, 0.1))


def estimate_together(samples_us: np.ndarray, reference_us: np.ndarray, baseline_us: float) -> list[Latency]:
    """Latencies of programs that were timed in turn and will be compared: all from the same, calmest rounds.

    Low quantiles of each by itself may come from different rounds, of which some were in a slower phase of the machine.

    Parameters
    ----------
    samples_us : [programs, rounds]. reference_us, baseline_us : as for ``estimate``.
    """
    slowness = (samples_us / samples_us.min(axis=1, keepdims=True)).sum(axis=0)
    calm = np.argsort(slowness, kind="stable")[: max(3, round(QUANTILE * len(slowness)))]
    reference = np.median(reference_us[calm])
    return [_latency(samples, np.median(samples[calm]), reference, baseline_us) for samples in samples_us]


def drift(reference_us: np.ndarray, baseline_us: float) -> float:
    """Speed of the machine during the rounds, as a share of its undisturbed speed."""
    return baseline_us / float(np.quantile(reference_us, QUANTILE))


def _latency(samples_us: np.ndarray, value_us: float, reference_us: float, baseline_us: float) -> Latency:
    speed = baseline_us / reference_us
    correction = float(np.clip(speed, *DRIFT_BOUNDS))
    low, high = np.quantile(samples_us, (LOW, HIGH))
    low, value, high = correction * min(low, value_us), correction * value_us, correction * max(high, value_us)
    noisy = high - low > NOISY * value or speed < DRIFT_BOUNDS[0]
    return Latency(float(value), float(low), float(high), len(samples_us), bool(noisy))
