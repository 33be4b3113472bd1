"""Where batches come from: arrays held in memory, or a loader of the user's.

Both give ``(x, y)`` with x float32 [N, C, H, W] (or [N, features]) and y int64 [N].
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hwprune.errors import DataError


@dataclass(frozen=True)
class Normalize:
    """``(x - mean) / std`` per channel; bytes are scaled to [0, 1] first."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32).div_(255) if x.dtype == torch.uint8 else x.to(torch.float32)
        if self == Normalize():
            return x
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (x - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)


@dataclass(frozen=True)
class Augment:
    """Random shift by up to ``pad`` pixels (zeros come in, before normalization) and a random left-right flip."""

    pad: int = 4
    flip: bool = True

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        top, left = torch.randint(0, 2 * self.pad + 1, (2, n, 1), generator=generator)
        rows = top + torch.arange(height)
        columns = left + torch.arange(width)
        if self.flip:
            flipped = torch.rand(n, 1, generator=generator) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
        padded = F.pad(x, (self.pad,) * 4)
        images = torch.arange(n)[:, None, None]
        # Advanced indices around a slice put the sliced (channel) axis last.
        return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images held in memory: x uint8 or float32 [N, C, H, W] as stored, y int64 [N]; normalized batch by batch."""

    x: Tensor
    y: Tensor
    normalize: Normalize = Normalize()
    augment: Augment | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def item_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def subset(self, index: Tensor) -> "ArraySource":
        return ArraySource(self.x[index], self.y[index], self.normalize, self.augment)

    def steps(self, batch_size: int, drop_last: bool = False) -> int:
        whole, rest = divmod(len(self), batch_size)
        return max(whole, 1) if drop_last or not rest else whole + 1

    def batches(self, batch_size: int, seed: int | None = None, augment: bool = False,
                drop_last: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled and augmented by ``seed`` alone, so that equal seeds give equal batches; in order without a seed."""
        generator = torch.Generator().manual_seed(0 if seed is None else seed)
        order = torch.arange(len(self)) if seed is None else torch.randperm(len(self), generator=generator)
        for step in range(self.steps(batch_size, drop_last)):
            index = order[step * batch_size:(step + 1) * batch_size]
            x = self.x[index]
            if augment and self.augment is not None:
                x = self.augment(x, generator)
            yield self.normalize(x), self.y[index]


@dataclass(frozen=True, eq=False)
class LoaderSource:
    """The user's own loader; batch size, order and augmentation are the loader's.

    ``seed`` seeds torch, numpy and random before an epoch, which is what a DataLoader and its transforms draw from.
    """

    loader: Iterable[Any]
    name: str
    item_shape: tuple[int, ...] = field(default=())

    def __len__(self) -> int:
        dataset = getattr(self.loader, "dataset", None)
        return len(dataset) if hasattr(dataset, "__len__") else 0

    def steps(self, batch_size: int, drop_last: bool = False) -> int:
        return len(self.loader)

    def batches(self, batch_size: int, seed: int | None = None, augment: bool = False,
                drop_last: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        for batch in self.loader:
            yield checked_batch(batch, self.name)


def checked_batch(batch: Any, name: str) -> tuple[Tensor, Tensor]:
    """``(x, y)`` of a user's loader in the types that the rest relies on; DataError says what it gave instead."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
        raise DataError(f"{name} gave a {_described(batch)}; each batch must be two tensors (x, y)")
    x, y = batch
    if not x.is_floating_point():
        raise DataError(f"{name} gave x of type {x.dtype}; give float images, normalized as the model wants")
    if y.is_floating_point() or y.dtype == torch.bool or y.ndim != 1 or len(y) != len(x):
        raise DataError(f"{name} gave y {y.dtype} {list(y.shape)} with x {list(x.shape)}; "
                        f"y must hold one integer label for each of the {len(x)} images")
    return x.to(torch.float32), y.to(torch.int64)


def _described(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {len(value)}: {', '.join(type(v).__name__ for v in value[:4])}"
    return type(value).__name__
