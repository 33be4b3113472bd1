"""``hwprune store``: what is in the measurement store, and measurements as text that can be compared and shared."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwprune.cli_options import Debug, Json, Store
from hwprune.terminal import reporting, table

if TYPE_CHECKING:
    from hwprune.measure.store import Row

app = typer.Typer(
    help="Look into the measurement store; export and import measurements.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def info(store: Store = None, json: Json = False, debug: Debug = False) -> None:
    """Print where the store is and what it holds.

    \b
    Example:
      hwprune store info
    """
    with reporting(json, debug) as terminal:
        opened = _open(store, terminal)
        counts = Counter((r.context.device, r.context.threads, r.context.software, r.provenance, r.failure is not None) for r in opened.rows())
        contexts = sorted({key[:4] for key in counts})
        data = [
            dict(zip(("device", "threads", "software", "provenance"), key)) | {"kernels": counts[(*key, False)], "failures": counts[(*key, True)]}
            for key in contexts
        ]
        aside = sorted(str(p) for p in opened.path.parent.glob(f"{opened.path.name}.damaged-*"))
        rows = [tuple(map(str, entry.values())) for entry in data]
        columns = ["device", "threads", "software", "provenance", "kernels", "failures"]
        terminal.result(
            {"file": str(opened.path), "size_bytes": opened.path.stat().st_size, "contents": data, "set_aside": aside},
            f"{opened.path}: {opened.path.stat().st_size / 1e6:.1f} MB, {counts.total()} rows",
            *([table("", columns, rows, right=("threads", "kernels", "failures"))] if rows else []),
            *(f"set aside as damaged: {path}" for path in aside),
        )
        opened.close()


@app.command("export")
def export_rows(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The text file to write.")],
    target: Annotated[
        str | None, typer.Option("--target", metavar="T", help="Only what this hwprune uses for a target.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="Only the fastest schedule of each kernel.")] = False,
    store: Store = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write measurements as sorted text.

    \b
    Examples:
      hwprune store export everything.tsv
      hwprune store export native.tsv --target native --best
    """
    with reporting(json, debug) as terminal:
        from hwprune.fsio import write_text_atomic
        from hwprune.measure.store_text import to_text

        prefix = _software_prefix(target) if target else ""
        opened = _open(store, terminal)
        rows = [row for row in opened.rows() if row.context.software.startswith(prefix)]
        calibrations = [c for c in opened.calibrations() if c.context.software.startswith(prefix)]
        opened.close()
        rows = _fastest(rows) if best else rows
        write_text_atomic(file, to_text(rows, calibrations))
        terminal.result({"file": str(file), "rows": len(rows)}, f"wrote {len(rows)} measurements to {file}")


@app.command("import")
def import_rows(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `hwprune store export` wrote.")],
    store: Store = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Take the measurements of an export into the store, all or none. Of two of the same kernel the newer one stays.

    \b
    Example:
      hwprune store import native.tsv
    """
    with reporting(json, debug) as terminal:
        from hwprune.measure.store_text import read

        rows, calibrations = read(file)
        opened = _open(store, terminal)
        taken = opened.add(rows, calibrations)
        opened.close()
        known = len(rows) + len(calibrations) - taken
        terminal.result(
            {"file": str(file), "taken": taken, "known": known},
            f"took {taken} figures from {file}; of {known} the store has one as new",
        )


def _open(path: Path | None, terminal):
    from hwprune.measure.store import Store as MeasurementStore

    return MeasurementStore(path, terminal)


def _software_prefix(target: str) -> str:
    """What the software of every measurement for ``target`` by this hwprune begins with."""
    from hwprune.costing import load_target
    from hwprune.measure.device import software

    return software(load_target(target))


def _fastest(rows: "list[Row]") -> "list[Row]":
    """Of each workload, in each place and provenance, the schedule that ran fastest; no failures."""
    fastest: dict[tuple, Row] = {}
    for row in rows:
        if row.latency is not None:
            key = row.workload.key, row.context, row.provenance
            known = fastest.get(key)
            if known is None or (row.latency.latency_us, row.config) < (known.latency.latency_us, known.config):
                fastest[key] = row
    return list(fastest.values())
