"""Where benchmarks leave their results: a TSV for machines and a page for people, with machine, versions and date."""

from __future__ import annotations

import csv
import io
import subprocess
from pathlib import Path
from typing import Sequence

from hwprune.fsio import write_text_atomic
from hwprune.record import machine, now, versions

RESULTS = Path(__file__).parent / "results"


Table = tuple[str, Sequence[str], Sequence[Sequence[object]]]


def write(
    name: str, title: str, command: str, tables: Sequence[Table], notes: Sequence[str] = (), pictures: Sequence[Path] = ()
) -> Path:
    """Write ``results/NAME.md`` and one ``results/NAME.SECTION.tsv`` a table (section, header, rows).

    pictures : files in ``results`` that the page shows.
    """
    page = [f"# {title}", "", f"`{command}`", "", *_facts(), ""]
    for picture in pictures:
        page += [f"![{title}]({picture.relative_to(RESULTS)})", ""]
    for section, header, rows in tables:
        page += [f"## {section}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        page += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
        page.append("")
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        write_text_atomic(RESULTS / f"{name}.{section.lower().replace(' ', '_')}.tsv", text.getvalue())
    page += [f"- {note}" for note in notes]
    path = RESULTS / f"{name}.md"
    write_text_atomic(path, "\n".join(page).rstrip() + "\n")
    return path


def commit() -> str:
    """The commit that is checked out."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    return found.stdout.strip() or "unknown"


def _facts() -> list[str]:
    found, used = machine(), versions()
    return [
        f"- date: {now()}, commit {commit()}",
        f"- machine: {', '.join(f'{k} {v}' for k, v in found.items())}",
        f"- versions: {', '.join(f'{k} {v}' for k, v in used.items())}",
    ]
