"""Fusion: which operators end in one kernel, how values lie in memory, what is refused. Nothing is compiled here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from joined_pairs import joined
from torch import nn

from hwprune.compile import ops
from hwprune.compile.constants import Bias, ConvWeight, as_type
from hwprune.compile.lower import Network, lower
from hwprune.errors import CompileError, UnsupportedOperator
from hwprune.graph import trace
from hwprune.target import load_file, shipped_folder

PROFILE = load_file(shipped_folder() / "x86.toml")  # eight lanes
HALF = load_file(shipped_folder() / "rpi5-fp16.toml")  # eight lanes of float16


class Fn(nn.Module):
    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def lowered(module: nn.Module, *shapes: tuple[int, ...]) -> Network:
    return lower(trace(module.eval(), tuple(torch.randn(s) for s in shapes)), PROFILE)


def kernels(network: Network) -> list[str]:
    """Each call's operators, joined by a plus sign."""
    return ["+".join(op.op for op in w.ops) for w in network.workloads()]


class Block(nn.Module):
    """A residual block as in He et al., 2016; ``option_a`` has a shortcut without parameters."""

    def __init__(self, inputs=8, outputs=8, stride=1, option_a=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.grow, self.stride, self.option_a = outputs - inputs, stride, option_a
        self.project = (
            None if option_a or (stride == 1 and inputs == outputs) else nn.Conv2d(inputs, outputs, 1, stride)
        )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.option_a:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.grow // 2, self.grow - self.grow // 2))
        elif self.project is not None:
            x = self.project(x)
        return F.relu(y + x)


class Small(nn.Module):
    """Stem, two residual blocks, head."""

    def __init__(self, option_a=False):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.b = Block(8, 8), Block(8, 12, 2, option_a)
        self.linear = nn.Linear(12, 5)

    def forward(self, x):
        x = self.b(self.a(F.relu(self.bn(self.stem(x)))))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


# --- fusion -----------------------------------------------------------------------------------------------------


def test_residual_block_is_one_kernel_a_convolution():
    network = lowered(Small(), (1, 3, 8, 8))
    assert kernels(network) == [
        "conv2d+add+relu",  # stem
        "conv2d+add+relu", "conv2d+add+add+relu",  # block a: bias, then the shortcut
        "conv2d+add+relu", "conv2d+add", "conv2d+add+add+relu",  # block b with its projection
        "global_pool", "dense+add", "relayout",
    ]  # fmt: skip


def test_workloads_of_a_residual_network(golden):
    network = lowered(Small(option_a=True), (1, 3, 8, 8))
    golden(
        "workloads_residual",
        "\n".join(f"{c.name}\n  {c.workload(network.traced.shape).key}" for c in network.calls) + "\n",
    )


def test_option_a_shortcut_is_one_movement_kernel():
    network = lowered(Block(8, 16, 2, option_a=True), (1, 8, 8, 8))
    assert kernels(network).count("slice+slice+pad") + kernels(network).count("slice+slice+slice+pad") == 1
    assert sum("pad" in k or "slice" in k for k in kernels(network)) == 1
    shortcut = next(w for w in network.workloads() if w.ops[-1].op == "pad")
    assert shortcut.inputs[0].shape == (1, 8, 8, 8) and shortcut.output.shape == (1, 4, 4, 16)


def test_batchnorm_is_folded_into_its_convolution():
    network = lowered(nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)), (1, 8, 8, 8))
    assert kernels(network) == ["conv2d+add", "relayout"]
    weight, bias = network.emitted()[0].bindings[1:]
    assert isinstance(weight, ConvWeight) and weight.norm is not None
    assert isinstance(bias, Bias) and bias.norm == weight.norm and bias.bias is None


def test_batchnorm_that_does_not_follow_a_convolution_stays():
    assert kernels(lowered(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), (1, 8, 4, 4)))[1] == "mul+add+relu"
    # the convolution's own result is read as well, so its constants cannot take the normalization
    twice = Fn(lambda m, x: (lambda y: y + m.bn(y))(m.conv(x)), conv=nn.Conv2d(8, 8, 1), bn=nn.BatchNorm2d(8))
    assert kernels(lowered(twice, (1, 8, 4, 4))) == ["conv2d+add", "mul+add+add", "relayout"]


