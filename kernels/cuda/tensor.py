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

import math
from itertools import product as combinations
from typing import Callable, Mapping, Sequence

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwprune.errors import CompileError, Infeasible
from hwprune.kernels.compute import expression
from hwprune.kernels.cuda.gather import Gather
from hwprune.kernels.cuda.model import Step, product_cycles, within
from hwprune.kernels.cuda.product import Product, rounded
from hwprune.kernels.cuda.ptx import FP16, PRECISIONS, Card, Precision
from hwprune.kernels.loops import constant, function, vector
from hwprune.kernels.schedule import Config, Repack, as_read
from hwprune.occupancy import Usage, excess, gpu_of
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "cuda_tensor"
#: products of rounded factors
exact = False

#: What a warp makes in one piece, by two instructions one above the other for each of those that 16 steps of k take.
_CHANNELS, _PIXELS, _SLICE = 32, 8, 16
#: Words of 16 bytes, and lanes that share a pixel.
_VECTOR = 4
_BLOCKS = ((128, 128), (128, 64), (64, 128), (64, 64), (128, 32), (64, 32), (32, 64), (32, 32))
_WARPS = ((2, 4), (4, 2), (2, 2), (4, 1), (8, 1), (1, 4), (1, 2), (2, 1))
_GROUPS, _DEPTHS, _STAGES = (1, 2, 4), (16, 32, 64), (2, 3, 4)
_SIZES = ("bm", "bn", "bk", "wm", "wn", "wk", "stages")
_OFFERED = 12
#: Pixels, channels and steps: smaller products leave most of a tile empty.
_LEAST = 16
#: Addresses, loop counters and what the compiler keeps in flight, beyond sums and factors.
_FURTHER_REGISTERS = 44


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    shape = Product.of(workload)
    if profile.gpu is None or shape is None or min(shape.m, shape.n, shape.k) < _LEAST:
        return None
    gather, ranked = Gather(workload), []
    for precision in PRECISIONS.values():
        if precision.name not in profile.gpu.precision:
            continue
        for block, warps, groups, depth, stages in combinations(_BLOCKS, _WARPS, _GROUPS, _DEPTHS, _STAGES):
            tile = _Tile(precision, *block, depth, *warps, groups, stages, gpu_of(profile).warp_size)
            if not tile.fault and not excess(tile.usage, gpu_of(profile)):
                ranked.append((tile.cycles(gather, profile), tile.config))
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
    kernel = _Kernel(workload, tile, machine(tile.warps, tile.warp_size))
    return function(workload, kernel.statements, as_read(workload.inputs, repack(workload, config)))


