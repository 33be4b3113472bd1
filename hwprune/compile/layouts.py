"""How values lie in memory, and views: values that are another one's memory seen differently.

A ``Layout`` orders the logical axes of a value; its innermost axis, which may be several logical ones, is padded to whole
vectors. Permutations, reshapes, selections and expansions change no memory: their result is a chain of ``View`` s of the
value they start from. Where a view is some layout of the same memory, readers take it as it is; elsewhere a copy, or the
reader itself, goes through the view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Sequence

from hwprune.compile.constants import stored

#: logical width -> width in memory
Pad = Callable[[int], int]


@dataclass(frozen=True)
class Layout:
    """``order`` : logical axes from the outermost. ``merged`` : how many of the last form the padded innermost axis.

    None merged: nothing is padded.
    """

    order: tuple[int, ...]
    merged: int = 1

    def physical(self, logical: Sequence[int], lanes: int) -> tuple[int, ...]:
        """Shape in memory of a value of ``logical`` shape."""
        return self._shape(logical, lambda width: stored(width, lanes))

    def size(self, logical: Sequence[int], pad: Pad) -> int:
        """Elements in memory, padding included."""
        return math.prod(self._shape(logical, pad))

    def _shape(self, logical: Sequence[int], pad: Pad) -> tuple[int, ...]:
        sizes = [logical[axis] for axis in self.order]
        if not self.merged or not sizes:
            return tuple(sizes)
        return (*sizes[: -self.merged], pad(math.prod(sizes[-self.merged :])))

    def view(self, logical: Sequence[int], pad: Pad) -> "View":
        """The value as a view of its own memory."""
        shape = self._shape(logical, pad)
        outer = len(self.order) - self.merged
        strides, step = [0] * len(logical), 1
        for axis in reversed(self.order[outer:]):
            strides[axis], step = step, step * logical[axis]
        step = shape[-1] if self.merged else 1
        for axis in reversed(self.order[:outer]):
            strides[axis], step = step, step * logical[axis]
        return View.of(0, [((size, stride),) for size, stride in zip(logical, strides)])

    @property
    def whole_rows(self) -> bool:
        """Whether the last logical axis is the innermost in memory, alone: its elements are next to one another."""
        return bool(self.order) and self.order[-1] == len(self.order) - 1 and self.merged <= 1

    def __str__(self) -> str:
        for name, make in (("plain", plain), ("rows", rows), ("nhwc", nhwc)):
            if self == make(len(self.order)):
                return name
        return "".join(map(str, self.order)) + f".{self.merged}"


def plain(rank: int) -> Layout:
    """Logical order, nothing padded: the network's inputs, outputs and parameters."""
    return Layout(tuple(range(rank)), 0)


def rows(rank: int) -> Layout:
    """Logical order, innermost axis padded."""
    return Layout(tuple(range(rank)), 1)


def nhwc(rank: int = 4) -> Layout | None:
    """Images: channels innermost and padded. None for other ranks."""
    return Layout((0, 2, 3, 1), 1) if rank == 4 else None


def usual(rank: int) -> Layout:
    """The layout of a value that no operand hints at: four axes are an image."""
    return nhwc(rank) or rows(rank)