def test_of_two_convolutions_that_meet_one_takes_the_addition():
    module = Fn(lambda m, x: F.relu(m.a(x) + m.b(x)), a=nn.Conv2d(8, 8, 3, padding=1), b=nn.Conv2d(8, 8, 1))
    assert sorted(kernels(lowered(module, (1, 8, 4, 4)))) == ["conv2d+add", "conv2d+add+add+relu", "relayout"]


def test_value_read_twice_is_written_to_memory():
    module = Fn(lambda m, x: (lambda y: torch.relu(y) * torch.sigmoid(y))(m.conv(x)), conv=nn.Conv2d(8, 8, 1))
    assert kernels(lowered(module, (1, 8, 4, 4)))[0] == "conv2d+add"


def test_squeeze_and_excite_gates_in_one_kernel():
    module = Fn(
        lambda m, x: (lambda y: y * torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1))))))(m.conv(x)),
        conv=nn.Conv2d(3, 8, 3),
        down=nn.Conv2d(8, 4, 1),
        up=nn.Conv2d(4, 8, 1),
    )
    network = lowered(module, (1, 3, 8, 8))
    assert kernels(network) == ["conv2d+add", "global_pool", "conv2d+add+relu", "conv2d+add+sigmoid", "mul", "relayout"]
    gate = network.workloads()[4]
    assert sorted(t.shape for t in gate.inputs) == [(1, 1, 1, 8), (1, 6, 6, 8)]


def test_gate_by_pixel_reads_one_lane_and_not_the_padding():
    network = lowered(Fn(lambda m, x: torch.relu(x) * m.conv(torch.relu(x)), conv=nn.Conv2d(16, 1, 1)), (1, 16, 4, 4))
    multiply = next(w for w in network.workloads() if any(op.op == "mul" for op in w.ops))
    assert [op.op for op in multiply.ops][-2:] == ["slice", "mul"]
    assert multiply.ops[-2]["size"] == 1


def test_concat_keeps_logical_extents():
    module = Fn(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=nn.Conv2d(3, 5, 1), b=nn.Conv2d(3, 6, 1))
    network = lowered(module, (1, 3, 4, 4))
    assert kernels(network) == ["conv2d+add", "conv2d+add", "concat", "relayout"]
    concat = network.workloads()[2]
    assert concat.ops[0]["extents"] == (5, 6) and concat.output.shape == (1, 4, 4, 16)  # 11 channels in two vectors


# --- layouts ----------------------------------------------------------------------------------------------------


def test_convolution_reads_the_network_input_in_its_own_layout():
    network = lowered(nn.Conv2d(3, 8, 3), (2, 3, 8, 9))
    first = network.workloads()[0]
    assert first.inputs[0].shape == (2, 3, 8, 9) and first.anchor["layout"] == "nchw"
    assert network.calls[0].name != "x@nhwc"


def test_pool_first_reads_a_channels_last_copy():
    network = lowered(nn.MaxPool2d(2), (1, 3, 8, 8))
    assert kernels(network) == ["relayout", "pool2d", "relayout"]
    assert network.workloads()[0].output.shape == (1, 8, 8, 8)


def test_input_that_is_used_twice_is_copied_once_for_those_that_need_it():
    module = Fn(lambda m, x: m.conv(x) + x * 2 + F.max_pool2d(x, 3, 1, 1), conv=nn.Conv2d(3, 3, 1))
    network = lowered(module, (1, 3, 8, 8))
    assert kernels(network).count("relayout") == 2  # the input's copy and the network's output
    convolution = next(w for w in network.workloads() if w.anchor is not None and w.anchor.op == "conv2d")
    assert convolution.inputs[0].shape == (1, 3, 8, 8)


def test_shortcut_from_the_network_input_is_added_in_its_copy():
    network = lowered(Fn(lambda m, x: F.relu(m.conv(x) + x), conv=nn.Conv2d(3, 3, 3, padding=1)), (1, 3, 8, 8))
    assert kernels(network) == ["relayout", "conv2d+add+add+relu", "relayout"]
    (name,), convolution = network.inputs, network.emitted()[1]
    assert (convolution.bindings[0], convolution.bindings[-1]) == (name, f"{name}@nhwc")


