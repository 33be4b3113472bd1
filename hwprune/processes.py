"""One function called in several processes, for work that Python and TVM do on one core each.

A process is started once, imports what the function needs, and lives until the pool is closed; if hwprune is killed, it reads
the end of its input and ends, too. Processes are started by command, so that a user's script needs no guard around its own
main part, as those of ``multiprocessing`` do.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, BinaryIO

from hwprune.errors import HwpruneError, Infeasible

#: Errors of hwprune pass from the process to the caller; any other one is a fault, and becomes ProcessLost.
PASSED_ON = (HwpruneError, Infeasible)


class ProcessLost(HwpruneError):
    """A process ended, or failed by an error that is not hwprune's, while it was working on something."""


class Processes:
    """``function`` ("module:name") in ``count`` processes. Arguments and results are pickled. Close it, or use ``with``."""

    def __init__(self, function: str, count: int):
        self._function, self._count = function, count
        self._threads = ThreadPoolExecutor(count)
        self._idle: SimpleQueue[subprocess.Popen | None] = SimpleQueue()
        for _ in range(count):
            self._idle.put(None)  # started when it is needed
        self._all: list[subprocess.Popen] = []

    def submit(self, *arguments: Any, **named: Any) -> Future:
        """The function's result to be, or its HwpruneError or Infeasible; ProcessLost if the process did not survive it."""
        return self._threads.submit(self._call, arguments, named)

    def _call(self, arguments: tuple, named: dict) -> Any:
        process = self._idle.get() or self._start()
        try:
            pickle.dump((arguments, named), process.stdin)
            process.stdin.flush()
            worked, result = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            process.kill()
            self._idle.put(None)
            raise ProcessLost(f"a process that ran {self._function} ended with code {process.wait()}") from None
        self._idle.put(process)
        if not worked:
            raise result
        return result

    def _start(self) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "hwprune.processes", self._function], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        self._all.append(process)
        return process

    def close(self) -> None:
        """End the processes; what has no result yet gets none."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # what it did not read is lost with it
                    stream.close()
        self._threads.shutdown(wait=True)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def serve(function: str, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    while True:
        try:
            arguments, named = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = True, call(*arguments, **named)
        except PASSED_ON as err:
            answer = False, err
        except Exception as err:
            last = (str(err).strip().splitlines() or [""])[-1]
            answer = False, ProcessLost(f"{function} failed: {type(err).__name__}: {last}")
        pickle.dump(answer, answers)
        answers.flush()


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    serve(sys.argv[1], sys.stdin.buffer, answers)


if __name__ == "__main__":
    from hwprune import processes  # its exceptions are those that the caller knows

    processes.main()
