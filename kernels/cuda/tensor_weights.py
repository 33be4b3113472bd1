"""Weights of products on tensor cores as they are packed when a network is compiled: in fragments, rounded."""

from __future__ import annotations

import numpy as np

from hwprune.errors import CompileError
from hwprune.kernels.cuda.gather import Gather
from hwprune.kernels.cuda.product import rounded
from hwprune.kernels.cuda.ptx import FP16, Precision
from hwprune.kernels.cuda.tensor_tile import CHANNELS, SLICE


def matrix(packed: np.ndarray, gather: Gather) -> np.ndarray:
    """[taps x stored channels, columns] of a weight packed [columns / lanes, ..., channels, lanes]."""
    taps = packed.reshape(packed.shape[0], -1, gather.channels, gather.lanes)
    filled = np.zeros((*taps.shape[:2], gather.stored, gather.lanes), np.float32)
    filled[:, :, : gather.channels] = taps
    return filled.transpose(1, 2, 0, 3).reshape(gather.k, gather.n)


def fragments(weights: np.ndarray, precision: Precision, bn: int, bk: int) -> np.ndarray:
    """Weights [k, n], float32, tile by tile as lanes load them, 16 bytes each time; float16 in pairs, seen as float32.

    CompileError if float16 does not hold a value.
    """
    k, n = (rounded(size, tile) for size, tile in zip(weights.shape, (bk, bn)))
    padded = np.zeros((k, n), np.float32)
    padded[: weights.shape[0], : weights.shape[1]] = weights
    # k: lane t of four has four neighbours, pairs of them in one register or instruction. n: lane group g has four
    # neighbours, rows g and g + 8 of the upper and of the lower instruction
    axes = ("step", "slice", "t", "pair", "one", "block", "piece", "g", "lower", "half")
    split = padded.reshape(k // bk, bk // SLICE, 4, 2, 2, n // bn, bn // CHANNELS, 8, 2, 2)
    inner = ("g", "t", "pair", "half", "one") if precision is FP16 else ("pair", "g", "t", "one", "half")
    ordered = split.transpose([axes.index(a) for a in ("block", "step", "slice", "piece", "lower", *inner)])
    return _rounded(np.ascontiguousarray(ordered), precision).ravel()


def _rounded(values: np.ndarray, precision: Precision) -> np.ndarray:
    if precision is FP16:
        largest = float(np.abs(values).max(initial=0.0))
        if largest >= 65520:  # halfway to what comes after the largest
            raise CompileError(
                f"a weight of {largest:.6g} is beyond 65504, the largest of float16; leave fp16 out of the target's `gpu.precision`"
            )
        return values.astype(np.float16).view(np.float32)
    # to nearest, ties away from zero, as cvt.rna.tf32 rounds the other factor
    return ((values.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
