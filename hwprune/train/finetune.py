"""Fine-tune a pruned network, with the dense one as teacher.

BatchNorm is recalibrated first, the state after each epoch is written whole, and a run that was killed continues as if
it had not been: each epoch draws from its own seed, so on one machine with the same number of threads the weights after
a resumed run equal those of an uninterrupted one bit by bit.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Iterator, Mapping

import torch
from torch import Tensor, nn

from hwprune.errors import HwpruneError, UsageError
from hwprune.progress import SILENT, Progress
from hwprune.spec.data import DataSet, check_fits, check_labels
from hwprune.train.bn import batchnorms, recalibrate
from hwprune.train.checkpoint import Checkpoints
from hwprune.train.evaluate import accuracy, evaluate, mode, told
from hwprune.train.loss import distillation
from hwprune.train.recipe import Recipe


@dataclass(frozen=True)
class EpochRecord:
    """One epoch; 0 is the network as it came, with BatchNorm recalibrated. Accuracies are shares, losses in nats."""

    epoch: int
    train_loss: float | None
    train_accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainReport:
    """What a fine-tuning did.

    Attributes
    ----------
    best_accuracy : share of the test images that the kept weights classify right.
    start_accuracy : the same after BatchNorm was recalibrated, before the first step.
    best_epoch : the epoch whose weights were kept; 0 when no epoch was better than the start.
    selected_by : what decided that, in words.
    history : one record an epoch.
    seconds : of all epochs, also those before a resume; evaluation included.
    settings : what ``--resume`` compares.
    """

    best_accuracy: float
    start_accuracy: float
    best_epoch: int
    selected_by: str
    history: tuple[EpochRecord, ...]
    seconds: float
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def finetune(model: nn.Module, teacher: nn.Module | None, data: DataSet, *, epochs: int, lr: float | None = None,
             batch_size: int | None = None, seed: int = 0, folder: Path | None = None, resume: bool = False,
             recipe: Recipe = Recipe(), progress: Progress = SILENT) -> TrainReport:
    """Fine-tune ``model`` in place and leave it, in eval mode, with the weights of its best epoch.

    Parameters
    ----------
    model : logits [N, classes] from images; all parameters that require a gradient are trained.
    teacher : the dense network, unchanged; None trains on the labels alone.
    epochs : passes over the training data; 0 only recalibrates BatchNorm.
    lr, batch_size : instead of the recipe's.
    folder : where checkpoints go; None keeps them in memory.
    resume : continue what ``folder`` holds; without a checkpoint there it starts from the beginning.

    Raises
    ------
    DataError
        Data and network do not fit.
    UsageError
        A setting is impossible, or a resumed run was begun with other settings.
    HwpruneError
        The loss became NaN or infinite (the best weights so far are put back), or the folder cannot be written.
    """
    run = _Run(model, teacher, data, epochs, _with(recipe, lr, batch_size), seed, folder, progress)
    with _channels_last(model, teacher):
        if not (resume and run.restore()):
            run.begin()
        run.train()
        report = run.finish()
    model.eval()
    return report


def _with(recipe: Recipe, lr: float | None, batch_size: int | None) -> Recipe:
    changes = {"learning_rate": lr, "batch_size": batch_size}
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})


@contextmanager
def _channels_last(*models: nn.Module | None) -> Iterator[None]:
    """Convolutions train faster in channels-last (1.2 to 1.5 times here); the strides are put back afterwards."""
    present = [m for m in models if m is not None]
    for m in present:
        m.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for m in present:
            m.to(memory_format=torch.contiguous_format)


class _Run:
    """One fine-tuning between its epochs."""

    def __init__(self, model: nn.Module, teacher: nn.Module | None, data: DataSet, epochs: int, recipe: Recipe,
                 seed: int, folder: Path | None, progress: Progress) -> None:
        if epochs < 0:
            raise UsageError(f"epochs must not be negative, but got {epochs}")
        self.model, self.teacher, self.recipe, self.seed, self.epochs = model, teacher, recipe, seed, epochs
        self.progress = progress
        self.data = data.hold_out(recipe.validation_share)
        check_fits(model, self.data)
        if teacher is not None:
            check_fits(teacher, self.data)
        self.optimizer = _optimizer(model, recipe)
        self.checkpoints = None if folder is None else Checkpoints(folder)
        available = self.data.train.steps(recipe.batch_size, drop_last=True)
        self.steps = min(available, recipe.steps_per_epoch or available)
        self.settings = {"epochs": epochs, "seed": seed, **asdict(recipe), "data": data.name,
                         "train_images": len(self.data.train), "teacher": teacher is not None}
        self.history: list[EpochRecord] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0
        self.start_accuracy = math.nan

    # -- the three parts of a run

    def begin(self) -> None:
        """Recalibrate BatchNorm and record epoch 0."""
        began = time.perf_counter()
        count = self.recipe.calibration_batches if batchnorms(self.model) else 0
        if count:
            with self._seeded(0), self.progress.task("BatchNorm statistics", count) as task:
                batches = self.data.train_batches(self.recipe.batch_size, seed=self._epoch_seed(0), drop_last=True)
                recalibrate(self.model, told(islice(batches, count), task))
        self.start_accuracy = accuracy(self.model, self.data, progress=self.progress)
        self._record(None, None, 0.0, began)

    def train(self) -> None:
        first = len(self.history)
        if first > self.epochs:
            return
        with self.progress.task(f"fine-tuning on {self.data.name}", (self.epochs - first + 1) * self.steps) as task:
            for epoch in range(first, self.epochs + 1):
                began = time.perf_counter()
                with self._seeded(epoch):
                    loss, share = self._epoch(epoch, task)
                task.note(f"epoch {epoch}/{self.epochs}, loss {loss:.3f}, evaluating")
                self._record(loss, share, self.optimizer.param_groups[0]["lr"], began)

    def finish(self) -> TrainReport:
        self.model.load_state_dict(self.best, strict=False)
        final = accuracy(self.model, self.data, progress=self.progress) if self.best_epoch else self.start_accuracy
        return TrainReport(final, self.start_accuracy, self.best_epoch, self._selected_by(), tuple(self.history),
                           sum(record.seconds for record in self.history), self.settings)

    # -- one epoch

    def _epoch(self, epoch: int, task) -> tuple[float, float]:
        """Mean loss and share of right answers over the epoch's steps."""
        total, right, images = 0.0, 0, 0
        batches = self.data.train_batches(self.recipe.batch_size, seed=self._epoch_seed(epoch),
                                          augment=self.recipe.augment, drop_last=True)
        with mode(self.model, True):
            for step, (x, y) in enumerate(islice(batches, self.steps)):
                loss, hits = self._step((epoch - 1) * self.steps + step, x, y)
                if not math.isfinite(loss):
                    self._stop_at(loss, epoch, step)
                total, right, images = total + loss * len(y), right + hits, images + len(y)
                task.advance()
                task.note(f"epoch {epoch}/{self.epochs}, loss {total / images:.3f}")
        return total / images, right / images

    def _step(self, step: int, x: Tensor, y: Tensor) -> tuple[float, int]:
        rate = self.recipe.rate(step, self.epochs * self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        logits = self.model(x)
        check_labels(y, logits.shape[1], self.data.name)
        loss = distillation(logits, self._teach(x), y, self.recipe.temperature, self.recipe.soft_share)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item(), int((logits.detach().argmax(1) == y).sum())

    def _teach(self, x: Tensor) -> Tensor | None:
        if self.teacher is None or self.recipe.soft_share == 0:
            return None
        with mode(self.teacher, False), torch.no_grad():
            return self.teacher(x)

    def _stop_at(self, loss: float, epoch: int, step: int) -> None:
        self.model.load_state_dict(self.best, strict=False)
        raise HwpruneError(f"the loss became {loss} in epoch {epoch}, step {step + 1} of {self.steps}; the weights of "
                           f"epoch {self.best_epoch} were put back; lower the learning rate of {self.recipe.learning_rate}")

    # -- what an epoch leaves behind

    def _record(self, loss: float | None, share: float | None, rate: float, began: float) -> None:
        held = None
        if self.data.validation is not None:
            held = evaluate(self.model, self.data.validation_batches(), self.data.name)
        record = EpochRecord(len(self.history), loss, share, held and held.loss, held and held.accuracy, rate,
                             time.perf_counter() - began)
        better = not self.history or _rank(record) > _rank(self.history[self.best_epoch])
        self.history.append(record)
        state = _tensors(self.model)
        if better:
            self.best_epoch = record.epoch
            self.best = {name: value.clone() for name, value in state.items()}
        if self.checkpoints is not None:
            last = {**_prefixed("model", state), **_prefixed("momentum", self._momenta())}
            self.checkpoints.write(self._json(), last, self.best if better else None)

    def _json(self) -> dict[str, Any]:
        return {"settings": self.settings, "best_epoch": self.best_epoch, "start_accuracy": self.start_accuracy,
                "selected_by": self._selected_by(), "history": [asdict(record) for record in self.history]}

    def restore(self) -> bool:
        """Continue from the folder; False when it holds no checkpoint."""
        if self.checkpoints is None:
            raise UsageError("there is nothing to resume without a folder; give the folder of the run")
        if not self.checkpoints.exists():
            self.progress.say(f"no checkpoint in {self.checkpoints.folder}; fine-tuning starts from the beginning")
            return False
        state = self.checkpoints.read()
        _check_same(state["settings"], self.settings)
        last, self.best = self.checkpoints.tensors(state, "last"), self.checkpoints.tensors(state, "best")
        _check_tensors(self.best, self.model, self.checkpoints.folder)
        self.model.load_state_dict(_without("model", last), strict=False)
        momenta, parameters = _without("momentum", last), dict(self.model.named_parameters())
        for name, value in momenta.items():
            self.optimizer.state[parameters[name]]["momentum_buffer"] = torch.empty_like(parameters[name]).copy_(value)
        self.history = [EpochRecord(**record) for record in state["history"]]
        self.best_epoch, self.start_accuracy = state["best_epoch"], state["start_accuracy"]
        return True

    def _momenta(self) -> dict[str, Tensor]:
        state = self.optimizer.state
        return {name: state[p]["momentum_buffer"] for name, p in self.model.named_parameters()
                if state.get(p, {}).get("momentum_buffer") is not None}

    def _selected_by(self) -> str:
        if self.data.validation is None:
            return "the last epoch (no validation images)"
        return f"accuracy on {len(self.data.validation)} validation images, none of them test images"

    # -- random numbers

    def _epoch_seed(self, epoch: int) -> int:
        return (self.seed * 1_000_003 + epoch) % 2**31

    @contextmanager
    def _seeded(self, epoch: int) -> Iterator[None]:
        """Dropout and the user's loaders draw from torch's generator: give each epoch its own state of it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._epoch_seed(epoch))
            yield


def _rank(record: EpochRecord) -> tuple[float, float, int]:
    """Which of two epochs is better: validation accuracy, then loss; without validation the later one."""
    if record.validation_accuracy is None:
        return (0.0, 0.0, record.epoch)
    return (record.validation_accuracy, -record.validation_loss, 0)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError("no parameter of the network requires a gradient; there is nothing to fine-tune")
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
              {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=recipe.learning_rate, momentum=recipe.momentum,
                           nesterov=recipe.momentum > 0)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")}


def _check_same(begun: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name in [*asked, *(set(begun) - set(asked))]:
        if begun.get(name) != asked.get(name):
            raise UsageError(f"the fine-tuning to resume was begun with {name}={begun.get(name)!r}, but now {name} is "
                             f"{asked.get(name)!r}; give {begun.get(name)!r} or start anew without --resume")


def _check_tensors(saved: Mapping[str, Tensor], model: nn.Module, folder: Path) -> None:
    expected = {name: tuple(value.shape) for name, value in _tensors(model).items()}
    found = {name: tuple(value.shape) for name, value in saved.items()}
    if expected != found:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise UsageError(f"the checkpoint in {folder} is of another network: {len(odd)} tensors differ "
                         f"({', '.join(odd[:5])}); start anew without --resume")
