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


def interleaved(
    contenders: Sequence[tuple[str, Timer]], *, rounds: int = 20, progress: Progress = SILENT, title: str = "timing"
) -> list[BenchRow]:
    """Time each contender in each of ``rounds`` rounds; one row each, in order.

    A round's figure is the median of its runs. A row has the median of its rounds' figures and their 10th and 90th
    percentile, and its ratio to the first row.
    """
    runs = [_runs_a_round(timer) for _, timer in contenders]
    figures = np.zeros((rounds, len(contenders)))
    with progress.task(title, total=rounds) as task:
        for r in range(rounds):
            for c, (_, timer) in enumerate(contenders):
                time.sleep(_REST_S)
                timer(max(2, runs[c] // 10))
                figures[r, c] = np.median(timer(runs[c]))
            task.advance()
    low, median, high = np.percentile(figures, (10, 50, 90), axis=0)
    return [
        BenchRow(name, float(median[c]), float(low[c]), float(high[c]), "measured", float(median[c] / median[0]))
        for c, (name, _) in enumerate(contenders)
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
