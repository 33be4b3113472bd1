"""Operators in banks, for every test that compares kernels with torch: on this machine and on boards under an emulator.

The operators of a bank share one network, input and artifact. A family added here is tested wherever ``BANKS`` is.
"""

from __future__ import annotations

import copy
import random
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hwprune.kernels.schedule import Config

#: Largest error of a float32 kernel against torch in float64, relative to the largest value of the result.
TOLERANCE = 1e-5


class Fn(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Bank(nn.Module):
    """Operators side by side on one value. ``inside`` : the value is not the network's input, but made by a kernel."""

    def __init__(self, operators: dict[str, nn.Module], inside: bool):
        super().__init__()
        self.operators, self.inside = nn.ModuleDict(operators), inside

    def forward(self, x):
        if self.inside:
            x = x * 1.5
        return tuple(operator(x) for operator in self.operators.values())


def conv(*args, **kwargs):
    return nn.Conv2d(*args, **kwargs)


def convolutions(c: int) -> dict[str, nn.Module]:
    return {
        "3x3": conv(c, 19, 3, padding=1),
        "3x3_without_bias": conv(c, 37, 3, padding=1, bias=False),
        "3x3_stride_2": conv(c, 16, 3, 2, 1),
        "3x3_valid": conv(c, 8, 3, padding="valid"),
        "4x4_same": conv(c, 8, 4, padding="same"),
        "3x3_dilated": conv(c, 8, 3, padding=2, dilation=2),
        "5x3_asymmetric": conv(c, 11, (5, 3), (2, 1), (2, 0)),
        "1x1": conv(c, 33, 1),
        "1x1_stride_3": conv(c, 8, 1, 3),
        "whole_image": conv(c, 5, (13, 11)),
        "wide": conv(c, 64, 3, padding=1),
        "batchnorm": nn.Sequential(conv(c, 19, 3, padding=1, bias=False), nn.BatchNorm2d(19), nn.ReLU()),
        "batchnorm_and_bias": nn.Sequential(conv(c, 9, 3), nn.BatchNorm2d(9, affine=False), nn.SiLU()),
    }


def grouped(c: int) -> dict[str, nn.Module]:
    return {
        "depthwise": conv(c, c, 3, padding=1, groups=c),
        "depthwise_stride_2": conv(c, c, 3, 2, 1, groups=c, bias=False),
        "depthwise_5x5_stride_2": conv(c, c, 5, 2, 2, groups=c),
        "depthwise_7x7": conv(c, c, 7, padding=3, groups=c),
        "depthwise_5x5_dilated": conv(c, c, (5, 3), padding=2, dilation=(1, 2), groups=c),
        "depthwise_multiplier_2": conv(c, 2 * c, 3, padding=1, groups=c),
        "depthwise_multiplier_3": conv(c, 3 * c, 3, groups=c),
        "groups_2": conv(c, 2 * 7, 3, padding=1, groups=2),
        "groups_2_of_whole_vectors": conv(c, 2 * 16, 3, padding=1, groups=2),
        "groups_3": conv(c, 3 * 5, 1, groups=3),
        "groups_6": conv(c, 6 * 8, 3, 2, 1, groups=6),
    }


def pools() -> dict[str, nn.Module]:
    return {
        "max_3x3": nn.MaxPool2d(3, 2, 1),
        "max_2x3": nn.MaxPool2d((2, 3)),
        "max_ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
        "max_ceil_padded": nn.MaxPool2d(4, 3, 1, ceil_mode=True),
        "max_dilated": nn.MaxPool2d(2, 1, dilation=2),
        "average_2x2": nn.AvgPool2d(2),
        "average_padded": nn.AvgPool2d(3, 2, 1),
        "average_excluding_padding": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        "average_ceil": nn.AvgPool2d(3, 2, ceil_mode=True),
        "average_ceil_excluding_padding": nn.AvgPool2d(4, 3, 2, ceil_mode=True, count_include_pad=False),
        "average_divisor": nn.AvgPool2d(3, divisor_override=4),
        "average_of_all": nn.AvgPool2d((12, 10)),
        "average_of_all_divisor": nn.AvgPool2d((12, 10), divisor_override=7),
        "adaptive_1": nn.AdaptiveAvgPool2d(1),
        "adaptive_3x5": nn.AdaptiveAvgPool2d((3, 5)),
        "mean": Fn(lambda x: x.mean((2, 3))),
        "mean_keeping_axes": Fn(lambda x: x.mean((-1, -2), keepdim=True)),
    }


def elementwise() -> dict[str, nn.Module]:
    return {
        "relu": nn.ReLU(), "relu6": nn.ReLU6(), "hardtanh": nn.Hardtanh(-0.5, 0.7), "sigmoid": nn.Sigmoid(),
        "silu": nn.SiLU(), "tanh": nn.Tanh(), "hardsigmoid": nn.Hardsigmoid(), "hardswish": nn.Hardswish(),
        "leaky_relu": nn.LeakyReLU(0.2), "gelu": nn.GELU(), "prelu": nn.PReLU(19), "prelu_one_slope": nn.PReLU(),
        "batchnorm": nn.BatchNorm2d(19), "batchnorm_without_affine": nn.BatchNorm2d(19, affine=False),
        "exp": Fn(torch.exp), "neg": Fn(torch.neg),
        "clamp": Fn(lambda x: x.clamp(-0.3, 0.4)), "clamp_below": Fn(lambda x: x.clamp(min=0.2)),
        "clamp_above": Fn(lambda x: x.clamp(max=-0.2)), "clamp_min": Fn(lambda x: torch.clamp_min(x, 0.1)),
        "add_number": Fn(lambda x: x + 1.5), "subtract_number": Fn(lambda x: x - 2),
        "divide_by_number": Fn(lambda x: x / 3),
        "multiply_by_number": Fn(lambda x: 0.1 * x),
        "add_to_itself": Fn(lambda x: x + x), "subtract": Fn(lambda x: x - torch.relu(x)),
        "divide": Fn(lambda x: x / torch.exp(x)),
        "maximum": Fn(lambda x: torch.maximum(x, torch.sigmoid(x))), "minimum": Fn(lambda x: torch.minimum(x, -x)),
        "gate_by_channel": Fn(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True))),
        "gate_by_pixel": SpatialGate(),
        "channel_scale": Scale((19, 1, 1)), "image_bias": Scale((19, 13, 11)), "one_number": Scale((1,)),
        "constant": Fn(lambda x: x * torch.tensor([2.0])), "dropout": nn.Dropout(0.5),
    }  # fmt: skip


