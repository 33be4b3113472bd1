"""Random networks of the supported operators, described by numbers so that hypothesis can draw and shrink them.

A network is a list of steps ``(kind, a, b)``. A step takes the latest value, or an earlier one that fits, and makes a
new one; where it does not fit (an odd number of channels for two groups) it is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

SIDE = 4  # pixels of the input, both ways


class RandomNetwork(nn.Module):
    """``head`` chooses how the last value becomes five outputs: by mean and linear, or by flatten and linear."""

    def __init__(self, steps: list[tuple[str, int, int]], head: int) -> None:
        super().__init__()
        self.stem, self.steps, self.flat = nn.Conv2d(3, 6, 3, padding=1), nn.ModuleList(), head % 2 == 0
        shapes = [(6, SIDE)]
        for kind, a, b in steps:
            step = STEPS[kind](shapes, a, b)
            if step is None:
                continue
            self.steps.append(step)
            with torch.no_grad():
                y = step([torch.randn(2, c, s, s) for c, s in shapes])
            shapes.append((y.shape[1], y.shape[2]))
        channels, side = shapes[-1]
        self.fc = nn.Linear(channels * side * side if self.flat else channels, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [self.stem(x)]
        for step in self.steps:
            values.append(step(values))
        y = values[-1]
        return self.fc(y.flatten(1) if self.flat else y.mean((2, 3)))


class Step(nn.Module):
    """``function(latest value, *parts)``; ``parts`` are modules and parameters."""

    def __init__(self, function, *parts, earlier: int | None = None) -> None:
        super().__init__()
        self.function, self.earlier = function, earlier
        self.parts = nn.ModuleList(p if isinstance(p, nn.Module) else Scale(p) for p in parts)

    def forward(self, values: list[torch.Tensor]) -> torch.Tensor:
        others = [] if self.earlier is None else [values[self.earlier]]
        return self.function(values[-1], *others, *self.parts)


class Scale(nn.Module):
    """A free parameter, multiplied."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.value


def last(function):
    """A module over the last axis, applied to channels."""
    return lambda x, *parts: function(x.permute(0, 2, 3, 1), *parts).permute(0, 3, 1, 2)


