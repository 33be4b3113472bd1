"""Small networks, one for each thing that the analysis must understand. NETWORKS: name -> (factory, input shape)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def conv(i, o, k=3, **kw):
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, bias=False, **kw), nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class Head(nn.Module):
    """Body, global mean, linear."""

    def __init__(self, body, channels):
        super().__init__()
        self.body, self.fc = body, nn.Linear(channels, 5)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


class Flat(nn.Module):
    """VGG-like: the linear layer reads channels times positions."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv(3, 8), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU())
        self.fc1, self.fc2 = nn.Linear(6 * 16, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = torch.flatten(self.features(x), 1)
        return self.fc2(F.dropout(F.relu(self.fc1(x)), 0.5, self.training))


class OptionA(nn.Module):
    """Residual network whose shortcut is a strided slice with zero channels on either side."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.conv1, self.bn1 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.linear = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0)
        y = F.relu(y)
        y = F.avg_pool2d(y, y.size()[3])
        return self.linear(y.view(y.size(0), -1))


class Residual(nn.Module):
    """Option B: a convolution on the shortcut."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8), conv(8, 12), nn.Conv2d(12, 10, 3, padding=1)
        self.short = nn.Conv2d(8, 10, 1)

    def forward(self, x):
        x = self.stem(x)
        return F.relu(self.b(self.a(x)) + self.short(x))


class SqueezeExcite(nn.Module):
    def __init__(self, c, r):
        super().__init__()
        self.down, self.up = nn.Conv2d(c, r, 1), nn.Conv2d(r, c, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))


