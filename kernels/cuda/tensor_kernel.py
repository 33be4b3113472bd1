"""The kernel of a product on tensor cores, as loops over what a block of warps can do (``ptx.Card``)."""

from __future__ import annotations

import math
from typing import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwprune.kernels.compute import expression
from hwprune.kernels.cuda.gather import Gather
from hwprune.kernels.cuda.product import rounded
from hwprune.kernels.cuda.ptx import Card
from hwprune.kernels.cuda.tensor_tile import CHANNELS, PIXELS, SLICE, VECTOR, Tile
from hwprune.kernels.loops import constant, vector
from hwprune.workload import Workload


class Kernel:
    """The statements of a kernel, for a ``Card`` or an ``Emulated`` one."""

    def __init__(self, workload: Workload, tile: Tile, machine: Card):
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
        self.pixels = machine.shared(tile.stages * tile.pixel_vectors * VECTOR, "float32")
        self.weights = machine.shared(tile.stages * tile.weight_vectors * VECTOR, "uint32")
        self.sums = machine.registers(tile.rows * tile.columns * 8, "float32")
        self.loaded = machine.registers(VECTOR, "float32")
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
        return (self._thread // VECTOR + j * (self.tile.threads // VECTOR)) % self.tile.bm

    def _fetch(self, step) -> None:
        """Start to copy both factors of ``step`` into its stage."""
        stage = step % self.tile.stages
        self.machine.threads(lambda: (self._fetch_pixels(step, stage), self._fetch_weights(step, stage)))

    def _fetch_weights(self, step, stage) -> None:
        tile = self.tile
        base = (self.column * self.steps + step) * tile.weight_vectors
        for i in range(tile.weight_vectors // tile.threads):
            vector = i * tile.threads + self._thread
            at = (stage * tile.weight_vectors + vector) * VECTOR
            self.machine.copy(self.weights, at, self.constants, (base + vector) * VECTOR)

    def _fetch_pixels(self, step, stage) -> None:
        """Neighbouring threads take neighbouring vectors of a row and a slice, then the next row."""
        tile = self.tile
        for s in range(0, tile.slices, tile.slices_at_once):
            piece = s if tile.slices_at_once == 1 else s + self._thread // (VECTOR * tile.bm)
            within_row = self._thread % VECTOR * VECTOR
            for j in range(tile.rows_each):
                at = ((stage * tile.slices + piece) * tile.bm + self._row(j)) * SLICE + within_row
                self._fetch_vector(j, step * tile.bk + piece * SLICE + within_row, at)

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
            for lane in range(VECTOR):
                T.buffer_store(self.pixels, self._computed(inside, image, row, column, channel + lane), [at + lane])
            return
        offset = ((image * height + row) * width + column) * self.extent[-1] + channel
        valid = None
        if inside or gather.channels < gather.stored:
            whole = tirx.const(VECTOR, "int32")
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
                machine.unrolled(tile.columns, lambda p, r=part: machine.unrolled(tile.rows, lambda j: self._products(r, p, j)))

        machine.warps(lambda: machine.unrolled(tile.slices_each, piece))

    def _products(self, part: int, p, j) -> None:
        """Both instructions of ``part`` for channels ``p`` and pixels ``j`` of the warp: four channels of two pixels a lane."""
        precision = self.tile.precision
        for lower in range(2):
            first = (p * self.tile.rows + j) * 8 + lower * 2
            sums = [first + half + pixel * VECTOR for half in range(2) for pixel in range(2)]
            left, right = ((p * 2 + lower) * precision.instructions + part) * 4, j * precision.right + part * 2
            self.machine.multiply(precision, self.sums, sums, self.left, left, self.right, right)

    def _load_weights(self, stage, s) -> None:
        tile, machine = self.tile, self.machine
        vectors = 2 * tile.precision.instructions

        def load(p):
            piece = (s * (tile.bn // CHANNELS) + self._warp_column * tile.columns + p) * vectors
            for v in range(vectors):
                at = stage * tile.weight_vectors + (piece + v) * tile.warp_size + machine.lane
                self.left.load((p * vectors + v) * VECTOR, self.weights, at * VECTOR)

        machine.unrolled(tile.columns, load)

    def _load_pixels(self, stage, s) -> None:
        tile, machine, precision = self.tile, self.machine, self.tile.precision

        def load(j):
            row = (self._warp_row * tile.rows + j) * PIXELS + machine.lane // 4
            self.loaded.load(0, self.pixels, ((stage * tile.slices + s) * tile.bm + row) * SLICE + machine.lane % 4 * VECTOR)
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
            return ((group * count + v) * tile.group_threads + self._thread % tile.group_threads) * VECTOR

        def leave(v):
            vector(self.pixels, place(self._group - 1, v), lambda lane: self.sums[v * VECTOR + lane], VECTOR)

        def add(group, v):
            self.loaded.load(0, self.pixels, place(group, v))
            machine.unrolled(VECTOR, lambda i: self.sums.store(v * VECTOR + i, self.sums[v * VECTOR + i] + self.loaded[i]))

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
            m = self.row * tile.bm + (self._warp_row * tile.rows + j) * PIXELS + machine.lane % 4 * 2 + pixel
            n = self.column * tile.bn + (self._warp_column * tile.columns + p) * CHANNELS + machine.lane // 4 * VECTOR
            limits = [index < size for index, size, each in ((m, gather.m, tile.bm), (n, gather.n, tile.bn)) if size % each]
            first = ((p * tile.rows + j) * 2 + pixel) * VECTOR
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

        vector(self.y, (*pixel, n), value, VECTOR)


def pipeline(
    machine: Card, steps: int, stages: int, fetch: Callable[[tirx.Expr], None], multiply: Callable[[tirx.Expr], None]
) -> None:
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
