"""The result table: dense beside pruned, each figure with its provenance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping

from hwprune.plan import Figure, PruningPlan
from hwprune.results import ResultRow
from hwprune.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import nn

COUNTED, MEASURED = "counted", "measured"


def result_rows(
    plan: PruningPlan, models: tuple["nn.Module", "nn.Module"], record: Mapping[str, Any], out: Path | None
) -> list[ResultRow]:
    """Accuracy, parameters, size, memory, MACs, predicted and measured latency of the dense and the pruned network.

    models : dense, pruned. record : of the run; its ``accuracy`` and ``measured`` hold what was found of each.
    """
    sides = (plan.dense, plan.predicted)
    count = lambda name: tuple(Figure(value=getattr(s, name), provenance=COUNTED) for s in sides)  # noqa: E731
    return [
        _accuracy(record),
        ResultRow("parameters", "count", *(Figure(value=_parameters(m), provenance=COUNTED) for m in models)),
        _size(models, out),
        ResultRow("peak activation memory", "bytes", *count("peak_memory_bytes")),
        ResultRow("MACs", "count", *count("macs")),
        ResultRow("latency, predicted", "us", *(s.latency_us for s in sides)),
        _measured(record),
    ]


def _parameters(model: "nn.Module") -> int:
    return sum(p.numel() for p in model.parameters())


def _accuracy(record: Mapping[str, Any]) -> ResultRow:
    found = record.get("accuracy")
    if not found:
        return ResultRow("accuracy", "%", None, None, "unknown without --data")
    figures = (Figure(value=100 * found[side], provenance=MEASURED) for side in ("dense", "pruned"))
    return ResultRow("accuracy", "%", *figures, found.get("note", ""))


def _size(models: tuple["nn.Module", "nn.Module"], out: Path | None) -> ResultRow:
    """Of the artifacts where both are compiled, else of the weights."""
    if out is not None:
        folder = RunFolder(out)
        for paths, note in (
            ((folder.artifact_dense, folder.artifact), "artifact"),
            ((folder.dense, folder.model), "weights"),
        ):
            if all(p.exists() for p in paths):
                return ResultRow(
                    "size on disk", "bytes", *(Figure(value=_bytes_of(p), provenance=MEASURED) for p in paths), note
                )
    sizes = (sum(t.numel() * t.element_size() for t in m.state_dict().values()) for m in models)
    return ResultRow("size on disk", "bytes", *(Figure(value=s, provenance=COUNTED) for s in sizes), "weights")


def _bytes_of(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _measured(record: Mapping[str, Any]) -> ResultRow:
    found = record.get("measured") or {}
    figures = (Figure.model_validate(found[side]) if found.get(side) else None for side in ("dense", "pruned"))
    return ResultRow(
        "latency, measured",
        "us",
        *figures,
        "" if found.get("pruned") else found.get("note", "not compiled; use --compile"),
    )
