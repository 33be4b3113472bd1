"""A channel graph as text: what golden tests compare and `inspect` prints."""

from __future__ import annotations

import re

from hwprune.graph.channels import ChannelGraph, Group

_PLACE = re.compile(r"[^ (]*/([^/ )]+):\d+")


def describe(graph: ChannelGraph) -> str:
    """One paragraph a group, then the residual branches that may go, then the frozen axes. Source places are cut down to file names: no line numbers or folders."""
    lines = []
    for group in graph.groups:
        lines.append(f"group {group.id}: {group.width} units")
        lines += _slices(group)
    for b in graph.blocks:
        inner = f", with {', '.join(b.inner)}" if b.inner else ""
        lines.append(f"branch {b.id}: {b.addition} gives {b.shortcut}{inner}")
    for f in graph.frozen:
        where = _PLACE.sub(r"\1", f.where)
        lines.append(f"frozen {f.param}[{f.dim}]: {f.count} of {f.total}, {f.reason.value}: {f.detail}; {where}")
    return "\n".join(lines) + "\n"


def _slices(group: Group) -> list[str]:
    lines = []
    for s in group.params:
        axis = (s.name, s.dim)
        role = "makes" if axis in group.producers else "reads" if axis in group.consumers else "keeps"
        lines.append(f"  {role} {s.name}[{s.dim}] {_ranges(s.index)}")
    return lines


def _ranges(index) -> str:
    """Positions of each unit, as ``start:stop:step`` where they are evenly spaced, one text per multiplicity."""
    columns = []
    for column in index.T:
        steps = set((column[1:] - column[:-1]).tolist())
        if len(steps) == 1:
            step = steps.pop()
            columns.append(f"{column[0]}:{column[-1] + (1 if step > 0 else -1)}" + (f":{step}" if step != 1 else ""))
        else:
            columns.append(",".join(map(str, column.tolist())))
    return " + ".join(columns)
