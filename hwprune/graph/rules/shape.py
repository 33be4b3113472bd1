"""Operators that rearrange axes: reshape and its kin, permutations, new and dropped axes, expansion."""

from __future__ import annotations

import numpy as np

from hwprune.graph.atoms import Field, Reason, Value, compact, spread
from hwprune.graph.rules import Call, aten, overloads, rule
from hwprune.graph.rules.elementwise import broadcast


@rule(*overloads("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as",
                 "reshape_as", "squeeze_", "unsqueeze_", "view_copy", "ravel"))  # fmt: skip
def reshape(call: Call) -> Value:
    """Labels are reshaped with the data. Axes are matched in blocks of equal extent."""
    x = next(call.values())
    if len(x.shape) == len(call.shape) and x.shape == call.shape:
        return call.result(x.fields)
    runs = blocks(x.shape, call.shape)
    fields = []
    for touched, own in _by_blocks(x, runs):
        f = max(own, key=lambda f: f.ids.size)
        for other in own:
            if other is not f:
                cause = call.cause(Reason.UNIFORMITY, "merged with another prunable axis")
                call.atoms.freeze(other.ids, cause)
        source = [a for b in sorted(touched) for a in runs[b][0]]
        target = [a for b in sorted(touched) for a in runs[b][1]]
        ids = spread(f.ids, f.axes, source, [x.shape[a] for a in source])
        new = compact(target, ids.reshape([call.shape[a] for a in target]))
        if new is not None:
            fields.append(new)
    return call.result(fields)


def blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Shortest runs of old and new axes with equal products; axes of extent 1 are left out."""
    left = [a for a, size in enumerate(old) if size != 1]
    right = [a for a, size in enumerate(new) if size != 1]
    runs = []
    while left or right:
        olds, news = [left.pop(0)], [right.pop(0)]
        a, b = old[olds[0]], new[news[0]]
        while a != b:
            if a < b:
                olds.append(left.pop(0))
                a *= old[olds[-1]]
            else:
                news.append(right.pop(0))
                b *= new[news[-1]]
        runs.append((olds, news))
    return runs


def _by_blocks(x: Value, blocks: list[tuple[list[int], list[int]]]) -> list[tuple[set[int], list[Field]]]:
    """Fields that share blocks, with the blocks that they touch together."""
    block_of = {axis: i for i, (olds, _) in enumerate(blocks) for axis in olds}
    parts: list[tuple[set[int], list[Field]]] = []
    for f in x.fields:
        touched, own = {block_of[a] for a in f.axes}, [f]
        for part in [p for p in parts if p[0] & touched]:
            parts.remove(part)
            touched, own = touched | part[0], part[1] + own
        parts.append((touched, own))
    return parts


@rule(*overloads("permute", "transpose", "t", "swapaxes", "swapdims", "movedim", "moveaxis",
                 "transpose_", "t_", "numpy_T", "mT", "adjoint"))  # fmt: skip
def permute(call: Call) -> Value:
    x = next(call.values())
    rank = len(x.shape)
    order = list(range(rank))
    ops = call.operands
    if "dims" in ops:
        order = [d % rank for d in ops["dims"]]
    elif "source" in ops:
        order = _moved(rank, ops["source"], ops["destination"])
    elif rank > 1:
        a = ops.get("dim0", ops.get("axis0", -2 if rank > 1 else 0))
        b = ops.get("dim1", ops.get("axis1", -1))
        order[a % rank], order[b % rank] = order[b % rank], order[a % rank]
    place = {axis: position for position, axis in enumerate(order)}
    return call.result([moved(f, place) for f in x.fields])


def _moved(rank: int, source, destination) -> list[int]:
    source, destination = (([v] if isinstance(v, int) else list(v)) for v in (source, destination))
    target = {d % rank: s % rank for s, d in zip(source, destination)}
    rest = iter([a for a in range(rank) if a not in target.values()])
    return [target[i] if i in target else next(rest) for i in range(rank)]


def moved(f: Field, place: dict[int, int]) -> Field:
    """The field with its axes renamed, put in ascending order again."""
    axes = [place[a] for a in f.axes]
    order = np.argsort(axes)
    return Field(tuple(axes[i] for i in order), f.ids if len(axes) == 1 else f.ids.transpose(order))


@rule(*overloads("expand", "broadcast_to"))
def expand(call: Call) -> Value:
    """New extents repeat what is there, without labels of their own."""
    x = next(call.values())
    offset = len(call.shape) - len(x.shape)
    return call.result([Field(tuple(a + offset for a in f.axes), f.ids) for f in x.fields])


@rule(*overloads("expand_as"))
def expand_as(call: Call) -> Value:
    """The extents, and with them the labels, are those of the other tensor."""
    return broadcast(call, list(call.values()))


@rule(*overloads("repeat", "tile"))
def repeat(call: Call) -> Value:
    """Repetition of a labelled axis repeats its labels."""
    x = next(call.values())
    offset = len(call.shape) - len(x.shape)
    fields = []
    for f in x.fields:
        axes = tuple(a + offset for a in f.axes)
        times = [call.shape[new] // x.shape[old] for new, old in zip(axes, f.axes)]
        fields.append(Field(axes, np.tile(f.ids, times)))
    return call.result(fields)


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(call: Call) -> Value:
    x = call["self"]
    if call["dim"] is None:
        call.atoms.freeze_value(x, call.cause(Reason.UNIFORMITY, "repeats a flattened tensor"))
        return call.result()
    axis, times = call["dim"] % len(x.shape), int(call["repeats"])
    fields = []
    for f in x.fields:
        ids = np.repeat(f.ids, times, axis=f.axes.index(axis)) if axis in f.axes else f.ids
        fields.append(Field(f.axes, ids))
    return call.result(fields)


@rule(*overloads("view_as_real", "view_as_complex", "view_as_complex_copy", "view_as_real_copy"))
def parts_of_complex(call: Call) -> Value:
    """A last axis of extent 2, real and imaginary, comes or goes."""
    x = next(call.values())
    rank = min(len(x.shape), len(call.shape))
    x = call.atoms.hold(x, range(rank, len(x.shape)), call.cause(Reason.UNIFORMITY, "real and imaginary part"))
    return call.result([f for f in x.fields if max(f.axes) < rank])


@rule(*overloads("tril", "triu", "tril_", "triu_"))
def triangle(call: Call) -> Value:
    x = next(call.values())
    rank = len(x.shape)
    x = call.atoms.hold(x, [rank - 2, rank - 1], call.cause(Reason.UNIFORMITY, "masked by position"))
    return call.result([f for f in x.fields if max(f.axes) < rank - 2])
