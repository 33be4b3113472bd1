"""The Python interface: what the commands do, as functions.

    import hwprune
    result = hwprune.search(model, example_input, target="native", latency="0.5x")
    result.plan, result.model, result.frontier, result.table()
    result.compile("artifact")
"""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import torch
from torch import nn

from hwprune.budget import parse_bytes, parse_latency
from hwprune.compile.lower import Network, lower
from hwprune.compile.parts import lower_batch, trace_in_parts
from hwprune.costing import Costing, check_runs_here, load_target
from hwprune.devices import bundle, import_results, measure_on_boards
from hwprune.errors import TargetError, UsageError
from hwprune.graph import ChannelGraph, Traced, analyze, trace
from hwprune.inspection import price, report
from hwprune.plan import Figure, GroupChoice, Predicted, PruningPlan
from hwprune.progress import SILENT, Progress
from hwprune.prove import prove
from hwprune.prune import prune
from hwprune.record import Stopwatch, data_facts, machine, now, versions
from hwprune.results import BenchRow, CheckReport, InspectReport, MeasureReport
from hwprune.run import IN_MEMORY, SearchResult, load_run, run_data
from hwprune.run_folder import RunFolder, default_out
from hwprune.search.driver import Search
from hwprune.search.outcome import NetworkFigures, Outcome, Settings
from hwprune.search.problem import top_units
from hwprune.search.tables import NetworkView
from hwprune.spec.data import DataSet
from hwprune.target import TargetProfile

__all__ = [
    "SearchResult", "bench", "bundle", "check_predictions", "compile_model", "compile_run", "default_out", "finetune_run",
    "import_results", "inspect", "load_run", "measure", "measure_on_boards", "search",
]  # fmt: skip

#: Training batches that a criterion with data sees. More changes the ranking of units little and takes longer.
_SCORING_BATCHES, _SCORING_BATCH_SIZE = 16, 64


