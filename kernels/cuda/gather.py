"""The left factor of a product on tensor cores, as it lies in memory: rows are pixels, columns taps x stored channels.

Whole vectors of channels stay together whatever the number of channels is: a tap's last one is filled up with zeros as it
is copied, for what lies in lanes of padding may be anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tvm import tirx

from hwprune.kernels.cuda.product import rounded
from hwprune.workload import Workload


@dataclass(frozen=True)
class Gather:
    """Extents of a convolution's or a matrix product's left factor; a matrix product is a 1 x 1 convolution of its rows."""

    workload: Workload

    @cached_property
    def _anchor(self):
        return self.workload.anchor

    @cached_property
    def is_conv(self) -> bool:
        return self._anchor.op == "conv2d"

    @cached_property
    def kernel(self) -> tuple[int, int]:
        return tuple(self._weight[1:3]) if self.is_conv else (1, 1)

    @cached_property
    def _weight(self) -> tuple[int, ...]:
        return self.workload.inputs[self._anchor.args[1]].shape

    @property
    def lanes(self) -> int:
        return self._weight[-1]

    @property
    def n(self) -> int:
        """Columns of the right factor, in whole vectors."""
        return self._weight[0] * self.lanes

    @property
    def channels(self) -> int:
        return self._weight[-2]

    @cached_property
    def stored(self) -> int:
        """Columns of a tap."""
        return rounded(self.channels, self.lanes)

    @property
    def k(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.stored

    @cached_property
    def out(self) -> tuple[int, int, int]:
        """Images, rows and columns of the result."""
        shape = self.workload.output.shape
        return tuple(shape[:3]) if self.is_conv else (shape[0], 1, 1)

    @property
    def m(self) -> int:
        images, rows, columns = self.out
        return images * rows * columns

    @cached_property
    def channels_last(self) -> bool:
        return self._anchor.get("layout", "nhwc") == "nhwc"

    @cached_property
    def copied(self) -> bool:
        """Whether vectors can be copied as they lie: nothing is computed on the way, and a border holds zeros."""
        first = self._anchor.args[0]
        return first < len(self.workload.inputs) and self.channels_last and not self.border

    @cached_property
    def border(self) -> float:
        return float(self._anchor.get("border", 0.0))

    def image(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of an image of the left factor, which has ``shape``."""
        if not self.is_conv:
            return 1, 1
        return tuple(shape[1:3]) if self.channels_last else tuple(shape[2:4])

    @cached_property
    def bordered(self) -> bool:
        return self.is_conv and any(self._anchor["padding"])

    def start(self, m) -> tuple:
        """(image, row, column) that the first tap of pixel ``m`` reads; pixels beyond the last read rows above the image."""
        _, rows, columns = self.out
        image, y, x = m // (rows * columns), m // columns % rows, m % columns
        if self.is_conv:
            (sy, sx), (top, left) = self._anchor["stride"], self._anchor["padding"][:2]
            y, x = y * sy - top, x * sx - left
        return image, tirx.Select(m < self.m, y, -self.kernel[0] * self.dilation[0]), x

    @cached_property
    def dilation(self) -> tuple[int, int]:
        return tuple(self._anchor["dilation"]) if self.is_conv else (1, 1)

    def tap(self, k):
        """(row, column, channel) of column ``k``, relative to the first tap."""
        tap, channel = k // self.stored, k % self.stored
        return tap // self.kernel[1] * self.dilation[0], tap % self.kernel[1] * self.dilation[1], channel