def inverted():
    """MobileNet-like: expansion, depthwise, squeeze and excite, projection; then a depthwise with multiplier 2."""
    return nn.Sequential(conv(3, 6), conv(6, 12, 1), conv(12, 12, groups=12), SqueezeExcite(12, 4),
                         nn.Conv2d(12, 6, 1), conv(6, 12, groups=6))  # fmt: skip


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 6), conv(6, 4)
        self.norm, self.c = nn.BatchNorm2d(10), nn.Conv2d(10, 8, 1)

    def forward(self, x):
        x = self.a(x)
        x = torch.cat([x, self.b(x)], 1)
        return self.c(F.relu(self.norm(x)))


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.p, self.q, self.r = conv(3, 6), conv(6, 4, 1), conv(6, 6), conv(6, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return torch.cat([self.p(x), self.q(x), self.r(F.max_pool2d(x, 3, 1, 1))], 1)


class Shuffle(nn.Module):
    """Grouped convolutions around a channel shuffle, then a split by halves as in ShuffleNet V2."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 12)
        self.g1, self.g2, self.branch = conv(12, 24, 1, groups=2), conv(24, 12, groups=2), conv(6, 8)

    def forward(self, x):
        x = self.g1(self.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        a, b = self.g2(x).chunk(2, 1)
        return torch.cat([a, self.branch(b)], 1)


class ShuffleV2(nn.Module):
    """Two units of ShuffleNet V2: half of the channels pass, the other half is convolved, and both are shuffled."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16)
        self.units = nn.ModuleList(nn.Sequential(conv(8, 8, 1), conv(8, 8, groups=8)) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for unit in self.units:
            a, b = x.chunk(2, 1)
            x = torch.cat([a, unit(b)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return x


class CrossStage(nn.Module):
    """YOLO's C2f: both halves of a chunk are concatenated, the second one is worked on as well."""

    def __init__(self):
        super().__init__()
        self.cv1, self.cv2 = conv(3, 12, 1), conv(18, 8, 1)
        self.m = conv(6, 6)

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.append(self.m(y[-1]) + y[-1])
        return self.cv2(torch.cat(y, 1))


class Decoder(nn.Module):
    """Transposed convolutions, pixel shuffle and unshuffle, nearest upsampling."""

    def __init__(self):
        super().__init__()
        self.down, self.deep = conv(3, 4), nn.Conv2d(16, 12, 3, padding=1)
        self.up, self.grouped = nn.ConvTranspose2d(12, 8, 2, 2), nn.ConvTranspose2d(8, 16, 2, 2, groups=2)
        self.out = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x):
        x = F.pixel_unshuffle(self.down(x), 2)
        x = self.grouped(self.up(F.relu(self.deep(x))))
        return self.out(F.interpolate(F.pixel_shuffle(x, 2), scale_factor=0.5))


class Norms(nn.Module):
    """ConvNeXt-like block with LayerNorm over channels, a scale per channel, GroupNorm and PReLU."""

    def __init__(self):
        super().__init__()
        self.stem, self.dw = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.group, self.act, self.last = nn.GroupNorm(2, 8), nn.PReLU(8), nn.Conv2d(8, 6, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.dw(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return self.last(self.act(self.group(x + self.scale * y)))


class Attention(nn.Module):
    """Transformer block with a fused projection: whole heads go."""

    def __init__(self, dim=12, heads=3, manual=False):
        super().__init__()
        self.embed, self.heads, self.manual = nn.Linear(6, dim), heads, manual
        self.head_dim = dim // heads
        self.norm, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc = nn.Linear(dim, 5)

    def forward(self, x):
        x = self.embed(x)
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        if self.manual:
            y = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, -1))
        return self.fc(x.mean(1))


class AttentionScaled(Attention):
    """The scale is an attribute, as in timm: heads and head dimensions go, each by their own."""

    def __init__(self):
        super().__init__()
        self.scale = self.head_dim**-0.5

    def forward(self, x):
        x = self.embed(x)
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.fc((x + self.proj(y.transpose(1, 2).reshape(b, t, -1))).mean(1))


class NonLocal(nn.Module):
    """Attention of one head over pixels, by hand, with its scale an attribute: queries and keys lose dimensions."""

    def __init__(self):
        super().__init__()
        self.stem, self.out = conv(3, 8), nn.Conv2d(6, 8, 1)
        self.q, self.k, self.v = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1)
        self.scale = 0.5

    def forward(self, x):
        x = self.stem(x)
        q, k, v = (m(x).flatten(2) for m in (self.q, self.k, self.v))
        y = torch.bmm(v, torch.bmm(q.transpose(1, 2) * self.scale, k).softmax(-1).transpose(1, 2))
        return x + self.out(y.unflatten(2, x.shape[2:]))


class OneHead(nn.Module):
    """Attention of one head with the default scale, which depends on the size of what is pruned."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 10)
        self.fc = nn.Linear(10, 5)

    def forward(self, x):
        return self.fc(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)).mean(1))


class Rotary(nn.Module):
    """Llama-like attention: grouped queries, norms inside each head, rotary embeddings. Whole key-value groups go."""

    def __init__(self, dim=12, heads=6, kv=3, size=4):
        super().__init__()
        self.embed, self.heads, self.kv, self.size = nn.Linear(6, dim), heads, kv, size
        self.q, self.k = nn.Linear(dim, heads * size, bias=False), nn.Linear(dim, kv * size, bias=False)
        self.v, self.o = nn.Linear(dim, kv * size, bias=False), nn.Linear(heads * size, dim, bias=False)
        self.scale = nn.Parameter(torch.rand(size) + 0.5)
        self.register_buffer("frequency", 1.0 / 10 ** torch.linspace(0, 1, size // 2), persistent=False)
        self.fc = nn.Linear(dim, 5)

    def turn(self, x, cos, sin):
        x = self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        x = x.transpose(1, 2)
        half = torch.cat((-x[..., self.size // 2 :], x[..., : self.size // 2]), -1)
        return x * cos + half * sin

    def forward(self, x):
        x = self.embed(x)
        b, t, _ = x.shape
        angle = torch.arange(t)[:, None].float() * self.frequency[None]
        angle = torch.cat((angle, angle), -1)
        q, k = (self.turn(m(x).view(b, t, -1, self.size), angle.cos(), angle.sin()) for m in (self.q, self.k))
        v = self.v(x).view(b, t, -1, self.size).transpose(1, 2)
        k, v = (y[:, :, None].expand(-1, -1, self.heads // self.kv, -1, -1).flatten(1, 2) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1)
        return self.fc((x + self.o(y)).mean(1))


class MultiQuery(nn.Module):
    """Heads of queries that share one head of keys and values."""

    def __init__(self, dim=12, heads=6, size=4):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, heads * size), nn.Linear(6, size), nn.Linear(6, size)
        self.o, self.size, self.fc = nn.Linear(heads * size, dim), size, nn.Linear(dim, 5)

    def forward(self, x):
        q, k, v = (m(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.fc(self.o(y.transpose(1, 2).flatten(2)).mean(1))


class Gated(nn.Module):
    """Gated linear units, an einsum and one-dimensional convolutions."""

    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv1d(3, 8, 3, padding=1), nn.Linear(8, 12)
        self.mix, self.fc = nn.Parameter(torch.randn(6, 10)), nn.Linear(10, 5)

    def forward(self, x):
        x = F.glu(self.up(self.conv(x).transpose(1, 2)))
        return self.fc(torch.einsum("btc,cd->btd", x, self.mix).mean(1))


class Shared(nn.Module):
    """One module called twice, and one weight in two modules."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = conv(3, 8), nn.Conv2d(8, 8, 3, padding=1)
        self.a, self.b = nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(8, 6, 1, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        x = self.twice(F.relu(self.twice(self.stem(x))))
        return self.a(x) + self.b(F.relu(x))


class Partial(nn.Module):
    """FasterNet-like: a convolution of the first quarter; sizes are an attribute of the module."""

    def __init__(self):
        super().__init__()
        self.stem, self.part, self.last = conv(3, 12), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(12, 6, 1)
        self.sizes = [4, 8]

    def forward(self, x):
        a, b = torch.split(self.stem(x), self.sizes, 1)
        return self.last(torch.cat([self.part(a), b], 1))


class Literal(nn.Module):
    """``forward`` holds a size that no attribute carries."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = conv(3, 12), conv(5, 4), conv(7, 4)

    def forward(self, x):
        x = self.stem(x)
        return torch.cat([self.a(x[:, :5]), self.b(x[:, 5:])], 1)


class Recurrent(nn.Module):
    """Two bidirectional layers from zeros; a network of one layer from what they leave behind; a cell after it."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Linear(6, 7), nn.LSTM(7, 8, 2, bidirectional=True, batch_first=True)
        self.start, self.gru = nn.Linear(16, 10), nn.GRU(16, 10, batch_first=True, bias=False)
        self.cell, self.fc = nn.GRUCell(10, 9), nn.Linear(9, 5)

    def forward(self, x):
        x, (h, _) = self.lstm(self.embed(x))
        x, _ = self.gru(x, self.start(torch.cat([h[-2], h[-1]], -1))[None])
        return self.fc(self.cell(x[:, -1]))


class Projected(nn.Module):
    """LSTM whose hidden units, which stay, are projected; a learned state; a cell in a loop."""

    def __init__(self):
        super().__init__()
        self.lstm, self.cell = nn.LSTM(6, 8, proj_size=5), nn.LSTMCell(5, 6)
        self.h, self.c = nn.Parameter(torch.rand(1, 1, 5)), nn.Parameter(torch.rand(1, 1, 8))
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = x.transpose(0, 1)
        y, _ = self.lstm(x, (self.h.repeat(1, x.shape[1], 1), self.c.repeat(1, x.shape[1], 1)))
        state = None
        for step in y.unbind(0):
            state = self.cell(step, state)
        return self.fc(state[0])


class Patches(nn.Module):
    """Patches as columns and back (nn.Unfold, nn.Fold), as in outlook attention."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = conv(3, 8), nn.Conv2d(6, 5, 1)
        self.unfold, self.fold = nn.Unfold(2, stride=2), nn.Fold((8, 8), 3, padding=1, stride=2)
        self.mix = nn.Linear(8 * 4, 6 * 9)

    def forward(self, x):
        return self.last(self.fold(self.mix(self.unfold(self.stem(x)).transpose(1, 2)).transpose(1, 2)))


class Sampled(nn.Module):
    """A spatial transformer, and pooling undone by its indices (SegNet)."""

    def __init__(self):
        super().__init__()
        self.stem, self.place, self.last = conv(3, 8), nn.Linear(8, 6), nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        grid = F.affine_grid(self.place(x.mean((2, 3))).view(-1, 2, 3), x.shape, align_corners=False)
        x, indices = F.max_pool2d(F.grid_sample(x, grid, align_corners=False), 2, return_indices=True)
        return self.last(F.max_unpool2d(x, indices, 2))


class Compared(nn.Module):
    """Similarities to learned prototypes, distances between two towers, and a bilinear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
        self.prototypes, self.bilinear = nn.Parameter(torch.rand(5, 8)), nn.Bilinear(8, 7, 9)
        self.c, self.fc = nn.Linear(6, 7), nn.Linear(9, 5)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        near = F.cosine_similarity(a[..., None, :], self.prototypes, dim=-1) + torch.cdist(a, b).mean(-1, keepdim=True)
        mixed = self.fc(self.bilinear(b, self.c(x)) * F.pairwise_distance(a, b, keepdim=True))
        return (near + mixed).mean(1)


class WeightNormed(nn.Module):
    """Weights by direction and length, of what makes channels and of what reads them."""

    def __init__(self):
        super().__init__()
        normed = nn.utils.parametrizations.weight_norm
        self.stem, self.up = normed(nn.Conv2d(3, 8, 3)), normed(nn.ConvTranspose2d(8, 7, 2, 2))
        self.last = normed(nn.Conv2d(7, 6, 1), dim=1)

    def forward(self, x):
        return self.last(F.relu(self.up(F.relu(self.stem(x)))))


class Spectral(nn.Module):
    """A filter in the space of frequencies, channel by channel (GFNet), and bags of words."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.filter, self.words = nn.Parameter(torch.rand(8, 8, 5, 2)), nn.EmbeddingBag(10, 8)

    def forward(self, x):
        x = self.stem(x)
        y = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.filter)
        words = self.words((x.mean((2, 3))[:, :3] > 0).long())
        return self.last(x * words[:, :, None, None] + torch.fft.irfft2(y, norm="ortho"))


class Unknown(nn.Module):
    """An operator without a rule between two convolutions."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 6), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.c(self.b(torch.cummax(self.a(x), 3).values))


NETWORKS = {
    "flat": (Flat, (2, 3, 8, 8)),
    "option_a": (OptionA, (2, 3, 8, 8)),
    "residual": (lambda: Head(Residual(), 10), (2, 3, 8, 8)),
    "inverted": (lambda: Head(inverted(), 12), (2, 3, 8, 8)),
    "dense": (lambda: Head(Dense(), 8), (2, 3, 8, 8)),
    "inception": (lambda: Head(Inception(), 12), (2, 3, 8, 8)),
    "shuffle": (lambda: Head(Shuffle(), 14), (2, 3, 8, 8)),
    "shuffle_v2": (lambda: Head(ShuffleV2(), 16), (2, 3, 8, 8)),
    "cross_stage": (lambda: Head(CrossStage(), 8), (2, 3, 8, 8)),
    "decoder": (lambda: Head(Decoder(), 6), (2, 3, 8, 8)),
    "norms": (lambda: Head(Norms(), 6), (2, 3, 8, 8)),
    "attention": (Attention, (2, 7, 6)),
    "attention_by_hand": (lambda: Attention(manual=True), (2, 7, 6)),
    "attention_scaled": (AttentionScaled, (2, 7, 6)),
    "non_local": (lambda: Head(NonLocal(), 8), (2, 3, 8, 8)),
    "one_head": (OneHead, (2, 7, 6)),
    "rotary": (Rotary, (2, 7, 6)),
    "multi_query": (MultiQuery, (2, 7, 6)),
    "gated": (Gated, (2, 3, 9)),
    "shared": (lambda: Head(Shared(), 6), (2, 3, 8, 8)),
    "partial": (lambda: Head(Partial(), 6), (2, 3, 8, 8)),
    "literal": (lambda: Head(Literal(), 8), (2, 3, 8, 8)),
    "recurrent": (Recurrent, (2, 7, 6)),
    "projected": (Projected, (2, 3, 6)),
    "patches": (lambda: Head(Patches(), 5), (2, 3, 8, 8)),
    "sampled": (lambda: Head(Sampled(), 6), (2, 3, 8, 8)),
    "compared": (Compared, (2, 7, 6)),
    "weight_normed": (lambda: Head(WeightNormed(), 6), (2, 3, 8, 8)),
    "spectral": (lambda: Head(Spectral(), 6), (2, 3, 8, 8)),
    "unknown": (lambda: Head(Unknown(), 4), (2, 3, 8, 8)),
}


def network(name: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """The network with random statistics in its normalizations, in eval mode, and an input."""
    factory, shape = NETWORKS[name]
    torch.manual_seed(seed)
    module = factory().eval()
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.uniform_(-0.3, 0.3)
            m.running_var.uniform_(0.5, 1.5)
        if isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
    return module, torch.randn(shape)