def search(
    model: nn.Module,
    example_input: torch.Tensor,
    *,
    target: str = "native",
    latency: str | None = None,
    memory: str | None = None,
    size: str | None = None,
    data: DataSet | None = None,
    importance: str | None = None,
    strategy: str = "exact",
    finetune: int = 0,
    compile: bool = False,
    out: str | Path | None = None,
    force: bool = False,
    freeze: Sequence[str] = (),
    branches: bool = True,
    exact: bool = False,
    seed: int = 0,
    threads: int | None = None,
    store: str | Path | None = None,
    model_spec: str = IN_MEMORY,
    data_spec: str | None = None,
    weights_sha256: str | None = None,
    progress: Progress = SILENT,
) -> SearchResult:
    """Find the structured pruning that keeps the most importance inside the budgets on ``target``, and apply it.

    Parameters
    ----------
    model : any module that ``torch.export`` accepts; it is not changed.
    example_input : one input, batch included; the network is pruned and compiled for its shape.
    latency, memory, size : budgets such as ``"0.5x"`` (of the dense network), ``"3.2ms"``, ``"4MB"``. With none of them,
        ``latency="0.5x"``. Memory is peak activation memory, size is that of the packed weights.
    data : for importance by gradient, accuracy, BatchNorm statistics and training. Without it accuracy is unknown.
    importance : ``"l1"``, ``"l2"``, ``"bn"``, ``"taylor"`` or ``"random"``; by default ``"taylor"`` with data, ``"l2"`` without.
    strategy : ``"exact"`` or ``"greedy"``.
    finetune : epochs of training after pruning. compile : also compile (into ``out``) and time both networks.
    out : the run's folder; None to write nothing. One that holds a finished run: UsageError unless ``force``.
    freeze : patterns of modules or parameters that are not pruned.
    branches : whether residual branches may go as a whole.
    exact : only kernels that compute operation by operation; without it, Winograd's where they are faster, and those of
        tensor cores where the target allows rounded factors. A budget of size implies it: Winograd's weights are larger.
    store : file of the measurement store; None for the one in the user's cache folder.

    Raises
    ------
    HwpruneError or one of its subclasses, always with one sentence: UsageError for bad arguments (BudgetError names what
    is reachable), TraceError, ProofError and so on.
    """
    settings = _settings(latency, memory, size, strategy, branches)
    exact = exact or size is not None
    profile = load_target(target, threads)
    criterion = _criterion(importance, data)
    if finetune and data is None:
        raise UsageError(f"finetune={finetune} needs data; give data (--data) or leave fine-tuning out")
    if compile and out is None:
        raise UsageError("compile=True needs a folder for the artifact; give out=...")
    folder = RunFolder(out) if out is not None else None
    if folder:
        folder.check_writable(force)
    clock = Stopwatch(progress)
    with clock.step("trace", "tracing the network"):
        network = lower_batch(model, example_input, profile)
        traced, parts = network.traced, network.parts
        graph = analyze(traced, freeze)
    with clock.step("importance", f"importance ({criterion.name})"):
        scores = criterion.score(graph, _scoring_batches(data, seed), seed=seed)
    with clock.step("search"), Costing(profile, store, progress, weights_bytes=network.weight_bytes(), exact=exact) as cost:
        learner = cost if cost.learns else None
        view = NetworkView(network, graph, lambda smaller: lower(smaller, profile, parts))

        def lowered(widths: Mapping[str, int]) -> Network:
            kept = {g: top_units(scores[g], k) for g, k in widths.items()}
            return lower(trace(prune(model, graph, kept)[0], traced.example_inputs), profile, parts)

        outcome = Search(view, scores, cost.model, settings, learner, lowered, cost.prior, progress).run()
    plan = _plan(graph, scores, outcome, target, model_spec, example_input, criterion.name, strategy)
    with clock.step("prune", "pruning and proof"):
        pruned, rewrites = prune(model, graph, {c.group: c.kept for c in plan.choices})
        proof = prove(model, pruned, graph, {c.group: c.kept for c in plan.choices}, seed=seed)
    options = {
        "target": target, "latency": latency, "memory": memory, "size": size, "importance": criterion.name,
        "strategy": strategy, "finetune": finetune, "compile": compile, "freeze": list(freeze),
        "branches": branches, "exact": exact, "seed": seed, "threads": threads, "store": str(store) if store else None,
    }  # fmt: skip
    record = _record(
        options, profile, outcome, {"spec": model_spec, "weights_sha256": weights_sha256}, data_facts(data, data_spec)
    )
    result = SearchResult(
        plan, model, pruned, graph, outcome.frontier, proof, record, example_input, data, folder and folder.path
    )
    result.save_search(rewrites)
    if data is not None:
        result.recover(finetune, clock, progress)
    if compile:
        with clock.step("compile"):
            result.compile(progress=progress)
    result.finish(clock)
    return result


def finetune_run(
    path: str | Path,
    epochs: int,
    *,
    data: DataSet | None = None,
    model: nn.Module | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
) -> SearchResult:
    """Fine-tune the run in ``path``; its weights and table are written anew.

    data : by default what the run's record names. model : the dense module, for a run whose model was given in memory.
    resume : go on from the last checkpoint of an earlier fine-tuning of this run.
    """
    result = load_run(path, model=model, data=data if data is not None else run_data(path))
    result.finetune(epochs, resume=resume, progress=progress)
    return result