def test_network_input_of_one_row_ends_where_it_ends():
    copy, *_ = lowered(Fn(lambda m, x: x * 2), (1, 37)).emitted()
    assert copy.workload.inputs[0].shape == (1, 37)  # and no whole vectors of it


def test_flatten_of_images_copies_into_logical_order():
    network = lowered(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 4)), (1, 3, 8, 8))
    assert kernels(network) == ["conv2d+add", "gather", "dense+add", "relayout"]
    flat = network.workloads()[1]
    assert flat.ops[0]["logical"] == (1, 216) and flat.output.shape == (1, 216)


def test_flatten_of_an_input_is_the_input():
    module = Fn(lambda m, x: (m.linear(torch.flatten(x, 1)), torch.relu(x)), linear=nn.Linear(48, 4))
    network = lowered(module, (1, 3, 4, 4))
    dense = next(e for e in network.emitted() if e.workload.anchor is not None)
    assert dense.bindings[0] == network.inputs[0] and dense.workload.inputs[0].shape == (1, 48)


def test_flatten_of_pooled_images_costs_nothing():
    network = lowered(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)), (1, 8, 4, 4))
    assert kernels(network) == ["relayout", "global_pool", "dense+add", "relayout"]


# --- views, rows and attention ------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A layer of a vision transformer, its qkv projection fused, as timm writes it."""

    def __init__(self, width=24, heads=3):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 40), nn.GELU(), nn.Dropout(), nn.Linear(40, width))
        self.heads = heads

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))
        return x + self.mlp(self.norm2(x))


class ConvNext(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 40), nn.Linear(40, width)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x):
        y = self.down(F.gelu(self.up(self.norm(self.conv(x).permute(0, 2, 3, 1)))))
        return x + self.scale * y.permute(0, 3, 1, 2)


NORM, STEM = "layer_norm+mul+add", nn.Conv2d(3, 24, 2, 2)


def test_layer_of_a_transformer_is_seven_kernels():
    patches = Fn(lambda m, x: m.layer(m.stem(x).flatten(2).transpose(1, 2)), stem=STEM, layer=Tokens())
    network = lowered(patches, (2, 3, 8, 8))
    assert kernels(network)[1:-1] == [NORM, "dense+add", "attention", "dense+add+add", NORM, "dense+add+gelu", "dense+add+add"]
    attention = network.emitted()[3]
    assert len(attention.bindings) == 1 and attention.bindings[0] == network.calls[2].name  # out of the projection's result
    assert attention.workload.output.shape == (2, 16, 24)


def test_block_of_a_convnext_is_four_kernels():
    network = lowered(nn.Sequential(STEM, ConvNext()), (1, 3, 8, 8))
    assert kernels(network)[1:-1] == ["depthwise+add", NORM, "dense+add+gelu", "dense+add+mul+add"]
    assert network.workloads()[-2].output.shape == (16, 24)


@pytest.fixture
def join(monkeypatch):
    """As if it were worth it for images of any size."""
    monkeypatch.setattr(ops, "is_worth_joining", lambda *_: True)


def test_a_depthwise_convolution_joins_the_one_that_makes_its_input(join):
    assert kernels(lowered(_Inverted(), (1, 8, 9, 9)))[2:-1] == ["conv2d+add+clip+depthwise+add+clip", "conv2d+add+add"]
    assert kernels(lowered(nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)), (1, 3, 9, 9)))[0] == (
        "conv2d+add+depthwise+add")  # fmt: skip


def test_a_pool_joins_the_convolution_that_makes_its_input_and_ends_it(join):
    stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(16, 16, 3, groups=16))
    assert kernels(lowered(stem, (1, 3, 23, 23)))[:2] == ["conv2d+add+relu+pool2d", "depthwise+add"]
    average = nn.Sequential(nn.Hardswish(), nn.Conv2d(8, 16, 1), nn.AvgPool2d(2))
    (workload,) = (w for w in lowered(average, (1, 8, 8, 8)).workloads() if len(w.anchors) == 2)
    first, second = workload.stages
    assert (first.macs, second.macs) == (workload.macs, 0) and second.output.shape == (1, 4, 4, 16)


