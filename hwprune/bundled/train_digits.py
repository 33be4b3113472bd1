"""Train the bundled network: ``python -m hwprune.bundled.train_digits [--out FILE]``.

It reproduces ``digits_resnet.safetensors``: to the bit on one machine with the same torch and threads, else to the
accuracy that it prints. Under two minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from hwprune.bundled import MODELS
from hwprune.spec.batches import Augment
from hwprune.spec.data import load_data
from hwprune.spec.weights import save_state
from hwprune.train.finetune import TrainReport, finetune
from hwprune.train.recipe import Recipe

# From scratch: a higher rate than fine-tuning, every training image (nothing is selected: the last epoch is kept).
RECIPE = Recipe(batch_size=64, learning_rate=0.1, validation_share=0.0, calibration_batches=0)
EPOCHS = 40
SEED = 0


def train(epochs: int = EPOCHS, seed: int = SEED) -> tuple[torch.nn.Module, TrainReport]:
    """Train the network on digits, shifted by up to one pixel."""
    data = load_data("digits")
    data = replace(data, train=replace(data.train, augment=Augment(pad=1, flip=False)))
    torch.manual_seed(seed)
    model = MODELS["digits_resnet"].build()
    return model, finetune(model, None, data, epochs=epochs, seed=seed, recipe=RECIPE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=MODELS["digits_resnet"].checkpoint, help="where the weights go")
    out = parser.parse_args().out
    began = time.perf_counter()
    model, report = train()
    save_state(model.state_dict(), out, {"trained_by": "python -m hwprune.bundled.train_digits"})
    print(f"test accuracy {report.best_accuracy:.4f}, {sum(p.numel() for p in model.parameters()):,} parameters, "
          f"{out.stat().st_size:,} bytes in {out}, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
