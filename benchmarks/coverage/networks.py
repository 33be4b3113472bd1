"""Networks of kinds that no package here ships, as their users write them: YOLOv8, YOLO11, DETR and U-Net.

Small (widths of the "nano" kind or less) and with random weights. Nothing here knows of hwprune.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 20


class Conv(nn.Module):
    """Convolution, BatchNorm, SiLU, "same" padding."""

    def __init__(self, cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, cin: int, cout: int, shortcut: bool = True, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(cout * expansion)
        self.cv1, self.cv2 = Conv(cin, hidden, 3), Conv(hidden, cout, 3)
        self.add = shortcut and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Cross-stage partial: the first convolution's output is cut in two, the second half goes through the blocks, and
    every intermediate result is concatenated."""

    def __init__(self, cin: int, cout: int, blocks: int = 1, shortcut: bool = False, expansion: float = 0.5) -> None:
        super().__init__()
        self.c = int(cout * expansion)
        self.cv1, self.cv2 = Conv(cin, 2 * self.c), Conv((2 + blocks) * self.c, cout)
        self.m = nn.ModuleList(self.block(shortcut) for _ in range(blocks))

    def block(self, shortcut: bool) -> nn.Module:
        return Bottleneck(self.c, self.c, shortcut, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C2fSplit(C2f):
    """The same by ``split`` with the sizes of an attribute, as exporters want it."""

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C3k(nn.Module):
    def __init__(self, cin: int, cout: int, blocks: int = 2, shortcut: bool = True) -> None:
        super().__init__()
        hidden = cout // 2
        self.cv1, self.cv2, self.cv3 = Conv(cin, hidden), Conv(cin, hidden), Conv(2 * hidden, cout)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, 1.0) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C3k2(C2f):
    def __init__(self, cin: int, cout: int, blocks: int = 1, deep: bool = False, expansion: float = 0.5) -> None:
        self.deep = deep
        super().__init__(cin, cout, blocks, True, expansion)

    def block(self, shortcut: bool) -> nn.Module:
        return C3k(self.c, self.c, 2, shortcut) if self.deep else Bottleneck(self.c, self.c, shortcut)


class SPPF(nn.Module):
    """Spatial pyramid: one pool applied three times, all results concatenated."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(cin, cin // 2), Conv(4 * (cin // 2), cout)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class PixelAttention(nn.Module):
    """Attention over pixels by matrix products, keys of half the head's size, and a depthwise position encoding."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.key_dim = self.head_dim // 2
        self.scale = self.key_dim**-0.5
        self.qkv = Conv(dim, dim + 2 * self.key_dim * heads, act=False)
        self.proj, self.pe = Conv(dim, dim, act=False), Conv(dim, dim, 3, groups=dim, act=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.num_heads, self.key_dim * 2 + self.head_dim, h * w)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        weights = (q.transpose(-2, -1) @ k * self.scale).softmax(dim=-1)
        y = (v @ weights.transpose(-2, -1)).view(b, c, h, w)
        return self.proj(y + self.pe(v.reshape(b, c, h, w)))


