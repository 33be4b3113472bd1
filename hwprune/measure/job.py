"""What is to be measured on a device: written here, read by the agent (``kernels/native/agent/job.cpp``) and by the import.

A job is a text of lines, fields separated by tabs, so that the agent needs no parser to speak of. Its first line is
``hwprune-job`` and the schema's version, its last one is ``end``. Between them stand a line for each fact and limit
(``Header``, ``Limits``: name, value), and

    library    file  SHA-256                                    numbered from 0; number 0 holds the reference kernel alone
    reference  -1  library  step  constants' bytes  schedule     kernel number 0
    workload   schedules tried  the workload as JSON            numbered from 0
    kernel     workload  library  step  constants' bytes  schedule
    failure    workload  reason  schedule                       a schedule that could not be built here

Kernels of one library are timed together, in turn; all kernels of a workload are in one library.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Callable

from hwprune.errors import UsageError
from hwprune.measure.timed import Kernel
from hwprune.workload import Workload

SCHEMA_VERSION = 1
_FIRST = "hwprune-job"
_TYPES = {"int": int, "float": float, "str": str}


@dataclass(frozen=True)
class Header:
    """For whom the job is. ``software``: as in ``store.Context``; ``profile``: the digest of the target's profile; ``machine``: of
    the processor on which the agent runs; ``gpu``: architecture of the GPU on which kernels run, sm_XX, if they do."""

    target: str
    profile: str
    software: str
    machine: str
    threads: int
    spread_bytes: int
    gpu: str = ""


@dataclass(frozen=True)
class Limits:
    """How the agent measures; a round times a burst of the reference kernel and of every kernel of the library.

    finalists : schedules of a workload that are timed properly, after ``screen_rounds`` short bursts of all.
    interval : the width of the 95 % interval of the fastest schedule's estimate, as a share of it, at which a workload is
        done; otherwise it is after ``max_rounds``, or ``batch_s`` seconds of its library.
    calm : and only if the reference kernel takes at most this many times what it takes undisturbed. Something else on the
        machine slows it, and a kernel on one thread not: no correction by the reference is right for both. On a virtual
        machine whose cores the host had moved apart the reference took 1.09 times as long, and kernels that pass data from
        core to core up to 1.6 times.
    hang_s : a kernel that takes longer is given up.
    """

    finalists: int = 2
    screen_rounds: int = 3
    min_rounds: int = 9
    max_rounds: int = 100
    baseline_rounds: int = 60
    interval: float = 0.02
    calm: float = 1.05
    burst_us: float = 1500.0
    pause_us: float = 5000.0
    batch_s: float = 30.0
    hang_s: float = 30.0


@dataclass(frozen=True)
class BuiltLibrary:
    file: str
    sha256: str


@dataclass(frozen=True)
class Placed:
    """A kernel in a library. workload : number in the job; -1 for the reference."""

    workload: int
    library: int
    step: int
    constants_bytes: int
    config: str


@dataclass(frozen=True)
class Job:
    """See the module docstring. ``efforts``: schedules tried, of each workload; ``failures``: (workload, reason, schedule)."""

    header: Header
    limits: Limits
    libraries: tuple[BuiltLibrary, ...]
    workloads: tuple[Workload, ...]
    efforts: tuple[int, ...]
    kernels: tuple[Placed, ...]
    failures: tuple[tuple[int, str, str], ...] = field(default=())

    def of(self, number: int) -> Kernel:
        """Workload and schedule of a kernel by its number, which is not 0."""
        placed = self.kernels[number]
        return Kernel(self.workloads[placed.workload], placed.config)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_text().encode()).hexdigest()

    def to_text(self) -> str:
        lines = [(_FIRST, SCHEMA_VERSION)]
        for part in (self.header, self.limits):
            # a CPU's job does not say that it has no GPU
            lines += [(f.name, _TYPES[f.type](getattr(part, f.name))) for f in fields(part) if getattr(part, f.name) != ""]
        lines += [("library", b.file, b.sha256) for b in self.libraries]
        lines += [("workload", effort, json.dumps(w.to_json())) for effort, w in zip(self.efforts, self.workloads)]
        lines += [
            ("kernel" if k.workload >= 0 else "reference", k.workload, k.library, k.step, k.constants_bytes, k.config)
            for k in self.kernels
        ]
        lines += [("failure", *f) for f in self.failures]
        return "".join("\t".join(" ".join(str(part).split("\t")) for part in line) + "\n" for line in (*lines, ("end",)))

    @staticmethod
    def from_text(text: str, source: str) -> "Job":
        """The job of ``to_text``. UsageError, naming ``source``, if it is of another version or damaged."""
        rows = [line.split("\t") for line in text.split("\n")]
        if rows[0] != [_FIRST, str(SCHEMA_VERSION)]:
            raise UsageError(
                f"{source} holds {rows[0]} where {_FIRST} {SCHEMA_VERSION} is expected; use the hwprune that made the bundle, "
                f"or make a new one"
            )
        try:
            job = _from_rows(rows[1:])
        except (ValueError, KeyError, IndexError, TypeError) as err:
            raise UsageError(f"{source} holds a job that cannot be read ({err}); it is not as a bundle has it") from None
        if job.to_text() != text:
            raise UsageError(f"{source} holds a job that no hwprune of this version wrote")
        return job


def _from_rows(rows: list[list[str]]) -> Job:
    def many(name: str, make: Callable[..., object]) -> tuple:
        return tuple(make(*row[1:]) for row in rows if row[0] == name)

    facts = {row[0]: row[1] for row in rows if len(row) == 2}
    header, limits = (
        kind(**{f.name: _TYPES[f.type](facts[f.name] if f.name != "gpu" else facts.get("gpu", "")) for f in fields(kind)})
        for kind in (Header, Limits)
    )
    workloads = many("workload", lambda effort, text: (int(effort), Workload.from_json(text)))
    placed = lambda w, library, step, size, config: Placed(int(w), int(library), int(step), int(size), config)  # noqa: E731
    job = Job(
        header=header,
        limits=limits,
        libraries=many("library", BuiltLibrary),
        workloads=tuple(w for _, w in workloads),
        efforts=tuple(e for e, _ in workloads),
        kernels=(*many("reference", placed), *many("kernel", placed)),
        failures=many("failure", lambda w, why, config: (int(w), why, config)),
    )
    if any(not 0 <= n < len(workloads) for n in (*(k.workload for k in job.kernels[1:]), *(f[0] for f in job.failures))):
        raise ValueError("a kernel of no workload")
    return job
