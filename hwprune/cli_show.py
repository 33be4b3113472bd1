"""Results as tables, lines and drawings."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

from hwprune.budget import format_bytes, format_us
from hwprune.errors import UsageError
from hwprune.fsio import write_text_atomic
from hwprune.terminal import table

if TYPE_CHECKING:
    from rich.table import Table

    from hwprune.plan import Figure
    from hwprune.results import BenchRow, InspectReport, ResultRow


def result_table(rows: Sequence["ResultRow"]) -> "Table":
    """Dense beside pruned, each figure with its provenance."""
    cells = []
    for row in rows:
        ratio = "" if row.ratio is None or row.unit == "%" else f"{row.ratio:.2f}x"
        cells.append(
            (
                row.quantity,
                figure_text(row.dense, row.unit),
                figure_text(row.pruned, row.unit),
                ratio,
                _provenance(row),
                row.note,
            )
        )
    columns = ["", "dense", "pruned", "ratio", "provenance", "note"]
    if not any(row.note for row in rows):
        columns, cells = columns[:-1], [c[:-1] for c in cells]
    return table("", columns, cells, right=("dense", "pruned", "ratio"))


def figure_text(figure: "Figure | None", unit: str) -> str:
    """A figure as a person reads it, with its spread where it has one."""
    if figure is None:
        return "unknown"
    text = _value_text(figure.value, unit)
    if figure.low is not None and figure.high is not None and figure.high > figure.low:
        text += f" ({_value_text(figure.low, unit)} to {_value_text(figure.high, unit)})"
    return text


def _value_text(value: float, unit: str) -> str:
    if unit == "us":
        return format_us(value)
    if unit in ("bytes", "B"):
        return format_bytes(value)
    if unit in ("", "count"):
        return f"{value:,.0f}"
    if unit == "%":
        return f"{value:.2f} %"
    return f"{value:,.4g} {unit}"


def _provenance(row: "ResultRow") -> str:
    found = dict.fromkeys(f.provenance for f in (row.dense, row.pruned) if f is not None)
    return ", ".join(found)


def run_lines(result) -> list[str]:
    """What a search says below its table."""
    lines = [
        f"importance kept: {result.plan.importance_kept:.1%}"
        + (f", certified gap {result.plan.gap:.2%}" if result.plan.gap is not None else "")
        + f"; {len(result.frontier)} networks on the frontier"
    ]
    if result.out is not None:
        lines.append(f"run folder: {result.out}")
    return lines


_BENCH_FIGURES = ("median", "10th to 90th percentile", "ratio")


def bench_table(rows: Sequence["BenchRow"]) -> "Table":
    cells = [
        (
            r.name,
            format_us(r.median_us),
            f"{format_us(r.low_us)} to {format_us(r.high_us)}",
            f"{r.ratio:.2f}x",
            r.provenance,
            r.note,
        )
        for r in rows
    ]
    return table(
        "", ["", "median", "10th to 90th percentile", "ratio", "provenance", "note"], cells, right=_BENCH_FIGURES
    )


def inspect_tables(report: "InspectReport") -> list["Table | str"]:
    share = report.prunable_parameters / report.parameters if report.parameters else 0.0
    head = (
        f"{report.model}, input {'x'.join(map(str, report.input_shape))}: {report.parameters:,} parameters, "
        f"{share:.1%} of them on an axis that can be pruned"
    )
    groups = [(g.id, str(g.width), _axes(g.producers), _axes(g.consumers)) for g in report.groups]
    frozen = [(f.param, f"{f.dim}", f"{f.count} of {f.total}", f.reason, f.detail, f.where) for f in report.frozen]
    shown: list["Table | str"] = [head]
    if groups:
        shown.append(table(f"{len(groups)} groups", ["group", "units", "made by", "read by"], groups, right=("units",)))
    else:
        shown.append("no channel of this network can be pruned")
    if frozen:
        shown.append(
            table("frozen", ["parameter", "axis", "positions", "reason", "detail", "where"], frozen, right=("axis",))
        )
    return shown


def _axes(axes: Sequence[tuple[str, int]], most: int = 3) -> str:
    names = list(dict.fromkeys(name for name, _ in axes))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


_BOX = "shape=box, style=filled"


def dot_text(report: "InspectReport") -> str:
    """The couplings as a Graphviz graph: parameters that make a group's units, the group, parameters that read them."""
    lines = ["digraph hwprune {", "  rankdir=LR;", '  node [fontname="sans-serif", fontsize=10];']
    axes: dict[tuple[str, int], None] = {}
    edges = []
    for group in report.groups:
        lines.append(
            f"  {_quote(group.id)} [{_BOX}, fillcolor=lightblue, label={_quote(f'{group.id} ({group.width})')}];"
        )
        edges += [f"  {_quote(_axis(a))} -> {_quote(group.id)};" for a in group.producers]
        edges += [f"  {_quote(group.id)} -> {_quote(_axis(a))};" for a in group.consumers]
        axes.update(dict.fromkeys((*group.producers, *group.consumers)))
    for row in report.frozen:
        axes.pop((row.param, row.dim), None)
        label = f"{row.param}[{row.dim}]\n{row.reason}"
        lines.append(f"  {_quote(_axis((row.param, row.dim)))} [{_BOX}, fillcolor=lightgray, label={_quote(label)}];")
    lines += [f"  {_quote(_axis(axis))} [shape=ellipse];" for axis in axes]
    return "\n".join([*lines, *edges, "}"]) + "\n"


def write_svg(report: "InspectReport", path: Path) -> None:
    """Draw the couplings with Graphviz. Raises UsageError when `dot` is not installed."""
    dot = shutil.which("dot")
    if dot is None:
        raise UsageError("--svg needs Graphviz's `dot`; install the package graphviz, or write the graph with --dot")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "graph.dot"
        source.write_text(dot_text(report))
        drawn = subprocess.run([dot, "-Tsvg", str(source)], capture_output=True, text=True)
    if drawn.returncode:
        raise UsageError(f"Graphviz refused the graph: {(drawn.stderr.strip() or 'no reason given').splitlines()[0]}")
    write_text_atomic(path, drawn.stdout)


def _axis(axis: tuple[str, int]) -> str:
    return f"{axis[0]}[{axis[1]}]"


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
