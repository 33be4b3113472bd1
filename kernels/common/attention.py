"""Products of two activations: attention with its softmax inside, and batches of matrix products.

Attention works on a block of queries, one query a lane: scores are kept transposed, [keys, queries], so that keys and
values are read as they lie, one number for all lanes, the softmax goes from key to key without crossing lanes, and no
lane is padding but those of the last queries. Operands are read through their views: out of the result of the
projection that made all three. Part of that lies in other cores' caches: keys may be fetched a tile ahead, queries some rows ahead, and
values while exponentials are taken (``ahead``). Queries and results are transposed number by number or, where rows of a head lie in
one piece, in squares of vectors (``squares``).
"""

from __future__ import annotations

import math
from typing import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hwprune.compile.layouts import parsed
from hwprune.errors import Infeasible
from hwprune.kernels.functions import as_type, exponential
from hwprune.kernels.loops import FLOAT, Runs, constant, function, prefetch, scratch, vector
from hwprune.kernels.movement import address, unravel
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import DTYPE_BYTES, Workload

name = "attention"

_LOWEST = -3.4e38

#: Queries that are fetched before they are transposed.
_QUERIES_AHEAD = 8


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config] | None:
    anchor = workload.anchor
    if anchor is None or anchor.op not in ("attention", "matmul"):
        return None
    registers, has_squares = profile.core.vector_registers - 2, anchor.op == "attention" and _has_squares(workload, profile.lanes)
    found = []
    for nv in (3, 4, 2, 1):  # each number that is broadcast serves so many multiplications
        mt = min((registers - nv) // nv, 16)
        if mt >= 1:
            plain = Config.make(name, nv=nv, mt=mt)
            ahead = [Config.make(name, nv=nv, mt=mt, ahead=1)] if anchor.op == "attention" and profile.threads > 1 else []
            squares = [Config.make(name, nv=nv, mt=mt, ahead=1, squares=1)] if ahead and has_squares else []
            found += [*squares, *ahead, plain] if profile.memory.l3_bytes else [plain, *ahead, *squares]
    return found


def _has_squares(workload: Workload, v: int) -> bool:
    """Whether queries and results of a head are whole vectors that lie in one piece. Not tried with narrow vectors."""
    anchor = workload.anchor
    specs = [workload.inputs[i] for i in anchor.args]
    if v < 8 or any(t.dtype != FLOAT for t in (*specs, workload.output)):
        return False
    q, w = (parsed(anchor[n]) for n in ("query", "value"))
    (batch, heads, tokens, inner), outer = q[-1].shape, w[-1].shape[-1]
    if inner % v or outer % v:
        return False
    ends = [(b, h, t) for b in {0, batch - 1} for h in range(heads) for t in {0, tokens - 1}]
    places = [[int(address(q, (*end, d))) for d in range(inner)] for end in ends]
    return all(line == list(range(line[0], line[0] + inner)) for line in places)


def schedule(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    if workload.ops[-1] is not workload.anchor:
        raise Infeasible(f"{workload.anchor.op} takes no further operators")
    sizes = profile.lanes, int(config["nv"]), int(config["mt"])
    if workload.anchor.op == "matmul":
        return function(workload, lambda inputs, y: _matmul(workload, inputs, y, *sizes))
    line_bytes = profile.memory.line_bytes if config.get("ahead") else None
    squares = bool(config.get("squares"))
    if squares and not _has_squares(workload, profile.lanes):
        raise Infeasible(f"{config.to_text()}: queries or results of a head are no whole vectors in one piece")
    return function(workload, lambda inputs, y: _attention(workload, inputs, y, *sizes, line_bytes, squares))


class _Operand:
    """An operand seen through its views, in float32: ``operand(index of the last view)``."""

    def __init__(self, buffer, views: str):
        self.buffer, self.views = buffer, parsed(views)
        self.shape = self.views[-1].shape

    def __call__(self, *index):
        return as_type(self.buffer[address(self.views, index)], FLOAT)

    def load(self, *index, lanes: int):
        """A vector from ``index`` on, where the last dimension lies in one piece."""
        return self.buffer[tirx.Ramp(address(self.views, index), 1, lanes)]

    def fetch(self, *index, line_bytes: int, level: int) -> None:
        """Ask for all lines of a row, to be read soon; it may lie outside of the operand. level : see ``loops.fetch_level``."""
        line = line_bytes // DTYPE_BYTES[str(self.buffer.dtype)]
        for column in range(0, self.shape[-1], line):
            prefetch(self.buffer, (address(self.views, (*index, column)),), level)


def _attention(workload: Workload, inputs, y, v: int, nv: int, mt: int, line_bytes: int | None, squares: bool) -> None:
    """line_bytes : of the caches, if operands are fetched ahead. squares : transpose vectors at once."""
    anchor = workload.anchor
    q, k, w = (_Operand(inputs[i], anchor[n]) for i, n in zip(anchor.args, ("query", "key", "value")))
    batch, heads, tokens, _ = q.shape
    blocks = Runs(-(-tokens // v), nv)
    with T.parallel(batch * heads * blocks.count) as task:
        place = unravel(task, (batch, heads, blocks.count))
        blocks.one(place[2], lambda start, size: _query_block(anchor, q, k, w, y, place[:2], start * v, size, v, mt, line_bytes, squares))


def _query_block(anchor, q, k, w, y, head, first, nv: int, v: int, mt: int, line_bytes: int | None, squares: bool) -> None:
    """The results of ``nv`` vectors of queries from ``first`` on. line_bytes, squares : see ``_attention``."""
    (_, heads, tokens, inner), (_, _, keys, outer), width = q.shape, w.shape, nv * v
    queries, scores = _buffer((inner, width)), _buffer((keys, width))
    most, scale = scratch((width,)), scratch((width,))
    if squares:
        _take_squares(queries, q, head, first, v, anchor["scale"], line_bytes)
    else:
        with T.serial(0, width) as lane:
            if line_bytes:
                q.fetch(*head, first + lane + _QUERIES_AHEAD, line_bytes=line_bytes, level=3)
            with T.serial(0, inner) as d:
                at = tirx.min(first + lane, tokens - 1)
                T.buffer_store(queries, q(*head, at, d) * constant(anchor["scale"]), [d, lane])
    columns = [j * v for j in range(nv)]
    for at in columns:
        vector(most, at, lambda lane: constant(_LOWEST), v)
        vector(scale, at, lambda lane: constant(0.0), v)

    def score(start, size):
        if line_bytes:
            for i in range(size):
                k.fetch(*head, start + size + i, line_bytes=line_bytes, level=3)
        acc = _product(size, nv, v, inner, lambda i, d: k(*head, start + i, d), lambda d, c: queries[d, c])
        for at in columns:
            for i in range(size):
                vector(scores, (start + i, at), lambda lane, i=i, at=at: acc[i * width + at + lane], v)
            vector(most, at, lambda lane, at=at: _highest([most[at + lane], *(acc[i * width + at + lane] for i in range(size))]), v)

    Runs(keys, mt).each(score)
    with T.serial(0, keys) as key:
        if line_bytes:
            w.fetch(*head, key, line_bytes=line_bytes, level=2)
        for at in columns:
            vector(scores, (key, at), lambda lane, at=at: exponential(scores[key, at + lane] - most[at + lane]), v)
            vector(scale, at, lambda lane, at=at: scale[at + lane] + scores[key, at + lane], v)
    for at in columns:
        vector(scale, at, lambda lane, at=at: constant(1.0) / scale[at + lane], v)

    results = _buffer((outer, width)) if squares else None

    def mix(start, size):
        acc = _product(size, nv, v, keys, lambda i, key: w(*head, key, start + i), lambda key, c: scores[key, c])
        result, row = (results, start) if squares else (scratch((size, width)), 0)
        for at in columns:
            for i in range(size):
                vector(result, (row + i, at), lambda lane, i=i, at=at: acc[i * width + at + lane] * scale[at + lane], v)
        if squares:
            return
        with T.serial(0, tirx.min(width, tokens - first)) as lane:
            with T.serial(0, size) as i:
                T.buffer_store(y, as_type(result[i, lane], str(y.dtype)), [head[0], first + lane, head[1] * outer + start + i])

    Runs(outer, mt).each(mix)
    if squares:
        _give_squares(results, y, head, first, v)
    padding = int(y.shape[2]) - heads * outer
    if padding:
        with T.If(head[1] == heads - 1):
            with T.Then():
                with T.grid(tirx.min(width, tokens - first), padding) as (lane, column):
                    T.buffer_store(y, constant(0.0, str(y.dtype)), [head[0], first + lane, heads * outer + column])


def _take_squares(queries, q, head, first, v: int, scale: float, line_bytes: int | None) -> None:
    """Rows of ``q`` from ``first`` on into ``queries`` [inner, queries], times ``scale``; beyond the last row, the last one again."""
    inner, width = map(int, queries.shape)
    with T.serial(0, width // v) as block:
        if line_bytes:
            for lane in range(v):
                q.fetch(*head, first + (block + 1) * v + lane, line_bytes=line_bytes, level=3)
        with T.serial(0, inner // v) as d:
            at = [tirx.min(first + block * v + lane, q.shape[2] - 1) for lane in range(v)]
            for i, column in enumerate(_transposed([q.load(*head, row, d * v, lanes=v) for row in at])):
                T.buffer_store(queries, column * tirx.Broadcast(constant(scale), v), [d * v + i, tirx.Ramp(block * v, 1, v)])


def _give_squares(results, y, head, first, v: int) -> None:
    """``results`` [outer, queries] into rows of ``y`` from ``first`` on, as many as it has."""
    outer, width = map(int, results.shape)
    with T.serial(0, width // v) as block, T.serial(0, outer // v) as column:
        lines = [results[column * v + i, tirx.Ramp(block * v, 1, v)] for i in range(v)]
        for lane, line in enumerate(_transposed(lines)):
            at = first + block * v + lane
            with T.If(at < int(y.shape[1])):
                with T.Then():
                    T.buffer_store(y, line, [head[0], at, tirx.Ramp(head[1] * outer + column * v, 1, v)])


def _product(rows: int, nv: int, v: int, reduction: int, left, right):
    """Accumulators [rows, nv * v] of ``left(row, r) * right(r, column)`` summed over r, in registers."""
    acc = scratch((rows * nv * v,))
    cells = [(i, j * v, (i * nv + j) * v) for i in range(rows) for j in range(nv)]
    for _, _, at in cells:
        vector(acc, at, lambda lane: constant(0.0), v)
    with T.serial(0, reduction) as r:
        for i, c, at in cells:
            vector(acc, at, lambda lane, i=i, c=c, at=at: acc[at + lane] + left(i, r) * right(r, c + lane), v)
    return acc


def _transposed(lines: list) -> list:
    """Vectors, as many as each has lanes, transposed: squares of half the size change places, and the same within them."""
    v = len(lines)
    lines, half = [T.Bind(line) for line in lines], v // 2
    while half:
        near = [lane if not lane & half else v + lane - half for lane in range(v)]
        far = [lane + half if not lane & half else v + lane for lane in range(v)]
        changed = list(lines)
        for i in (i for i in range(v) if not i & half):
            pair = [lines[i], lines[i + half]]
            changed[i], changed[i + half] = (T.Bind(tirx.Shuffle(pair, [tirx.IntImm("int32", lane) for lane in taken])) for taken in (near, far))
        lines, half = changed, half // 2
    return lines


def _highest(values: list):
    while len(values) > 1:
        values = [tirx.max(*values[i : i + 2]) if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]


def _buffer(shape: Sequence[int]):
    """Scratch of a task that may be too large for its stack."""
    return T.alloc_buffer(tuple(shape), FLOAT, scope="global")


def _matmul(workload: Workload, inputs, y, v: int, nv: int, mt: int) -> None:
    anchor = workload.anchor
    a, b = (_Operand(inputs[i], anchor[n]) for i, n in zip(anchor.args, ("left", "right")))
    *batch, rows, reduction = a.shape
    columns, tiles = b.shape[-1], Runs(rows, mt)
    with T.parallel(math.prod(batch) * tiles.count) as task:
        *matrix, number = unravel(task, (*batch, tiles.count))

        def strip(row, size):
            def panel(block, count, clip=None):
                def right(r, c):
                    at = block * v + c
                    return b(*matrix, r, at if clip is None else tirx.min(at, clip))

                acc = _product(size, count, v, reduction, lambda i, r: a(*matrix, row + i, r), right)
                for i in range(size):
                    for j in range(count):
                        vector(y, (*matrix, row + i, (block + j) * v), lambda lane, i=i, j=j: acc[(i * count + j) * v + lane], v)

            if columns // v:
                Runs(columns // v, nv).each(panel)
            if columns % v:  # lanes beyond the last column repeat it
                panel(columns // v, 1, columns - 1)

        tiles.one(number, strip)
