"""What an agent measured elsewhere, checked and put into the store.

``results.json`` holds the job, the agent's journal, and a SHA-256 over both: a file that was cut short or edited is
refused before anything is stored. Latencies are made here, by the estimator that serves this machine's own measurements.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hwprune.errors import TargetError, UsageError
from hwprune.measure.device import EMULATED, device_text, gpu_text, software
from hwprune.measure.estimate import QUANTILE, Latency, estimate, undisturbed
from hwprune.measure.job import Job
from hwprune.measure.store import Context, Store
from hwprune.target import TargetProfile, load

SCHEMA_VERSION = 1

#: What stands before the hash, which is over everything before that.
_SEAL = ',\n"sha256":"'


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str


class _Gpu(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    name: str
    multiprocessors: int = Field(gt=0)


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    machine: str
    cores: int = Field(gt=0)
    cpuinfo: dict[str, str]
    board: str
    emulated: str = Field(description="why this is no real device; empty if it is one")
    gpu: _Gpu | None = Field(default=None, description="on which the kernels ran")


class _Device(_Record):
    device: _Facts


class _Baseline(_Record):
    baseline_us: list[float] = Field(min_length=1)


class _Failed(_Record):
    kernel: int = Field(gt=0)
    failure: str


class _Samples(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    kernel: int = Field(gt=0)
    samples_us: list[float] = Field(min_length=1)


class _Energy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    kernel: int = Field(gt=0)
    energy_uj: float = Field(ge=0, allow_inf_nan=False)
    of: str = Field(default="", description="what it is the energy of, by the device's sensors")


class _Measured(_Record):
    workload: int = Field(ge=0)
    kernels: list[_Samples]
    reference_us: list[float] = Field(min_length=1)
    screened_us: dict[int, float]
    interval: float = Field(allow_inf_nan=False)
    stopped: Literal["interval", "rounds", "time"]
    before: dict[str, Any]
    after: dict[str, Any]
    throttled: bool
    energy: _Energy | None = None


_KINDS: tuple[tuple[str, type[_Record]], ...] = (
    ("workload", _Measured), ("failure", _Failed), ("baseline_us", _Baseline), ("device", _Device),
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """A results file that is whole and holds together."""

    job: Job
    device: _Facts
    baseline_us: float  # the reference kernel's, undisturbed
    measured: tuple[_Measured, ...]
    failed: tuple[_Failed, ...]

    @property
    def context(self) -> Context:
        about, gpu = self.device, self.device.gpu
        named = (
            device_text(about.cpuinfo, about.board, about.machine, about.cores)
            if gpu is None
            else gpu_text(gpu.name, gpu.multiprocessors, about.board)
        )
        name = f"{EMULATED} ({self.device.emulated}): {named}" if self.device.emulated else named
        return Context(name, self.job.header.threads, self.job.header.software)


@dataclass(frozen=True)
class Imported:
    """What an import has stored. energy_uj : microjoules of one run by number of the workload, where the device told."""

    target: str
    device: str
    workloads: int
    schedules: int
    noisy: int
    failures: int
    store: Path
    energy_uj: dict[int, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "store": str(self.store)}

    def lines(self) -> tuple[str, ...]:
        told = f"{self.workloads} kernels in {self.schedules} schedules, {self.noisy} of them noisy, {self.failures} schedules failed"
        energy = (f"energy of {len(self.energy_uj)} kernels",) if self.energy_uj else ()
        return (f"target {self.target!r} on {self.device}", told, *energy, f"store: {self.store}")


def read_results(path: Path) -> Results:
    """The results in the file ``path``. UsageError if it is cut short, edited, of another version, or no such file."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as err:
        reason = getattr(err, "strerror", None) or err
        raise UsageError(f"cannot read {path}: {reason}; give the results.json that ./measure wrote on the device") from None
    return parse_results(text, str(path))


def parse_results(text: str, source: str) -> Results:
    head, seal, tail = text.rpartition(_SEAL)
    if not text.startswith('{"format":"hwprune results",'):
        raise UsageError(f"{source} is no results file of a bundle; give the results.json that ./measure wrote on the device")
    if not seal or tail[64:] != '"}\n':
        raise UsageError(f"{source} is cut short; copy it from the device again")
    if hashlib.sha256(head.encode()).hexdigest() != tail[:64]:
        raise UsageError(f"{source} is not as the agent wrote it (its SHA-256 does not fit); copy it from the device again")
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA_VERSION:
            raise UsageError(f"{source} has schema {data['schema']!r}, this hwprune reads {SCHEMA_VERSION}; make the bundle again")
        job = Job.from_text(data["job"], source)
        records = [_record(entry) for entry in data["journal"]]
        return _assemble(job, records)
    except (KeyError, TypeError, ValueError) as err:
        said = f"{err.errors()[0]['loc']}: {err.errors()[0]['msg']}" if isinstance(err, ValidationError) else str(err)
        raise UsageError(
            f"{source} does not hold what an agent writes ({said}); make the bundle again and measure anew"
        ) from None


def _record(entry: dict) -> _Record:
    for key, kind in _KINDS:
        if key in entry:
            return kind.model_validate(entry)
    raise ValueError(f"an entry of unknown kind: {', '.join(entry)}")


