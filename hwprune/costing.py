"""Which cost model answers for a target on this machine, and how it comes to know more."""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Mapping, Sequence

from hwprune import target as targets
from hwprune.cost import incore
from hwprune.cost.analytic_gpu import analytic_model
from hwprune.cost.base import CostModel
from hwprune.cost.sampling import Surface, choose
from hwprune.cost.table import TableModel
from hwprune.errors import UsageError
from hwprune.measure.store import Store
from hwprune.progress import SILENT, Progress
from hwprune.target import TargetProfile
from hwprune.workload import Workload

if TYPE_CHECKING:
    from hwprune.compile.artifact import NetworkProgram
    from hwprune.compile.lower import Network
    from hwprune.cost.simulator import Simulator
    from hwprune.kernels.schedule import Config
    from hwprune.measure.store import Measurement


#: A network that takes this much longer than it did before was disturbed; it is timed this often at most, with pauses.
#: Virtual machines were seen to take 20 to 50 % longer for networks whose kernels take microseconds, for ten seconds at a time.
DISTURBED, _ATTEMPTS, _PAUSE_S = 1.06, 4, 3.0


class Costing:
    """A cost model for ``profile``, how it learns, and the schedules that go with what it knows.

    Measurements answer where this machine can run the target's code, and where the store has some that a device of the
    target made; elsewhere simulations, where the tool that the profile names is here, and the analytic model for the rest.
    Close it (or use ``with``) to end the measuring process.

    prior : the analytic model. model : the best one there is. measurable : whether this machine runs the target's code.
    simulator : what simulates for the target; None where it is measured or nobody can. learns : whether ``measure`` can make the model know more.
    """

    def __init__(self, profile: TargetProfile, store: str | Path | None = None, progress: Progress = SILENT, *,
                 weights_bytes: int = 0, exact: bool = False):  # fmt: skip
        """store : file of the measurement store; None for the one in the user's cache folder. Raises StoreError.

        weights_bytes, exact : see ``Measurer``.
        """
        self.profile, self.measurable = profile, profile.runs_here()
        self.prior, self._exact = analytic_model(profile), exact
        self._calibrated: list["Network"] = []
        self._fastest_us: dict[str, float] = {}
        self.model: CostModel = self.prior
        self.store: "Store | None" = None
        self._imported: "Mapping[str, Measurement]" = {}
        self.simulator: "Simulator | None" = None
        if self.measurable:
            from hwprune.measure.measurer import Measurer

            self.store = Store(store, progress)
            self.measurer = Measurer(profile, self.store, progress, weights_bytes=weights_bytes, exact=exact)
            self.model = TableModel(self.measurer.measured, self.prior, self.measurer.near_bytes)
        else:
            self._use_imported(store, weights_bytes, progress)
        if not (self.measurable or self._imported) and incore.why_not(profile) is None:
            from hwprune.cost.simulator import Simulator

            self.store = self.store or Store(store, progress)
            self.simulator = Simulator(profile, self.store, progress, weights_bytes=weights_bytes, exact=exact)
            self.model = TableModel(self.simulator.simulated, self.prior, known="simulated")

    @property
    def learns(self) -> bool:
        return self.measurable or self.simulator is not None

    def _use_imported(self, path: str | Path | None, weights_bytes: int, progress: Progress) -> None:
        """Answer with what the latest device of this target measured, if the store, or else hwprune itself, has any for networks
        of this size."""
        from hwprune.kernels import is_exact
        from hwprune.kernels.schedule import Config
        from hwprune.measure.device import software
        from hwprune.measure.elsewhere import latest_of, latest_shipped
        from hwprune.measure.measurer import spread_bytes
        from hwprune.measure.store import default_path

        def admits(text: str) -> bool:
            return not self._exact or is_exact(Config.from_text(text))

        path, found, source = Path(path) if path is not None else default_path(), None, ""
        made_with = software(self.profile, spread_bytes(weights_bytes, self.profile))
        if path.exists():
            self.store = Store(path, progress)
            found = latest_of(self.store, self.profile.threads, made_with, admits)
        if found is None:
            found, source = latest_shipped(self.profile, made_with, admits), ", which come with hwprune"
        if found is None:
            return
        others = f", the latest of {found.devices} devices" if found.devices > 1 else ""
        progress.say(
            f"target {self.profile.name!r}: kernels measured on {found.context.device} until {found.measured_at}{others}{source}; "
            f"the analytic model for the rest"
        )
        self._imported = {m.workload.key: m for m in found.measurements}
        self.model = TableModel(self._imported.values, self.prior)

    def measure(self, workloads: Sequence[Workload], effort: str = "quick") -> None:
        """Measure, or simulate, what is not known with this ``effort`` (``quick`` or ``tune``), and let the model learn it.

        What is far from what the other measurements let expect is measured once more: something may have disturbed it.
        """
        if self.simulator is not None:
            self.simulator.ensure(workloads, effort)
            self.model.refresh()
            return
        known = {w.key for w in workloads if self.model.is_measured(w)}
        self.measurer.ensure(workloads, effort)
        self.model.refresh()
        asked = {w.key for w in workloads} - known
        doubtful = [w for w in self.model.doubtful() if w.key in asked]
        if doubtful:
            self.measurer.repeat(doubtful)
            self.model.refresh()

    def discard_wrong(self, workloads: Sequence[Workload]) -> list[tuple[Workload, str]]:
        """Workloads whose fastest kernel on this machine computes something else, and its schedule, which is not used again."""
        wrong = self.measurer.discard_wrong(workloads)
        self.model.refresh()
        return wrong

    def uncertain(self, of: Surface, most: int) -> list[Workload]:
        """Kernels of a cost surface whose measurement would tell most, ``most`` of them or fewer."""
        return choose(self.model, of, most)

    def calibrate(self, network: "Network") -> None:
        """Learn what a whole network takes beside the sum of its kernels, all of which must be measured.

        The first network that is given, the dense one, and the last one count, and both are timed in turn in one run:
        a budget is a share of one of them, and a disturbance that hits only one would move it. What was timed is kept
        in the store under the networks' kernels and schedules, so that a search that is repeated finds it. Simulations know
        no more of a network than of its kernels.
        """
        if self.simulator is not None:
            return
        self._calibrated = [*self._calibrated[:1], network]
        networks = self._calibrated
        names = [self._name(n) for n in networks]
        keys = [_key(name, names) for name in names]
        whole = [self.store.calibration(key, self.measurer.context) for key in keys]
        if None in whole:
            whole = self._calm(names[0], lambda: [x.latency_us for x in self.measurer.time_networks(dict(zip(names, networks)))])
            for key, value in zip(keys, whole):
                self.store.calibrate(key, value, self.measurer.context)
        self._fastest_us[names[0]] = min(self._fastest_us.get(names[0], math.inf), whole[0])
        self.model.fit([(n.workloads(), us) for n, us in zip(networks, whole)])

    def timed(self, control: "NetworkProgram", programs: "Sequence[NetworkProgram]") -> tuple[list[float], float]:
        """Microseconds of each of ``programs``, timed in turn, and of ``control``, which is timed beside them: where it takes longer than
        it has before, they are all timed again, some times at most."""
        named = {"control": control} | {str(i): program for i, program in enumerate(programs)}
        control_us, *whole = self._calm(_name_of_program(control), lambda: [x.latency_us for x in self.measurer.time_programs(named)])
        return whole, control_us

    def _calm(self, control: str, run: Callable[[], list[float]]) -> list[float]:
        """What ``run`` answers: microseconds of several networks, the first of which is called ``control``. Where that one takes
        longer than it is known to, something else has the machine: it is run again, and the answer in which it was fastest
        counts."""
        taken: list[list[float]] = []
        known = self._fastest_us.get(control, math.inf)
        while len(taken) < _ATTEMPTS and (not taken or taken[-1][0] > DISTURBED * known):
            if taken:
                time.sleep(_PAUSE_S)
            taken.append(run())
        best = min(taken, key=lambda us: us[0])
        self._fastest_us[control] = min(known, best[0])
        return best

    def recall(self, network: "Network") -> None:
        """Learn what ``network`` takes as a whole if the store has it from a search's start; nothing is measured."""
        if not self.measurable or not all(self.model.is_measured(w) for w in network.workloads()):
            return
        name = self._name(network)
        whole_us = self.store.calibration(_key(name, [name]), self.measurer.context)
        if whole_us is not None:
            self.model.fit([(network.workloads(), whole_us)])

    def _name(self, network: "Network") -> str:
        text = "\n".join(f"{w.key} {self.pick(w).to_text()}" for w in network.workloads())
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def pick(self, workload: Workload) -> "Config":
        """The schedule whose latency the model answers with; where nothing was measured, the rule's best guess."""
        if self.measurable:
            return self.measurer.schedule(workload)
        if self.simulator is not None:
            return self.simulator.schedule(workload)
        from hwprune.kernels import candidates
        from hwprune.kernels.schedule import Config

        if workload.key in self._imported:
            return Config.from_text(self._imported[workload.key].config)

        return candidates(workload, self.profile, self._exact)[0]

    def close(self) -> None:
        if self.measurable:
            self.measurer.close()
        if self.simulator is not None:
            self.simulator.close()
        if self.store is not None:
            self.store.close()

    def __enter__(self) -> "Costing":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _key(name: str, timed: Sequence[str]) -> str:
    """Under what the store keeps the latency of a network that was timed in turn with those called ``timed``."""
    return f"network_us of {name} beside {', '.join(timed)}"


def _name_of_program(program: "NetworkProgram") -> str:
    """Of a network that is timed to see whether the machine is calm: its kernels."""
    return hashlib.sha256(" ".join(sorted(program.kernels)).encode()).hexdigest()[:16]


def load_target(name: str, threads: int | None = None) -> TargetProfile:
    """The profile called ``name``, on ``threads`` of its cores if that is given. TargetError, UsageError."""
    profile = targets.load(name)
    if threads is None:
        return profile
    if not 1 <= threads <= profile.cores:
        raise UsageError(
            f"target {name!r} has {profile.cores} cores, but {threads} threads were asked for; give 1 to {profile.cores}"
        )
    return profile.model_copy(update={"threads": threads})


def check_runs_here(profile: TargetProfile, what: str) -> None:
    if not profile.runs_here():
        raise UsageError(
            f"this machine cannot run code for target {profile.name!r} ({profile.architecture}), so {what}"
        )
