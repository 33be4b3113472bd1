"""Taps of a window that lie inside of an image: the others are left out instead of being multiplied by zeros of a border."""

from __future__ import annotations

from typing import Iterator

from tvm import tirx


def rows_inside(start: tirx.Expr, taps: int, dilation: int, extent: int) -> tuple[tirx.Expr, tirx.Expr]:
    """First tap that lies inside, and how many do, of a window whose first row is ``start`` of ``extent``."""
    first = tirx.min(tirx.floordiv(tirx.max(-start, 0) + dilation - 1, dilation), taps)
    last = tirx.min(taps, tirx.floordiv(extent - start + dilation - 1, dilation))
    return first, tirx.max(last - first, 0)


class Columns:
    """Columns of a window: ``count`` results of ``taps`` taps each over ``extent`` columns, the first tap of the first result at -left."""

    def __init__(self, count: int, taps: int, stride: int, dilation: int, left: int, extent: int):
        self.count, self.taps, self.stride, self.dilation, self.left, self.extent = count, taps, stride, dilation, left, extent

    @property
    def reach(self) -> int:
        """Columns between the first and the last tap."""
        return (self.taps - 1) * self.dilation

    def inner(self) -> tuple[int, int]:
        """First and last + 1 of the results all of whose taps are inside."""
        inside = [x for x in range(self.count) if x * self.stride >= self.left and x * self.stride + self.reach - self.left < self.extent]
        return (inside[0], inside[-1] + 1) if inside else (self.count, self.count)

    def taps_of(self, column, size: int, inside: bool) -> Iterator[tuple[int, int, int]]:
        """(tap, result of the tile, column from the tile's first on) of what counts in a tile of ``size`` results from ``column`` on.

        inside : all of it does; otherwise ``column`` is a number.
        """
        for tap in range(self.taps):
            for j in range(size):
                at = j * self.stride + tap * self.dilation
                if inside or 0 <= column * self.stride + at - self.left < self.extent:
                    yield tap, j, at
