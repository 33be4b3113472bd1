"""The networks of the benchmark: where each comes from, how it is built, what it is fed.

    entries(sources)            which networks there are
    build(source, name)         one of them, with random weights

Every network is built small where its authors' constructor allows it: coverage is a matter of structure, not of size.
"""

from __future__ import annotations

import csv
import importlib
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator

import torch
from torch import nn

SOURCES = ("torchvision", "timm", "transformers", "own")
TIMM_FAMILIES = Path(__file__).parent / "timm_families.tsv"
BATCH = 2  # BatchNorm in training mode refuses one value a channel
CLASSES = 1000


@dataclass(frozen=True)
class Entry:
    """family : the package's own name for the kind of network (a torchvision or timm module, a transformers class)."""

    source: str
    name: str
    family: str


@dataclass(frozen=True)
class Network:
    """outputs : the layers that make the network's output, which Torch-Pruning must be told of."""

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    outputs: list[nn.Module] = field(default_factory=list)


def entries(sources: tuple[str, ...] = SOURCES) -> list[Entry]:
    return [Entry(source, name, family) for source in sources for name, family in _LISTS[source]()]


def build(source: str, name: str) -> Network:
    """The network with weights from a fixed seed, in eval mode, and inputs of batch 2."""
    torch.manual_seed(0)
    network = _BUILDERS[source](name)
    network.module.eval()
    return network


# -- torchvision


def torchvision() -> types.ModuleType:
    """torchvision for a torch without its compiled operators: only the model definitions are used."""
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    return importlib.import_module("torchvision")


def _torchvision_names() -> Iterator[tuple[str, str]]:
    models = torchvision().models
    for name in models.list_models(module=models):
        yield name, models.get_model_builder(name).__module__.rpartition(".")[2]


#: Input size of the families that do not take 64 x 64.
_TORCHVISION_SIZES = {"inception": 128, "maxvit": 224, "swin_transformer": 128, "vision_transformer": 64}


def _build_torchvision(name: str) -> Network:
    models = torchvision().models
    builder = models.get_model_builder(name)
    family = builder.__module__.rpartition(".")[2]
    size = _TORCHVISION_SIZES.get(family, 64)
    options = {}
    if family in ("googlenet", "inception"):
        options = {"aux_logits": False, "init_weights": False}  # heads that exist in training only are never traced
    elif family == "vision_transformer":
        size = 64 if name != "vit_h_14" else 56
        options = {"image_size": size}
    module = builder(weights=None, **options)
    return Network(module, (torch.randn(BATCH, 3, size, size),), _with_outputs(module, (CLASSES,)))


# -- timm


def _timm_names() -> Iterator[tuple[str, str]]:
    """The smallest network of each of timm's model files (see ``benchmarks.coverage.timm_families``)."""
    if not TIMM_FAMILIES.exists():
        return
    with TIMM_FAMILIES.open() as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            yield row["model"], row["family"]


def _build_timm(name: str) -> Network:
    torchvision()
    import timm

    module = timm.create_model(name, pretrained=False)
    shape = timm_input(module)
    return Network(module, (torch.randn(BATCH, *shape),), _with_outputs(module, (module.num_classes,)))


def timm_input(module: nn.Module) -> tuple[int, ...]:
    """The input size of the network's configuration, or 128 pixels where it takes any size and is larger."""
    config = module.default_cfg
    channels, height, width = config["input_size"]
    if config.get("fixed_input_size") or max(height, width) <= 128:
        return channels, height, width
    least = config.get("min_input_size") or (channels, 32, 32)
    patches = [m.patch_size for m in module.modules() if hasattr(m, "patch_size")]
    step = max((max(p) if isinstance(p, (tuple, list)) else p for p in patches), default=1)
    size = -(-max(128, *least[1:]) // step) * step
    return channels, size, size


# -- transformers


def _transformers_names() -> Iterator[tuple[str, str]]:
    from benchmarks.coverage.transformers_networks import NETWORKS

    for name, (family, _) in NETWORKS.items():
        yield name, family


def _build_transformers(name: str) -> Network:
    torchvision()  # transformers imports it
    from benchmarks.coverage.transformers_networks import NETWORKS

    module, inputs, outputs = NETWORKS[name][1]()
    return Network(module, inputs, outputs)


# -- own


def _own_names() -> Iterator[tuple[str, str]]:
    from benchmarks.coverage.networks import NETWORKS

    for name in NETWORKS:
        yield name, name


def _build_own(name: str) -> Network:
    from benchmarks.coverage.networks import NETWORKS

    factory, shape, ends = NETWORKS[name]
    module = factory()
    return Network(module, (torch.randn(shape),), _with_outputs(module, ends))


def _with_outputs(module: nn.Module, sizes: tuple[int, ...]) -> list[nn.Module]:
    """Linear layers and convolutions with as many outputs as the network has classes."""
    found = []
    for m in module.modules():
        if isinstance(m, nn.Linear) and m.out_features in sizes:
            found.append(m)
        elif isinstance(m, (nn.Conv1d, nn.Conv2d)) and m.out_channels in sizes:
            found.append(m)
    return found


_LISTS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "torchvision": _torchvision_names,
    "timm": _timm_names,
    "transformers": _transformers_names,
    "own": _own_names,
}
_BUILDERS: dict[str, Callable[[str], Network]] = {
    "torchvision": _build_torchvision,
    "timm": _build_timm,
    "transformers": _build_transformers,
    "own": _build_own,
}