class C2PSA(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.c = dim // 2
        self.cv1, self.cv2 = Conv(dim, 2 * self.c), Conv(2 * self.c, dim)
        self.attn = PixelAttention(self.c, max(self.c // 32, 1))
        self.ffn = nn.Sequential(Conv(self.c, 2 * self.c), Conv(2 * self.c, self.c, act=False))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        b = b + self.attn(b)
        b = b + self.ffn(b)
        return self.cv2(torch.cat((a, b), 1))


class Detect(nn.Module):
    """Boxes as distributions over ``bins`` distances a side, and class scores, over all levels of the pyramid."""

    bins = 16

    def __init__(self, channels: tuple[int, ...], light: bool) -> None:
        super().__init__()
        self.outputs_per_pixel = CLASSES + 4 * self.bins
        c2, c3 = max(16, channels[0] // 4, 4 * self.bins), max(channels[0], CLASSES)
        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(c, c2, 3), Conv(c2, c2, 3), nn.Conv2d(c2, 4 * self.bins, 1)) for c in channels
        )
        self.cv3 = nn.ModuleList(self._scores(c, c3, light) for c in channels)
        self.register_buffer("project", torch.arange(self.bins, dtype=torch.float32).view(1, self.bins, 1, 1))

    @staticmethod
    def _scores(c: int, hidden: int, light: bool) -> nn.Sequential:
        if not light:
            return nn.Sequential(Conv(c, hidden, 3), Conv(hidden, hidden, 3), nn.Conv2d(hidden, CLASSES, 1))
        first = nn.Sequential(Conv(c, c, 3, groups=c), Conv(c, hidden))
        second = nn.Sequential(Conv(hidden, hidden, 3, groups=hidden), Conv(hidden, hidden))
        return nn.Sequential(first, second, nn.Conv2d(hidden, CLASSES, 1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        found = [torch.cat((a(x), b(x)), 1) for a, b, x in zip(self.cv2, self.cv3, levels)]
        flat = torch.cat([x.view(x.shape[0], self.outputs_per_pixel, -1) for x in found], 2)
        box, scores = flat.split((4 * self.bins, CLASSES), 1)
        b, _, anchors = box.shape
        spread = box.view(b, 4, self.bins, anchors).transpose(2, 1).softmax(1)
        return torch.cat(((spread * self.project).sum(1), scores.sigmoid()), 1)


class YOLO(nn.Module):
    """Backbone, feature pyramid up and down, detection head on three levels."""

    def __init__(self, block, deep_block, light: bool, attention: bool, w: tuple[int, ...] = (16, 32, 64, 128, 256)) -> None:
        super().__init__()
        self.stem, self.down2 = Conv(3, w[0], 3, 2), Conv(w[0], w[1], 3, 2)
        self.stage2, self.down3 = block(w[1], w[1]), Conv(w[1], w[2], 3, 2)
        self.stage3, self.down4 = block(w[2], w[2]), Conv(w[2], w[3], 3, 2)
        self.stage4, self.down5 = deep_block(w[3], w[3]), Conv(w[3], w[4], 3, 2)
        self.stage5, self.sppf = deep_block(w[4], w[4]), SPPF(w[4], w[4])
        self.attention = C2PSA(w[4]) if attention else nn.Identity()
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.up4, self.up3 = block(w[4] + w[3], w[3]), block(w[3] + w[2], w[2])
        self.pan4, self.out4 = Conv(w[2], w[2], 3, 2), block(w[2] + w[3], w[3])
        self.pan5, self.out5 = Conv(w[3], w[3], 3, 2), deep_block(w[3] + w[4], w[4])
        self.detect = Detect((w[2], w[3], w[4]), light)

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.stage3(self.down3(self.stage2(self.down2(self.stem(x)))))
        p4 = self.stage4(self.down4(p3))
        p5 = self.attention(self.sppf(self.stage5(self.down5(p4))))
        n4 = self.up4(torch.cat((self.up(p5), p4), 1))
        n3 = self.up3(torch.cat((self.up(n4), p3), 1))
        n4 = self.out4(torch.cat((self.pan4(n3), n4), 1))
        n5 = self.out5(torch.cat((self.pan5(n4), p5), 1))
        return self.detect([n3, n4, n5])


def yolov8() -> nn.Module:
    """C2f blocks."""
    return YOLO(lambda i, o: C2f(i, o, 1, True), lambda i, o: C2fSplit(i, o, 2), light=False, attention=False)


def yolo11() -> nn.Module:
    """C3k2 blocks, attention at the end of the backbone, depthwise heads."""
    return YOLO(lambda i, o: C3k2(i, o, 1), lambda i, o: C3k2(i, o, 1, deep=True), light=True, attention=True)


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm whose statistics and scales are all buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale


class FrozenBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), FrozenBatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), FrozenBatchNorm2d(cout)
        self.skip = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), FrozenBatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.skip(x))


class DETR(nn.Module):
    """Convolutional backbone with frozen BatchNorm, nn.Transformer with learned positions and queries, two heads."""

    def __init__(self, dim: int = 64, heads: int = 4, layers: int = 2, queries: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 7, 4, 3, bias=False), FrozenBatchNorm2d(16), nn.ReLU())
        self.backbone = nn.Sequential(FrozenBlock(16, 32, 2), FrozenBlock(32, 64, 2), FrozenBlock(64, 128, 2))
        self.input_proj = nn.Conv2d(128, dim, 1)
        self.transformer = nn.Transformer(dim, heads, layers, layers, 4 * dim, batch_first=True)
        self.query = nn.Parameter(torch.rand(queries, dim))
        self.row, self.column = nn.Parameter(torch.rand(20, dim // 2)), nn.Parameter(torch.rand(20, dim // 2))
        self.classes = nn.Linear(dim, CLASSES + 1)
        self.boxes = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.input_proj(self.backbone(self.stem(x)))
        height, width = h.shape[-2:]
        across = self.column[:width].unsqueeze(0).repeat(height, 1, 1)
        down = self.row[:height].unsqueeze(1).repeat(1, width, 1)
        positions = torch.cat([across, down], dim=-1).flatten(0, 1).unsqueeze(0)
        tokens = positions + 0.1 * h.flatten(2).permute(0, 2, 1)
        h = self.transformer(tokens, self.query.unsqueeze(0).repeat(x.shape[0], 1, 1))
        return self.classes(h), self.boxes(h).sigmoid()


class UNet(nn.Module):
    """Two convolutions a level, transposed convolutions up, concatenated skips."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        ins = (3, *widths[:-1])
        self.down = nn.ModuleList(self.convs(i, o) for i, o in zip(ins, widths))
        pairs = list(zip(widths[:0:-1], widths[-2::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in pairs)
        self.merge = nn.ModuleList(self.convs(2 * o, o) for _, o in pairs)
        self.head = nn.Conv2d(widths[0], CLASSES, 1)

    @staticmethod
    def convs(cin: int, cout: int) -> nn.Sequential:
        layers = []
        for i, o in ((cin, cout), (cout, cout)):
            layers += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips[:-1])):
            x = merge(torch.cat((skip, up(x)), 1))
        return self.head(x)


#: Name -> (factory, input shape, sizes of the outputs of the layers that end the network).
NETWORKS = {
    "yolov8": (yolov8, (2, 3, 128, 128), (CLASSES, 4 * Detect.bins)),
    "yolo11": (yolo11, (2, 3, 128, 128), (CLASSES, 4 * Detect.bins)),
    "detr": (DETR, (2, 3, 128, 128), (CLASSES + 1, 4)),
    "unet": (UNet, (2, 3, 64, 64), (CLASSES,)),
}
