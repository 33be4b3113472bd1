"""How much each unit of each group matters, by one of several criteria.

    CRITERIA["l2"].score(graph, None)  ->  {group id: float64 [width]}

Scores are non-negative and comparable across groups: a search may add them up over a whole network. Each criterion's
module says in what unit.
"""

from __future__ import annotations

from typing import Iterable, Protocol

import numpy as np
from torch import Tensor

from hwprune.graph.channels import ChannelGraph
from hwprune.importance.bn import BatchNormScale
from hwprune.importance.magnitude import Magnitude
from hwprune.importance.random import Random
from hwprune.importance.taylor import Taylor

__all__ = ["CRITERIA", "Criterion"]

Batches = Iterable[tuple[Tensor, Tensor]]


class Criterion(Protocol):
    """``needs_data``: whether ``score`` must be given batches of (input, class labels)."""

    name: str
    needs_data: bool

    def score(self, graph: ChannelGraph, batches: Batches | None, *, seed: int = 0) -> dict[str, np.ndarray]:
        """Group id -> scores, float64 ``[width]``, non-negative and finite."""


CRITERIA: dict[str, Criterion] = {c.name: c for c in (Magnitude(1), Magnitude(2), BatchNormScale(), Taylor(), Random())}
