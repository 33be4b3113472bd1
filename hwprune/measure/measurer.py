"""What is measured, and with which schedules.

The measurer fills the store with what a search asks for and does not know yet. A workload new to the store is tried
with schedules that won on its nearest measured relatives and with the rule's own best guesses; ``tune`` tries more.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

from hwprune.compile.artifact import NetworkProgram, network_program
from hwprune.compile.constants import Shapes
from hwprune.compile.emit_c import tables
from hwprune.compile.lower import Network
from hwprune.errors import MeasureError
from hwprune.kernels import candidates, is_exact, kernel_inputs
from hwprune.kernels.schedule import Config, handicap
from hwprune.measure.device import local_device, software
from hwprune.measure.estimate import DRIFT_BOUNDS, Latency, drift, estimate, estimate_together
from hwprune.measure.objects import kernel_name
from hwprune.measure.process import Worker, WorkerLost
from hwprune.measure.store import Context, Measurement, Store
from hwprune.progress import SILENT, Progress
from hwprune.target import TargetProfile
from hwprune.workload import Workload

#: effort -> (the rule's own schedules, schedules of relatives, finalists timed properly, rounds)
EFFORTS = {"quick": (3, 4, 2, 9), "tune": (24, 4, 4, 15)}

_BASELINE_ROUNDS = 50
_NETWORK_ROUNDS = 40

#: A measurement is taken this often at most, with pauses, while the reference kernel says that the machine is disturbed.
#: Whole networks take longer, and what disturbs some of their rounds is left out of the others.
_ATTEMPTS, _NETWORK_ATTEMPTS, _PAUSE_S = 10, 3, 0.7


def spread_bytes(weights_bytes: int, profile: TargetProfile) -> int:
    """Bytes of memory over which a kernel's constants are spread when it is measured, for a network of ``weights_bytes``.

    Powers of two, so that networks of about the same size share measurements; 0 where all fits into the nearest caches of
    the cores, at most what no cache holds.
    """
    memory, near = profile.memory, _near_bytes(profile)
    if weights_bytes <= near:
        return 0
    most = 2 * max(memory.l3_bytes, near)
    return min(1 << (weights_bytes - 1).bit_length(), 1 << (most - 1).bit_length())


def exceeded_bytes(spread_bytes: int, profile: TargetProfile) -> int:
    """Bytes of the largest cache that holds less than ``spread_bytes``; 0 if there is none."""
    memory = profile.memory
    caches = (memory.l3_bytes, _near_bytes(profile))
    return max((size for size in caches if size < spread_bytes), default=0)


def _near_bytes(profile: TargetProfile) -> int:
    """Bytes of the nearest caches of all cores; the cores of a GPU share one."""
    return profile.memory.l2_bytes * (profile.threads if profile.gpu is None else 1)


class Measurer:
    """Measures on this machine for ``profile``; close it (or use ``with``) to end its process.

    weights_bytes : of the network whose kernels are measured. In a network they find their constants in a cache, or they
        do not: measured alone they are made to find them as far away.
    exact : leave out kernels whose results differ by more than the rounding of single operations.

    Raises MeasureError from any method when no schedule of a workload can be built and run.
    """

    def __init__(
        self, profile: TargetProfile, store: Store, progress: Progress = SILENT, threads: int | None = None, *,
        weights_bytes: int = 0, exact: bool = False,
    ):  # fmt: skip
        self.profile, self.store, self.progress = profile, store, progress
        self.threads = threads or profile.threads
        self._spread_bytes = spread_bytes(weights_bytes, profile)
        self.context = Context(local_device(), self.threads, software(profile, self._spread_bytes))
        self._folder = tempfile.TemporaryDirectory(prefix="hwprune.")
        self._worker = Worker(profile, self.threads, objects=Path(self._folder.name))
        self.exact = exact
        self._known: dict[str, Measurement] = {m.workload.key: m for m in self.measured()}
        self._constants: dict[tuple[str, str | None], int] = {}
        self._baseline: float | None = None
        self._patience = _ATTEMPTS

    def measured(self) -> list[Measurement]:
        """The fastest schedule of everything that the store has, of those that may be used; see ``handicap`` in ``kernels/schedule.py``."""
        return self.store.all_best(self.context, self._admits, handicap=self._handicap)

    def _handicap(self, config: str) -> float:
        return handicap(Config.from_text(config), self.profile)

    def _admits(self, config: str) -> bool:
        return not self.exact or is_exact(Config.from_text(config))

    def best(self, workload: Workload) -> Latency | None:
        """The latency of the fastest schedule measured for ``workload``; None if there is none."""
        found = self._known.get(workload.key)
        return found.latency if found else None

    def schedule(self, workload: Workload) -> Config:
        """The fastest schedule measured, or the rule's best guess where nothing was."""
        found = self._known.get(workload.key)
        return Config.from_text(found.config) if found else self._offered(workload)[0]

    def near_bytes(self, workloads: Sequence[Workload]) -> float:
        """Of the constants of a network of these kernels, what lies nearer than when the kernels were measured; see
        ``hwprune.cost.network``."""
        cache = exceeded_bytes(self._spread_bytes, self.profile)
        constants = sum(self._constant_bytes(w) for w in workloads)
        return constants * max(0.0, 1.0 - constants / cache) if cache else 0.0

    def _constant_bytes(self, workload: Workload) -> int:
        """As the best kernel reads them."""
        found = self._known.get(workload.key)
        key = (workload.key, found.config if found else None)
        if key not in self._constants:
            inputs = kernel_inputs(workload, self.schedule(workload))
            self._constants[key] = sum(t.size_bytes for t in inputs if t.role == "weight")
        return self._constants[key]

    def ensure(self, workloads: Sequence[Workload], effort: str = "quick") -> None:
        """Measure what the store lacks, or has with less effort than this."""
        least = EFFORTS[effort][0]
        missing = list({w.key: w for w in workloads if self._effort(w) < least}.values())
        self._measure_all(missing, effort, "tuning kernels" if effort == "tune" else "measuring kernels")

    def repeat(self, workloads: Sequence[Workload]) -> None:
        """Measure again what was measured, with what relatives have won by now; of two latencies of a schedule the lower counts:
        something else on the machine can only add to it."""
        before = {w.key: self._known[w.key] for w in workloads}
        tuned = [w for w in workloads if before[w.key].effort >= EFFORTS["tune"][0]]
        quick = [w for w in workloads if before[w.key].effort < EFFORTS["tune"][0]]
        for chosen, effort in ((tuned, "tune"), (quick, "quick")):
            self._measure_all(chosen, effort, "measuring doubtful kernels again")
        for workload in workloads:
            old, new = before[workload.key], self._known[workload.key]
            if old.latency.latency_us * self._handicap(old.config) < new.latency.latency_us * self._handicap(new.config):
                self._known[workload.key] = old
                if old.config == new.config:
                    self.store.record(workload, old.config, self.context, old.latency, old.effort)

    def discard_wrong(self, workloads: Sequence[Workload]) -> list[tuple[Workload, str]]:
        """Of the fastest schedules of ``workloads``, those whose kernel computes something else; they are not used again."""
        from hwprune.measure.verify import TOLERANCE

        wrong = []
        for workload in {w.key: w for w in workloads if w.key in self._known}.values():
            config, effort = self._known[workload.key].config, self._known[workload.key].effort
            try:
                error = self._worker.ask("verify", workload=workload.to_json(), config=config)["error"]
            except WorkerLost:
                error = math.inf
            if error is not None and not error <= TOLERANCE[workload.dtype]:
                why = f"its result is off by {error:.1e} of the largest value"
                self.store.record_failure(workload, config, self.context, why, effort)
                del self._known[workload.key]
                wrong.append((workload, config))
        return wrong

    def _measure_all(self, workloads: Sequence[Workload], effort: str, title: str) -> None:
        if not workloads:
            return
        with self.progress.task(title, total=len(workloads)) as task:
            for workload in workloads:
                self._measure(workload, effort)
                task.advance()

    def _offered(self, workload: Workload) -> Sequence[Config]:
        return candidates(workload, self.profile, self.exact)

    def _effort(self, workload: Workload) -> int:
        found = self._known.get(workload.key)
        return found.effort if found else 0

    def _measure(self, workload: Workload, effort: str) -> None:
        own, related, finalists, rounds = EFFORTS[effort]
        failed = self.store.failures(workload, self.context)
        offered = [text for c in self._offered(workload) if (text := c.to_text()) not in failed][:own]
        incumbent = self._known.get(workload.key)
        known = [*([incumbent.config] if incumbent else []), *self._of_relatives(workload, related)]
        configs = [text for text in dict.fromkeys([*known, *offered]) if text not in failed]
        remaining, answer = configs, None
        while remaining and answer is None:
            try:
                answer = self._undisturbed(
                    "measure", workload=workload.to_json(), configs=remaining, finalists=finalists, rounds=rounds,
                    spread_bytes=self._spread_bytes, timeout_s=30.0 + 5.0 * len(remaining),
                )
            except WorkerLost as err:
                survivors = self._without_culprit(workload, remaining, own, str(err))
                # each runs alone, yet not all of them together: try fewer, so that this ends
                remaining = survivors if len(survivors) < len(remaining) else survivors[: len(survivors) // 2]
        if answer is None:
            raise MeasureError(f"no schedule of workload {workload.key} runs on this machine")
        self._keep(workload, answer, own)

    def _undisturbed(self, do: str, attempts: int = _ATTEMPTS, **request) -> dict:
        """The answer to a request; it is repeated while something else has the machine, and the calmest answer counts.

        Where the machine stays slow, later requests do not wait for it again until it is itself.
        """
        answers: list[tuple[float, dict]] = []
        for attempt in range(min(attempts, self._patience)):
            if attempt:
                time.sleep(_PAUSE_S)
            answer = self._worker.ask(do, **request)
            if not answer["reference"]:
                return answer
            answers.append((drift(np.array(answer["reference"]), self.baseline_us()), answer))
            if answers[-1][0] >= DRIFT_BOUNDS[0]:
                self._patience = _ATTEMPTS
                return answer
        self._patience = 2
        return max(answers, key=lambda found: found[0])[1]

    def _without_culprit(self, workload: Workload, configs: list[str], effort: int, why: str) -> list[str]:
        """Try the schedules one by one after a crash or hang; those that do it again are recorded and left out."""
        survivors = []
        for config in configs:
            try:
                self._worker.ask("measure", workload=workload.to_json(), configs=[config], finalists=1, rounds=1,
                                 spread_bytes=0, timeout_s=30.0)
                survivors.append(config)
            except WorkerLost:
                self.store.record_failure(workload, config, self.context, why, effort)
        return survivors

    def _keep(self, workload: Workload, answer: dict, effort: int) -> None:
        baseline = self.baseline_us()
        for config, why in answer["failures"].items():
            self.store.record_failure(workload, config, self.context, why, effort)
        best: tuple[float, str, Latency] | None = None
        for config, samples in answer["samples"].items():
            latency = estimate(np.array(samples), np.array(answer["reference"]), baseline)
            self.store.record(workload, config, self.context, latency, effort)
            counted = latency.latency_us * self._handicap(config)
            if best is None or (counted, config) < best[:2]:  # of equals the one that the store names
                best = (counted, config, latency)
        if best is None:
            reasons = "; ".join(sorted(set(answer["failures"].values())))
            raise MeasureError(f"no schedule of workload {workload.key} can be built: {reasons}")
        self._known[workload.key] = Measurement(workload, best[1], best[2], effort)

    def _of_relatives(self, workload: Workload, most: int) -> list[str]:
        """Schedules of the nearest measured workloads of the same family."""
        from hwprune.cost.traits import family, position

        own, where = family(workload), np.array(position(workload))
        kin = [m for m in self._known.values() if m.workload.key != workload.key and family(m.workload) == own]
        kin.sort(key=lambda m: float(np.abs(np.array(position(m.workload)) - where).sum()))
        return list(dict.fromkeys(m.config for m in kin))[:most]

    def baseline_us(self) -> float:
        """The reference kernel's latency on this device, measured once and kept."""
        if self._baseline is None:
            self._baseline = self.store.calibration("reference_us", self.context)
        if self._baseline is None:
            values = self._worker.ask("baseline", rounds=_BASELINE_ROUNDS)["reference"]
            self._baseline = float(np.quantile(values, 0.05))
            self.store.calibrate("reference_us", self._baseline, self.context)
        return self._baseline

    def time_artifacts(self, paths: Sequence[Path], rounds: int | None = None) -> list[Latency]:
        """Latency of whole artifacts, timed in turn in one run, corrected for drift as kernels are."""
        names = [str(p) for p in paths]
        answer = self._undisturbed(
            "artifacts", _NETWORK_ATTEMPTS, paths=names, threads=self.threads, rounds=rounds or _NETWORK_ROUNDS, timeout_s=300.0
        )
        return self._together(names, answer)

    def time_networks(self, networks: Mapping[str, Network], rounds: int | None = None) -> list[Latency]:
        """Latency of whole networks with the best schedules measured, linked as artifacts are and timed in turn, in order.

        Kernels alone find their operands in the nearest cache and their threads awake; in a network they do not.
        """
        return self.time_programs({name: self.program(network) for name, network in networks.items()}, rounds)

    def program(self, network: Network, shapes: Shapes | None = None) -> NetworkProgram:
        """Of ``network`` with the best schedules measured, under ``shapes`` (its own by default)."""
        return network_program(network, self.profile, self.schedule, shapes, kernel_name)

    def time_programs(self, programs: Mapping[str, NetworkProgram], rounds: int | None = None) -> list[Latency]:
        """Latency of each, linked over random constants and timed in turn in one run, corrected for drift as kernels are."""
        request = {
            name: {"kernels": {s: [w.to_json(), c.to_text()] for s, (w, c) in p.kernels.items()}, "tables": tables(p.calls, p.facts)}
            for name, p in programs.items()
        }
        answer = self._undisturbed("networks", _NETWORK_ATTEMPTS, programs=request, rounds=rounds or _NETWORK_ROUNDS, timeout_s=300.0)
        return self._together(list(request), answer)

    def _together(self, names: Sequence[str], answer: dict) -> list[Latency]:
        samples = np.array([answer["samples"][n] for n in names])
        return estimate_together(samples, np.array(answer["reference"]), self.baseline_us())

    def close(self) -> None:
        self._worker.close()
        self._folder.cleanup()

    def __enter__(self) -> "Measurer":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
