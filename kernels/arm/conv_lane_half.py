"""Convolution and matrix product in float16, on cores whose multiply-add takes one lane of a register for all lanes.

Tiles, loops around them and the copy of the border are gemm's. As in conv_lane, ``lanes`` consecutive channels of a pixel are
one load, and each multiply-add picks its channel by lane.

A sum in float16 loses digits as it grows: after n terms its error is about sqrt(n / 2) times what storing it rounds off. So the
accumulators hold a piece of the reduction only, and the sums of p pieces of n terms are added up beside them: the error is
sqrt((n + p) / 2) times that. Of the 4608 terms of ResNet-18's last layers that leaves a sixth. Adding up pieces twice as long in
float32 is no better before some 4,000 terms, and took more cycles (10 % over the multiply-adds instead of 3 % in those layers,
simulated): a Cortex-A76 converts float16 at a quarter of the speed at which it multiplies and adds.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import product
from typing import Callable, Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwprune.kernels.common import by_lane, gemm
from hwprune.kernels.loops import Registers, function, registers, scratch
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "conv_lane_half"

_HALF = "float16"
#: Terms of a piece: the square root of a long reduction, where both sums are equally long.
_PIECE_TERMS = 64
#: Registers that a tile leaves free. The multiply-add of float16 takes lanes of the lower sixteen only, so that pixels have to lie
#: there: with fewer to spare, LLVM moves them through the stack.
_SPARE = 6
#: Vector instructions that add a piece to the sum of those before it, which is not in registers.
_ADDING_UP = 3


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    anchor = workload.anchor
    if not profile.core.lane_broadcast or workload.dtype != _HALF or anchor is None or anchor.op not in ("dense", "conv2d"):
        return None
    if anchor.op == "conv2d" and (anchor["groups"] != 1 or anchor.get("layout", "nhwc") != "nhwc"):
        return None
    if anchor.args[0] >= len(workload.inputs) or workload.inputs[anchor.args[0]].shape[-1] % profile.lanes:
        return None  # channels are read by whole vectors
    g = gemm.Pixels(workload)
    if g.lanes != profile.lanes or g.ci < g.lanes:
        return None
    ranked = [
        (_cost(g, profile, tile, split), Config.make(name, ht=tile[0], wt=tile[1], cov=tile[2], split=split))
        for tile, split in product(tiles(g, profile), ("columns", "rows"))
    ]
    ranked.sort(key=lambda item: item[0])
    return [config for _, config in ranked]


def tiles(g: gemm.Pixels, profile: TargetProfile) -> list[tuple[int, int, int]]:
    """Register tiles (rows, columns, vectors)."""
    return gemm.even_tiles(g, 8, lambda cov: by_lane.most_pixels(cov, profile, _SPARE))


def _cost(g: gemm.Pixels, profile: TargetProfile, tile: tuple[int, int, int], split: str) -> float:
    """Cycles: register tiles of all sizes, threads in step, copies of the border."""
    return gemm.shared_out(g, profile, tile_cycles(g, profile, *tile), tile, split)


def tile_cycles(g: gemm.Pixels, profile: TargetProfile, ht: int, wt: int, cov: int) -> float:
    """Cycles of register tiles of all sizes."""
    return by_lane.tile_cycles(g, profile, ht, wt, cov, adding_up=_ADDING_UP * _Pieces.of(g).count)


class _Pieces:
    """How a reduction over (rows of the kernel, columns, vectors of channels) is cut, from the outermost axis on.

    outer : whole axes, each iteration of which is a piece, or more. channels : vectors of channels of a piece, where the
    channels are cut as well.
    """

    def __init__(self, outer: int, channels: int, count: int):
        self.outer, self.channels, self.count = outer, channels, count

    @staticmethod
    def of(g: gemm.Pixels) -> "_Pieces":
        groups = g.ci // g.lanes
        for outer, terms, count in ((0, g.reduction, 1), (1, g.kw * g.ci, g.kh), (2, g.ci, g.kh * g.kw)):
            if terms <= _PIECE_TERMS:
                return _Pieces(outer, groups, count)
        parts = -(-groups // max(1, _PIECE_TERMS // g.lanes))
        return _Pieces(3, -(-groups // parts), g.kh * g.kw * (parts + (g.ci % g.lanes > 0)))


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    return function(workload, Builder(workload, profile, config).statements)


class Builder(gemm.Builder):
    def tile(self, place: gemm.Place, block, cov: int) -> None:
        g, pieces, count = self.g, _Pieces.of(self.g), len(place.pixels)
        acc = registers(count, cov, g.lanes, dtype=_HALF)
        total = registers(count, cov, g.lanes, dtype=_HALF) if pieces.count > 1 else None
        staged = [scratch((g.lanes,), _HALF) for _ in place.pixels]

        def group(dy, dx, first, channels: int) -> None:
            self._group(place, block, acc, staged, (dy, dx, first), channels)

        def channels(dy, dx, first, groups, rest: int) -> None:
            if whole:
                with T.serial(0, groups) as step:
                    group(dy, dx, (first + step) * g.lanes, g.lanes)
            if rest:
                group(dy, dx, g.ci // g.lanes * g.lanes, rest)

        whole, rest = divmod(g.ci, g.lanes)
        with ExitStack() as loops:
            at = [loops.enter_context(T.serial(0, extent)) for extent in (g.kh, g.kw)[: pieces.outer]]
            if pieces.outer < 3:
                _piece(acc, total, g.lanes, lambda: _inside(at, (g.kh, g.kw), lambda dy, dx: channels(dy, dx, 0, whole, rest)))
            else:
                with T.serial(0, -(-whole // pieces.channels)) as part:
                    first = part * pieces.channels
                    size = pieces.channels if whole % pieces.channels == 0 else tirx.min(pieces.channels, whole - first)
                    _piece(acc, total, g.lanes, lambda: channels(*at, first, size, 0))
                if rest:
                    _piece(acc, total, g.lanes, lambda: group(*at, whole * g.lanes, rest))
        self._write(place, block, cov, total or acc)

    def _group(self, place: gemm.Place, block, acc: Registers, staged: Sequence[tirx.Buffer], at, channels: int) -> None:
        """acc += the products of ``channels`` channels from ``at`` = (row, column, channel) on: each pixel is one load."""
        g, (dy, dx, first) = self.g, at
        lanes = tirx.Ramp(0, 1, g.lanes)
        by_lane.accumulate(
            acc,
            staged,
            lambda n, lane: self._pixel(place, *place.pixels[n], dy, dx, first + lane),
            lambda j, c: self.weight[self._tap(block + j, dy, dx, first + c, lanes)],
            channels,
        )


def _inside(at: list, extents: tuple[int, int], body: Callable) -> None:
    """``body(dy, dx)`` in loops over those of ``extents`` that ``at`` has no number of yet."""
    with ExitStack() as loops:
        body(*at, *(loops.enter_context(T.serial(0, extent)) for extent in extents[len(at) :]))


def _piece(acc: Registers, total: Registers | None, lanes: int, body: Callable[[], None]) -> None:
    """What ``body`` adds to ``acc`` added to ``total``; there is none where the reduction is one piece."""
    if total is None:
        return body()
    whole = tirx.Ramp(0, 1, lanes)
    for register in acc.values():
        T.buffer_store(register, tirx.Broadcast(tirx.const(0.0, _HALF), lanes), [whole])
    body()
    for cell, register in acc.items():
        T.buffer_store(total[cell], total[cell][whole] + register[whole], [whole])