@pytest.mark.parametrize(
    "expand, window",
    [
        (nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, groups=16)),  # a window over many channels: Winograd is faster
        (nn.Conv2d(8, 16, 1, 2), nn.Conv2d(16, 16, 3, groups=16)),
        (nn.Conv2d(8, 16, 1, padding=1), nn.Conv2d(16, 16, 3, groups=16)),
        (nn.Conv2d(8, 16, 1, groups=2), nn.Conv2d(16, 16, 3, groups=16)),
        (nn.Conv2d(8, 16, 1), nn.Conv2d(16, 32, 3, groups=16)),
        (nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, groups=8)),
        (nn.Conv2d(8, 16, 3, padding=1), nn.MaxPool2d(2)),
        (nn.Conv2d(8, 16, 1), nn.MaxPool2d(9)),  # of the whole image
        (nn.Conv2d(8, 16, 1), nn.AdaptiveAvgPool2d(3)),
        (nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=9, dilation=9, groups=16)),  # a window of 19 columns
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 3, groups=8)),
    ],
)
def test_other_pairs_of_convolutions_stay_apart(join, expand, window):
    network = lowered(nn.Sequential(nn.Hardswish(), expand, window), (1, 8, 9, 9))
    assert all(len(w.anchors) < 2 for w in network.workloads())


def test_what_is_read_twice_or_is_a_result_stays_a_value_of_its_own(join):
    twice = Fn(lambda m, x: (lambda y: m.b(y) + y)(m.a(x)), a=nn.Conv2d(8, 16, 1), b=nn.Conv2d(16, 16, 3, padding=1, groups=16))
    result = Fn(lambda m, x: (lambda y: (m.b(y), y))(m.a(x)), a=nn.Conv2d(8, 16, 1), b=nn.Conv2d(16, 16, 3, padding=1, groups=16))
    for module in (twice, result):
        assert all(len(w.anchors) < 2 for w in lowered(module, (1, 8, 9, 9)).workloads())


def _inverted_on(target: str) -> list:
    return joined(lower(trace(_Inverted().eval(), torch.zeros(1, 8, 9, 9)), load_file(shipped_folder() / f"{target}.toml")))


def test_on_a_gpu_the_two_stay_apart(join):
    assert not _inverted_on("rtx4090")


@pytest.mark.parametrize("name", ["rpi3", "rpi4", "rpi5", "rpi5-fp16", "x86"])
def test_other_targets_join_them(join, name):
    assert len(_inverted_on(name)) == 1


def test_in_float16_they_are_joined_where_whole_vectors_of_channels_are_read(join):
    first = [nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(3, 16, 1)]  # of the network's input, whose columns lie side by side
    for conv in first:
        net = nn.Sequential(conv, nn.Conv2d(16, 16, 3, padding=1, groups=16)).eval()
        assert all(len(w.anchors) < 2 for w in lower(trace(net, torch.zeros(1, 3, 9, 9)), HALF).workloads())


def test_the_two_are_joined_where_near_caches_do_not_hold_them_and_few_rows_are_made_twice():
    def joined(side: int, window: int, **changes) -> bool:
        layer = nn.Sequential(nn.Conv2d(8, 48, 1), nn.Conv2d(48, 48, window, padding=window // 2, groups=48))
        profile = PROFILE.model_copy(update={"threads": 2, **changes})
        return any(len(w.anchors) == 2 for w in lower(trace(nn.Sequential(nn.Hardswish(), layer).eval(), torch.zeros(1, 8, side, side)), profile).workloads())

    # two threads have 512 KiB; 2 x 48 channels x 4 bytes x 36^2 are 486 KiB, x 40^2 are 600 KiB
    assert not joined(36, 3) and joined(40, 3)
    # two threads make two rows of 40 for a window of 3, and four for one of 5, which is a tenth; of 80 they are a twentieth
    assert not joined(40, 5) and joined(80, 5)
    assert joined(40, 5, threads=1) and not joined(80, 5, threads=8)


def test_threads_with_channels_enough_share_them_and_join_the_two_however_many_rows_a_window_takes():
    profile = PROFILE.model_copy(update={"threads": 2})

    def are(channels: int) -> bool:
        layer = nn.Sequential(nn.Hardswish(), nn.Conv2d(8, channels, 1), nn.Conv2d(channels, channels, 5, padding=2, groups=channels))
        return bool(joined(lower(trace(layer.eval(), torch.zeros(1, 8, 40, 40)), profile)))

    # eight vectors of eight channels for each of two threads
    assert are(128) and not are(120)


def test_what_threads_have_of_second_caches_is_one_where_there_is_no_third():
    memory = {"l2_bytes": 1 << 20, "l3_bytes": 0}
    shared = PROFILE.model_copy(update={"threads": 4, "memory": PROFILE.memory.model_copy(update=memory)})
    own = PROFILE.model_copy(update={"threads": 4, "memory": PROFILE.memory.model_copy(update={**memory, "l3_bytes": 1 << 23})})
    assert (shared.second_cache_bytes, own.second_cache_bytes) == (1 << 20, 4 << 20)


class _Inverted(nn.Module):
    """An inverted bottleneck with a shortcut."""

    def __init__(self):
        super().__init__()
        self.expand, self.window, self.project = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 8, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(24), nn.BatchNorm2d(24)])

    def forward(self, x):
        x = F.hardswish(x)
        y = F.relu6(self.norms[1](self.window(F.relu6(self.norms[0](self.expand(x))))))
        return self.project(y) + x


