"""Networks of a convolution and the depthwise one or pool that reads it, which one kernel computes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn


class Shortcut(nn.Module):
    """What lies between is the sum of two values of that shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv, self.window = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x):
        return self.window(F.relu6(self.conv(x) + x))


def pair(inputs: int, channels: int, window: int, stride: int = 1, *, padding: int | None = None, dilation=1, between=nn.ReLU6) -> nn.Module:
    padding = window // 2 if padding is None else padding
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels), between(),
        nn.Conv2d(channels, channels, window, stride, padding, dilation, groups=channels), nn.Hardswish(),
    )  # fmt: skip


def stem(channels: int, kernel: int, stride: int, padding: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, kernel, stride, padding), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1, groups=channels))


def pooled(conv: nn.Module, pool: nn.Module) -> nn.Module:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(), pool)


#: name -> (the two convolutions, their input, whether a kernel makes it)
PAIRS = {
    "3x3": (pair(8, 40, 3), (1, 8, 9, 13), True),
    "3x3_stride_2": (pair(5, 48, 3, 2), (1, 5, 12, 11), True),
    "5x5_silu": (pair(16, 40, 5, between=nn.SiLU), (1, 16, 7, 7), True),
    "5x5_stride_2_batch": (pair(7, 24, 5, 2), (3, 7, 10, 9), True),
    "7x7_taller_than_the_image": (pair(8, 16, 7), (1, 8, 3, 5), True),
    "3x3_dilated": (pair(8, 24, 3, padding=2, dilation=2), (1, 8, 11, 8), True),
    "without_border": (pair(9, 32, 3, padding=0), (2, 9, 8, 8), True),
    "stride_beyond_the_window": (pair(8, 24, 2, 3, padding=0), (1, 8, 11, 11), True),
    "shortcut": (Shortcut(24), (1, 24, 9, 7), True),
    "stem": (stem(24, 3, 2, 1), (1, 3, 19, 17), False),
    "stem_batch_5x3": (stem(16, (5, 3), (2, 1), (2, 1)), (2, 3, 12, 9), True),
    "stem_max_pool": (pooled(nn.Conv2d(3, 24, 7, 2, 3), nn.MaxPool2d(3, 2, 1)), (1, 3, 31, 27), False),
    "average_pool_beyond_the_border": (pooled(nn.Conv2d(9, 16, 1), nn.AvgPool2d(2, ceil_mode=True)), (2, 9, 7, 9), True),
    "dilated_max_pool": (pooled(nn.Conv2d(8, 40, 1), nn.MaxPool2d(3, 1, 1, dilation=2)), (1, 8, 10, 9), True),
    "stem_1x1_of_the_input": (stem(40, 1, 1, 0), (1, 3, 8, 8), False),
}


class Pair(nn.Module):
    def __init__(self, operator: nn.Module, inside: bool):
        super().__init__()
        self.operator, self.inside = operator, inside

    def forward(self, x):
        return self.operator(F.hardswish(x) if self.inside else x)


def joined(network) -> list:
    """Workloads of two such operators."""
    return [w for w in network.workloads() if len(w.anchors) == 2]
