"""Where activations lie: one workspace, offsets fixed at compile time, memory shared by values that never live together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

from hwprune.library import ALIGNMENT


@dataclass(frozen=True)
class Step:
    """One call: the value it makes, that value's bytes, and the values it reads."""

    name: str
    size_bytes: int
    reads: tuple[str, ...]


@dataclass(frozen=True)
class MemoryPlan:
    """offsets : value -> byte offset in the workspace. Network inputs and outputs lie outside it.

    peak_bytes : workspace plus inputs and outputs: what running the network holds besides its weights.
    """

    offsets: Mapping[str, int]
    workspace_bytes: int
    peak_bytes: int


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def place(steps: Sequence[Step], inputs: Mapping[str, int], outputs: Sequence[str]) -> MemoryPlan:
    """Greedy by size: the largest value first, each at the lowest offset that is free while it lives.

    Source: Y. Pisarchyk and J. Lee, Efficient Memory Management for Deep Neural Net Inference, 2020 (greedy by size).
    """
    outside = {*inputs, *outputs}
    lives = lifetimes(steps, outside)
    sizes = {step.name: aligned(step.size_bytes) for step in steps if step.name not in outside}
    offsets: dict[str, int] = {}
    for name in sorted(sizes, key=lambda n: (-sizes[n], lives[n])):
        start, end = lives[name]
        neighbours = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in offsets
            if lives[other][0] <= end and start <= lives[other][1]
        )
        at = 0
        for low, high in neighbours:
            if low - at >= sizes[name]:
                break
            at = max(at, high)
        offsets[name] = at
    workspace = max((offsets[n] + sizes[n] for n in offsets), default=0)
    made = {step.name: step.size_bytes for step in steps}
    return MemoryPlan(offsets, workspace, workspace + sum(inputs.values()) + sum(made[o] for o in outputs))


def lifetimes(steps: Sequence[Step], outside: set[str]) -> dict[str, tuple[int, int]]:
    """First and last step at which each value of the workspace is alive."""
    lives: dict[str, tuple[int, int]] = {}
    for i, step in enumerate(steps):
        for name in step.reads:
            if name not in outside:
                lives[name] = (lives[name][0], i)
        if step.name not in outside:
            lives[step.name] = (i, i)
    return lives
