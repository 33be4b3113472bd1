"""Analytic cost model: a roofline with tile and wave quantization, from the target profile alone.

A kernel takes the longer of its arithmetic and its memory traffic. Arithmetic is that of a direct kernel whose
register tile is ``rows x columns`` pixels by ``vectors`` channel vectors:

* a tile's reduction step costs ``max(fmas / fma_per_cycle, loads / fma_per_cycle, fma_latency)`` cycles: as many vector
  loads as fused multiply-adds start in a cycle, and each accumulator waits for itself;
* tiles at an edge cost as much as full ones, and channels count as stored, that is padded to the vector width;
* threads take whole tiles, so the last wave of them may leave threads idle.

The best tile that fits the vector registers is taken, as a tuner would. Memory moves each operand once, at the bandwidth
of the smallest level that holds them all (Williams et al., Roofline, CACM 2009). The interval is a factor of two: such a
model ranks kernels, it does not time them.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Sequence

import numpy as np

from hwprune.cost.base import Estimate
from hwprune.errors import NoLatency
from hwprune.target import TargetProfile
from hwprune.workload import ANCHORS, OpCall, Workload

#: Half and twice the prediction. Untuned rooflines are within that of tuned kernels where they were compared.
INTERVAL_FACTOR = 2.0

#: Vector instructions for each result vector. exp is a polynomial of about ten, a division about as long as four.
VECTOR_OPS: dict[str, float] = {
    "add": 1, "sub": 1, "mul": 1, "div": 4, "maximum": 1, "minimum": 1, "add_scalar": 1, "mul_scalar": 1,
    "rsub_scalar": 1, "relu": 1, "clip": 2, "leaky_relu": 4, "prelu": 4, "neg": 1, "hardsigmoid": 3, "hardswish": 4,
    "sigmoid": 16, "silu": 13, "tanh": 18, "exp": 10, "gelu": 30, "slice": 1, "pad": 2, "concat": 2,
}  # fmt: skip

#: Reductions of a row, for each vector of it: passes over the row.
ROW_OPS: dict[str, float] = {"layer_norm": 8, "softmax": 16}

#: Movements that copy element by element instead of by vectors.
SCALAR_OPS = frozenset({"relayout", "gather"})


class AnalyticModel:
    """CostModel of a target that nobody has measured. See the module docstring.

    ``kernel_overhead_us`` and ``network_overhead_us`` are the profile's.
    """

    def __init__(self, profile: TargetProfile, threads: int | None = None):
        self.profile = profile
        self.threads = threads or profile.threads

    @property
    def kernel_overhead_us(self) -> float:
        return self.profile.overhead.kernel_us

    @property
    def network_overhead_us(self) -> float:
        return self.profile.overhead.network_us

    def predict(self, workloads: Sequence[Workload]) -> list[Estimate]:
        """Latency of each workload in microseconds. NoLatency names an operator that the model does not know."""
        return [
            Estimate(float(t), float(t) / INTERVAL_FACTOR, float(t) * INTERVAL_FACTOR, "analytic")
            for t in self.latencies_us(workloads)
        ]

    def latencies_us(self, workloads: Sequence[Workload]) -> np.ndarray:
        """float64 [len(workloads)]: predicted latencies in microseconds."""
        if not workloads:
            return np.zeros(0)
        stages = [(i, stage) for i, workload in enumerate(workloads) for stage in workload.stages]
        features = np.array([self._features(stage) for _, stage in stages], dtype=np.float64)
        batch, rows, columns, vectors, reduction, vector_ops = features.T
        used = 1 - 0.5 * np.array([stage.half_padding for _, stage in stages]) / vectors
        cycles = used * self._tile_cycles(batch, rows, columns, vectors, reduction) + self._vector_cycles(vector_ops)
        arithmetic = np.bincount([i for i, _ in stages], cycles)
        bytes_moved = np.array([w.bytes_moved for w in workloads], dtype=np.float64)
        return np.maximum(arithmetic / self.profile.core.frequency_mhz, self._memory_us(bytes_moved))

    def _features(self, workload: Workload) -> tuple[float, ...]:
        """Batch, rows, columns, channel vectors, reduction steps, further vector instructions of a kernel with one anchor at most."""
        lanes = self.profile.lanes
        shape = workload.output.shape
        vectors = -(-shape[-1] // lanes)
        batch, rows, columns = (shape[0], shape[1], shape[2]) if len(shape) == 4 else (1, 1, math.prod(shape[:-1]))
        reduction, further = 0.0, 0.0
        result_vectors = vectors * math.prod(shape[:-1])
        for call in workload.ops:
            if call.op in ANCHORS:
                steps, ops = self._anchor(call, workload)
                reduction, further = reduction + steps, further + ops * result_vectors
            elif call.op in SCALAR_OPS:
                further += lanes * result_vectors
            elif call.op in VECTOR_OPS:
                further += VECTOR_OPS[call.op] * result_vectors
            else:
                raise NoLatency(
                    f"the analytic cost model does not know operator {call.op!r} (workload {workload.key}); "
                    f"measure it on the target, or add its cost to hwprune/cost/analytic.py"
                )
        return batch, rows, columns, vectors, reduction, further

    def _anchor(self, call: OpCall, workload: Workload) -> tuple[float, float]:
        """Reduction steps of each result vector, done in register tiles; and plain vector instructions of each."""
        inputs = workload.inputs
        if call.op in ROW_OPS:
            return 0.0, ROW_OPS[call.op]
        if call.op in ("attention", "matmul"):  # multiply-adds over the vectors of the result, and the softmax of attention
            steps = workload.macs / max(math.prod(workload.output.shape), 1)
            return steps, VECTOR_OPS["exp"] * steps / 64 if call.op == "attention" else 0.0
        if call.op == "pool2d":
            return 0.0, math.prod(call["kernel"])
        if call.op == "global_pool":
            source = inputs[call.args[0]].shape if call.args[0] < len(inputs) else (1, 1, 1, 1)
            return 0.0, source[1] * source[2]
        weight = inputs[call.args[1]].shape
        if call.op == "depthwise":  # [kh, kw, channels]: each result vector reads its own inputs, no reuse in a tile
            return 0.0, 2.0 * weight[0] * weight[1]
        return math.prod(weight[1:-1]), 0.0  # conv2d [co/v, kh, kw, ci/groups, v] and dense [co/v, k, v]

    @cached_property
    def _tiles(self) -> np.ndarray:
        """int64 [tiles, 3]: rows, columns and channel vectors of every tile that fits the registers."""
        registers = self.profile.core.vector_registers
        fits = [
            (rows, columns, vectors)
            for rows in (1, 2, 4)
            for columns in range(1, registers)
            for vectors in range(1, 9)
            # accumulators, one register for each weight vector, one for the broadcast input
            if rows * columns * vectors + vectors + 1 <= registers
        ]
        return np.array(fits or [(1, 1, 1)])

    def _tile_cycles(self, batch, rows, columns, vectors, reduction) -> np.ndarray:
        """Cycles of the slowest thread under the best tile; all arguments and the result are float64 [n]."""
        core = self.profile.core
        tile_rows, tile_columns, tile_vectors = (t[None, :] for t in self._tiles.T)
        fmas = tile_rows * tile_columns * tile_vectors
        loads = tile_rows * tile_columns + tile_vectors
        step = np.maximum(np.maximum(fmas, loads) / core.fma_per_cycle, core.fma_latency_cycles)
        tasks = batch[:, None] * np.ceil(rows[:, None] / tile_rows) * np.ceil(vectors[:, None] / tile_vectors)
        waves = np.ceil(tasks / self.threads)
        return (waves * np.ceil(columns[:, None] / tile_columns) * step).min(axis=1) * reduction

    def _vector_cycles(self, vector_ops: np.ndarray) -> np.ndarray:
        return vector_ops / self.profile.core.fma_per_cycle / self.threads

    def _memory_us(self, bytes_moved: np.ndarray) -> np.ndarray:
        """float64 [n]: microseconds to move ``bytes_moved`` at the bandwidth of the level that holds them."""
        core, memory = self.profile.core, self.profile.memory
        l1 = memory.l1_gb_per_s * 1e3 if memory.l1_gb_per_s else core.vector_bits / 8 * core.fma_per_cycle * core.frequency_mhz
        l2 = memory.l2_gb_per_s * 1e3
        dram = memory.dram_gb_per_s * 1e3
        # Where a profile gives no L3 bandwidth, the geometric mean of its neighbours stands for it.
        l3 = memory.l3_gb_per_s * 1e3 if memory.l3_gb_per_s else max(math.sqrt(l2 * self.threads * dram), dram)
        levels = [
            (memory.l1d_bytes * self.threads, l1 * self.threads),
            (memory.l2_bytes * self.threads, l2 * self.threads),
            (memory.l3_bytes, l3),
            (math.inf, dram),
        ]
        bandwidth = np.full(bytes_moved.shape, dram)
        for capacity, rate in reversed(levels):
            bandwidth = np.where(bytes_moved <= capacity, np.maximum(rate, dram), bandwidth)
        return bytes_moved / bandwidth