def test_class_token_and_positions_are_constants_of_two_kernels():
    module = Fn(
        lambda m, x: (torch.cat([m.token.expand(x.shape[0], -1, -1), m.linear(x)], 1) + m.place)[:, 0].relu(),
        linear=nn.Linear(8, 8), token=nn.Parameter(torch.ones(1, 1, 8)), place=nn.Parameter(torch.ones(1, 5, 8)),
    )  # fmt: skip
    assert kernels(lowered(module, (2, 4, 8))) == ["dense+add", "gather+concat", "add", "gather+relu", "relayout"]


def test_shuffle_of_channels_is_one_copy():
    module = Fn(lambda m, x: m.b(m.a(x).view(1, 2, 12, 8, 8).transpose(1, 2).contiguous().view(1, 24, 8, 8).chunk(2, 1)[1]),
                a=nn.Conv2d(3, 24, 1), b=nn.Conv2d(12, 8, 1))  # fmt: skip
    network = lowered(module, (1, 3, 8, 8))
    assert kernels(network) == ["conv2d+add", "gather", "conv2d+add", "relayout"]


def test_heads_that_are_not_whole_vectors_are_no_alias_of_their_rows():
    """[.., 24] and [.., 3, 8] are the same memory for eight lanes only; whether they are must not depend on the width."""
    network = lowered(Fn(lambda m, x: torch.relu(m.linear(x).view(2, 5, 3, 8)), linear=nn.Linear(8, 24)), (2, 5, 8))
    assert kernels(network) == ["dense+add", "gather+relu", "relayout"]


def test_rows_of_another_order_are_rows():
    network = lowered(Fn(lambda m, x: m.linear(torch.relu(x).transpose(0, 1)), linear=nn.Linear(8, 8)), (2, 5, 8))
    assert kernels(network) == ["relayout", "relu", "dense+add", "gather"]


def test_channels_are_found_behind_a_permutation():
    module = Fn(lambda m, x: m.norm(m.conv(x).permute(0, 2, 3, 1)), conv=nn.Conv2d(3, 8, 1), norm=nn.BatchNorm2d(4))
    network = lowered(module, (1, 3, 4, 4))
    assert kernels(network) == ["conv2d+add", "gather+mul+add", "relayout"]  # channels are rows of the image here


# --- inputs and outputs -----------------------------------------------------------------------------------------


def test_several_outputs_keep_their_order():
    module = Fn(lambda m, x: (lambda y: (torch.relu(y), y))(m.conv(x)), conv=nn.Conv2d(3, 8, 1))
    network = lowered(module, (1, 3, 4, 4))
    assert network.output_nodes == ("relu", "conv2d") and network.outputs == ("relu@plain", "conv2d@plain")
    assert kernels(network)[0] == "conv2d+add"  # an output is not fused away


def test_same_value_twice_among_the_outputs_is_written_twice():
    network = lowered(Fn(lambda m, x: (lambda y: (y, y))(torch.relu(x))), (1, 8, 4, 4))
    assert len(set(network.outputs)) == 2
    assert network.memory().peak_bytes >= 3 * 8 * 16 * 4


