"""Schedules as values, and the contract of a schedule rule.

A rule looks at a workload and a target profile and offers configurations (or None: not mine); given one of them it
returns the scheduled function. An ordered list of rules is the dispatcher. Every machine constant comes from the
profile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Callable, Hashable, Mapping, Protocol, Sequence

import numpy as np
from tvm import s_tir, tirx

from hwprune.target import TargetProfile
from hwprune.workload import TensorSpec, Workload


@dataclass(frozen=True)
class Config:
    """One way to schedule a workload: a rule's name and its parameters."""

    rule: str
    params: tuple[tuple[str, int | str], ...] = ()

    @staticmethod
    def make(rule: str, **params: int | str) -> "Config":
        return Config(rule, tuple(sorted(params.items())))

    def __getitem__(self, name: str) -> int | str:
        return dict(self.params)[name]

    def get(self, name: str, default: int | str | None = None) -> int | str | None:
        return dict(self.params).get(name, default)

    def to_text(self) -> str:
        return json.dumps({"rule": self.rule, **dict(self.params)}, sort_keys=True)

    @staticmethod
    def from_text(text: str) -> "Config":
        data = json.loads(text)
        return Config.make(data.pop("rule"), **data)


@dataclass(frozen=True)
class Repack:
    """How a kernel wants a constant instead of as the workload has it.

    name : says what is done; equal names do the same. shape : of the result.
    transform : packed as the workload has it -> packed as the kernel reads it, both float32.
    """

    name: str
    shape: tuple[int, ...]
    transform: Callable[[np.ndarray], np.ndarray] = field(compare=False, repr=False)


def as_read(inputs: Sequence[TensorSpec], packed: Mapping[int, Repack]) -> tuple[TensorSpec, ...]:
    """A workload's inputs as its kernel reads them, some of them repacked (number of the input -> how)."""
    return tuple(replace(t, shape=packed[i].shape) if i in packed else t for i, t in enumerate(inputs))


class Rule(Protocol):
    """One family of schedules."""

    name: str

    def candidates(self, workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
        """Configurations, the most promising first; None if the workload is not this rule's."""

    def schedule(self, workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
        """The scheduled function. Raises Infeasible for a configuration that does not fit the workload."""


#: Splits of the work whose threads take what others have written: all of them read all pixels, or in one phase the results of another.
_EXCHANGING = frozenset({"columns", "channels", "phases"})
_EXCHANGE = 0.03


def handicap(config: Config, profile: TargetProfile) -> float:
    """By how much a measured latency counts where the fastest schedule is chosen.

    What threads take from each other costs little where their cores share a cache, and up to a third of a kernel where they do not;
    which cores they get, the system decides anew each time. So a schedule of the kind that is sensitive to it must be faster by more
    than the others' worth on a good day. Cores with one second cache in common have no such days.
    """
    apart = profile.memory.l3_bytes > 0 and profile.threads > 1
    return 1 + _EXCHANGE if apart and config.get("split") in _EXCHANGING else 1.0


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def varied(offered: Sequence[tuple[float, Hashable, Config]], step: float) -> list[Config]:
    """Configurations by (cost, kind), the cheapest first, but variants of one kind spread out: each further one of a kind counts as
    ``step`` of its cost more, for few are tried, and a model of costs tells some differences better than others."""
    seen: dict[Hashable, int] = {}
    spread = []
    for cost, kind, config in sorted(offered, key=lambda item: item[0]):
        spread.append((cost * (1 + step * seen.get(kind, 0)), config))
        seen[kind] = seen.get(kind, 0) + 1
    return [config for _, config in sorted(spread, key=lambda item: item[0])]


def block_or_none(sch: s_tir.Schedule, name: str):
    """The block called ``name`` if the function has one."""
    try:
        return sch.get_sblock(name)
    except Exception:  # the schedule raises its own error type for a missing block
        return None


def unroll(sch: s_tir.Schedule, loops) -> None:
    for loop in loops:
        sch.unroll(loop)


def static_extent(sch: s_tir.Schedule, loop) -> int:
    return int(sch.get(loop).extent)


def vectorize_innermost(sch: s_tir.Schedule, block, lanes: int) -> None:
    """Vectorize the innermost loop of ``block`` by ``lanes`` where its extent divides; leave it to LLVM elsewhere."""
    inner = sch.get_loops(block)[-1]
    extent = sch.get(inner).extent
    if isinstance(extent, tirx.IntImm) and int(extent) % lanes == 0:
        _, vector = sch.split(inner, [None, lanes])
        sch.vectorize(vector)
