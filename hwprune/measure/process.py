"""A handle on the measuring process: start it, ask it, lose it without losing the run."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Sequence

from hwprune.errors import MeasureError
from hwprune.target import TargetProfile


class WorkerLost(MeasureError):
    """The measuring process died or went silent; the next request starts a new one."""


class Worker:
    """One measuring process for one profile and thread count.

    Parameters
    ----------
    timeout_s : longest time to wait for one answer; after that the process is killed.
    command : what is started, by default ``hwprune.measure.worker``; anything that speaks as it does.
    objects : folder in which it keeps what it builds, for the process after it, too.
    """

    def __init__(
        self, profile: TargetProfile, threads: int, timeout_s: float = 60.0, command: Sequence[str] = (), objects: Path | None = None
    ):
        self.profile, self.threads, self.timeout_s = profile, threads, timeout_s
        self._objects = str(objects) if objects else None
        self._command = list(command) or [sys.executable, "-m", "hwprune.measure.worker"]
        self._process: subprocess.Popen | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()

    def ask(self, do: str, timeout_s: float | None = None, **request: Any) -> dict:
        """Send a request and wait for its answer.

        Raises WorkerLost when the process crashes or hangs on it, MeasureError when it answers that it cannot.
        """
        if self._process is None:
            self._start()
        return self._exchange({"do": do, **request}, timeout_s or self.timeout_s)

    def _start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment, start_new_session=True,
        )
        self._answers = queue.Queue()
        threading.Thread(target=_drain, args=(self._process.stdout, self._answers), daemon=True).start()
        try:
            start = {"do": "start", "profile": self.profile.model_dump_json(by_alias=True), "threads": self.threads, "objects": self._objects}
            self._exchange(start, max(self.timeout_s, 120.0))
        except MeasureError:
            self.close()  # it could not even time its reference kernel: it is of no use for anything else
            raise

    def _exchange(self, request: dict, timeout_s: float) -> dict:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout_s)
        except (BrokenPipeError, queue.Empty) as err:
            self.close()
            why = "did not answer in time" if isinstance(err, queue.Empty) else "ended"
            raise WorkerLost(f"the measuring process {why} on request {request['do']!r}") from None
        except BaseException:  # Ctrl-C: the answer that is still to come belongs to no later request
            self.close()
            raise
        if line is None:
            code = self._process.wait()
            self.close()
            raise WorkerLost(f"the measuring process ended with code {code} on request {request['do']!r}")
        answer = json.loads(line)
        if not answer.pop("ok"):
            raise MeasureError(f"the measuring process cannot do {request['do']!r}: {answer['error']}")
        return answer

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            with contextlib.suppress(OSError):  # what it did not read is lost with it
                self._process.stdin.close()
            self._process = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _drain(stream, answers: queue.Queue) -> None:
    for line in stream:
        answers.put(line)
    answers.put(None)
