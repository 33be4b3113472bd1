"""Tiles of products on tensor cores: what a block makes, what it takes of the card, and what that costs."""

from __future__ import annotations

from hwprune.kernels.cuda.gather import Gather
from hwprune.kernels.cuda.model import Step, product_cycles
from hwprune.kernels.cuda.ptx import Precision
from hwprune.occupancy import Usage, gpu_of
from hwprune.target import TargetProfile

#: What a warp makes in one piece, by two instructions one above the other for each of those that 16 steps of k take.
CHANNELS, PIXELS, SLICE = 32, 8, 16
#: Words of 16 bytes, and lanes that share a pixel.
VECTOR = 4
#: Names of what makes a tile: pixels, channels and steps of a block, warps along each of them, stages in shared memory.
SIZES = ("bm", "bn", "bk", "wm", "wn", "wk", "stages")

#: Addresses, loop counters and what the compiler keeps in flight, beyond sums and factors.
_FURTHER_REGISTERS = 44
#: Instructions of a thread for a vector of 16 bytes: a copy with its tap, border and address; values that are computed on
#: the way, one by one; a copy of what lies in a row. Of a register of rounded factors. Assumption, from reading the code.
_COPY, _GATHER, _COPY_CONSTANT, _ROUND = 12, 60, 3, 2
#: Cycles from one instruction mma.sync to the next that takes its sums; and of a step besides, for its barrier and the first
#: loads from shared memory. Assumptions, of the order that microbenchmarks of these cards report.
_MMA_LATENCY, _STEP_LATENCY = 25, 100


class Tile:
    """What a block makes, and how its warps share it: ``wm`` x ``wn`` warps, each with ``rows`` x ``columns`` pieces.

    Rows are of pixels, columns of channels. ``wk`` such groups of warps have ``slices_each`` slices of a step each.
    """

    def __init__(self, precision: Precision, bm: int, bn: int, bk: int, wm: int, wn: int, wk: int, stages: int, warp_size: int):
        self.precision, self.bm, self.bn, self.bk, self.wm, self.wn, self.wk, self.stages = precision, bm, bn, bk, wm, wn, wk, stages
        self.warps, self.warp_size, self.group_threads = wm * wn * wk, warp_size, wm * wn * warp_size
        self.threads = self.warps * warp_size
        self.rows, self.columns, self.slices = bm // (wm * PIXELS), bn // (wn * CHANNELS), bk // SLICE
        self.slices_each = self.slices // wk
        #: vectors of 16 bytes that a step fetches
        self.pixel_vectors, self.weight_vectors = bm * bk // VECTOR, bn * bk * precision.bytes // 16
        fours = self.threads // VECTOR
        #: rows of the left factor that a thread fetches, and slices that all threads fetch together
        self.rows_each, self.slices_at_once = max(1, bm // fours), max(1, fours // bm)

    @property
    def fault(self) -> str | None:
        """Why these numbers do not make a kernel."""
        if self.stages < 2 or self.bm % (self.wm * PIXELS) or self.bn % (self.wn * CHANNELS) or self.bk % (self.wk * SLICE):
            return f"warps do not fill the block with pieces of {PIXELS} x {CHANNELS} x {SLICE}, or there are fewer than 2 stages"
        if self.pixel_vectors % self.threads or self.weight_vectors % self.threads:
            return f"{self.threads} threads do not share {self.pixel_vectors} and {self.weight_vectors} vectors evenly"
        if self.slices % self.slices_at_once:
            return f"{self.threads} threads do not share rows of {self.bk} steps"
        if (self.wk - 1) * self.bm * self.bn > self.stages * self.pixel_vectors * VECTOR:
            return f"sums of {self.wk} groups do not fit where the pixels were"
        return None

    @property
    def usage(self) -> Usage:
        factors = self.rows * self.precision.right + VECTOR + self.columns * 2 * self.precision.left
        registers = self.rows * self.columns * 8 + factors + _FURTHER_REGISTERS
        return Usage(self.threads, registers, 16 * self.stages * (self.pixel_vectors + self.weight_vectors))

    def cycles(self, gather: Gather, profile: TargetProfile) -> float:
        """What the kernel costs, see ``product_cycles``: of each warp in a slice, times the warps, over a step's length."""
        gpu, precision = gpu_of(profile), self.precision
        peak = gpu.tf32_tflops if precision.name == "tf32" else gpu.fp16_tflops
        rate = peak * 1e6 / 2 / (profile.cores * profile.core.frequency_mhz)
        products = self.rows * self.columns * 2 * precision.instructions
        vectors = self.rows + self.columns * precision.left / 2
        rounds = self.rows * precision.right * _ROUND
        fetches = self.pixel_vectors * (_COPY if gather.copied else _GATHER) + self.weight_vectors * _COPY_CONSTANT
        product_cycles_alone = 16 * 8 * 16 / precision.instructions / (rate / gpu.schedulers_per_sm)
        slice_alone = max(products * product_cycles_alone, precision.instructions * _MMA_LATENCY) + vectors + rounds
        step = Step(
            arithmetic=self.bm * self.bn / rate,
            instructions=self.wm * self.wn * (products + vectors + rounds) / SLICE + fetches / self.bk / gpu.warp_size,
            shared_bytes=16 * (self.group_threads * vectors / SLICE + (self.pixel_vectors + self.weight_vectors) / self.bk),
            l2_bytes=16 * (self.pixel_vectors + self.weight_vectors) / self.bk,
            chain=(_STEP_LATENCY + self.slices_each * slice_alone + fetches / self.threads) / self.bk,
            ahead=self.stages - 1,
        )
        return product_cycles((gather.m, gather.n, gather.k), (self.bm, self.bn, self.bk), step, self.usage, profile)
