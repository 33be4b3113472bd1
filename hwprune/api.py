"""The Python interface: what the commands do, as functions.

    import hwprune
    result = hwprune.search(model, example_input, target="native", latency="0.5x")
    result.plan, result.model, result.frontier, result.table()
    result.compile("artifact")
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from hwprune.plan import PruningPlan
from hwprune.progress import SILENT, Progress
from hwprune.results import BenchRow, FrontierPoint, InspectReport, MeasureReport, ResultRow

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hwprune.graph.channels import ChannelGraph
    from hwprune.prove import ProofReport
    from hwprune.spec.data import DataSet
    from hwprune.train.finetune import TrainReport


@dataclass
class SearchResult:
    """A finished run, in memory and (if ``out`` is given) in its folder.

    dense, model : the user's module and the pruned one (an ordinary trainable module).
    frontier : non-dominated networks by latency, the fastest first; ``chosen`` marks the plan's own.
    record : every setting, version, machine fact and timing, as written to ``run.json``.
    """

    plan: PruningPlan
    dense: "nn.Module"
    model: "nn.Module"
    graph: "ChannelGraph"
    frontier: list[FrontierPoint]
    proof: "ProofReport | None"
    record: dict[str, Any]
    example_input: "torch.Tensor"
    data: "DataSet | None" = None
    out: Path | None = None
    rows: list[ResultRow] = field(default_factory=list)

    def table(self) -> list[ResultRow]:
        """Dense beside pruned: accuracy, parameters, size, memory, MACs, predicted and measured latency."""
        return list(self.rows)

    def finetune(self, epochs: int, *, data: "DataSet | None" = None, resume: bool = False, progress: Progress = SILENT) -> "TrainReport":
        """Train ``model`` in place with ``dense`` as teacher; the best checkpoint is kept."""
        raise NotImplementedError

    def compile(self, out: str | Path | None = None, *, dense: bool = True, progress: Progress = SILENT) -> Path:
        """Compile ``model`` (and ``dense`` beside it) for the plan's target; returns the pruned artifact's folder."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Summary for ``--json``: out, plan, rows, frontier, proof, record."""
        raise NotImplementedError


def search(
    model: "nn.Module",
    example_input: "torch.Tensor",
    *,
    target: str = "native",
    latency: str | None = None,
    memory: str | None = None,
    size: str | None = None,
    data: "DataSet | None" = None,
    importance: str | None = None,
    strategy: str = "exact",
    finetune: int = 0,
    compile: bool = False,
    out: str | Path | None = None,
    force: bool = False,
    freeze: Sequence[str] = (),
    seed: int = 0,
    threads: int | None = None,
    store: str | Path | None = None,
    model_spec: str = "(in memory)",
    data_spec: str | None = None,
    weights_sha256: str | None = None,
    progress: Progress = SILENT,
) -> SearchResult:
    """Find the structured pruning that keeps the most importance inside the budgets on ``target``, and apply it.

    With ``out=None`` nothing is written (the command line passes ``default_out(model_spec, target)``).
    With no budget at all, ``latency="0.5x"``. ``out`` that holds a finished run: UsageError unless ``force``.
    """
    raise NotImplementedError


def default_out(model_spec: str, target: str) -> Path:
    """``runs/<model>-<target>-<date>[-n]``: the first such folder that does not exist yet."""
    raise NotImplementedError


def load_run(path: str | Path, *, model: "nn.Module | None" = None, data: "DataSet | None" = None) -> SearchResult:
    """The run in folder ``path``: its model rebuilt from its spec (or ``model``), pruned by plan.json, weights loaded."""
    raise NotImplementedError


def finetune_run(
    path: str | Path, epochs: int, *, data: "DataSet | None" = None, model: "nn.Module | None" = None, resume: bool = False,
    progress: Progress = SILENT,
) -> SearchResult:
    """Fine-tune the run in ``path`` (data from its record unless given), save weights and table; ``resume`` continues."""
    raise NotImplementedError


def compile_run(path: str | Path, *, target: str | None = None, out: str | Path | None = None, model: "nn.Module | None" = None,
                threads: int | None = None, store: str | Path | None = None, progress: Progress = SILENT) -> Path:
    """Compile the pruned model of a run (default: for its own target, into its ``artifact`` folder)."""
    raise NotImplementedError


def compile_model(
    model: "nn.Module", example_input: "torch.Tensor", *, target: str = "native", out: str | Path, threads: int | None = None,
    store: str | Path | None = None, model_spec: str = "(in memory)", progress: Progress = SILENT,
) -> Path:
    """Compile any model as it is; returns the artifact's folder."""
    raise NotImplementedError


def bench(
    subject: "str | Path | nn.Module", *, example_input: "torch.Tensor | None" = None, target: str = "native",
    vs: Sequence[str] = (), threads: int | None = None, store: str | Path | None = None, rounds: int = 20,
    progress: Progress = SILENT,
) -> list[BenchRow]:
    """Time an artifact folder, a run folder (dense and pruned) or a module, interleaved with engines ``vs``.

    vs : any of "onnxruntime", "openvino", "torch". A model SPEC is loaded by the caller (``spec.model.load_model``).
    """
    raise NotImplementedError


def measure(
    model: "nn.Module", example_input: "torch.Tensor", *, target: str = "native", freeze: Sequence[str] = (), threads: int | None = None,
    store: str | Path | None = None, progress: Progress = SILENT,
) -> MeasureReport:
    """Time the kernels of ``model`` at its dense and candidate widths on ``target`` and keep them in the store."""
    raise NotImplementedError


def inspect(model: "nn.Module", example_input: "torch.Tensor", *, freeze: Sequence[str] = (), model_spec: str = "(in memory)") -> InspectReport:
    """Groups, couplings, and what is frozen and why."""
    raise NotImplementedError
