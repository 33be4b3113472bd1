"""Patterns of networks that people have, each met in the coverage benchmark: what goes is proved, and nothing stays that
need not."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hwprune.graph import analyze, trace
from hwprune.prove import prove
from hwprune.prune import prune


class HandNorm(nn.Module):
    """Norms written by hand: RMSNorm (Llama), global response (ConvNeXt V2) and L2 over channels."""

    def __init__(self):
        super().__init__()
        self.embed, self.up, self.fc = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 5)
        self.scale, self.shift = nn.Parameter(torch.rand(12) + 0.5), nn.Parameter(torch.rand(10))

    def forward(self, x):
        x = self.embed(x)
        x = self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        y = self.up(x)
        g = y.norm(p=2, dim=1, keepdim=True)
        y = y + y * g / (g.mean(-1, keepdim=True) + 1e-6) * self.shift
        return self.fc(F.normalize(y, dim=-1).sum(1))


class SpatialAttention(nn.Module):
    """CBAM's second half: mean and largest value over the channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.mask = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.last(x * self.mask(pooled).sigmoid()).mean((2, 3))


class Standardized(nn.Module):
    """Convolutions whose weights are standardized in the forward pass, by hand and through BatchNorm."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.gain, self.last = nn.Parameter(torch.rand(6, 1, 1, 1) + 0.5), nn.Conv2d(6, 5, 1, bias=False)

    def forward(self, x):
        x = F.conv2d(x, self.a.weight, self.a.bias, padding=1).relu()
        w = self.b.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-4) * self.gain
        x = F.conv2d(x, w, self.b.bias, padding=1).relu()
        w = self.last.weight
        w = F.batch_norm(w.reshape(1, 5, -1), None, None, training=True).reshape_as(w)
        return F.conv2d(x, w).mean((2, 3))


class Queries(nn.Module):
    """Learned queries pass a layer of their own: an activation that is computed from parameters alone."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.rand(4, 8))
        self.q, self.k, self.fc = nn.Linear(8, 12), nn.Linear(6, 12), nn.Linear(6, 5)

    def forward(self, x):
        weights = self.q(self.queries) @ self.k(x).transpose(1, 2)
        return self.fc(weights.softmax(-1) @ x)


class Filled(nn.Module):
    """Tensors of zeros whose size is an attribute, or a number: a state to begin with, and channels to fill up."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.hidden = nn.Linear(6, 8), nn.Linear(8, 8), 8
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        h = torch.zeros(x.shape[0], self.hidden)
        for t in range(3):
            h = torch.tanh(self.a(x[:, t]) + self.b(h))
        return self.fc(torch.cat([h, h.new_zeros(h.shape[0], 4)], 1))


class Named(nn.Module):
    """One module under two names; a convolution of kernel 1 over stacked maps; windows; a constant part of a bias."""

    def __init__(self):
        super().__init__()
        self.a, self.mix = nn.Linear(6, 8), nn.Conv1d(2, 1, 1)
        self.b = nn.ModuleDict({"a": nn.Linear(8, 8)})
        self.c = self.b
        self.bias = nn.Parameter(torch.rand(8))
        self.register_buffer("none", torch.zeros(8), persistent=False)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.a(x)
        x = F.linear(self.c["a"](x), torch.cat([self.b["a"].weight, self.a.weight @ self.a.weight.T]),
                     torch.cat([self.bias, self.none]))
        x = self.mix(torch.stack([x.mean(1), x.amax(1)], 1)).squeeze(1)
        return self.fc(x)


class Windows(nn.Module):
    """Windows along an axis by ``unfold``, and a block without autocast."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            x = self.a(x)
        return self.b(x.unfold(1, 3, 2).mean(-1)).sum(1)


class Halved(nn.Module):
    """A recurrent network between dropouts whose output is gated by hand: its graph holds zeros, of a type and size."""

    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(6, 8, 2, batch_first=True, dropout=0.5), nn.Linear(4, 5)

    def forward(self, x):
        x, _ = self.lstm(x)
        return self.fc(x[..., :4] * x[..., 4:]).sum(1)


class HookedNorms(nn.Module):
    """``weight_norm`` and ``spectral_norm`` as they were before parametrizations: a hook computes the weight."""

    def __init__(self):
        super().__init__()
        norm = nn.utils.weight_norm
        self.a, self.b = norm(nn.Conv1d(7, 8, 3, padding=1)), norm(nn.Conv1d(8, 8, 3, padding=1, groups=8))
        self.c, self.fc = nn.utils.spectral_norm(nn.Conv1d(8, 6, 1)), nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.c(self.b(self.a(x).relu())).relu().mean(-1))


NETWORKS = {
    "hand_norm": (HandNorm, (2, 7, 6), {"embed": 12, "up": 10}),
    "spatial_attention": (SpatialAttention, (2, 3, 8, 8), {"stem": 8}),
    "standardized": (Standardized, (2, 3, 8, 8), {"a": 8, "b": 6}),
    "filled": (Filled, (2, 3, 6), {"a": 8, "fc": 4}),
    "named": (Named, (2, 7, 6), {"a": 8}),
    "windows": (Windows, (2, 7, 6), {"a": 8}),
    "halved": (Halved, (2, 7, 6), {"lstm": 4}),
    "hooked_norms": (HookedNorms, (2, 7, 6), {"a": 8, "c": 6}),
    "queries": (Queries, (2, 7, 6), {"queries": 8, "k": 12}),
}


def test_weights_that_hooks_compute_are_of_the_size_of_what_is_kept():
    module = HookedNorms().eval()
    graph = analyze(trace(module, torch.randn(2, 7, 6)))
    pruned, _ = prune(module, graph, {"a": [1, 4, 5]})
    assert pruned.b.weight.shape == (3, 1, 3) and (pruned.b.groups, pruned.c.in_channels) == (3, 3)


class HardCoded(Standardized):
    """The same where ``forward`` holds a size, so that the pruned graph takes its place."""

    def forward(self, x):
        return super().forward(x) + F.conv2d(x, self.a.weight[:4], padding=1).mean((1, 2, 3))[:, None]


NETWORKS["hard_coded"] = (HardCoded, (2, 3, 8, 8), {"a": 4, "a#2": 4, "b": 6})


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_found_and_proved(name):
    factory, shape, widths = NETWORKS[name]
    torch.manual_seed(0)
    module = factory().eval()
    graph = analyze(trace(module, torch.randn(shape)))
    assert {g.id: g.width for g in graph.groups} == widths
    rng = np.random.default_rng(0)
    kept = {g.id: sorted(rng.choice(g.width, g.width // 2, replace=False).tolist()) for g in graph.groups}
    pruned, _ = prune(module, graph, kept)
    assert prove(module, pruned, graph, kept, seed=1).relative_error < 1e-10
    pruned.train()(torch.randn(shape)).square().mean().backward()
    assert all(p.grad is not None for p in pruned.parameters())