def test_several_inputs():
    network = lowered(Fn(lambda m, x, y: m.conv(x) + m.conv(y), conv=nn.Conv2d(3, 8, 1)), (1, 3, 4, 4), (1, 3, 4, 4))
    assert len(network.inputs) == 2 and set(network.inputs) <= {b for e in network.emitted() for b in e.bindings}


def test_macs_are_the_hand_count():
    network = lowered(Small(), (1, 3, 8, 8))
    stem, block_a = 64 * 8 * 3 * 9, 2 * 64 * 8 * 8 * 9
    block_b = 16 * 12 * 8 * 9 + 16 * 12 * 12 * 9 + 16 * 12 * 8
    assert network.macs() == stem + block_a + block_b + 12 * 5


def test_weight_bytes_are_packed_and_counted_once():
    conv = nn.Conv2d(3, 5, 3, bias=False)
    network = lowered(Fn(lambda m, x: m.conv(x) + m.conv(torch.relu(x)), conv=conv), (1, 3, 8, 8))
    assert network.weight_bytes() == 4 * 8 * 3 * 9  # five outputs in one vector of eight


# --- what is refused --------------------------------------------------------------------------------------------


def refusal(module: nn.Module, *shapes: tuple[int, ...], error: type[Exception] = UnsupportedOperator) -> str:
    with pytest.raises(error) as caught:
        lowered(module, *shapes)
    return str(caught.value)


class Odd(nn.Module):
    def forward(self, x):
        return torch.cumsum(x, 1)  # the line that the refusal names


def test_operator_without_kernel_is_named_with_the_users_line():
    text = refusal(nn.Sequential(nn.Conv2d(3, 8, 1), Odd()), (1, 3, 4, 4))
    line = next(i for i, t in enumerate(open(__file__), 1) if "the line that the refusal names" in t)
    assert "aten.cumsum" in text and f"{__file__}:{line}" in text and "1 (" in text


@pytest.mark.parametrize(
    "module, shape, said",
    [
        (Fn(lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect")), (1, 3, 4, 4), "in mode 'reflect'"),
        (nn.GELU(approximate="tanh"), (1, 8), "approximate='tanh'"),
        (nn.AdaptiveAvgPool2d(3), (1, 3, 8, 8), "from 8x8 to 3x3"),
        (Fn(lambda m, x: x.mean(1)), (1, 3, 8, 8), "over axes [1] of 4"),
        (nn.Conv2d(3, 4, 1), (3, 8, 8), "give images a batch axis"),
        (nn.BatchNorm1d(8), (2, 8, 5), "on [2, 8, 5]"),
        (nn.PReLU(8), (2, 8, 5), "on [2, 8, 5]"),
        (nn.BatchNorm2d(8, track_running_stats=False), (2, 8, 5, 5), "statistics of the batch"),
        (Fn(lambda m, x: torch.add(x, x, alpha=2)), (2, 8), "with alpha != 1"),
        (nn.LayerNorm((4, 8)), (2, 4, 8), "over the last 2 axes"),
        (nn.Softmax(1), (2, 4, 8), "over axis 1 of 3"),
        (Fn(lambda m, x: F.scaled_dot_product_attention(x, x, x, is_causal=True)), (1, 2, 4, 8), "causal"),
        (Fn(lambda m, x: F.scaled_dot_product_attention(x, x, x, x @ x.mT)), (1, 2, 4, 8), "with a mask"),
        (Fn(lambda m, x: F.scaled_dot_product_attention(x, x, x)), (2, 4, 8), "give it [batch, heads, tokens, dimensions]"),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (1, 3, 8, 8), "ceil_mode, padding and count_include_pad"),
    ],
)
def test_what_no_kernel_computes_is_refused_before_anything_is_built(module, shape, said):
    text = refusal(module, shape)
    assert said in text and "called by" in text


def overwritten(m, x):
    y = torch.relu(x)
    y[:, :4].mul_(2)
    return y + 1


def test_write_in_place_that_is_read_through_another_name_is_refused():
    assert "read again through a view" in refusal(Fn(overwritten), (2, 8))


@pytest.mark.parametrize(
    "view",
    [lambda y: y.permute(1, 0), lambda y: y.transpose(0, 1), lambda y: y.select(0, 1), lambda y: y.chunk(2, 1)[1],
     lambda y: y.split(3, 1)[0], lambda y: y.unbind(1)[0], lambda y: y.unflatten(1, (2, 4)), lambda y: y.view(4, 4)],
)  # fmt: skip
def test_write_into_a_view_of_a_value_that_is_read_again_is_refused(view):
    def written(m, x):
        y = torch.relu(x)
        view(y).mul_(2)
        return y + 1

    assert "read again through a view" in refusal(Fn(written), (2, 8))


def test_activations_in_place_are_ordinary():
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Dropout(), nn.Hardswish(inplace=True))
    assert "relu" in kernels(lowered(module, (1, 3, 4, 4)))[0]


