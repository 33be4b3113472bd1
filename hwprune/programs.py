"""From modules, runs and artifacts to compiled programs and their timers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import nn

from hwprune import runtime
from hwprune.compile.artifact import amend_manifest, build_artifact
from hwprune.compile.parts import lower_batch
from hwprune.compile.verify import TOLERANCE, output_error
from hwprune.costing import Costing, check_runs_here, load_target
from hwprune.engines import engine_timer
from hwprune.errors import UsageError
from hwprune.plan import Figure
from hwprune.progress import SILENT, Progress
from hwprune.target import TargetProfile
from hwprune.timing import Timer


#: The figures that a run is judged by are taken over more time than those on the way to it.
_PAIR_ROUNDS = 100


def compile_to(
    model: nn.Module,
    example: torch.Tensor,
    profile: TargetProfile,
    out: Path,
    store: str | Path | None,
    record: dict[str, Any],
    progress: Progress = SILENT,
    *,
    exact: bool = False,
    weights_bytes: int = 0,
) -> Path:
    """Compile ``model`` for ``profile`` into the artifact folder ``out``.

    Where this machine runs the target's code, its kernels are tuned, and the artifact's output is compared with torch's: the manifest
    says how far off it is, and a schedule whose kernel computes something else is found and replaced.

    exact, weights_bytes : see ``Measurer``; bytes of the network for which kernels were measured before, if that is another one.
    """
    network = lower_batch(model, example, profile)
    with Costing(profile, store, progress, weights_bytes=weights_bytes or network.weight_bytes(), exact=exact) as cost:
        def built() -> Path:
            with progress.task(f"compiling for {profile.name}"):
                return build_artifact(network, profile, cost.pick, out, record=record)

        def tuned_error() -> float:
            cost.measure(network.workloads(), "tune")
            return output_error(runtime.load(built()), model, example)

        if not cost.measurable:
            return built()
        error, tolerance = tuned_error(), TOLERANCE[profile.dtype]
        while not error <= tolerance and (wrong := cost.discard_wrong(network.workloads())):
            progress.say(
                f"the compiled network's output was off by {error:.1e} of its largest value; schedules that compute something else were "
                f"found and are not used again: {'; '.join(text for _, text in wrong)}"
            )
            error = tuned_error()
        if not error <= tolerance:
            progress.say(_far_off(error, profile.dtype, exact))
        against = f"torch {torch.__version__} in float32"
        amend_manifest(out, verified={"against": against, "dtype": profile.dtype, "relative_error": error})
        return out


def _far_off(error: float, dtype: str, exact: bool) -> str:
    mend = "each kernel that can be checked computes its workload, so the network itself magnifies rounding"
    if dtype == "float16":
        mend += "; a profile with `core.precision` = 'fp32' computes in float32"
    elif not exact:
        mend += "; --exact leaves out the kernels that round most"
    return f"the compiled network's output differs from torch's by {error:.1e} of its largest value, more than {TOLERANCE[dtype]:.0e}: {mend}"


def artifact_timer(folder: Path, threads: int | None = None) -> Timer:
    return runtime.load(folder, threads=threads).time_us


def time_pair(
    dense: Path, pruned: Path, profile: TargetProfile, store: str | Path | None, progress: Progress = SILENT
) -> dict[str, Figure]:
    """Measured latency of two artifacts in one run, as kernels are measured: microseconds, with the spread of its rounds."""
    with Costing(profile, store, progress) as cost, progress.task("timing both networks"):
        found = cost.measurer.time_artifacts([dense, pruned], rounds=_PAIR_ROUNDS)
    return {
        side: Figure(value=x.latency_us, provenance="measured", low=x.low_us, high=x.high_us)
        for side, x in zip(("dense", "pruned"), found)
    }


def timers_of(
    subject: str | Path | nn.Module,
    example: torch.Tensor | None,
    target: str,
    engines: Sequence[str],
    threads: int | None,
    store: str | Path | None,
    progress: Progress = SILENT,
) -> list[tuple[str, Timer]]:
    """Named timers of an artifact, of both networks of a run, or of a module; each network in the ``engines`` as well."""
    if isinstance(subject, nn.Module):
        return _timers_of_module(subject, example, load_target(target, threads), engines, store, progress)
    folder = Path(subject)
    if (folder / "manifest.json").is_file():
        if engines:
            raise UsageError(
                f"{folder} is an artifact and holds no torch network for {', '.join(engines)}; give the run folder or the model"
            )
        return [(folder.name, artifact_timer(folder, threads))]
    return _timers_of_run(folder, engines, threads, store, progress)


def _timers_of_module(model, example, profile, engines, store, progress) -> list[tuple[str, Timer]]:
    if example is None:
        raise UsageError("timing a module needs an example input; give example_input=...")
    check_runs_here(profile, "nothing can be timed here")
    with tempfile.TemporaryDirectory() as scratch:
        timer = artifact_timer(compile_to(model, example, profile, Path(scratch, "artifact"), store, {}, progress))
    return [("hwprune", timer), *_engines(model, example, engines, profile.threads)]


def _timers_of_run(folder: Path, engines, threads, store, progress) -> list[tuple[str, Timer]]:
    from hwprune.run import load_run

    run = load_run(folder)
    profile = load_target(run.plan.target, threads or run.record["options"]["threads"])
    check_runs_here(profile, "nothing can be timed here")
    artifacts = (run.folder.artifact_dense, run.folder.artifact)
    if not all((a / "manifest.json").is_file() for a in artifacts):
        run.compile(threads=threads, store=store, progress=progress)
    timers = [(f"hwprune, {a}", artifact_timer(f, profile.threads)) for a, f in zip(("dense", "pruned"), artifacts)]
    for name, model in (("dense", run.dense), ("pruned", run.model)):
        timers += _engines(model, run.example_input, engines, profile.threads, f", {name}")
    return timers


def _engines(model, example, engines: Sequence[str], threads: int, suffix: str = "") -> list[tuple[str, Timer]]:
    return [(f"{name}{suffix}", engine_timer(name, model, example, threads)) for name in engines]