def repack(workload: Workload, config: Config) -> Mapping[int, Repack]:
    """The right factor in the order in which lanes take it."""
    precision, bn, bk = PRECISIONS[str(config["precision"])], int(config["bn"]), int(config["bk"])
    gather = Gather(workload)
    blocks, steps = rounded(gather.n, bn) // bn, rounded(gather.k, bk) // bk
    shape = (blocks, steps, bn * bk * precision.bytes // 4)

    def transform(packed: np.ndarray) -> np.ndarray:
        return fragments(_matrix(packed, gather), precision, bn, bk).reshape(shape)

    return {workload.anchor.args[1]: Repack(f"mma {precision.name} {bn}x{bk}", shape, transform)}


def _matrix(packed: np.ndarray, gather: Gather) -> np.ndarray:
    """[taps x stored channels, columns] of a weight packed [columns / lanes, ..., channels, lanes]."""
    taps = packed.reshape(packed.shape[0], -1, gather.channels, gather.lanes)
    filled = np.zeros((*taps.shape[:2], gather.stored, gather.lanes), np.float32)
    filled[:, :, : gather.channels] = taps
    return filled.transpose(1, 2, 0, 3).reshape(gather.k, gather.n)


def fragments(matrix: np.ndarray, precision: Precision, bn: int, bk: int) -> np.ndarray:
    """Weights [k, n], float32, tile by tile as lanes load them, 16 bytes each time; float16 in pairs, seen as float32.

    CompileError if float16 does not hold a value.
    """
    k, n = (rounded(size, tile) for size, tile in zip(matrix.shape, (bk, bn)))
    padded = np.zeros((k, n), np.float32)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    # k: lane t of four has four neighbours, pairs of them in one register or instruction. n: lane group g has four
    # neighbours, rows g and g + 8 of the upper and of the lower instruction
    axes = ("step", "slice", "t", "pair", "one", "block", "piece", "g", "lower", "half")
    split = padded.reshape(k // bk, bk // _SLICE, 4, 2, 2, n // bn, bn // _CHANNELS, 8, 2, 2)
    inner = ("g", "t", "pair", "half", "one") if precision is FP16 else ("pair", "g", "t", "one", "half")
    ordered = split.transpose([axes.index(a) for a in ("block", "step", "slice", "piece", "lower", *inner)])
    return _rounded(np.ascontiguousarray(ordered), precision).ravel()


def _rounded(values: np.ndarray, precision: Precision) -> np.ndarray:
    if precision is FP16:
        largest = float(np.abs(values).max(initial=0.0))
        if largest >= 65520:  # halfway to what comes after the largest
            raise CompileError(f"a weight of {largest:.6g} is beyond 65504, the largest of float16; leave fp16 out of the target's `gpu.precision`")
        return values.astype(np.float16).view(np.float32)
    # to nearest, ties away from zero, as cvt.rna.tf32 rounds the other factor
    return ((values.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _tile(config: Config, profile: TargetProfile) -> "_Tile":
    precision = PRECISIONS.get(str(config["precision"]))
    if precision is None:
        raise Infeasible(f"{config.to_text()}: tensor cores take {', '.join(PRECISIONS)}")
    return _Tile(precision, *(int(config[key]) for key in _SIZES), gpu_of(profile).warp_size)


class _Tile:
    """What a block makes, and how its warps share it: ``wm`` x ``wn`` warps, each with ``rows`` x ``columns`` pieces.

    Rows are of pixels, columns of channels. ``wk`` such groups of warps have ``slices_each`` slices of a step each.
    """

    def __init__(self, precision: Precision, bm: int, bn: int, bk: int, wm: int, wn: int, wk: int, stages: int, warp_size: int):
        self.precision, self.bm, self.bn, self.bk, self.wm, self.wn, self.wk, self.stages = precision, bm, bn, bk, wm, wn, wk, stages
        self.warps, self.warp_size, self.group_threads = wm * wn * wk, warp_size, wm * wn * warp_size
        self.threads = self.warps * warp_size
        self.rows, self.columns, self.slices = bm // (wm * _PIXELS), bn // (wn * _CHANNELS), bk // _SLICE
        self.slices_each = self.slices // wk
        #: vectors of 16 bytes that a step fetches
        self.pixel_vectors, self.weight_vectors = bm * bk // _VECTOR, bn * bk * precision.bytes // 16
        fours = self.threads // _VECTOR
        #: rows of the left factor that a thread fetches, and slices that all threads fetch together
        self.rows_each, self.slices_at_once = max(1, bm // fours), max(1, fours // bm)

    @property
    def config(self) -> Config:
        return Config.make(name, precision=self.precision.name, **{key: getattr(self, key) for key in _SIZES})

    @property
    def fault(self) -> str | None:
        """Why these numbers do not make a kernel."""
        if self.stages < 2 or self.bm % (self.wm * _PIXELS) or self.bn % (self.wn * _CHANNELS) or self.bk % (self.wk * _SLICE):
            return f"warps do not fill the block with pieces of {_PIXELS} x {_CHANNELS} x {_SLICE}, or there are fewer than 2 stages"
        if self.pixel_vectors % self.threads or self.weight_vectors % self.threads:
            return f"{self.threads} threads do not share {self.pixel_vectors} and {self.weight_vectors} vectors evenly"
        if self.slices % self.slices_at_once:
            return f"{self.threads} threads do not share rows of {self.bk} steps"
        if (self.wk - 1) * self.bm * self.bn > self.stages * self.pixel_vectors * _VECTOR:
            return f"sums of {self.wk} groups do not fit where the pixels were"
        return None

    @property
    def usage(self) -> Usage:
        factors = self.rows * self.precision.right + _VECTOR + self.columns * 2 * self.precision.left
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
            instructions=self.wm * self.wn * (products + vectors + rounds) / _SLICE + fetches / self.bk / gpu.warp_size,
            shared_bytes=16 * (self.group_threads * vectors / _SLICE + (self.pixel_vectors + self.weight_vectors) / self.bk),
            l2_bytes=16 * (self.pixel_vectors + self.weight_vectors) / self.bk,
            chain=(_STEP_LATENCY + self.slices_each * slice_alone + fetches / self.threads) / self.bk,
            ahead=self.stages - 1,
        )
        return product_cycles((gather.m, gather.n, gather.k), (self.bm, self.bn, self.bk), step, self.usage, profile)


#: Instructions of a thread for a vector of 16 bytes: a copy with its tap, border and address; values that are computed on
#: the way, one by one; a copy of what lies in a row. Of a register of rounded factors. Assumption, from reading the code.
_COPY, _GATHER, _COPY_CONSTANT, _ROUND = 12, 60, 3, 2
#: Cycles from one instruction mma.sync to the next that takes its sums (of the order that Sun et al. give for an A100, Dissecting
#: Tensor Cores via Microbenchmarks, 2022), and of a step besides: barrier, loads from shared memory. Assumption: the latter.
_MMA_LATENCY, _STEP_LATENCY = 25, 100


class _Kernel:
    """The statements of a kernel, for a ``Card`` or an ``Emulated`` one."""

    def __init__(self, workload: Workload, tile: _Tile, machine):
        self.workload, self.tile, self.machine = workload, tile, machine
        self.gather = Gather(workload)
        self.blocks = tuple(rounded(size, each) // each for size, each in ((self.gather.m, tile.bm), (self.gather.n, tile.bn)))
        self.steps = rounded(self.gather.k, tile.bk) // tile.bk

    def statements(self, inputs, y) -> None:
        self.y, self.constants = y, _flat(inputs[self.workload.anchor.args[1]])
        self.value = expression(self.workload, inputs, self._anchor)
        self.flat = _flat(inputs[self.workload.anchor.args[0]]) if self.gather.copied else None
        self.machine.launch(self.blocks[0] * self.blocks[1], self._block)

    def _anchor(self, call, values):
        self.source, self.extent = values[call.args[0]]
        return (lambda *index: self.cell), tuple(self.workload.output.shape)

    def _block(self, number) -> None:
        tile, machine = self.tile, self.machine
        self.row, self.column = number // self.blocks[1], number % self.blocks[1]
        self.pixels = machine.shared(tile.stages * tile.pixel_vectors * _VECTOR, "float32")
        self.weights = machine.shared(tile.stages * tile.weight_vectors * _VECTOR, "uint32")
        self.sums = machine.registers(tile.rows * tile.columns * 8, "float32")
        self.loaded = machine.registers(_VECTOR, "float32")
        self.left = machine.registers(tile.columns * 2 * tile.precision.left, "uint32")
        self.right = machine.registers(tile.rows * tile.precision.right, "uint32")
        self._find_rows()
        machine.threads(self.sums.clear)
        pipeline(machine, self.steps, tile.stages, self._fetch, self._multiply)
        self._combine()
        machine.threads(lambda: machine.when(self._group == 0, self._epilogue) if tile.wk > 1 else self._epilogue())

    @property
    def _thread(self):
        return self.machine.warp * self.tile.warp_size + self.machine.lane

    @property
    def _group(self):
        return self.machine.warp // (self.tile.wm * self.tile.wn)

    @property
    def _warp_row(self):
        return self.machine.warp // self.tile.wn % self.tile.wm

    @property
    def _warp_column(self):
        return self.machine.warp % self.tile.wn

    # --- fetching ---------------------------------------------------------------------------------------------

    def _find_rows(self) -> None:
        """Where each of the rows begins that a thread fetches: (image, row, column) in registers, found once."""
        tile, machine = self.tile, self.machine
        self.places = [machine.registers(tile.rows_each, "int32") for _ in range(3)]

        def find():
            for j in range(tile.rows_each):
                for register, value in zip(self.places, self.gather.start(self.row * tile.bm + self._row(j))):
                    register.store(j, value)

        machine.threads(find)

    def _row(self, j: int):
        return (self._thread // _VECTOR + j * (self.tile.threads // _VECTOR)) % self.tile.bm

    def _fetch(self, step) -> None:
        """Start to copy both factors of ``step`` into its stage."""
        stage = step % self.tile.stages
        self.machine.threads(lambda: (self._fetch_pixels(step, stage), self._fetch_weights(step, stage)))

    def _fetch_weights(self, step, stage) -> None:
        tile = self.tile
        base = (self.column * self.steps + step) * tile.weight_vectors
        for i in range(tile.weight_vectors // tile.threads):
            vector = i * tile.threads + self._thread
            at = (stage * tile.weight_vectors + vector) * _VECTOR
            self.machine.copy(self.weights, at, self.constants, (base + vector) * _VECTOR)

    def _fetch_pixels(self, step, stage) -> None:
        """Neighbouring threads take neighbouring vectors of a row and a slice, then the next row."""
        tile = self.tile
        for s in range(0, tile.slices, tile.slices_at_once):
            piece = s if tile.slices_at_once == 1 else s + self._thread // (_VECTOR * tile.bm)
            within_row = self._thread % _VECTOR * _VECTOR
            for j in range(tile.rows_each):
                at = ((stage * tile.slices + piece) * tile.bm + self._row(j)) * _SLICE + within_row
                self._fetch_vector(j, step * tile.bk + piece * _SLICE + within_row, at)

    def _fetch_vector(self, j: int, k, at) -> None:
        """Four neighbours from column ``k`` on of the thread's row ``j``, to ``at`` in shared memory."""
        gather, (height, width) = self.gather, self.gather.image(self.extent)
        image, y, x = (register[j] for register in self.places)
        dy, dx, channel = gather.tap(k)
        row, column, inside = y + dy, x + dx, []
        if gather.bordered or gather.m % self.tile.bm:
            inside.append(row >= 0)
        if gather.bordered:
            inside += [row < height, column >= 0, column < width]
        if gather.k % self.tile.bk:
            inside.append(k < gather.k)
        if not gather.copied:
            for lane in range(_VECTOR):
                T.buffer_store(self.pixels, self._computed(inside, image, row, column, channel + lane), [at + lane])
            return
        offset = ((image * height + row) * width + column) * self.extent[-1] + channel
        valid = None
        if inside or gather.channels < gather.stored:
            whole = tirx.const(_VECTOR, "int32")
            words = whole if gather.channels == gather.stored else tirx.min(gather.channels - channel, whole)
            valid = tirx.Select(tirx.all(*inside), words, tirx.const(0, "int32")) if inside else words
        self.machine.copy(self.pixels, at, self.flat, offset, valid)

    def _computed(self, inside, image, row, column, channel):
        """One value of the left factor, where it is computed on the way or its neighbours lie elsewhere."""
        gather, zero = self.gather, constant(0.0)
        index = (image, row, column, channel) if gather.channels_last else (image, channel, row, column)
        value = self.source(*index) if gather.is_conv else self.source(image, channel)
        if inside:
            value = tirx.if_then_else(tirx.all(*inside), value, constant(gather.border))
        return value if gather.channels == gather.stored else tirx.if_then_else(channel < gather.channels, value, zero)

    # --- multiplying ------------------------------------------------------------------------------------------

    def _multiply(self, step) -> None:
        """Add the product of the factors in the stage of ``step``."""
        tile, machine = self.tile, self.machine
        stage = step % tile.stages

        def piece(i):
            s = self._group * tile.slices_each + i if tile.wk > 1 else i
            machine.lanes(lambda: (self._load_weights(stage, s), self._load_pixels(stage, s)))
            for part in range(tile.precision.instructions):
                machine.unrolled(tile.columns, lambda p, part=part: machine.unrolled(tile.rows, lambda j: self._products(part, p, j)))

        machine.warps(lambda: machine.unrolled(tile.slices_each, piece))

    def _products(self, part: int, p, j) -> None:
        """Both instructions of ``part`` for channels ``p`` and pixels ``j`` of the warp. A lane has four channels of two pixels."""
        precision = self.tile.precision
        for lower in range(2):
            first = (p * self.tile.rows + j) * 8 + lower * 2
            sums = [first + half + pixel * _VECTOR for half in range(2) for pixel in range(2)]
            left, right = ((p * 2 + lower) * precision.instructions + part) * 4, j * precision.right + part * 2
            self.machine.multiply(precision, self.sums, sums, self.left, left, self.right, right)

    def _load_weights(self, stage, s) -> None:
        tile, machine = self.tile, self.machine
        vectors = 2 * tile.precision.instructions

        def load(p):
            piece = (s * (tile.bn // _CHANNELS) + self._warp_column * tile.columns + p) * vectors
            for v in range(vectors):
                at = stage * tile.weight_vectors + (piece + v) * tile.warp_size + machine.lane
                self.left.load((p * vectors + v) * _VECTOR, self.weights, at * _VECTOR)

        machine.unrolled(tile.columns, load)

    def _load_pixels(self, stage, s) -> None:
        tile, machine, precision = self.tile, self.machine, self.tile.precision

        def load(j):
            row = (self._warp_row * tile.rows + j) * _PIXELS + machine.lane // 4
            self.loaded.load(0, self.pixels, ((stage * tile.slices + s) * tile.bm + row) * _SLICE + machine.lane % 4 * _VECTOR)
            for i in range(precision.right):
                values = [self.loaded[i * precision.packed + n] for n in range(precision.packed)]
                machine.round(precision, self.right, j * precision.right + i, values)

        machine.unrolled(tile.rows, load)

    # --- results ----------------------------------------------------------------------------------------------

    def _combine(self) -> None:
        """The sums of all groups in the registers of the first, by way of shared memory."""
        tile, machine = self.tile, self.machine
        if tile.wk == 1:
            return
        count = tile.rows * tile.columns * 2

        def place(group, v):
            return ((group * count + v) * tile.group_threads + self._thread % tile.group_threads) * _VECTOR

        def leave(v):
            vector(self.pixels, place(self._group - 1, v), lambda lane: self.sums[v * _VECTOR + lane], _VECTOR)

        def add(group, v):
            self.loaded.load(0, self.pixels, place(group, v))
            machine.unrolled(_VECTOR, lambda i: self.sums.store(v * _VECTOR + i, self.sums[v * _VECTOR + i] + self.loaded[i]))

        def add_all():
            for group in range(tile.wk - 1):
                machine.unrolled(count, lambda v, group=group: add(group, v))

        machine.barrier()
        machine.threads(lambda: machine.when(self._group > 0, lambda: machine.unrolled(count, leave)))
        machine.barrier()
        machine.threads(lambda: machine.when(self._group == 0, add_all))

    def _epilogue(self) -> None:
        """The element-wise operators on the sums where they are, and whole vectors of results to memory."""
        tile, machine, gather = self.tile, self.machine, self.gather

        def four(p, j, pixel):
            m = self.row * tile.bm + (self._warp_row * tile.rows + j) * _PIXELS + machine.lane % 4 * 2 + pixel
            n = self.column * tile.bn + (self._warp_column * tile.columns + p) * _CHANNELS + machine.lane // 4 * _VECTOR
            limits = [index < size for index, size, each in ((m, gather.m, tile.bm), (n, gather.n, tile.bn)) if size % each]
            first = ((p * tile.rows + j) * 2 + pixel) * _VECTOR
            if not limits:
                return self._store(m, n, first)
            with T.If(tirx.all(*limits)), T.Then():
                self._store(m, n, first)

        def column(p):
            for pixel in range(2):
                machine.unrolled(tile.rows, lambda j, pixel=pixel: four(p, j, pixel))

        machine.unrolled(tile.columns, column)

    def _store(self, m, n, first) -> None:
        _, rows, columns = self.gather.out
        pixel = (m // (rows * columns), m // columns % rows, m % columns) if self.gather.is_conv else (m,)

        def value(lane):
            self.cell = self.sums[first + lane]
            return self.value(*pixel, n + lane)

        vector(self.y, (*pixel, n), value, _VECTOR)


def pipeline(machine, steps: int, stages: int, fetch, multiply) -> None:
    """``multiply(step)`` for all steps, each once its ``fetch(step)`` has arrived, which is started ``stages - 1`` steps ahead.

    One barrier a step: behind it every thread sees the copies of all of them, and none is still at the step before, whose
    stage the copies started next go to. A group is committed at each step, if an empty one, so that counting them tells
    which have arrived.
    """
    ahead = stages - 1
    for step in range(ahead):
        if step < steps:
            fetch(step)
        machine.commit()

    def turn(step):
        machine.wait(ahead - 1)
        machine.barrier()
        machine.when(step + ahead < steps, lambda: fetch(step + ahead))
        machine.commit()
        multiply(step)

    machine.each(steps, turn)


def _flat(buffer):
    """``buffer`` with one axis."""
    return T.decl_buffer((math.prod(int(d) for d in buffer.shape),), buffer.dtype, data=buffer.data)