def test_other_types_than_float32_are_refused():
    module = nn.Linear(8, 4).double()
    with pytest.raises(CompileError, match=r"'weight' is torch.float64.*\.float\(\)"):
        lower(trace(module.eval(), torch.randn(1, 8, dtype=torch.float64)), PROFILE)
    with pytest.raises(CompileError, match="input 'input' is torch.float64"):
        lower(trace(nn.ReLU(), torch.randn(1, 8, dtype=torch.float64)), PROFILE)


# --- float16 ----------------------------------------------------------------------------------------------------


def test_all_but_inputs_and_outputs_is_in_float16():
    traced = trace(Small(True).eval(), torch.randn(1, 3, 8, 8))
    single, half = lower(traced, PROFILE), lower(traced, HALF)
    assert kernels(half) == kernels(single)
    for call, emitted in zip(half.calls, half.emitted()):
        for spec, binding in zip(emitted.workload.inputs, emitted.bindings):
            assert spec.dtype == ("float32" if binding in half.inputs else "float16")
        assert emitted.workload.output.dtype == ("float32" if call.name in half.outputs else "float16")
        assert emitted.workload.dtype == "float16"
    assert {w.key for w in half.workloads()}.isdisjoint(w.key for w in single.workloads())


def test_float16_takes_half_the_memory():
    traced = trace(Small().eval(), torch.randn(1, 3, 8, 8))
    single, half = lower(traced, PROFILE), lower(traced, HALF)
    assert 2 * half.weight_bytes() == single.weight_bytes()
    outside = 4 * (3 * 8 * 8 + 5)  # image and classes stay float32
    assert half.memory().workspace_bytes < 0.6 * single.memory().workspace_bytes
    assert half.memory().peak_bytes == half.memory().workspace_bytes + outside


def test_network_that_hands_its_input_on_keeps_it_in_float32():
    [workload] = lower(trace(Fn(lambda self, x: x.transpose(1, 2)).eval(), torch.randn(2, 3, 5)), HALF).workloads()
    assert workload.dtype == "float32"


@pytest.mark.parametrize("value, rounded", [(65504.0, 65504.0), (65519.0, 65504.0), (-65519.0, -65504.0), (1e-9, 0.0)])
def test_weights_are_rounded_to_float16(value: float, rounded: float):
    found = as_type(np.array([value, 1.0], np.float32), "float16")
    assert found.dtype == np.float16 and found[0] == rounded


@pytest.mark.parametrize("value", [65520.0, -1e6])
def test_weight_that_float16_does_not_hold_is_refused(value: float):
    with pytest.raises(CompileError, match="is beyond 65504, the largest of float16; leave `core.precision` of the target at fp32"):
        as_type(np.array([1.0, value], np.float32), "float16")


def test_widths_whose_last_vector_is_half_padding_are_told_where_that_saves_time():
    """Eight lanes: kernels of 17 to 20 channels are one workload, of 21 to 24 another; elsewhere all of them are the same."""
    one_a_cycle = PROFILE.model_copy(update={"core": PROFILE.core.model_copy(update={"fma_per_cycle": 1.0})})

    def keys(profile, *widths):
        for module in (lambda n: nn.Conv2d(4, n, 1), lambda n: nn.Sequential(nn.Flatten(), nn.Linear(64, n))):
            traced = (lower(trace(module(n).eval(), (torch.randn(1, 4, 4, 4),)), profile) for n in widths)
            yield len({next(w.key for w in network.workloads() if w.macs) for network in traced})

    assert list(keys(one_a_cycle, 17, 20)) == list(keys(one_a_cycle, 21, 24)) == [1, 1]
    assert list(keys(one_a_cycle, 20, 21)) == [2, 2] and list(keys(PROFILE, 17, 24)) == [1, 1]