def _assemble(job: Job, records: list[_Record]) -> Results:
    def all_of(kind: type) -> tuple:
        return tuple(r for r in records if isinstance(r, kind))

    devices, baselines, measured, failed = (all_of(kind) for kind in (_Device, _Baseline, _Measured, _Failed))
    if not devices or not baselines:
        raise ValueError("it names no device, or lacks the reference kernel's times")
    if bool(job.header.gpu) != (devices[0].device.gpu is not None):
        raise ValueError("it is of a GPU, or its job is, but not both")
    for number in (*(k.kernel for m in measured for k in m.kernels), *(f.kernel for f in failed)):
        if number >= len(job.kernels):
            raise ValueError(f"the job has no kernel {number}")
    for m in measured:
        for k in m.kernels:
            if job.kernels[k.kernel].workload != m.workload:
                raise ValueError(f"kernel {k.kernel} is not of workload {m.workload}")
        times = np.array([*(k.samples_us for k in m.kernels), m.reference_us])
        if not (np.isfinite(times).all() and (times > 0).all()):
            raise ValueError(f"a time of workload {m.workload} is not positive")
    # the reference may have been disturbed at the start and not later
    reference_us = np.array([us for values in (baselines[0].baseline_us, *(m.reference_us for m in measured)) for us in values])
    return Results(job, devices[0].device, undisturbed(reference_us), measured, failed)


def profile_of(results: Results, target: str | None, source: str) -> TargetProfile:
    """The profile that the results are of: ``target``, or the one that the job names. UsageError."""
    name = results.job.header.target
    try:
        return load(target or name)
    except TargetError as err:
        raise UsageError(f"{source} is of target {name!r}: {err}; give its profile with --target FILE.toml") from None


def check_fits(results: Results, profile: TargetProfile, emulated: bool, source: str) -> None:
    """Raises UsageError if the results may not be stored as measurements of ``profile``: they are of another target or
    another version of kernels, or of an emulator and nobody asked for that (``emulated``)."""
    from hwprune.kernels.schedule import Config

    header = results.job.header
    if profile.name != header.target:
        raise UsageError(f"{source} is of target {header.target!r}, but --target says {profile.name!r}; leave --target out")
    expected = software(profile, header.spread_bytes)
    if header.software != expected:
        raise UsageError(
            f"{source} was measured with {header.software!r}, but kernels for target {profile.name!r} are now {expected!r}; "
            f"make the bundle again and measure anew"
        )
    for kernel in results.job.kernels:
        try:
            Config.from_text(kernel.config)
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UsageError(f"{source} names a schedule that is none ({kernel.config[:80]!r}); make the bundle again") from None
    if results.device.emulated and not emulated:
        raise UsageError(
            f"{source} was measured in an emulator ({results.device.emulated}), whose times say nothing of a board; "
            f"--emulated stores them, named so, and no cost model reads them"
        )


def store_results(results: Results, store: Store) -> Imported:
    """Put everything into the store, or nothing. StoreError.

    Latencies are those at the speed at which the store knows the device: a second import, or another board of the kind, stands
    beside the first.
    """
    job, context = results.job, results.context
    schedules = noisy = 0
    energy: dict[int, float] = {}
    baseline_us = store.calibration("reference_us", context) or results.baseline_us
    with store.whole():
        store.calibrate("reference_us", baseline_us, context)
        for m in results.measured:
            effort, latencies = job.efforts[m.workload], {}
            disturbed = m.throttled or np.quantile(m.reference_us, QUANTILE) > job.limits.calm * baseline_us
            for k in m.kernels:
                one = estimate(np.array(k.samples_us), np.array(m.reference_us), baseline_us)
                latencies[k.kernel] = Latency(one.latency_us, one.low_us, one.high_us, one.rounds, bool(one.noisy or disturbed))
                store.record(job.workloads[m.workload], job.kernels[k.kernel].config, context, latencies[k.kernel], effort)
            schedules += len(latencies)
            noisy += min(latencies.values(), key=lambda latency: latency.latency_us).noisy
            if m.energy:
                energy[m.workload] = m.energy.energy_uj
                name = f"energy_uj of {job.workloads[m.workload].key} {job.kernels[m.energy.kernel].config}"
                store.calibrate(name, m.energy.energy_uj, context)
        for f in results.failed:
            kernel = job.of(f.kernel)
            store.record_failure(kernel.workload, kernel.config, context, f.failure, job.efforts[job.kernels[f.kernel].workload])
        for number, why, config in job.failures:
            store.record_failure(job.workloads[number], config, context, why, job.efforts[number])
    failures = len(results.failed) + len(job.failures)
    return Imported(job.header.target, context.device, len(results.measured), schedules, noisy, failures, store.path, energy)


def together(target: str, parts: Sequence[Imported], store: Path) -> Imported:
    """One account of several imports of parts of a job."""
    devices = ", ".join(sorted({p.device for p in parts})) or "no device: nothing was left to measure"
    counts = {name: sum(getattr(p, name) for p in parts) for name in ("workloads", "schedules", "noisy", "failures")}
    energy = [uj for p in parts for uj in p.energy_uj.values()]
    return Imported(target, devices, **counts, store=store, energy_uj=dict(enumerate(energy)))
