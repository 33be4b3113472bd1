"""Layer normalization and softmax over the innermost axis: a row at a time, read from the nearest cache in each pass.

Statistics are taken over the logical width: of the last vector only the lanes within it count. They are in float32 whatever the
row is.
"""

from __future__ import annotations

from typing import Callable, Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwprune.kernels.compute import chain
from hwprune.kernels.functions import as_type, exponential
from hwprune.kernels.loops import FLOAT, Runs, constant, folded, function, scratch, vector
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import Workload

name = "normalize"

#: Sums that are kept apart, so that one addition does not wait for the one before.
_CHAINS = 4
_LOWEST = -3.4e38


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    anchor = workload.anchor
    if anchor is None or anchor.op not in ("layer_norm", "softmax"):
        return None
    small = workload.bytes_moved < profile.memory.l1d_bytes
    return [Config.make(name, split=split) for split in (("none", "rows") if small else ("rows", "none"))]


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    anchor, (rows, _) = workload.anchor, workload.output.shape
    row = _layer_norm if anchor.op == "layer_norm" else _softmax
    threads = profile.threads if config["split"] == "rows" else 1

    def statements(inputs, y):
        x = _in_single(inputs[anchor.args[0]])

        def one(index, _):
            row(workload, inputs, x, y, index, profile.lanes)

        if threads == 1:
            Runs(rows, 1).each(one)
        else:
            with T.parallel(threads) as thread:
                Runs(rows, 1).each(one, (thread, threads))

    return function(workload, statements)


def _reduced(width: int, v: int, start: float, combine: Callable, value: Callable[[tirx.Expr], tirx.Expr]):
    """``value(column)`` of a row combined over its logical width; a buffer whose first element is the result."""
    blocks, rest = divmod(width, v)
    chains = max(1, min(_CHAINS, blocks))
    sums = scratch((chains * v,))
    for c in range(chains):
        vector(sums, c * v, lambda lane: constant(start), v)

    def add(chain_, column, inside=None):
        def lanes(lane):
            term = value(column + lane)
            term = term if inside is None else tirx.Select(lane < inside, term, constant(start))
            return combine(sums[chain_ * v + lane], term)

        vector(sums, chain_ * v, lanes, v)

    with T.serial(0, blocks // chains) as j:
        for c in range(chains):
            add(c, (j * chains + c) * v)
    for c in range(blocks % chains):
        add(c, (blocks // chains * chains + c) * v)
    if rest:
        add(chains - 1, blocks * v, rest)
    for c in range(1, chains):
        vector(sums, 0, lambda lane, c=c: combine(sums[lane], sums[c * v + lane]), v)
    folded(sums, v, combine)
    return sums


def _plus(a, b):
    return a + b


def _in_single(buffer) -> Callable[..., tirx.Expr]:
    """What reads ``buffer`` in float32."""
    return lambda *index: as_type(buffer[index], FLOAT)


def _layer_norm(workload: Workload, inputs, x, y, row, v: int) -> None:
    width, eps = workload.anchor["width"], workload.anchor["eps"]
    statistics = scratch((2,))
    total = _reduced(width, v, 0.0, _plus, lambda column: x(row, column))
    T.buffer_store(statistics, total[0] * constant(1.0 / width), [0])
    # the second pass is about the mean: the difference of two large sums would lose what matters
    square = _reduced(width, v, 0.0, _plus, lambda c: (x(row, c) - statistics[0]) * (x(row, c) - statistics[0]))
    T.buffer_store(statistics, constant(1.0) / T.sqrt(square[0] * constant(1.0 / width) + constant(eps)), [1])
    value = chain(workload, inputs, lambda r, c: (x(r, c) - statistics[0]) * statistics[1])
    with T.serial(0, int(y.shape[1]) // v) as j:
        vector(y, (row, j * v), lambda lane: value(row, j * v + lane), v)


def _softmax(workload: Workload, inputs, x, y, row, v: int) -> None:
    width, blocks, written = workload.anchor["width"], int(y.shape[1]) // v, _in_single(y)
    most = _reduced(width, v, _LOWEST, tirx.max, lambda column: x(row, column))
    highest = scratch((1,))
    T.buffer_store(highest, most[0], [0])
    with T.serial(0, blocks) as j:
        vector(y, (row, j * v), lambda lane: exponential(x(row, j * v + lane) - highest[0]), v)
    total = _reduced(width, v, 0.0, _plus, lambda column: written(row, column))
    scale = scratch((1,))
    T.buffer_store(scale, constant(1.0) / total[0], [0])
    value = chain(workload, inputs, lambda r, c: written(r, c) * scale[0])
    with T.serial(0, blocks) as j:
        vector(y, (row, j * v), lambda lane: value(row, j * v + lane), v)
