"""What is simulated, kept, and with which schedules: the measurer's part for a target that cannot run here.

Results are kept in the measurement store beside measurements, under a device that no measurement has, or come with hwprune
(``cost_models/TARGET/*.tsv``). Either counts only for the same profile, kernels and model.
"""

from __future__ import annotations

from concurrent.futures import as_completed
from functools import partial
from typing import TYPE_CHECKING, Callable, Iterable, Iterator, Sequence

from hwprune.errors import CompileError, Infeasible, NoLatency
from hwprune.kernels import candidates, is_exact
from hwprune.kernels.schedule import Config
from hwprune.measure.device import available_cores, software
from hwprune.measure.estimate import Latency
from hwprune.measure.measurer import spread_bytes
from hwprune.measure.shipped import shipped_rows
from hwprune.measure.store import Context, Measurement, Row, Store
from hwprune.processes import Processes, ProcessLost
from hwprune.progress import SILENT, Progress
from hwprune.target import TargetProfile
from hwprune.workload import Workload

if TYPE_CHECKING:
    from hwprune.cost.simulated import Simulation

#: Bumped when the model answers otherwise for the same kernel and profile.
MODEL_VERSION = 2
#: effort -> (schedules looked at, those that are compiled, one of each rule at least). Looking takes a fiftieth of a second,
#: compiling one and counting what runs a fifth of one.
EFFORTS = {"quick": (6, 2), "tune": (12, 3)}
#: Of 84 kernels of others on each of two boards, 98 in a hundred were within it, with the profile's figures as they are
#: (benchmarks/simulated.py). Most of that is a factor that stands for the board, 1.2 on one and 1.4 on the other.
INTERVAL_FACTOR = 1.8
#: Fewer kernels than these are simulated in this process: another one takes two seconds to start.
_WORTH_PROCESSES = 6
#: Each has TVM in half a gigabyte of memory.
_MOST_PROCESSES = 8


class Simulator:
    """Simulates kernels of ``profile`` and keeps the results in ``store``.

    weights_bytes, exact : see ``Measurer``.
    """

    def __init__(self, profile: TargetProfile, store: Store, progress: Progress = SILENT, *,
                 weights_bytes: int = 0, exact: bool = False):  # fmt: skip
        self.profile, self.store, self.progress, self.exact = profile, store, progress, exact
        spread = spread_bytes(weights_bytes, profile)
        self._cold = spread > 0
        self._processes: Processes | None = None
        self.context = context(profile, spread)
        known = [*shipped(profile, self.context), *store.all_best(self.context, provenance="simulated")]
        self._known = {m.workload.key: m for m in known if self._admits(m)}

    def _admits(self, found: Measurement) -> bool:
        return not self.exact or is_exact(Config.from_text(found.config))

    def simulated(self) -> list[Measurement]:
        """The fastest schedule of everything that was simulated."""
        return list(self._known.values())

    def schedule(self, workload: Workload) -> Config:
        """The fastest schedule by simulation, or the rule's best guess where nothing was simulated."""
        found = self._known.get(workload.key)
        return Config.from_text(found.config) if found else candidates(workload, self.profile, self.exact)[0]

    def ensure(self, workloads: Sequence[Workload], effort: str = "quick") -> None:
        """Simulate what is not known, or known with less effort. What cannot be simulated is left to the analytic model."""
        looked_at, built = EFFORTS[effort]
        missing = list({w.key: w for w in workloads if self._effort(w) < looked_at}.values())
        if not missing:
            return
        with self.progress.task("simulating kernels", total=len(missing)) as task:
            for workload, answer in self._answers(missing, looked_at, built):
                self._keep(workload, answer, looked_at)
                task.advance()

    def _effort(self, workload: Workload) -> int:
        found = self._known.get(workload.key)
        return found.effort if found else 0

    def _answers(
        self, missing: Sequence[Workload], looked_at: int, built: int
    ) -> Iterator[tuple[Workload, Callable[[], tuple[Config, Simulation]]]]:
        """Each workload with what gives its fastest schedule, or raises why there is none; several processes work on them.

        What failed before is left out.
        """
        from hwprune.cost.simulated import best  # imports TVM

        arguments = {
            w: (w, self.profile, candidates(w, self.profile, self.exact)[:looked_at], built)
            for w in missing
            if not self.store.failures(w, self.context)
        }
        cores = min(available_cores(), _MOST_PROCESSES)
        if cores == 1 or (self._processes is None and len(arguments) < _WORTH_PROCESSES):
            for workload, given in arguments.items():
                yield workload, partial(best, *given, cold_constants=self._cold)
            return
        self._processes = self._processes or Processes("hwprune.cost.simulated:best", cores)
        pending = {self._processes.submit(*given, cold_constants=self._cold): w for w, given in arguments.items()}
        for done in as_completed(pending):
            yield pending[done], done.result

    def _keep(self, workload: Workload, answer: Callable[[], tuple[Config, Simulation]], looked_at: int) -> None:
        try:
            config, found = answer()
        except (NoLatency, Infeasible, CompileError, ProcessLost) as err:
            first = candidates(workload, self.profile, self.exact)[0]
            self.store.record_failure(workload, first.to_text(), self.context, str(err), looked_at)
            return
        us = found.latency_us(self.profile)
        latency = Latency(us, us / INTERVAL_FACTOR, us * INTERVAL_FACTOR, 0, False)
        self.store.record(workload, config.to_text(), self.context, latency, looked_at, provenance="simulated", model="simulated")
        self._known[workload.key] = Measurement(workload, config.to_text(), latency, looked_at)

    def close(self) -> None:
        """End the processes that simulate."""
        if self._processes is not None:
            self._processes.close()
            self._processes = None

    def rows(self, keys: Iterable[str]) -> list[Row]:
        """What is known of the workloads with these keys, as the store keeps it."""
        found = [self._known[key] for key in sorted(keys) if key in self._known]
        return [Row(m.workload, m.config, self.context, m.latency, EFFORTS["tune"][0], None, "simulated", "simulated") for m in found]


def context(profile: TargetProfile, spread: int) -> Context:
    """Under what simulations of ``profile`` are kept: everything that an answer depends on."""
    device = f"simulated {profile.digest()} by {profile.incore.tool} {profile.incore.model}"
    return Context(device, profile.threads, f"{software(profile, spread)}; simulation {MODEL_VERSION}")


def shipped(profile: TargetProfile, wanted: Context) -> Iterable[Measurement]:
    """What hwprune brings along that was simulated under ``wanted``."""
    for row in shipped_rows(profile):
        if row.provenance == "simulated" and row.context == wanted and row.latency is not None:
            yield Measurement(row.workload, row.config, row.latency, row.effort, row.provenance, row.model)