class SpatialGate(nn.Module):
    """One value a pixel, spread over the channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(19, 1, 3, padding=1)

    def forward(self, x):
        return x * torch.sigmoid(self.conv(x))


class Scale(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return x * self.scale + self.scale


def movement() -> dict[str, nn.Module]:
    return {
        "rows": Fn(lambda x: x[:, :, 2:9]), "columns_strided": Fn(lambda x: x[:, :, ::2, 1::3]),
        "channels": Fn(lambda x: x[:, 3:14]), "channels_to_the_end": Fn(lambda x: x[:, -5:]),
        "beyond_the_start": Fn(lambda x: x[:, -100:6]), "images": Fn(lambda x: x[1:]),
        "pad_image": Fn(lambda x: F.pad(x, (1, 2, 3, 0))), "pad_channels": Fn(lambda x: F.pad(x, (0, 0, 0, 0, 4, 3))),
        "pad_with_value": nn.ConstantPad2d((2, 0, 0, 1), -1.5), "zero_pad": nn.ZeroPad2d(1),
        "crop_by_negative_pad": Fn(lambda x: F.pad(x, (-1, -2, 0, 0))),
        "option_a": Fn(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 9, 10))),
        "cat_channels": Fn(lambda x: torch.cat([x, torch.relu(x), x[:, :3]], 1)),
        "cat_rows": Fn(lambda x: torch.cat([x, x * 2], 2)), "cat_images": Fn(lambda x: torch.cat([x, -x], 0)),
        "flatten": nn.Flatten(), "flatten_pooled": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "flatten_slice": Fn(lambda x: torch.flatten(x[:, :7], 1)),
        "unflatten_pooled": Fn(lambda x: x * x.mean((2, 3)).sigmoid().view(2, 19, 1, 1)),
        "classifier": nn.Sequential(nn.Flatten(), nn.Linear(19 * 13 * 11, 10)),
    }  # fmt: skip


def rows() -> dict[str, nn.Module]:
    return {
        "linear": nn.Linear(37, 19), "linear_without_bias": nn.Linear(37, 64, bias=False),
        "one_output": nn.Linear(37, 1),
        "hidden": nn.Sequential(nn.Linear(37, 19), nn.GELU(), nn.Linear(19, 7), nn.Tanh()),
        "batchnorm": nn.Sequential(nn.Linear(37, 21), nn.BatchNorm1d(21), nn.ReLU()),
        "first": nn.Sequential(nn.BatchNorm1d(37), nn.PReLU(37)), "slice": Fn(lambda x: x[:, 3:30:2]),
        "pad": Fn(lambda x: F.pad(x, (2, 1))), "cat": Fn(lambda x: torch.cat([x, x.relu(), x[:, :5]], 1)),
        "residual": Residual(),
    }  # fmt: skip


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(37, 19), nn.Linear(37, 19)

    def forward(self, x):
        return torch.relu(self.a(x) + self.b(x)) * 2


def random_operators(seed: int) -> tuple[dict[str, nn.Module], tuple[int, ...]]:
    """Convolutions of drawn geometry on one drawn input shape: (operators, input shape)."""
    draw = random.Random(seed)
    c, h, w = draw.randint(3, 41), draw.randint(7, 17), draw.randint(7, 17)
    operators = {}
    for i in range(8):
        kernel = draw.choice((1, 3, (1, 3), (3, 1), 5))
        options = {"stride": draw.randint(1, 2), "padding": draw.randint(0, 2), "bias": draw.random() < 0.5}
        groups = draw.choice([1, 1, 1, c])
        outputs = c if groups == c else draw.randint(1, 50)
        operators[f"{i}_{outputs}_of_{c}"] = nn.Conv2d(c, outputs, kernel, groups=groups, **options)
    operators["linear"] = nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, draw.randint(1, 50)))
    return operators, (draw.randint(1, 2), c, h, w)


class Attention(nn.Module):
    """Attention over heads of ``inner`` dimensions, its projections fused or separate, with or without a kernel of its own."""

    def __init__(self, width: int, heads: int, inner: int, outer: int | None = None, fused=True, by_hand=False):
        super().__init__()
        self.heads, self.fused, self.by_hand = heads, fused, by_hand
        outer = inner if fused or outer is None else outer
        self.qkv = nn.Linear(width, 3 * heads * inner) if fused else None
        self.q, self.k, self.v = nn.Linear(width, heads * inner), nn.Linear(width, heads * inner), nn.Linear(width, heads * outer)
        self.out = nn.Linear(heads * outer, width)

    def forward(self, x):
        n, t, _ = x.shape
        if self.fused:
            q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (p(x).view(n, t, self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        if self.by_hand:
            y = torch.softmax(q @ k.transpose(-2, -1) * 0.2, -1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(n, t, -1))


def sequences(c: int) -> dict[str, nn.Module]:
    """Operators on [batch, tokens, channels]."""
    return {
        "layer_norm": nn.LayerNorm(c), "layer_norm_without_affine": nn.LayerNorm(c, elementwise_affine=False, eps=1e-3),
        "softmax": nn.Softmax(-1), "softmax_of_large": Fn(lambda x: torch.softmax(x * 50, 2)),
        "linear": nn.Linear(c, 21), "mlp": nn.Sequential(nn.Linear(c, 45), nn.GELU(), nn.Linear(45, c), nn.Dropout()),
        "residual": Plus(nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 45), nn.GELU(), nn.Linear(45, c))),
        "layer_scale": Plus(nn.Sequential(nn.Linear(c, c), Scale((c,)))),
        "positions": Scale((1, 13, c)), "positions_by_batch": nn.Sequential(nn.Linear(c, c), Scale((1, 13, c))),
        "attention": Attention(c, 3, 7), "attention_one_head": Attention(c, 1, 33),
        "attention_separate": Attention(c, 3, 5, 9, fused=False), "attention_by_hand": Attention(c, 3, 7, by_hand=True),
        "first_token": Fn(lambda x: x[:, 0]), "last_token": Fn(lambda x: x.select(1, -1) * 2),
        "class_token": ClassToken(c), "transpose": Fn(lambda x: x.transpose(1, 2)),
        "transposed_linear": nn.Sequential(Fn(lambda x: x.transpose(0, 1)), nn.Linear(c, 9)),
        "mixer": Fn(lambda x: torch.relu(x.transpose(1, 2)) + 1), "mean": Fn(lambda x: x.mean(1)),
        "heads": Fn(lambda x: torch.relu(x[..., :36].reshape(2, 13, 4, 9).permute(2, 0, 3, 1))),
        "view_that_cuts_elsewhere": Fn(lambda x: x.reshape(13, 2, -1) * 2), "chunk": Fn(lambda x: x[..., :36].chunk(3, -1)[1]),
        "split": Fn(lambda x: x.split([20, c - 20], 2)[1] * 2), "flatten": Fn(lambda x: x.flatten(1)),
        "unsqueeze": Fn(lambda x: x.unsqueeze(1) * 2), "expand": Fn(lambda x: x[:, :1].expand(-1, 4, -1) + 1),
        "product_of_batches": Fn(lambda x: x @ x.transpose(1, 2)), "bmm": Fn(lambda x: torch.bmm(x.transpose(1, 2), x)),
    }  # fmt: skip


class Plus(nn.Module):
    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


class ClassToken(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width))

    def forward(self, x):
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)


class ConvNext(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c)
        self.up, self.down, self.scale = nn.Linear(c, 45), nn.Linear(45, c), nn.Parameter(torch.randn(c, 1, 1))

    def forward(self, x):
        y = self.down(F.gelu(self.up(self.norm(self.conv(x).permute(0, 2, 3, 1)))))
        return x + self.scale * y.permute(0, 3, 1, 2)


def shuffle(x, groups: int):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def permuted_images(c: int) -> dict[str, nn.Module]:
    """Operators that see the axes of images in another order."""
    return {
        "channels_last": Fn(lambda x: x.permute(0, 2, 3, 1)), "convnext": ConvNext(c),
        "norm_of_channels": nn.Sequential(Fn(lambda x: x.permute(0, 2, 3, 1)), nn.LayerNorm(c), Fn(lambda x: x.permute(0, 3, 1, 2))),
        "tokens": Fn(lambda x: x.flatten(2).transpose(1, 2) * 2), "tokens_of_channels": Fn(lambda x: x.flatten(2) * 2),
        "shuffle": nn.Sequential(Fn(lambda x: shuffle(x, 2)), nn.Conv2d(c, 9, 1)),
        "shuffled_half": nn.Sequential(Fn(lambda x: shuffle(x, 2).chunk(2, 1)[1]), nn.Conv2d(c // 2, 9, 1)),
        "both_halves": Fn(lambda x: torch.cat(shuffle(x, 2).chunk(2, 1)[::-1], 1)),
        "linear_of_columns": nn.Linear(11, 7), "transposed_image": Fn(lambda x: torch.relu(x.transpose(2, 3))),
        "windows": Fn(lambda x: x[:, :, :12, :10].reshape(2, c, 3, 4, 2, 5).permute(0, 2, 4, 3, 5, 1).reshape(12, 20, c) * 2),
        "batchnorm_of_rows": nn.Sequential(Fn(lambda x: x.permute(0, 2, 3, 1)), nn.BatchNorm2d(13)),
    }  # fmt: skip


#: name -> (operators, input shape, whether the value is made by a kernel or is the network's input)
BANKS = {
    "conv7": (lambda: convolutions(7), (2, 7, 13, 11), True),
    "conv19_on_input": (lambda: convolutions(19), (1, 19, 13, 11), False),
    "grouped": (lambda: grouped(6), (2, 6, 13, 11), True),
    "grouped_on_input": (lambda: grouped(6), (1, 6, 13, 11), False),
    "grouped_wide": (lambda: grouped(36), (1, 36, 9, 7), True),
    "pools": (pools, (2, 19, 12, 10), True),
    "pools_on_input": (pools, (1, 3, 12, 10), False),
    "elementwise": (elementwise, (2, 19, 13, 11), True),
    "elementwise_on_input": (elementwise, (1, 19, 13, 11), False),
    "movement": (movement, (2, 19, 13, 11), True),
    "movement_on_input": (movement, (2, 19, 13, 11), False),
    "rows": (rows, (5, 37), True),
    "rows_on_input": (rows, (1, 37), False),
    "sequences": (lambda: sequences(37), (2, 13, 37), True),
    "sequences_on_input": (lambda: sequences(37), (2, 13, 37), False),
    "sequences_of_vectors": (lambda: sequences(48), (2, 13, 48), True),
    "permuted_images": (lambda: permuted_images(22), (2, 22, 13, 11), True),
    "permuted_images_on_input": (lambda: permuted_images(22), (2, 22, 13, 11), False),
}

class ThreeHeads(nn.Module):
    """Three heads of so many dimensions out of one value."""

    def __init__(self, dimensions: int):
        super().__init__()
        self.dimensions = dimensions

    def forward(self, x):
        q, k, v = x.reshape(*x.shape[:2], 3, 3, self.dimensions).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v)


class Products(nn.Module):
    def forward(self, x):
        return x @ x.transpose(1, 2)


#: name -> (operator, its input); the input is made by a kernel before it
OPERATORS = {
    "conv": (nn.Sequential(nn.Conv2d(19, 64, 3, padding=1), nn.ReLU()), (1, 19, 12, 14)),
    "conv_prime_width": (nn.Conv2d(7, 32, 3, padding=1), (2, 7, 8, 13)),
    "conv_width_of_no_tile": (nn.Conv2d(19, 32, 3, padding=1), (1, 19, 6, 17)),
    "conv_stride": (nn.Conv2d(32, 64, 3, 2, 1), (1, 32, 16, 16)),
    "conv_1x1": (nn.Conv2d(24, 64, 1), (1, 24, 8, 8)),
    "conv_groups": (nn.Conv2d(32, 64, 3, padding=1, groups=2), (1, 32, 8, 8)),
    "linear": (nn.Sequential(nn.Linear(37, 64), nn.GELU()), (6, 37)),
    "linear_rows_of_no_tile": (nn.Linear(37, 64), (23, 37)),
    "depthwise": (nn.Conv2d(32, 32, 3, padding=1, groups=32), (1, 32, 12, 12)),
    "pool": (nn.MaxPool2d(3, 2, 1), (1, 32, 12, 12)),
    "global_pool": (nn.AdaptiveAvgPool2d(1), (1, 64, 7, 5)),
    "elementwise": (nn.SiLU(), (2, 19, 9, 7)),
    "tokens": (nn.Sequential(nn.Linear(37, 120), nn.GELU()), (2, 29, 37)),
    "layer_norm": (nn.LayerNorm(37), (2, 29, 37)),
    "softmax": (nn.Softmax(-1), (2, 29, 37)),
    "attention": (ThreeHeads(7), (2, 29, 3 * 3 * 7)),
    "attention_of_vectors": (ThreeHeads(16), (2, 29, 3 * 3 * 16)),
    "matmul": (Products(), (2, 29, 37)),
}

_SAMPLE = 10


def sample(offered: list[Config]) -> list[Config]:
    """The first, one of each value of each parameter that is a choice, and some from all over the list."""
    picked = [offered[0]]
    for parameter in ("rule", "m", "split", "order", "nv"):
        values = {{"rule": c.rule, **dict(c.params)}.get(parameter): c for c in reversed(offered)}
        picked += list(values.values())
    picked += offered[:: max(1, len(offered) // 3)]
    return list(dict.fromkeys(picked))[:_SAMPLE]


def case(bank: str) -> tuple[list[str], nn.Module, tuple[torch.Tensor, ...]]:
    """Names of a bank's operators, the network of them side by side, and its input."""
    torch.manual_seed(sorted(BANKS).index(bank))
    make, shape, inside = BANKS[bank]
    operators = make()
    return list(operators), randomized(Bank(operators, inside)), (torch.randn(shape),)


def exact(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    """What torch computes in float64."""
    with torch.no_grad():
        result = copy.deepcopy(module).double().eval()(*(x.double() for x in inputs))
    return [r.numpy() for r in (result if isinstance(result, tuple) else (result,))]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Parameters and statistics as a trained network might have them, so that a folding mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.uniform_(-0.3, 0.3, generator=generator)
            m.running_var.uniform_(0.5, 1.5, generator=generator)
            if m.affine:
                with torch.no_grad():
                    m.weight.uniform_(-1.5, 1.5, generator=generator)
                    m.bias.uniform_(-0.5, 0.5, generator=generator)
    return module.eval()
