"""How well a network does on data."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hwprune.errors import DataError
from hwprune.progress import SILENT, Progress, Task
from hwprune.spec.data import DataSet, check_labels


@dataclass(frozen=True)
class Evaluation:
    """``accuracy`` is a share (0 to 1), ``loss`` the mean cross-entropy in nats, over ``images`` images."""

    accuracy: float
    loss: float
    images: int


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set train or eval mode; each submodule's own flag comes back after."""
    flags = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], name: str = "the data") -> Evaluation:
    """Accuracy and loss of ``model`` in eval mode over (x, y) batches.

    Raises
    ------
    DataError
        No batches, or a label outside the model's outputs.
    """
    right, loss, images = 0, 0.0, 0
    with mode(model, False), torch.no_grad():
        for x, y in batches:
            logits = model(x)
            check_labels(y, logits.shape[1], name)
            right += int((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits.float(), y, reduction="sum"))
            images += len(y)
    if images == 0:
        raise DataError(f"{name} gave no batches; it needs at least one image")
    return Evaluation(right / images, loss / images, images)


def accuracy(model: nn.Module, data: DataSet, batch_size: int | None = None, progress: Progress = SILENT) -> float:
    """Share (0 to 1) of the test images that ``model`` classifies right."""
    batch_size = batch_size or data.evaluation_batch
    with progress.task(f"accuracy on {data.name}", data.test.steps(batch_size)) as task:
        return evaluate(model, told(data.test_batches(batch_size), task), data.name).accuracy


def told(batches: Iterable, task: Task) -> Iterator:
    """The same batches, advancing ``task`` by one after each."""
    for batch in batches:
        yield batch
        task.advance()
