"""Results as tables and lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, Sequence

from hwprune.budget import format_bytes, format_us
from hwprune.terminal import table

if TYPE_CHECKING:
    from rich.table import Table

    from hwprune.plan import Figure
    from hwprune.results import AxisRow, BenchRow, BranchRow, CheckReport, GroupRow, InspectReport, MeasureReport, ResultRow


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


def measure_lines(report: "MeasureReport") -> list[str]:
    return [
        f"{report.kernels} kernels, {report.measured} of them measured, {report.measured_now} kernels timed now in {report.seconds:.1f} s",
        f"a kernel's latency is known to ±{report.half_width:.1%} (95 % interval, mean over all by time)",
        f"store: {report.store}",
    ]


def check_tables(report: "CheckReport") -> list["Table | str"]:
    """Networks by latency, then how far the predictions are off."""
    cells = [
        (
            format_us(n.measured_us), format_us(n.again_us), format_us(n.predicted_us), f"{n.predicted_us / n.measured_us - 1:+.1%}",
            format_us(n.before_us), f"{n.before_us / n.measured_us - 1:+.1%}", f"{n.unknown} of {n.kernels}",
        )
        for n in sorted(report.networks, key=lambda n: n.measured_us)
    ]  # fmt: skip
    columns = ["measured", "again", "predicted, table", "error", "predicted, surrogate", "error", "of kernels unmeasured"]
    shown: list["Table | str"] = [table("Random pruned networks", columns, cells, right=columns)]
    for name, a in (("table", report.after), ("surrogate and table", report.before)):
        rank = "" if a.spearman is None else f", Spearman {a.spearman:.3f}"
        shown.append(f"{name}: median error {a.median:.1%}, 95th percentile {a.percentile_95:.1%}, bias {a.bias:+.1%}{rank}")
    shown.append(f"the measurement itself, taken twice: median error {report.after.retest:.1%}")
    return shown


def inspect_tables(report: "InspectReport") -> list["Table | str"]:
    shown: list["Table | str"] = [*_inspect_head(report)]
    if report.groups:
        shown.append(_group_table(report))
    else:
        shown.append("no channel of this network can be pruned")
    if report.branches:
        shown.append(_branch_table(report))
    frozen = [(f.param, f"{f.dim}", f"{f.count} of {f.total}", f.reason, f.detail, f.where) for f in report.frozen]
    if frozen:
        shown.append(
            table("frozen", ["parameter", "axis", "positions", "reason", "detail", "where"], frozen, right=("axis",))
        )
    return shown


def _inspect_head(report: "InspectReport") -> Iterator[str]:
    share = report.prunable_parameters / report.parameters if report.parameters else 0.0
    yield (
        f"{report.model}, input {'x'.join(map(str, report.input_shape))}: {report.parameters:,} parameters, "
        f"{share:.1%} of them on an axis that can be pruned"
    )
    if report.latency_us is not None:
        yield (
            f"target {report.target}: {report.macs:,} MACs, {figure_text(report.latency_us, 'us')}, "
            f"{report.latency_us.provenance}{f', by the {report.cost_model}' if report.cost_model else ''} "
            f"({report.kernels_measured} of {report.kernels} kernels measured)"
        )
    elif report.macs is not None:
        yield f"target {report.target}: {report.macs:,} MACs"
    if report.missing:
        figures = "no share of latency" if report.macs is not None else "no shares of MACs and latency"
        yield f"{figures}: {report.missing}"


def _group_table(report: "InspectReport") -> "Table":
    columns = {"group": [g.id for g in report.groups], "units": [str(g.width) for g in report.groups]}
    columns |= _share_columns(report, report.groups)
    figures = list(columns)[1:]
    columns["made by"] = [_modules(g.producers) for g in report.groups]
    columns["read by"] = [_modules(g.consumers) for g in report.groups]
    overlap = ", and the shares of the kernels that depend on each: they overlap" if len(figures) > 1 else ""
    count = "1 group" if len(report.groups) == 1 else f"{len(report.groups)} groups"
    return table(count + overlap, list(columns), list(zip(*columns.values())), right=figures)


def _branch_table(report: "InspectReport") -> "Table":
    columns = {"branch": [b.id for b in report.branches]} | _share_columns(report, report.branches)
    figures = list(columns)[1:]
    columns["groups that go with it"] = [", ".join(b.groups) for b in report.branches]
    count = "1 residual branch" if len(report.branches) == 1 else f"{len(report.branches)} residual branches"
    return table(f"{count} that may go as a whole", list(columns), list(zip(*columns.values())), right=figures)


def _share_columns(report: "InspectReport", rows: "Sequence[GroupRow | BranchRow]") -> dict[str, list[str]]:
    columns = {}
    if report.macs is not None:
        columns["MACs"] = [_share(row.macs_share) for row in rows]
    if report.latency_us is not None:
        shares = [row.latency_share for row in rows]
        columns[f"latency, {report.latency_us.provenance}"] = [_share(s and s.value) for s in shares]
    return columns


def _share(share: float | None) -> str:
    """A share in percent. What is too small for a digit is not shown as nothing."""
    if share is None:
        return "unknown"
    return "<0.1 %" if 0 < share < 0.0005 else f"{share * 100:.1f} %"


def _modules(axes: Sequence["AxisRow"], most: int = 3) -> str:
    names = list(dict.fromkeys(_split(axis.param)[0] for axis in axes))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _split(param: str) -> tuple[str, str]:
    """A parameter's module and its name there; a parameter of the network itself is its own module."""
    module, _, name = param.rpartition(".")
    return module or name, name
