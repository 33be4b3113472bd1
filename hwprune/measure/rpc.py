"""Boards behind TVM's RPC tracker.

The agent, the same program that a bundle has, is uploaded with a small module that starts it
(``kernels/native/agent_rpc.c``); then library after library with its job, and results come back. So is the probe.
"""

from __future__ import annotations

import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from hwprune.compile.link import ffi_includes, last_line, native_sources, run_compiler
from hwprune.errors import MeasureError, UsageError
from hwprune.fsio import write_atomic
from hwprune.measure import probe_program, probe_results
from hwprune.measure.agent import build_agent
from hwprune.measure.fleet import share
from hwprune.measure.job import Job
from hwprune.measure.probe_results import ProbeResults
from hwprune.progress import SILENT, Progress
from hwprune.target import TargetProfile

#: Beyond what the agent itself may take for a library: uploading it, and a slow network.
_PATIENCE_S = 240.0

_TRACKER_S = 5.0

_AGENT, _STARTER = "measure", "agent_rpc.so"


def parse_address(text: str) -> tuple[str, int]:
    """``host:port``. UsageError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--rpc {text!r} is no address of a tracker; write host:port, like 127.0.0.1:9190")
    return host, int(port)


def boards(tracker: tuple[str, int], key: str) -> list[str]:
    """Addresses of the boards called ``key`` that the tracker knows. UsageError if there is no tracker, or none of them."""
    try:
        socket.create_connection(tracker, timeout=_TRACKER_S).close()  # TVM's own waits a minute for one that is not there
        from tvm.rpc.client import TrackerSession

        known = TrackerSession(tracker).summary()["server_info"]
    except ImportError as err:
        raise UsageError(f"--rpc needs the package {err.name!r}; install it with: pip install 'hwprune[rpc]'") from None
    except (OSError, RuntimeError, ValueError, KeyError) as err:
        start = f"python -m tvm.exec.rpc_tracker --host 127.0.0.1 --port {tracker[1]} --port-end {tracker[1] + 1}"
        raise UsageError(f"no RPC tracker answers at {tracker[0]}:{tracker[1]} ({err}); start one with `{start}`") from None
    found = [":".join(map(str, server["addr"])) for server in known if server["key"] == f"server:{key}"]
    if not found:
        others = sorted({server["key"].removeprefix("server:") for server in known})
        raise UsageError(
            f"the tracker at {tracker[0]}:{tracker[1]} knows no board {key!r}; it knows {', '.join(others) or 'none at all'}"
        )
    return found


def measure_job(
    job: Job, profile: TargetProfile, folder: Path, tracker: tuple[str, int], key: str, keep: Callable[[str], None],
    progress: Progress = SILENT,
) -> None:  # fmt: skip
    """Have ``job``, whose libraries are in ``folder``, measured by all boards that the tracker knows under ``key``.

    keep : takes each results text as it comes. Raises what ``boards`` raises, and MeasureError when all boards died.
    """
    from tvm import rpc

    found = boards(tracker, key)
    write_atomic(folder / _AGENT, lambda p: build_agent(profile, p))
    write_atomic(folder / _STARTER, lambda p: build_starter(profile, p))

    def connect() -> _Agent:
        return _Agent(rpc.connect_tracker(*tracker).request(key, max_retry=1), folder)

    parts = [only(job, number) for number in range(1, len(job.libraries))]
    limit_s = job.limits.batch_s + job.limits.hang_s + _PATIENCE_S
    share(parts, [(name, connect) for name in found], keep, limit_s, progress)


def only(job: Job, library: int) -> Job:
    """The part of a job that is about one library; its files lie beside the agent."""
    numbers = sorted({k.workload for k in job.kernels if k.library == library})
    renumbered = {old: new for new, old in enumerate(numbers)}
    flat = tuple(replace(b, file=Path(b.file).name) for b in job.libraries)
    kernels = [replace(k, workload=renumbered[k.workload], library=1) for k in job.kernels[1:] if k.library == library]
    return replace(
        job, libraries=(flat[0], flat[library]),
        workloads=tuple(job.workloads[n] for n in numbers), efforts=tuple(job.efforts[n] for n in numbers),
        kernels=(job.kernels[0], *kernels),
        failures=tuple((renumbered[n], why, config) for n, why, config in job.failures if n in renumbered),
    )  # fmt: skip


class _Program:
    """A program on a board, and the session with it."""

    def __init__(self, session: Any, program: Path, starter: Path):
        self._session = session
        for path in (program, starter):
            session.upload(str(path))
        self._start = session.load_module(starter.name)["hwprune_start"]
        self._path = session.get_function("tvm.rpc.server.workpath")(program.name)

    def run(self, *arguments: str) -> str:
        """What it prints. MeasureError with the last that it says if it fails."""
        code = self._start(self._path, *arguments)
        if code != 0:
            said = self._file("said.txt").strip().splitlines()
            raise MeasureError(said[-1].removeprefix("measure: ") if said else f"the program on the board ended with code {code}")
        return self._file("printed.txt")

    def _file(self, name: str) -> str:
        return bytes(self._session.download(name)).decode(errors="replace")


class _Agent(_Program):
    """The agent on a board; libraries of kernels lie in ``folder`` here."""

    def __init__(self, session: Any, folder: Path):
        super().__init__(session, folder / _AGENT, folder / _STARTER)
        self._folder, self._uploaded = folder, set()

    def measure(self, job: Job) -> str:
        for library in job.libraries:
            if library.file not in self._uploaded:
                self._session.upload(str(self._folder / "lib" / library.file))
                self._uploaded.add(library.file)
        for left in ("journal.jsonl", "results.json"):
            self._session.remove(left)
        self._session.upload(bytearray(job.to_text().encode()), "job.tsv")
        self.run()
        self._session.remove(job.libraries[1].file)  # boards have little memory, and a folder there is often in it
        self._uploaded.discard(job.libraries[1].file)
        return self._file("results.json")


def probe_board(profile: TargetProfile, tracker: tuple[str, int], key: str, seconds: float) -> ProbeResults:
    """What one of the boards called ``key`` can do at most, the probe compiled for ``profile``. Raises what ``boards``
    raises, CompileError, and MeasureError where it fails there."""
    from tvm import rpc

    boards(tracker, key)
    with tempfile.TemporaryDirectory(prefix="hwprune.") as folder:
        program, starter = Path(folder, "hwprune-probe"), Path(folder, _STARTER)
        probe_program.build(profile, program)
        build_starter(profile, starter)
        try:
            board = _Program(rpc.connect_tracker(*tracker).request(key, max_retry=1), program, starter)
            text = board.run("--vector-bits", str(profile.core.vector_bits), "--seconds", str(seconds))
        except (RuntimeError, OSError) as err:
            raise MeasureError(f"the board {key!r} was lost: {last_line(err)}; start its server again and probe again") from None
    return probe_results.from_text(text, f"what the probe on {key!r} printed")


def build_starter(profile: TargetProfile, out: Path) -> None:
    """Compile the module that starts the agent into the file ``out``. CompileError."""
    source = native_sources() / "agent_rpc.c"
    run_compiler(["-O2", "-std=gnu11", "-fPIC", "-shared", "-s", *ffi_includes(), "-x", "c", str(source), "-o", str(out)], profile)
