"""Time programs beside each other: in interleaved rounds, so that drift of the machine hits all of them alike."""

from __future__ import annotations

import time
from typing import Callable, Sequence

import numpy as np

from hwprune.progress import SILENT, Progress
from hwprune.results import BenchRow

#: runs -> microseconds of each run, shape [runs]
Timer = Callable[[int], np.ndarray]

#: How long one contender runs in one round. Long against a timer tick, short against the drift of a shared machine.
_ROUND_US = 40_000.0

#: Worker threads of the contender before spin for a while; none of them should cost the next one its cores.
_REST_S = 0.02

#: What disturbs a machine lasts for a while.
_PAUSE_S = 0.7


def interleaved(
    contenders: Sequence[tuple[str, Timer]], *, rounds: int = 20, progress: Progress = SILENT, title: str = "timing"
) -> list[BenchRow]:
    """Time each contender in each of ``rounds`` rounds; one row each, in order: see ``rows``."""
    return rows([name for name, _ in contenders], timed_in_turn(contenders, rounds=rounds, progress=progress, title=title)[0])


def timed_in_turn(
    contenders: Sequence[tuple[str, Timer]],
    *,
    rounds: int,
    calm: Callable[[], bool] | None = None,
    progress: Progress = SILENT,
    title: str = "timing",
) -> tuple[np.ndarray, int]:
    """Microseconds of each contender in each of ``rounds`` rounds [rounds, contenders], medians of a round's runs; and the number of
    rounds that were left out.

    calm : whether the machine is itself, asked before and after each round. A round in which it is not is left out and timed again,
        as long as less than three in four are; then all that there are count, and none is called left out.
    """
    runs = [_runs_a_round(timer) for _, timer in contenders]
    kept: list[list[float]] = []
    disturbed: list[list[float]] = []
    with progress.task(title, total=rounds) as task:
        while len(kept) < rounds:
            before = calm is None or calm()
            figures = [_round(timer, count) for (_, timer), count in zip(contenders, runs)]
            if before and (calm is None or calm()):
                kept.append(figures)
                task.advance()
                continue
            disturbed.append(figures)
            if len(kept) + len(disturbed) >= 4 * rounds:
                return np.array(kept + disturbed), 0
            time.sleep(_PAUSE_S)
    return np.array(kept), len(disturbed)


def _round(timer: Timer, runs: int) -> float:
    time.sleep(_REST_S)
    timer(max(2, runs // 10))
    return float(np.median(timer(runs)))


def rows(names: Sequence[str], figures: np.ndarray) -> list[BenchRow]:
    """Of figures [rounds, contenders]: the median of the rounds, their 10th and 90th percentile, the ratio to the first row."""
    low, median, high = np.percentile(figures, (10, 50, 90), axis=0)
    return [
        BenchRow(name, float(median[c]), float(low[c]), float(high[c]), "measured", float(median[c] / median[0]))
        for c, name in enumerate(names)
    ]


def timer_of(call: Callable[[], object]) -> Timer:
    """A Timer of a Python callable; the call's own overhead counts, a few tenths of a microsecond."""

    def timed(runs: int) -> np.ndarray:
        samples = np.empty(runs)
        for i in range(runs):
            started = time.perf_counter_ns()
            call()
            samples[i] = time.perf_counter_ns() - started
        return samples / 1e3

    return timed


def _runs_a_round(timer: Timer) -> int:
    timer(3)
    return int(np.clip(_ROUND_US / max(float(np.median(timer(3))), 1.0), 3, 500))
