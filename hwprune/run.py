"""A run: what a search found, in memory and in its folder, and what can be done with it afterwards."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import torch
from torch import nn

from hwprune import record as recording
from hwprune.costing import load_target
from hwprune.errors import UsageError
from hwprune.figures import result_rows
from hwprune.fsio import sha256_file, write_json_atomic
from hwprune.graph import ChannelGraph, analyze, trace
from hwprune.plan import PruningPlan
from hwprune.progress import SILENT, Progress
from hwprune.prove import ProofReport
from hwprune.prune import Rewrite, prune
from hwprune.record import Stopwatch
from hwprune.results import FrontierPoint, ResultRow
from hwprune.run_folder import RunFolder
from hwprune.spec.data import DataSet, load_data
from hwprune.spec.weights import load_weights, save_state

if TYPE_CHECKING:
    from hwprune.train.finetune import TrainReport

#: Batches over which BatchNorm statistics are averaged where no training follows.
_CALIBRATION_BATCHES = 32

IN_MEMORY = "(in memory)"


@dataclass
class SearchResult:
    """A finished run, in memory and (if ``out`` is given) in its folder.

    dense, model : the user's module and the pruned one (an ordinary trainable module).
    frontier : non-dominated networks by latency, the fastest first; ``chosen`` marks the plan's own.
    proof : that ``model`` computed what it should when it was pruned, before any training.
    record : every setting, version, machine fact and timing, as written to ``run.json``.
    """

    plan: PruningPlan
    dense: nn.Module
    model: nn.Module
    graph: ChannelGraph
    frontier: list[FrontierPoint]
    proof: ProofReport | None
    record: dict[str, Any]
    example_input: torch.Tensor
    data: DataSet | None = None
    out: Path | None = None
    rows: list[ResultRow] = field(default_factory=list)

    def table(self) -> list[ResultRow]:
        """Dense beside pruned: accuracy, parameters, size, memory, MACs, predicted and measured latency."""
        return result_rows(self.plan, (self.dense, self.model), self.record, self.out)

    def finetune(
        self, epochs: int, *, data: DataSet | None = None, resume: bool = False, progress: Progress = SILENT
    ) -> "TrainReport":
        """Train ``model`` in place with ``dense`` as teacher; the best checkpoint is kept and the run's files follow."""
        self.data = data or self.data
        if self.data is None:
            raise UsageError("fine-tuning needs data; give data (--data)")
        clock = Stopwatch(progress)
        report = self.recover(epochs, clock, progress, resume=resume)
        if self.folder and (self.folder.artifact.exists() or self.record.get("measured")):
            self.record["measured"] = {"note": "trained since it was compiled; compile it again"}
        self.finish(clock)
        return report

    def compile(
        self,
        out: str | Path | None = None,
        *,
        dense: bool = True,
        threads: int | None = None,
        store: str | Path | None = None,
        progress: Progress = SILENT,
    ) -> Path:
        """Compile ``model`` for the plan's target into ``out`` (default: ``artifact`` in the run's folder).

        With ``dense`` the dense network is compiled beside it (``artifact_dense``), and where this machine can run the
        target's code both are timed in one run, for ``table()``.
        """
        from hwprune.programs import compile_to, time_pair

        if out is None and self.out is None:
            raise UsageError("this run has no folder; say where the artifact goes: compile(out=...)")
        asked = self.record["options"]
        profile = load_target(self.plan.target, threads or asked["threads"])
        folder = Path(out) if out is not None else self.folder.artifact
        facts, store = {"model": self.plan.model, "run": str(self.out) if self.out else None}, store or asked["store"]
        # as the search measured them
        kernels = {"exact": asked.get("exact", False), "weights_bytes": self.plan.dense.size_bytes}
        artifact = compile_to(
            self.model, self.example_input, profile, folder, store, {**facts, "network": "pruned"}, progress, **kernels
        )
        if dense:
            beside = folder.with_name(f"{folder.name}_dense")
            compile_to(self.dense, self.example_input, profile, beside, store, {**facts, "network": "dense"}, progress, **kernels)
            if profile.runs_here():
                measured = time_pair(beside, artifact, profile, store, progress)
                self.record["measured"] = {side: figure.model_dump() for side, figure in measured.items()}
            else:
                self.record["measured"] = {"note": f"this machine cannot run {profile.architecture} code"}
        self.finish()
        return artifact

    def to_json(self) -> dict[str, Any]:
        """Summary for ``--json``: out, plan, rows, frontier, proof, record."""
        return {
            "out": str(self.out) if self.out else None,
            "plan": self.plan.model_dump(mode="json"),
            "rows": [row.to_json() for row in self.table()],
            "frontier": [point.to_json() for point in self.frontier],
            "proof": asdict(self.proof) if self.proof else None,
            "record": self.record,
        }

    @property
    def folder(self) -> RunFolder | None:
        return RunFolder(self.out) if self.out is not None else None

    def recover(
        self, epochs: int, clock: Stopwatch, progress: Progress, *, resume: bool = False
    ) -> "TrainReport | None":
        """Recalibrate BatchNorm, train for ``epochs``, and note the accuracies; needs ``data``."""
        from hwprune.train.bn import recalibrate
        from hwprune.train.evaluate import accuracy

        report, seed = None, self.record["options"]["seed"]
        with clock.step("finetune" if epochs else "calibrate"):
            if epochs:
                report = self._train(epochs, seed, resume, progress)
            else:
                recalibrate(self.model, islice(self.data.train_batches(seed=seed), _CALIBRATION_BATCHES))
        with clock.step("accuracy"):
            before = (self.record.get("accuracy") or {}).get("dense")
            dense = before if before is not None else accuracy(self.dense, self.data, progress=progress)
            pruned = report.best_accuracy if report else accuracy(self.model, self.data, progress=progress)
        note = f"after {epochs} epoch{'s' * (epochs > 1)}" if epochs else "BatchNorm recalibrated, not trained"
        self.record["accuracy"] = {"dense": dense, "pruned": pruned, "note": note}
        if report:
            self.record["training"] = report.to_dict()
        if self.folder:
            save_state(self.model.state_dict(), self.folder.model)
        return report

    def _train(self, epochs: int, seed: int, resume: bool, progress: Progress) -> "TrainReport":
        from hwprune.train.finetune import finetune

        folder = self.folder.finetune if self.folder else None
        return finetune(
            self.model, self.dense, self.data, epochs=epochs, seed=seed, folder=folder, resume=resume, progress=progress
        )

    def save_search(self, rewrites: Sequence[Rewrite]) -> None:
        """Write what the search found; the run is loadable from here on."""
        folder = self.folder
        if folder is None:
            return
        folder.begin(self.record)
        self.plan.save(folder.plan)
        write_json_atomic(folder.frontier, [point.to_json() for point in self.frontier])
        write_json_atomic(folder.rewrites, [_rewrite(r) for r in rewrites])
        write_json_atomic(folder.proof, asdict(self.proof))
        save_state(self.dense.state_dict(), folder.dense)
        save_state(self.model.state_dict(), folder.model)

    def finish(self, clock: Stopwatch | None = None) -> None:
        """Bring record, table and ``run.json`` up to date."""
        if clock is not None:
            self.record["seconds"] = {**self.record.get("seconds", {}), **clock.seconds}
        self.rows = self.table()
        self.record.update(status="finished", finished=recording.now(), results=[row.to_json() for row in self.rows])
        if self.folder:
            self.record["files"] = {
                p.name: sha256_file(p) for p in (self.folder.dense, self.folder.model, self.folder.plan)
            }
            self.folder.save_record(self.record)


