"""Measuring the kernels of a network on other machines: in a bundle, on boards; and importing what was measured."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

import torch
from torch import nn

from hwprune.compile.parts import lower_batch
from hwprune.cost.analytic_gpu import analytic_model
from hwprune.costing import load_target
from hwprune.graph import analyze
from hwprune.measuring import distinct, uniform_networks
from hwprune.progress import SILENT, Progress
from hwprune.results import BundleReport
from hwprune.search.space import candidate_widths
from hwprune.search.tables import NetworkView
from hwprune.target import TargetProfile
from hwprune.workload import Workload

if TYPE_CHECKING:
    from hwprune.measure.importing import Imported
    from hwprune.measure.job import Job
    from hwprune.measure.store import Store

#: Schedules of each workload that go into a bundle: of the dense network's kernels, and of narrowed ones.
_PACKED_DENSE, _PACKED_NARROWED = 8, 4


def bundle(
    model: nn.Module,
    example_input: torch.Tensor,
    out: str | Path,
    *,
    target: str,
    freeze: Sequence[str] = (),
    threads: int | None = None,
    progress: Progress = SILENT,
) -> BundleReport:
    """Pack the kernels that ``measure`` would time into the tar file ``out``, for a device that this machine is not.

    On the device ``tar xf`` and ``./measure`` make results.json of it, which ``import_results`` takes. An interrupted call
    goes on where it was when it is made again. Raises CompileError where the target's compiler is missing.
    """
    from hwprune.measure.bundle import write_bundle

    started, out, profile = time.perf_counter(), Path(out), load_target(target, threads)
    parts = out.with_name(f"{out.name}.parts")
    job = _device_job(model, example_input, profile, freeze, parts, progress)
    write_bundle(job, profile, parts, out)
    shutil.rmtree(parts)
    return BundleReport(out, out.stat().st_size, len(job.workloads), len(job.kernels) - 1, time.perf_counter() - started)


def measure_on_boards(
    model: nn.Module,
    example_input: torch.Tensor,
    rpc: str,
    key: str,
    *,
    target: str,
    freeze: Sequence[str] = (),
    threads: int | None = None,
    emulated: bool = False,
    store: str | Path | None = None,
    progress: Progress = SILENT,
) -> Imported:
    """Time the kernels that ``measure`` would time on all boards called ``key`` behind TVM's RPC tracker at ``rpc``.

    Boards share the work; what one returns is kept at once, and what the store has of the latest device of this target is
    not measured again. emulated : as for ``import_results``. Raises UsageError where no tracker or no such board is,
    MeasureError when all boards died.
    """
    from hwprune.measure import importing
    from hwprune.measure.rpc import boards, measure_job, parse_address
    from hwprune.measure.store import Store

    profile, tracker = load_target(target, threads), parse_address(rpc)
    boards(tracker, key)  # before anything is built for them
    opened, kept = Store(store, progress), []
    parts = opened.path.with_name(f"{opened.path.name}.{profile.name}.parts")

    def keep(text: str) -> None:
        results = importing.parse_results(text, "a board's answer")
        importing.check_fits(results, profile, emulated, "a board's answer")
        kept.append(importing.store_results(results, opened))

    try:
        job = _device_job(model, example_input, profile, freeze, parts, progress, opened)
        if job.workloads:
            measure_job(job, profile, parts, tracker, key, keep, progress)
        shutil.rmtree(parts)
        return importing.together(profile.name, kept, opened.path)
    finally:
        opened.close()


def import_results(
    path: str | Path,
    *,
    target: str | None = None,
    emulated: bool = False,
    store: str | Path | None = None,
    progress: Progress = SILENT,
) -> Imported:
    """Keep what a bundle has measured in the store, under the device's name.

    target : where the job's target is not found by name. emulated : keep an emulator's times, too; no cost model reads
    them. Raises UsageError, and keeps nothing, if the file was edited or cut short or does not fit this hwprune.
    """
    from hwprune.measure import importing
    from hwprune.measure.store import Store

    results = importing.read_results(Path(path))
    importing.check_fits(results, importing.profile_of(results, target, str(path)), emulated, str(path))
    opened = Store(store, progress)
    try:
        return importing.store_results(results, opened)
    finally:
        opened.close()


def _device_job(
    model: nn.Module, example_input: torch.Tensor, profile: TargetProfile, freeze: Sequence[str], folder: Path,
    progress: Progress, store: "Store | None" = None,
) -> "Job":  # fmt: skip
    """The kernels of ``model`` for a device of ``profile``, but for those that ``store`` knows, built into ``folder``."""
    from hwprune.measure.bundle import Asked, build_job, check_packable
    from hwprune.measure.device import software
    from hwprune.measure.elsewhere import latest_of
    from hwprune.measure.measurer import spread_bytes

    check_packable(profile)  # before the network is traced for nothing
    view, narrowed = _measured_kernels(model, example_input, profile, freeze)
    asked = {w.key: Asked(w, _PACKED_NARROWED) for w in narrowed}
    asked |= {w.key: Asked(w, _PACKED_DENSE) for w in view.workloads({})}
    spread = spread_bytes(view.network.weight_bytes(), profile)
    known = latest_of(store, profile.threads, software(profile, spread)) if store else None
    efforts = {m.workload.key: m.effort for m in known.measurements} if known else {}
    wanted = [a for key, a in asked.items() if efforts.get(key, 0) < a.schedules]
    return build_job(wanted, profile, profile.threads, spread, folder, progress)


def _measured_kernels(
    model: nn.Module, example_input: torch.Tensor, profile: TargetProfile, freeze: Sequence[str]
) -> tuple[NetworkView, list[Workload]]:
    """The network, and its kernels when it is uniformly narrowed to widths that a search may choose."""
    network = lower_batch(model, example_input, profile)
    graph = analyze(network.traced, freeze)
    view = NetworkView(network, graph)
    full = {g.id: g.width for g in graph.groups}
    widths = candidate_widths(view, full, analytic_model(profile))
    return view, distinct([w for chosen in uniform_networks(widths) for w in view.workloads(chosen)])
