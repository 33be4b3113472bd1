"""A small residual network for 8x8 grey digits: 3x3 basic blocks, identity and projection shortcuts.

It stays at 8x8 pixels for two of its three stages, so that its convolutions are long enough to time, and has more
channels than ten digits need, so that there is something to prune. About 184 thousand parameters, 8 million MACs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# (channels, blocks, stride of the first block)
STAGES = ((32, 2, 1), (48, 2, 1), (64, 1, 2))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; a 1x1 projection where shapes differ (option B of He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class DigitsResNet(nn.Module):
    """Images [N, 1, 8, 8] to logits [N, 10]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        width = STAGES[0][0]
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = []
        for outputs, count, stride in STAGES:
            for index in range(count):
                blocks.append(Block(width, outputs, stride if index == 0 else 1))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.blocks(x)
        return self.linear(x.mean((2, 3)))


def digits_resnet() -> nn.Module:
    """The network with fresh weights; ``bundled:digits_resnet`` loads the trained ones."""
    return DigitsResNet()
