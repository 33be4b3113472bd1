"""Several boards that share the work: each takes a job when it is free; one that dies is dropped and its job goes to another."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from typing import Callable, Protocol, Sequence

from hwprune.compile.link import last_line
from hwprune.errors import HwpruneError, MeasureError
from hwprune.measure.job import Job
from hwprune.progress import SILENT, Progress

#: A job on which so many boards died is not given to another.
_ATTEMPTS = 3


class Board(Protocol):
    def measure(self, job: Job) -> str:
        """The text of results.json. Any exception means that the board is lost."""


class _Served:
    """A board and the thread that waits for it. Main loop: puts jobs into ``jobs``; None ends the thread."""

    def __init__(self, name: str, connect: Callable[[], Board], events: queue.Queue):
        self.name, self.jobs = name, queue.Queue()
        self.job: Job | None = None
        self.since = time.monotonic()
        self._connect, self._events = connect, events
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            board = self._connect()
            answer = None
            while True:
                self._events.put((self, answer, None))
                job = self.jobs.get()
                if job is None:
                    return
                answer = board.measure(job)
        except Exception as err:  # whatever it is, this board does not answer any more
            self._events.put((self, None, err))

    def give(self, job: Job | None) -> None:
        self.job, self.since = job, time.monotonic()
        self.jobs.put(job)


def share(
    jobs: Sequence[Job], boards: Sequence[tuple[str, Callable[[], Board]]], keep: Callable[[str], None], limit_s: float,
    progress: Progress = SILENT,
) -> None:  # fmt: skip
    """Have all ``jobs`` measured, each by one of the ``boards`` (name, how to connect), and ``keep`` results as they come.

    limit_s : a board that takes longer to connect or to measure is taken for dead.

    Raises MeasureError when no board is left, and what ``keep`` raises. What was kept by then stays.
    """
    events: queue.Queue = queue.Queue()
    alive = {_Served(name, connect, events) for name, connect in boards}
    idle: list[_Served] = []
    waiting, died, open_jobs = deque(jobs), Counter(), len(jobs)
    why = "none is known"

    def drop(board: _Served, reason: str) -> None:
        nonlocal why
        alive.discard(board)
        why = f"{board.name}: {reason}"
        again = "; its work goes to another board" if board.job is not None else ""
        progress.say(f"board {board.name} is dropped ({reason}){again}")
        if board.job is not None:
            died[board.job.sha256] += 1
            if died[board.job.sha256] >= _ATTEMPTS:
                raise MeasureError(
                    f"{_ATTEMPTS} boards died on the same kernels, the last one, {board.name}, with: {reason}; what was "
                    f"measured is kept"
                )
            waiting.appendleft(board.job)

    try:
        with progress.task("measuring on boards", total=len(jobs)) as task:
            while open_jobs:
                while waiting and idle:
                    idle.pop().give(waiting.popleft())
                if not alive:
                    raise MeasureError(
                        f"no board is left ({why}) and {open_jobs} of {len(jobs)} libraries of kernels are not measured; "
                        f"what was measured is kept"
                    )
                try:
                    board, answer, error = events.get(timeout=min(1.0, limit_s))
                except queue.Empty:
                    for late in [b for b in alive if b not in idle and time.monotonic() - b.since > limit_s]:
                        drop(late, f"no answer within {limit_s:.0f} s")
                    continue
                if board not in alive:
                    continue  # it was given up; its job may be with another by now
                if error is not None:
                    drop(board, str(error) if isinstance(error, HwpruneError) else last_line(error))
                    continue
                board.job = None
                idle.append(board)
                if answer is not None:
                    keep(answer)
                    open_jobs -= 1
                    task.advance()
    finally:
        for board in alive:
            board.give(None)