def conv(shapes, a, b):
    c, _ = shapes[-1]
    k = (1, 3)[b % 2]
    return Step(lambda x, m: m(x), nn.Conv2d(c, 2 + a % 7, k, padding=k // 2, bias=b % 3 > 0))


def depthwise(shapes, a, b):
    c, _ = shapes[-1]
    return Step(lambda x, m: m(x), nn.Conv2d(c, c * (1 + a % 2), 3, padding=1, groups=c))


def grouped(shapes, a, b):
    c, _ = shapes[-1]
    groups = 2 + b % 2
    return None if c % groups else Step(lambda x, m: m(x), nn.Conv2d(c, groups * (1 + a % 4), 1, groups=groups))


def transposed(shapes, a, b):
    c, _ = shapes[-1]
    return Step(lambda x, m: m(x), nn.ConvTranspose2d(c, 2 + a % 5, 3, padding=1))


def linear(shapes, a, b):
    c, _ = shapes[-1]
    return Step(last(lambda x, m: m(x)), nn.Linear(c, 2 + a % 7))


def batch_norm(shapes, a, b):
    m = nn.BatchNorm2d(shapes[-1][0])
    m.running_mean.uniform_(-0.3, 0.3)
    m.running_var.uniform_(0.5, 1.5)
    nn.init.uniform_(m.weight, 0.5, 1.5)
    return Step(lambda x, m: m(x), m)


def norm(shapes, a, b):
    c, _ = shapes[-1]
    if a % 3 == 0:
        return Step(last(lambda x, m: m(x)), nn.LayerNorm(c))
    if a % 3 == 1:
        return Step(lambda x, m: m(x), nn.InstanceNorm2d(c, affine=True))
    return Step(lambda x, m: m(x), nn.GroupNorm(2 if c % 2 == 0 else 1, c))


def activation(shapes, a, b):
    c, _ = shapes[-1]
    return Step(lambda x, m: m(x), (nn.ReLU(), nn.SiLU(), nn.PReLU(c), nn.Softplus())[a % 4])


def scale(shapes, a, b):
    c, s = shapes[-1]
    return Step(lambda x, m: m(x), ((c, 1, 1), (1, c, 1, 1), (c, s, s), (1,))[a % 4])


def binary(shapes, a, b):
    """Add or multiply an earlier value of the same shape."""
    fitting = [i for i, shape in enumerate(shapes) if shape == shapes[-1]]
    at = fitting[a % len(fitting)]
    return Step((lambda x, y: x + y, lambda x, y: x * torch.sigmoid(y))[b % 2], earlier=at)


def gate(shapes, a, b):
    """Squeeze and excite, or a mask of one channel."""
    c, _ = shapes[-1]
    if a % 2:
        return Step(lambda x, m: x * torch.sigmoid(m(x)), nn.Conv2d(c, 1, 1))
    down, up = nn.Conv2d(c, 2 + b % 3, 1), nn.Conv2d(2 + b % 3, c, 1)
    return Step(lambda x, d, u: x * torch.sigmoid(u(F.relu(d(F.adaptive_avg_pool2d(x, 1))))), down, up)


def cat(shapes, a, b):
    """Concatenate an earlier value of the same extent."""
    fitting = [i for i, (c, s) in enumerate(shapes) if s == shapes[-1][1] and c + shapes[-1][0] <= 24]
    return None if not fitting else Step(lambda x, y: torch.cat([x, y], 1), earlier=fitting[a % len(fitting)])


def parts(shapes, a, b):
    """Cut the channels, equally or not, and put them together otherwise."""
    c, _ = shapes[-1]
    if c < 4:
        return None
    first = 1 + a % (c - 1)
    return Step(
        (
            lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
            lambda x: torch.cat([p.relu() for p in x.split([first, c - first], 1)][::-1], 1),
            lambda x: torch.cat([x[:, first:], x], 1),
            lambda x: F.glu(x[:, : c // 2 * 2], 1),
        )[b % 4]
    )


def pool(shapes, a, b):
    _, s = shapes[-1]
    if a % 2 and s % 2 == 0 and s > 2:
        return Step(lambda x: F.avg_pool2d(x, 2))
    return Step(lambda x: F.max_pool2d(x, 3, 1, 1))


def pixels(shapes, a, b):
    """Pixel shuffle or unshuffle."""
    c, s = shapes[-1]
    if a % 2 and c % 4 == 0 and c > 4 and s <= 4:
        return Step(lambda x: F.pixel_shuffle(x, 2))
    return Step(lambda x: F.pixel_unshuffle(x, 2)) if s % 2 == 0 and s > 2 and c <= 6 else None


def shuffle(shapes, a, b):
    """Channel shuffle, by view or by the operator."""
    c, s = shapes[-1]
    groups = 2 + a % 2
    if c % groups:
        return None
    if b % 2:
        return Step(lambda x: F.channel_shuffle(x, groups))
    return Step(lambda x: x.view(-1, groups, x.shape[1] // groups, s, s).transpose(1, 2).reshape(-1, x.shape[1], s, s))


def pad(shapes, a, b):
    return Step(lambda x: F.pad(x, (0, 0, 0, 0, a % 3, b % 3)))


def positions(shapes, a, b):
    """Flatten the pixels and back; or mix them."""
    _, s = shapes[-1]
    if a % 2:
        return Step(lambda x: x.flatten(2).softmax(-1).unflatten(2, (s, s)))
    return Step(lambda x, m: m(x.flatten(2)).view(x.shape[0], -1, s, s), nn.Linear(s * s, s * s))


def attention(shapes, a, b):
    """Attention over pixels, of one to three heads."""
    c, s = shapes[-1]
    heads, size = 1 + a % 3, 2 + b % 2

    def attend(x, qkv, out):
        q, k, v = qkv(x).flatten(2).transpose(1, 2).reshape(x.shape[0], s * s, 3, heads, size).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return out(y.transpose(1, 2).unflatten(2, (s, s)))

    return Step(attend, nn.Conv2d(c, 3 * heads * size, 1), nn.Conv2d(heads * size, c, 1))


def recurrent(shapes, a, b):
    """LSTM or GRU over pixels, of one or two layers, in one direction or both."""
    c, s = shapes[-1]
    kind = (nn.LSTM, nn.GRU)[a % 2]
    m = kind(c, 2 + a % 4, 1 + b % 2, batch_first=True, bidirectional=b % 3 > 0, bias=b % 5 > 0)
    return Step(lambda x, m: m(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).unflatten(2, (s, s)), m)


def patches(shapes, a, b):
    """Rows of three pixels as columns, or columns as rows of three pixels."""
    c, s = shapes[-1]
    if a % 2:
        return None if c % 3 else Step(lambda x: F.fold(x.flatten(2), (s, s), (1, 3), padding=(0, 1)))
    return None if c > 8 else Step(lambda x: F.unfold(x, (1, 3), padding=(0, 1)).unflatten(2, (s, s)))


def sample(shapes, a, b):
    """Pixels at places that the channels choose; pooling there and back."""
    c, s = shapes[-1]
    if a % 2 and s % 2 == 0:
        return Step(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2))
    function = lambda x, m: F.grid_sample(x, m(x).permute(0, 2, 3, 1).tanh(), align_corners=False)
    return Step(function, nn.Conv2d(c, 2, 1))


def normed_weight(shapes, a, b):
    m = (nn.Conv2d, nn.ConvTranspose2d)[a % 2](shapes[-1][0], 2 + a % 5, 1)
    return Step(lambda x, m: m(x), nn.utils.parametrizations.weight_norm(m, dim=(0, 1, None)[b % 3]))


STEPS = {
    f.__name__: f
    for f in (conv, depthwise, grouped, transposed, linear, batch_norm, norm, activation, scale, binary, gate, cat,
              parts, pool, pixels, shuffle, pad, positions, attention,
              recurrent, patches, sample, normed_weight)
}  # fmt: skip
