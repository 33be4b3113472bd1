"""How fast something is, on a machine that others use, too."""

from __future__ import annotations

import time
from typing import Callable

#: How long a run is repeated in the hope of an undisturbed one.
_PATIENCE_S, _PAUSE_S = 10.0, 0.05


def least_seconds(run: Callable[[], object], enough: float, before: Callable[[], object] = lambda: None) -> float:
    """Seconds that ``run`` takes at best; it is repeated until it takes less than ``enough``, or for ten seconds.

    before : what comes before each run and is not timed.
    """
    least, until = float("inf"), time.perf_counter() + _PATIENCE_S
    while least >= enough and time.perf_counter() < until:
        before()
        started = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - started)
        time.sleep(_PAUSE_S if least >= enough else 0)
    return least
