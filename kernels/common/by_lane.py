"""Products on cores whose multiply-add takes one lane of a register for all lanes: ``lanes`` consecutive channels of a pixel are one
load, and each multiply-add picks its channel by lane."""

from __future__ import annotations

from itertools import product
from typing import Callable, Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwprune.kernels.common.gemm import Pixels
from hwprune.kernels.loops import Registers, Runs, vector, width_of
from hwprune.target import TargetProfile

#: Cycles that a load beside multiply-adds is thought to cost: of equal tiles, the one with fewer loads comes first.
_LOAD_WEIGHT = 0.05


def most_pixels(vectors: int, profile: TargetProfile, spare: int) -> int:
    """Pixels of a register tile of so many vectors: accumulators, a vector of each pixel, the weights of a step and one of the next,
    and ``spare`` registers beside them."""
    return (profile.core.vector_registers - spare - vectors - 1) // (vectors + 1)


def step_cycles(chained: int, accumulators: int, loads: int, profile: TargetProfile) -> float:
    """Cycles of ``chained`` multiply-adds on each of so many accumulators, and of ``loads`` of vectors: ports, latency and loads."""
    core, fmas = profile.core, chained * accumulators
    # as many loads as multiply-adds start in a cycle; those that hold up none still fill the queues
    cycles = max(fmas, loads) / core.fma_per_cycle + max(core.vector_load_cycles, _LOAD_WEIGHT) * loads
    return max(cycles, chained * core.fma_latency_cycles)


def tile_cycles(g: Pixels, profile: TargetProfile, ht: int, wt: int, cov: int, adding_up: int = 0) -> float:
    """Cycles of register tiles of all sizes. adding_up : vector instructions for each accumulator beside those of the products."""
    cycles = 0.0
    for (tall, h), (wide, w), (many, v) in product(Runs(g.oh, ht).sizes, Runs(g.ow, wt).sizes, Runs(g.blocks, cov).sizes):
        steps = step_cycles(g.lanes, h * w * v, h * w + g.lanes * v, profile) * g.reduction / g.lanes
        cycles += g.n * tall * wide * many * (steps + (3 + adding_up) * h * w * v / profile.core.fma_per_cycle + 20)
    return cycles


def accumulate(
    acc: Registers,
    staged: Sequence[tirx.Buffer],
    pixel: Callable[[int, tirx.Expr], tirx.Expr],
    weight: Callable[[int, int], tirx.Expr],
    channels: int,
) -> None:
    """acc[i, j] += the products of ``channels`` channels of pixel i with vector j of the weights.

    staged : a vector for each pixel. pixel(i, lane) : a channel of it. weight(j, c) : vector j for channel c.
    """
    for i, buffer in enumerate(staged):
        vector(buffer, 0, lambda lane, i=i: pixel(i, lane), width_of(buffer))
    vectors = max(j for _, j in acc) + 1
    for c in range(channels):
        weights = [T.Bind(weight(j, c)) for j in range(vectors)]
        for i, buffer in enumerate(staged):
            add([acc[i, j] for j in range(vectors)], buffer, c, weights)


def add(acc: Sequence[tirx.Buffer], staged: tirx.Buffer, lane: int, weights: Sequence[tirx.Expr]) -> None:
    """acc[j] += one lane of ``staged`` * weights[j]."""
    lanes = width_of(staged)
    x = T.Bind(tirx.Broadcast(staged[lane], lanes))
    for register, weight in zip(acc, weights, strict=True):
        T.buffer_store(register, register[tirx.Ramp(0, 1, lanes)] + x * weight, [tirx.Ramp(0, 1, lanes)])


def covering(columns: Sequence[int], lanes: int) -> list[int]:
    """Where vectors begin that hold ``columns``, none of them beyond the last one; none at all where a vector does not fit."""
    if not columns or max(columns) - min(columns) < lanes - 1:
        return []
    found, last = [min(columns)], max(columns) - lanes + 1
    for at in sorted(set(columns)):
        if at >= found[-1] + lanes:
            found.append(min(at, last))
    return found
