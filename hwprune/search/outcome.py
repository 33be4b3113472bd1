"""What a search is asked, and what it answers, as values."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Protocol, Sequence

from hwprune.budget import Budget
from hwprune.compile.lower import Network
from hwprune.cost.base import Estimate
from hwprune.cost.sampling import Surface
from hwprune.errors import UsageError
from hwprune.results import FrontierPoint
from hwprune.workload import Workload

STRATEGIES = ("exact", "greedy")


class Learner(Protocol):
    """Measures on the target, so that the search's cost model knows more."""

    def measure(self, workloads: Sequence[Workload], effort: str = "quick") -> None: ...

    def uncertain(self, of: Surface, most: int) -> list[Workload]:
        """Kernels of a cost surface whose measurement would tell most, ``most`` of them or fewer."""

    def calibrate(self, network: Network) -> None:
        """Learn what the whole ``network`` takes beside the sum of its kernels; the dense one comes first."""


@dataclass(frozen=True)
class Settings:
    """What the user asked of the search, and how hard it tries.

    candidates : widths a group at most.
    min_shares : the narrowest candidate keeps the first of these shares of its units; the next ones are tried if that
        does not meet the budgets. Scores are first-order: they do not see how much the last few channels of a layer
        carry. ResNet-56 on CIFAR-10 at 0.7x, l2, before training: 48 % right with 0.3, 19 % with 0.1.
    branches : whether residual branches may go as a whole.
    rounds : of solving and measuring. frontier_points : latency limits that are swept.
    """

    latency: Budget | None = None
    memory: Budget | None = None
    size: Budget | None = None
    strategy: str = "exact"
    candidates: int = 16
    min_shares: tuple[float, ...] = (0.3, 0.1)
    branches: bool = True
    gap: float = 1e-3
    rounds: int = 6
    frontier_points: int = 12
    time_limit_s: float = 60.0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            near = difflib.get_close_matches(self.strategy, STRATEGIES, n=1) or STRATEGIES
            raise UsageError(f"unknown search strategy {self.strategy!r}; choose {' or '.join(near)}")


@dataclass(frozen=True)
class NetworkFigures:
    """What a network of given widths takes. ``weight_bytes``: packed weights, as the artifact holds them."""

    latency: Estimate
    macs: int
    weight_bytes: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class Outcome:
    """The chosen widths (every group is named) and how they came about.

    gap : certified relative distance to the best possible under the tables of the last round; None if not certified.
    rounds : one record a round, for the run's record.
    """

    widths: dict[str, int]
    dense: NetworkFigures
    chosen: NetworkFigures
    importance_kept: float
    gap: float | None
    frontier: list[FrontierPoint]
    candidates: dict[str, list[int]]
    rounds: list[dict[str, Any]]