@dataclass(frozen=True)
class View:
    """Axes into a linear space: index ``i`` of an axis has digits in its (extent, stride) factors, outermost first."""

    offset: int
    axes: tuple[tuple[tuple[int, int], ...], ...]

    @staticmethod
    def of(offset: int, axes: Sequence[Sequence[tuple[int, int]]]) -> "View":
        return View(offset, tuple(_joined(axis) for axis in axes))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(extent for extent, _ in axis) for axis in self.axes)

    def permuted(self, order: Sequence[int]) -> "View":
        return View(self.offset, tuple(self.axes[axis] for axis in order))

    def selected(self, axis: int, index: int) -> "View":
        at = self.offset
        for extent, stride in reversed(self.axes[axis]):
            at, index = at + index % extent * stride, index // extent
        return View(at, self.axes[:axis] + self.axes[axis + 1 :])

    def expanded(self, shape: Sequence[int]) -> "View":
        own = ((),) * (len(shape) - len(self.axes)) + self.axes
        return View.of(self.offset, [a if a or size == 1 else ((size, 0),) for a, size in zip(own, shape)])

    def narrowed(self, axis: int, start: int, size: int) -> "View | None":
        """Indices ``start .. start + size`` of an axis; None where the digits do not part there."""
        outer, *inner = self.axes[axis] or ((1, 0),)
        step = math.prod(extent for extent, _ in inner)
        if start % step or size % step:
            return None
        axes = list(self.axes)
        axes[axis] = ((size // step, outer[1]), *inner)
        return View.of(self.offset + start // step * outer[1], axes)

    def reshaped(self, shape: Sequence[int]) -> "View | None":
        """The same elements in row-major order as ``shape``; None where a digit would have to be cut elsewhere."""
        digits = list(_joined([digit for axis in self.axes for digit in axis]))
        axes = []
        for size in shape:
            axis = []
            while size > 1:
                if not digits:
                    return None
                extent, stride = digits.pop(0)
                if size % extent == 0:
                    axis.append((extent, stride))
                    size //= extent
                elif extent % size == 0:
                    axis.append((size, stride * (extent // size)))
                    digits.insert(0, (extent // size, stride))
                    size = 1
                else:
                    return None
            axes.append(axis)
        return View.of(self.offset, axes)


def _joined(axis: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """An axis with as few digits as possible: none of extent one, and none that only go on where the next one ends."""
    joined: list[tuple[int, int]] = []
    for extent, stride in axis:
        if extent == 1:
            continue
        if joined and joined[-1][1] == stride * extent:
            joined[-1] = (joined[-1][0] * extent, stride)
        else:
            joined.append((extent, stride))
    return tuple(joined)


#: A chain of views: the first of the memory, each further one of the one before, counted in row-major order.
Views = tuple[View, ...]


def contiguous(shape: Sequence[int]) -> View:
    return plain(len(shape)).view(shape, lambda width: width)


def extended(views: Views, change: Callable[[View], View | None]) -> Views:
    """``views`` seen through one more change; a change that its last view cannot express begins a new one."""
    changed = change(views[-1])
    if changed is not None:
        return (*views[:-1], changed)
    again = change(contiguous(views[-1].shape))
    assert again is not None
    return (*views, again)


def text(views: Views) -> str:
    """Canonical text of a chain, for attributes of workloads."""
    return "|".join(
        f"{view.offset}:" + ",".join("_".join(f"{e}*{s}" for e, s in axis) or "1" for axis in view.axes) for view in views
    )


def parsed(chain: str) -> Views:
    """The inverse of ``text``."""
    return tuple(_parsed_view(part) for part in chain.split("|"))


def _parsed_view(part: str) -> View:
    offset, axes = part.split(":")
    digits = [[tuple(map(int, d.split("*"))) for d in axis.split("_") if "*" in d] for axis in axes.split(",")] if axes else []
    return View(int(offset), tuple(tuple(axis) for axis in digits))  # type: ignore[arg-type]


def lies_in(views: Views, shape: Sequence[int], layout: Layout, pad: Pad) -> bool:
    """Whether the elements lie as ``layout`` lays out ``shape``, were the innermost axis padded by ``pad``."""
    return len(views) == 1 and views[0] == layout.view(shape, pad)


def layout_of(views: Views, shape: Sequence[int], pad: Pad) -> list[Layout]:
    """The layouts in which a view's elements may lie, the usual ones first."""
    if len(views) > 1 or views[0].offset or any(len(axis) > 1 for axis in views[0].axes):
        return []
    order: list[int] = sorted((a for a, axis in enumerate(views[0].axes) if axis), key=lambda a: -views[0].axes[a][0][1])
    for axis in (a for a, digits in enumerate(views[0].axes) if not digits):  # an axis of one lies anywhere: beside its neighbour
        order.insert(order.index(axis - 1) + 1 if axis else 0, axis)
    rank = len(shape)
    candidates = [usual(rank), rows(rank), *(Layout(tuple(order), merged) for merged in range(1, rank + 1)), plain(rank)]
    return [layout for layout in dict.fromkeys(candidates) if lies_in(views, shape, layout, pad)]
