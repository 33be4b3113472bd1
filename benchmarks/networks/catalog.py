"""The networks that are timed: dense, pruned uniformly to half, and to odd widths. Random weights."""

from __future__ import annotations

from typing import Callable

import torch
from torch import nn

from benchmarks.cifar10_resnet56.model import resnet56
from benchmarks.coverage.catalog import torchvision
from hwprune.graph import analyze, trace
from hwprune.importance import CRITERIA
from hwprune.prune import prune
from hwprune.search.problem import top_units

IMAGENET, CIFAR = (3, 224, 224), (3, 32, 32)


def vgg16_cifar() -> nn.Module:
    """VGG-16 with batch normalization as it is used on CIFAR: one linear layer behind the convolutions."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def _of_torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision().models, name)(weights=None)


def deit_tiny() -> nn.Module:
    torchvision()  # timm imports it
    import timm

    return timm.create_model("deit_tiny_patch16_224", pretrained=False)


#: name -> factory and input shape
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "resnet56_cifar": (resnet56, CIFAR),
    "vgg16_cifar": (vgg16_cifar, CIFAR),
    "resnet18": (_of_torchvision("resnet18"), IMAGENET),
    "resnet50": (_of_torchvision("resnet50"), IMAGENET),
    "mobilenet_v2": (_of_torchvision("mobilenet_v2"), IMAGENET),
    "mobilenet_v3_large": (_of_torchvision("mobilenet_v3_large"), IMAGENET),
    "efficientnet_b0": (_of_torchvision("efficientnet_b0"), IMAGENET),
    "convnext_tiny": (_of_torchvision("convnext_tiny"), IMAGENET),
    "deit_tiny": (deit_tiny, IMAGENET),
}

#: variant -> units kept of a group of so many
VARIANTS: dict[str, Callable[[int], int]] = {
    "dense": lambda width: width,
    "half": lambda width: (width + 1) // 2,
    "odd": lambda width: max(int(0.6 * width) | 1, 1) if width > 2 else width,
}


def build(name: str, variant: str, batch: int) -> tuple[nn.Module, torch.Tensor]:
    """The network with statistics that are not all alike, pruned, in eval mode, and its input."""
    factory, shape = NETWORKS[name]
    torch.manual_seed(0)
    module, x = factory().eval(), torch.randn(batch, *shape)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.uniform_(-0.1, 0.1)
            m.running_var.uniform_(0.8, 1.2)
    if variant == "dense":
        return module, x
    graph = analyze(trace(module, x))
    scores = CRITERIA["l2"].score(graph, None)
    kept = {g.id: top_units(scores[g.id], VARIANTS[variant](g.width)) for g in graph.groups}
    return prune(module, graph, kept)[0].eval(), x