def compile_run(
    path: str | Path,
    *,
    target: str | None = None,
    out: str | Path | None = None,
    model: nn.Module | None = None,
    threads: int | None = None,
    store: str | Path | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Compile the pruned network of the run in ``path``; returns the artifact's folder.

    Without ``target`` and ``out`` the run's own target is used, the dense network is compiled beside it, both are timed
    where this machine can, and the run's table is written anew.
    """
    from hwprune.programs import compile_to

    result = load_run(path, model=model)
    own = result.plan.target
    if out is None and target in (None, own):
        return result.compile(threads=threads, store=store, progress=progress)
    folder = Path(out) if out is not None else RunFolder(path).path / f"artifact_{Path(target or own).stem}"
    facts = {"run": str(path), "model": result.plan.model, "network": "pruned"}
    return compile_to(
        result.model, result.example_input, load_target(target or own, threads), folder, store, facts, progress,
        exact=result.record["options"].get("exact", False),
    )


def compile_model(
    model: nn.Module,
    example_input: torch.Tensor,
    *,
    target: str = "native",
    out: str | Path,
    threads: int | None = None,
    store: str | Path | None = None,
    exact: bool = False,
    model_spec: str = IN_MEMORY,
    progress: Progress = SILENT,
) -> Path:
    """Compile any network as it is; returns the artifact's folder, ``out``. exact : as for ``search``."""
    from hwprune.programs import compile_to

    return compile_to(
        model, example_input, load_target(target, threads), Path(out), store, {"model": model_spec}, progress, exact=exact
    )


def bench(
    subject: str | Path | nn.Module,
    *,
    example_input: torch.Tensor | None = None,
    target: str = "native",
    vs: Sequence[str] = (),
    threads: int | None = None,
    store: str | Path | None = None,
    rounds: int = 20,
    progress: Progress = SILENT,
) -> list[BenchRow]:
    """Time an artifact folder, a run folder (dense and pruned) or a module, interleaved with the engines ``vs``.

    vs : any of ``"onnxruntime"``, ``"openvino"``, ``"torch"``. A module needs ``example_input``.
    """
    from hwprune.engines import check_engine
    from hwprune.programs import timers_of
    from hwprune.timing import interleaved

    for name in vs:
        check_engine(name)
    contenders = timers_of(subject, example_input, target, vs, threads, store, progress)
    return interleaved(contenders, rounds=rounds, progress=progress)


def measure(
    model: nn.Module,
    example_input: torch.Tensor,
    *,
    target: str = "native",
    within: float = 0.15,
    time_limit_s: float = 180.0,
    freeze: Sequence[str] = (),
    threads: int | None = None,
    store: str | Path | None = None,
    progress: Progress = SILENT,
) -> MeasureReport:
    """Time kernels of ``model``, dense and narrowed, on ``target`` and keep them in the store: those first whose latency is most
    uncertain.

    within : measure until the half width of a kernel's 95 % interval is this share of its latency, on average by time.
    time_limit_s : stop then in any case; what is under way is finished.

    UsageError if this machine cannot run the target's code.
    """
    from hwprune.measuring import measure_surface

    with _measurable(model, example_input, target, freeze, threads, store, progress) as (view, cost):
        return measure_surface(view, cost, within=within, time_limit_s=time_limit_s, progress=progress)


def check_predictions(
    model: nn.Module,
    example_input: torch.Tensor,
    *,
    target: str = "native",
    networks: int = 20,
    freeze: Sequence[str] = (),
    seed: int = 0,
    threads: int | None = None,
    store: str | Path | None = None,
    progress: Progress = SILENT,
) -> CheckReport:
    """Predict random pruned networks, and time each of them as a whole, on this machine; UsageError as for ``measure``."""
    from hwprune.measuring import check

    with _measurable(model, example_input, target, freeze, threads, store, progress) as (view, cost):
        return check(view, cost, networks=networks, seed=seed, progress=progress)


@contextmanager
def _measurable(
    model, example_input, target, freeze, threads, store, progress
) -> Iterator[tuple[NetworkView, Costing]]:
    """A network's view, and a cost model that can measure its kernels here."""
    profile = load_target(target, threads)
    check_runs_here(profile, "nothing can be measured here; pack the kernels for a device with --bundle")
    network = lower_batch(model, example_input, profile)
    view = NetworkView(network, analyze(network.traced, freeze))
    with Costing(profile, store, progress, weights_bytes=view.network.weight_bytes()) as cost:
        yield view, cost


def inspect(
    model: nn.Module,
    example_input: torch.Tensor,
    *,
    target: str = "native",
    freeze: Sequence[str] = (),
    threads: int | None = None,
    store: str | Path | None = None,
    model_spec: str = IN_MEMORY,
    progress: Progress = SILENT,
) -> InspectReport:
    """Groups and their shares of MACs and of latency on ``target``, couplings, and what is frozen and why.

    A group's share is that of the kernels whose work depends on the group's width: those that make its channels and
    those that read them. A kernel between two groups counts for both, so shares add up to more than 1.

    Nothing is measured. Latencies are measured ones where the store has them, and the cost model's elsewhere. For a
    network that cannot be lowered to kernels, ``InspectReport.missing`` says why there are neither MACs nor latencies.
    """
    traced, parts = _traced(model, example_input, target, threads)
    graph = analyze(traced, freeze)
    work = price(graph, target, threads, store, progress, parts)
    return report(graph, work, model_spec, tuple(example_input.shape))


def _traced(model: nn.Module, example_input: torch.Tensor, target: str, threads: int | None) -> tuple[Traced, int]:
    """As ``trace_in_parts``; whole where there is no such target."""
    try:
        profile = load_target(target, threads)
    except TargetError:
        return trace(model, example_input), 1
    return trace_in_parts(model, example_input, profile)


def _settings(
    latency: str | None, memory: str | None, size: str | None, strategy: str, branches: bool
) -> Settings:
    return Settings(
        latency=parse_latency(latency) if latency is not None else None,
        memory=parse_bytes(memory, "memory") if memory is not None else None,
        size=parse_bytes(size, "size") if size is not None else None,
        strategy=strategy,
        branches=branches,
    )


def _criterion(name: str | None, data: DataSet | None) -> Any:
    from hwprune.importance import CRITERIA

    name = name or ("taylor" if data is not None else "l2")
    if name not in CRITERIA:
        near = difflib.get_close_matches(name, CRITERIA, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(CRITERIA)}"
        raise UsageError(f"unknown importance {name!r}; {hint}")
    if CRITERIA[name].needs_data and data is None:
        without = [n for n, c in CRITERIA.items() if not c.needs_data]
        raise UsageError(f"importance {name!r} needs data; give data (--data) or choose {' or '.join(without)}")
    return CRITERIA[name]


def _scoring_batches(data: DataSet | None, seed: int):
    return None if data is None else list(islice(data.train_batches(_SCORING_BATCH_SIZE, seed), _SCORING_BATCHES))


def _plan(
    graph: ChannelGraph,
    scores,
    outcome: Outcome,
    target: str,
    model: str,
    example: torch.Tensor,
    importance: str,
    strategy: str,
) -> PruningPlan:
    choices = tuple(
        GroupChoice(group=g.id, width=g.width, kept=top_units(scores[g.id], outcome.widths[g.id])) for g in graph.choices
    )
    return PruningPlan(
        target=target,
        model=model,
        input_shape=tuple(example.shape),
        importance=importance,
        strategy=strategy,
        choices=choices,
        dense=_predicted(graph, outcome.dense, {}),
        predicted=_predicted(graph, outcome.chosen, outcome.widths),
        importance_kept=min(1.0, outcome.importance_kept),
        gap=outcome.gap,
    )


def _predicted(graph: ChannelGraph, figures: NetworkFigures, widths: dict[str, int]) -> Predicted:
    e, shapes = figures.latency, graph.shapes(widths)
    gone = graph.gone(widths)
    parameters = set(graph.traced.exported.graph_signature.inputs_to_parameters) - gone
    return Predicted(
        latency_us=Figure(value=e.latency_us, provenance=e.provenance, low=e.low_us, high=e.high_us),
        macs=figures.macs,
        parameters=sum(torch.Size(shapes(node)).numel() for node in parameters),
        size_bytes=figures.weight_bytes,
        peak_memory_bytes=figures.peak_memory_bytes,
    )


def _record(
    options: dict[str, Any],
    profile: TargetProfile,
    outcome: Outcome,
    model: dict[str, Any],
    data: dict[str, Any] | None,
) -> dict[str, Any]:
    """The run's record: see ``hwprune.run_folder``."""
    return {
        "status": "running", "started": now(), "options": options, "model": model, "data": data,
        "target": {"name": profile.name, "digest": profile.digest(), "profile": profile.model_dump(mode="json", by_alias=True)},
        "versions": versions(), "machine": machine(),
        "search": {"rounds": outcome.rounds, "candidates": outcome.candidates, "gap": outcome.gap},
    }  # fmt: skip