def load_run(path: str | Path, *, model: nn.Module | None = None, data: DataSet | None = None) -> SearchResult:
    """The run in folder ``path``: its model rebuilt from its spec (or ``model``), pruned by plan.json, weights loaded.

    model : the dense module; needed where the run's model was given in memory. Its weights are overwritten by the run's.
    data : by default none; ``run_data`` loads what the run's record names.
    """
    folder = RunFolder(path)
    plan, record = PruningPlan.load(folder.plan), folder.load_record()
    dense = model if model is not None else _rebuilt(plan.model, folder.path)
    load_weights(dense, folder.dense)
    example = torch.randn(plan.input_shape, generator=torch.Generator().manual_seed(0))
    graph = analyze(trace(dense, example), record["options"]["freeze"])
    pruned, _ = prune(dense, graph, {c.group: c.kept for c in plan.choices})
    load_weights(pruned, folder.model)
    frontier = [FrontierPoint.from_json(p) for p in folder.read_json(folder.frontier)]
    proof = ProofReport(**folder.read_json(folder.proof))
    result = SearchResult(plan, dense, pruned, graph, frontier, proof, record, example, data, folder.path)
    result.rows = result.table()
    return result


def run_data(path: str | Path) -> DataSet | None:
    """The data that the run in ``path`` was made with, loaded from its spec; None if it had none or no spec of it."""
    asked = RunFolder(path).load_record()["data"]
    return load_data(asked["spec"], asked["normalize"]) if asked and asked["spec"] else None


def _rebuilt(spec: str, folder: Path) -> nn.Module:
    if spec == IN_MEMORY:
        raise UsageError(
            f"the model of {folder} was given in memory and cannot be rebuilt; pass it: load_run(path, model=...)"
        )
    from hwprune.spec.model import load_model

    return load_model(spec).module


def _rewrite(rewrite: Rewrite) -> dict[str, Any]:
    plain = (bool, int, float, str, type(None), list, tuple)
    return {k: v if isinstance(v, plain) else str(v) for k, v in asdict(rewrite).items()}
