"""The couplings of a network as a picture: which axes make a group's units, and which read them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Iterator

from hwprune.errors import UsageError
from hwprune.fsio import write_atomic

if TYPE_CHECKING:
    from hwprune.results import InspectReport

_GROUP = 'shape=ellipse, style=filled, fillcolor="#bfe0f5", fontsize=12'
_AXIS = "shape=box"
_FROZEN = 'shape=box, style="filled,dashed", fillcolor="#dddddd"'
_CAPTION = (
    "left: what makes the units; middle: groups (units); right: what reads them; "
    "&times;n: n positions a unit; dashed: frozen"
)

#: Edges of an axis: (group, multiplicity) of those that it makes, and of those that it reads. Frozen parts: text.
_Place = tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...], tuple[str, ...]]


def dot_text(report: "InspectReport") -> str:
    """The couplings as a Graphviz graph; connected groups meet on an axis.

    Groups stand in the middle, in the order of the graph from top to bottom. Axes of one module that lie in the same
    groups are one box: the scale and the shift of a norm say nothing that one of them does not.
    """
    lines = [
        "digraph hwprune {",
        "  rankdir=LR; ranksep=1.2; nodesep=0.12;",
        f'  fontname="sans-serif"; fontsize=11; labelloc=t; label={_quote(f"{report.model}: {_CAPTION}")};',
        '  node [fontname="sans-serif", fontsize=10, margin="0.08,0.04"]; edge [fontname="sans-serif", fontsize=9];',
    ]
    lines += [f"  {_quote(g.id)} [{_GROUP}, label={_quote(f'{g.id} ({g.width})')}];" for g in report.groups]
    if len(report.groups) > 1:
        chain = " -> ".join(_quote(g.id) for g in report.groups)
        lines.append(f"  {{ rank=same; {chain} [style=invis]; }}")
    for (module, (makes, reads, frozen)), names in _boxes(report).items():
        lines += _box(module, names, makes, reads, frozen)
    return "\n".join([*lines, "}"]) + "\n"


def _boxes(report: "InspectReport") -> dict[tuple[str, _Place], list[str]]:
    """(Module, place of its axes) -> names of the axes with that place, as ``weight[0]``."""
    made: dict[tuple[str, int], list[tuple[str, int]]] = {}
    read: dict[tuple[str, int], list[tuple[str, int]]] = {}
    frozen: dict[tuple[str, int], list[str]] = {}
    for group in report.groups:
        for edges, axes in ((made, group.producers), (read, group.consumers)):
            for axis in axes:
                edges.setdefault((axis.param, axis.dim), []).append((group.id, axis.multiplicity))
    for row in report.frozen:
        part = "" if row.count == row.total else f"{row.count} of {row.total}: "
        frozen.setdefault((row.param, row.dim), []).append(f"{part}{row.reason}")
    boxes: dict[tuple[str, _Place], list[str]] = {}
    for axis in dict.fromkeys([*made, *read, *frozen]):
        module, _, name = axis[0].rpartition(".")
        place = tuple(tuple(edges.get(axis, ())) for edges in (made, read, frozen))
        boxes.setdefault((module, place), []).append(f"{name}[{axis[1]}]")
    return boxes


def _box(module: str, names: list[str], makes, reads, frozen) -> Iterator[str]:
    node = _quote(f"{module}.{names[0]}" if module else names[0])
    label = "\n".join(text for text in (module, ", ".join(names), *frozen) if text)
    yield f"  {node} [{_FROZEN if frozen else _AXIS}, label={_quote(label)}];"
    for group, multiplicity in makes:
        yield f"  {node} -> {_quote(group)}{_times(multiplicity)};"
    for group, multiplicity in reads:
        yield f"  {_quote(group)} -> {node}{_times(multiplicity)};"


def _times(multiplicity: int) -> str:
    return f' [label="&times;{multiplicity}"]' if multiplicity > 1 else ""


def write_svg(report: "InspectReport", path: Path) -> None:
    """Draw the couplings with Graphviz. Raises UsageError when `dot` is not installed."""
    dot = shutil.which("dot")
    if dot is None:
        raise UsageError("--svg needs Graphviz's `dot`; install the package graphviz, or write the graph with --dot")
    drawn = subprocess.run([dot, "-Tsvg"], input=dot_text(report).encode(), capture_output=True)
    if drawn.returncode:
        why = drawn.stderr.decode(errors="replace").strip() or "no reason given"
        raise UsageError(f"Graphviz refused the graph: {why.splitlines()[0]}")
    write_atomic(path, lambda p: p.write_bytes(drawn.stdout))  # UTF-8, as its first line says, whatever the locale


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
