"""What makes kernels alike, as far as their latency goes: the coordinates in which measurements are interpolated.

Kernels come in nested sets. A *kind* has the anchor operator and its window in common; a *place*, also the spatial shape; a
*family*, also the element-wise operators around the anchor. Within a family kernels differ in two widths: channels out and
the length of the reduction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Hashable

from hwprune.workload import Workload


@dataclass(frozen=True)
class Traits:
    """See the module docstring. Sizes are logarithms to base 2.

    levels : what a kernel belongs to, from everything to its own family.
    position : channels out, and reduction length (channels in, where nothing is reduced). volume : results of one channel.
    """

    kind: str
    place: str
    family: str
    levels: tuple[Hashable, ...]
    position: tuple[float, float]
    volume: float


def traits_of(workload: Workload) -> Traits:
    anchors = workload.anchors
    window = tuple(anchor.get(name) for anchor in anchors for name in ("stride", "padding", "dilation", "kernel", "kind"))
    spatial = tuple(t.shape[:-1] for t in workload.inputs if t.role == "data")
    weights = [t.shape for t in workload.inputs if t.role == "weight"]
    kernels = tuple(shape[1:3] if len(shape) == 5 else len(shape) for shape in weights)
    names = tuple(c.op for c in workload.ops)
    name = " ".join(anchor.op for anchor in anchors) or "elementwise"
    kind = f"{name} {window} {kernels[:1] if anchors else names}"
    place = f"{kind} on {workload.output.shape[:-1]}"
    wide = [shape for shape in weights if len(shape) >= 3]
    # packed weights are [channels out / lanes, ..., channels in, lanes]
    inner = math.prod(wide[0][1:-1]) if wide else max((t.shape[-1] for t in workload.inputs), default=1)
    width = workload.output.shape[-1]
    family = f"{place} of {names} {spatial} {kernels}"
    volume = math.log2(max(math.prod(workload.output.shape[:-1]), 1))
    position = (math.log2(width), math.log2(max(inner, 1)))
    return Traits(kind, place, family, ("", name, kind, place, family), position, volume)


def family(workload: Workload) -> str:
    """What a workload shares with itself at other widths: operators, kernel window, spatial shape."""
    return traits_of(workload).family


def position(workload: Workload) -> tuple[float, float]:
    """Place of a workload in its family: log2 of its output width and of its reduction length (or input width)."""
    return traits_of(workload).position
