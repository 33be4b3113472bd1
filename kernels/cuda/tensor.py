"""Convolution as implicit GEMM, and matrix products, on the tensor cores: factors rounded to TF32 or float16, sums in float32.

Offered only where the profile's ``precision`` allows it: factors lose 13 bits, and those that float16 cannot hold (65,504
is its largest) become infinite. A block makes bm pixels x bn channels of the result, bk steps of k at a time; copies into
shared memory run ``stages - 1`` steps ahead, past the registers (cp.async). A warp multiplies by the instruction mma.sync,
whose rows are channels and whose columns are pixels, and applies the epilogue to its sums where they are, in registers.

The order of k within 16 steps and of channels within 32 is free as long as both factors agree. It is chosen such that a
lane always takes four neighbours: four k of a pixel, which are a right fragment as they come, and four channels of the
result. Weights are packed, when the network is compiled, in the order in which lanes take them, rounded, with zeros up to
whole tiles. Shared memory is then read and written in 16-byte vectors without conflicts, and nothing of it is padding.

Where the result has few tiles, a product lasts as long as its chain of steps: ``wk`` groups of warps share the slices of a
step, and add up their sums at the end.

Sources: PTX ISA, matrix fragments of mma.m16n8k8 and mma.m16n8k16; the pipeline is the multistage one of CUTLASS.
"""

from __future__ import annotations

from itertools import product as combinations
from typing import Callable, Mapping, Sequence

import numpy as np
from tvm import tirx

from hwprune.errors import Infeasible
from hwprune.kernels.cuda.gather import Gather
from hwprune.kernels.cuda.model import within
from hwprune.kernels.cuda.product import Product, rounded
from hwprune.kernels.cuda.ptx import PRECISIONS, Card
from hwprune.kernels.cuda.tensor_kernel import Kernel
from hwprune.kernels.cuda.tensor_tile import SIZES, Tile
from hwprune.kernels.cuda.tensor_weights import fragments, matrix
from hwprune.kernels.loops import function
from hwprune.kernels.schedule import Config, Repack, as_read
from hwprune.occupancy import excess, gpu_of
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "cuda_tensor"
#: products of rounded factors
exact = False

_BLOCKS = ((128, 128), (128, 64), (64, 128), (64, 64), (128, 32), (64, 32), (32, 64), (32, 32), (16, 64), (16, 32))
_WARPS = ((2, 4), (4, 2), (2, 2), (4, 1), (8, 1), (1, 4), (1, 2), (2, 1))
_GROUPS, _DEPTHS, _STAGES = (1, 2, 4, 8), (16, 32, 64, 128), (2, 3, 4)
_OFFERED = 12
#: Pixels, channels and steps: smaller products leave most of a tile empty.
_LEAST = 16


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    shape = Product.of(workload)
    if profile.gpu is None or shape is None or min(shape.m, shape.n, shape.k) < _LEAST:
        return None
    gather, ranked = Gather(workload), []
    for precision in PRECISIONS.values():
        if precision.name not in profile.gpu.precision:
            continue
        for block, warps, groups, depth, stages in combinations(_BLOCKS, _WARPS, _GROUPS, _DEPTHS, _STAGES):
            tile = Tile(precision, *block, depth, *warps, groups, stages, gpu_of(profile).warp_size)
            if not tile.fault and not excess(tile.usage, gpu_of(profile)):
                ranked.append((tile.cycles(gather, profile), _config(tile)))
    return _varied(sorted(ranked, key=lambda item: item[0]))[:_OFFERED] or None


def _varied(ranked: Sequence[tuple[float, Config]]) -> list[Config]:
    """By cost, two of each tile: the model tells tiles apart better than numbers of warps and stages."""
    seen: dict[tuple, int] = {}
    kept = []
    for _, config in ranked:
        tile = tuple(config[key] for key in ("precision", "bm", "bn", "wk"))
        seen[tile] = seen.get(tile, 0) + 1
        if seen[tile] <= 2:
            kept.append(config)
    return kept


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    return written(workload, profile, config, Card)


def written(workload: Workload, profile: TargetProfile, config: Config, machine: Callable[[int, int], Card]) -> tirx.PrimFunc:
    """The function for a card, or for what stands in for one. machine : (warps, their size) -> a block of them."""
    tile = _tile(config, profile)
    allowed = gpu_of(profile).precision
    if tile.precision.name not in allowed:
        raise Infeasible(f"{config.to_text()}: target {profile.name!r} allows {', '.join(allowed)}")
    if tile.fault:
        raise Infeasible(f"{config.to_text()}: {tile.fault}")
    within(tile.usage, profile, config)
    kernel = Kernel(workload, tile, machine(tile.warps, tile.warp_size))
    return function(workload, kernel.statements, as_read(workload.inputs, repack(workload, config)))


def repack(workload: Workload, config: Config) -> Mapping[int, Repack]:
    """The right factor in the order in which lanes take it."""
    precision, bn, bk = PRECISIONS[str(config["precision"])], int(config["bn"]), int(config["bk"])
    gather = Gather(workload)
    blocks, steps = rounded(gather.n, bn) // bn, rounded(gather.k, bk) // bk
    shape = (blocks, steps, bn * bk * precision.bytes // 4)

    def transform(packed: np.ndarray) -> np.ndarray:
        return fragments(matrix(packed, gather), precision, bn, bk).reshape(shape)

    return {workload.anchor.args[1]: Repack(f"mma {precision.name} {bn}x{bk}", shape, transform)}


def _tile(config: Config, profile: TargetProfile) -> Tile:
    precision = PRECISIONS.get(str(config["precision"]))
    if precision is None:
        raise Infeasible(f"{config.to_text()}: tensor cores take {', '.join(PRECISIONS)}")
    return Tile(precision, *(int(config[key]) for key in SIZES), gpu_of(profile).warp_size)


def _config(tile: Tile) -> Config:
    return Config.make(name, precision=tile.precision.name, **{key: getattr(tile, key) for key in SIZES})
