"""Models that come with hwprune, trained, so that a first run needs nothing but the package.

``MODELS`` names them; ``hwprune.spec.model`` loads ``bundled:NAME`` through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from torch import nn

from hwprune.bundled.digits_resnet import digits_resnet


@dataclass(frozen=True)
class Bundled:
    """How to build a model, where its weights are, and what it takes."""

    build: Callable[[], nn.Module]
    checkpoint: Path
    input_shape: tuple[int, ...]
    data: str


_HERE = Path(__file__).parent

MODELS = {
    "digits_resnet": Bundled(digits_resnet, _HERE / "digits_resnet.safetensors", (1, 1, 8, 8), "digits"),
}
