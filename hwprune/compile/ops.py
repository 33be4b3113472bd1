"""What each exported operator becomes in a kernel.

A handler writes its operator into the workload that an ``Emitter`` collects and returns the number of its result.
Handlers read logical shapes through ``Emitter.shapes`` only, so that the same network lowers at any widths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Callable, Container

import torch
from torch import fx

from hwprune.compile.constants import Aligned, BatchNorm, Bias, Constant, ConvWeight, DenseWeight, NormVector, Raw, Shapes, stored
from hwprune.compile.layouts import Layout, Pad, Views, extended, nhwc, plain, rows, text, usual
from hwprune.compile.views import IDENTITIES, LISTS, VIEWS, views_of
from hwprune.errors import UnsupportedOperator
from hwprune.target import TargetProfile
from hwprune.workload import DTYPE_BYTES, OpCall, TensorSpec, Workload

aten = torch.ops.aten


@dataclass
class Placement:
    """Where the values of a network lie, as lowering has decided it; the same at all widths.

    layouts : node name -> layout of its value; None for a view that is no layout of the memory it looks at.
    moves : node name -> (node whose memory holds its value, the views between them), for views and identities.
    copies : (value, layout) -> name of the call that copies it into that layout.
    lies : (value, layout) in which a value lies as well as in its own.
    norms : convolution node name -> normalization folded into it.
    parameters : names of the nodes that are constants. inputs : of those that are the network's inputs.
    dtype : of constants and of what kernels hand to one another; the network's inputs are float32.
    half_vectors : as the profile has it.
    """

    parameters: Container[str]
    inputs: Container[str] = ()
    dtype: str = "float32"
    half_vectors: bool = False
    layouts: dict[str, Layout | None] = field(default_factory=dict)
    moves: dict[str, tuple[fx.Node, tuple[fx.Node, ...]]] = field(default_factory=dict)
    copies: dict[tuple[str, Layout], str] = field(default_factory=dict)
    lies: set[tuple[str, Layout]] = field(default_factory=set)
    norms: dict[str, "BatchNorm"] = field(default_factory=dict)

    def base(self, node: fx.Node) -> fx.Node:
        """The node whose memory holds the value of ``node``."""
        return self.moves[node.name][0] if node.name in self.moves else node

    def steps(self, node: fx.Node) -> tuple[fx.Node, ...]:
        return self.moves[node.name][1] if node.name in self.moves else ()

    def key(self, node: fx.Node) -> str:
        """One name for all nodes that are the same value."""
        steps = self.steps(node)
        return steps[-1].name if steps else self.base(node).name

    def views(self, node: fx.Node, shapes: Shapes, pad: Pad) -> Views:
        base = self.base(node)
        layout = self.layouts.get(base.name) or plain(len(shapes(base.name)))
        return views_of(base, layout, self.steps(node), shapes, pad)

    def spec(self, shape: tuple[int, ...], binding: str | Constant) -> TensorSpec:
        """Of the value or constant that is bound to a kernel's input, seen in ``shape``."""
        if not isinstance(binding, str):
            return TensorSpec(shape, "weight", self.dtype)
        return TensorSpec(shape, "data", "float32" if binding in self.inputs else self.dtype)

    def is_constant(self, node: fx.Node) -> bool:
        return self.base(node).name in self.parameters


class Emitter:
    """Collects one kernel's workload, with the activations and constants that its inputs are bound to.

    fold : the kernel works on rows: all axes but the innermost are one.
    """

    def __init__(self, shapes: Shapes, lanes: int, placement: Placement, fold: bool = False):
        self.shapes, self.lanes, self.placement, self.fold = shapes, lanes, placement, fold
        self._inputs: list[TensorSpec] = []
        self.bindings: list[str | Constant] = []
        self._pending: list[tuple[str, tuple, dict]] = []
        self._result: dict[str, int | tuple] = {}
        self.macs = 0

    def layout(self, node: fx.Node) -> Layout:
        layout = self.placement.layouts[node.name]
        return usual(len(self.shapes(node.name))) if layout is None else layout

    def physical(self, node: fx.Node, layout: Layout | None = None) -> tuple[int, ...]:
        """Shape in memory, as this kernel sees it."""
        shape = (layout or self.layout(node)).physical(self.shapes(node.name), self.lanes)
        return (math.prod(shape[:-1]), shape[-1]) if self.fold else shape

    def value(self, node: fx.Node, layout: Layout | None = None, shape: tuple[int, ...] | None = None):
        """The operand that ``node`` is, laid out as ``layout`` (its own by default): a result of this kernel, or read
        from memory, where that lies otherwise through a gather.

        shape : the reader sees the same memory in this shape.
        """
        place, base = self.placement, self.placement.base(node)
        own = place.layouts.get(node.name)
        if node.name in self._result:
            return self._result[node.name]
        if own is not None and base.name in self._result:
            return self._result[base.name]
        layout = layout or self.layout(node)
        copy = place.copies.get((place.key(node), layout))
        if copy is not None:
            return self._input(shape or self.physical(node, layout), copy)
        if not place.is_constant(node) and (layout == own or (node.name, layout) in place.lies):
            return self._input(shape or self.physical(node, layout), base.name)
        return self.gather(node, layout)

    def memory_as(self, node: fx.Node, layout: Layout):
        """The memory of ``node``, which lies in ``layout``, and never a copy of it."""
        return self._input(self.physical(node, layout), self.placement.base(node).name)

    def gather(self, node: fx.Node, layout: Layout, spread: tuple[int, ...] | None = None):
        """``node`` copied element by element into ``layout``, after broadcasting it to the shape ``spread``."""
        operand, views = self.memory(node)
        logical = tuple(self.shapes(node.name))
        if spread is not None:
            logical, views = spread, extended(views, lambda view: view.expanded(spread))
        return self.op("gather", operand, map=text(views), logical=logical, order=layout.order, merged=layout.merged,
                       shape=layout.physical(logical, self.lanes))

    def memory(self, node: fx.Node):
        """The memory behind ``node`` as one axis, and the views through which it is seen."""
        base = self.placement.base(node)
        views = self.placement.views(node, self.shapes, lambda width: stored(width, self.lanes))
        if base.name in self.placement.parameters:
            return self.constant(Raw(base.name)), views
        layout = self.placement.layouts[base.name]
        assert layout is not None
        return self._input((math.prod(layout.physical(self.shapes(base.name), self.lanes)),), base.name), views

    def parameter(self, node: fx.Node) -> fx.Node | None:
        """The parameter or constant that ``node`` is, if it is one, unchanged."""
        return self.placement.base(node) if self.placement.is_constant(node) and not self.placement.steps(node) else None

    def padding(self, channels: int) -> dict[str, int]:
        """What a kernel for ``channels`` results needs to know of the lanes of its last vector: ``half=1``, the second half is padding,
        where leaving that out saves time. Otherwise kernels of all widths of as many vectors are the same."""
        half = self.placement.half_vectors and 0 < channels % self.lanes <= self.lanes // 2
        return {"half": 1} if half else {}

    def constant(self, constant: Constant):
        return self._input(constant.shape(self.shapes, self.lanes), constant)

    def _input(self, shape: tuple[int, ...], binding: str | Constant) -> tuple:
        spec = self.placement.spec(shape, binding)
        for number, (known, bound) in enumerate(zip(self._inputs, self.bindings)):
            if known == spec and bound == binding:
                return ("input", number)
        self._inputs.append(spec)
        self.bindings.append(binding)
        return ("input", len(self._inputs) - 1)

    def op(self, name: str, *args, **attrs) -> tuple:
        self._pending.append((name, args, attrs))
        return ("op", len(self._pending) - 1)

    def finish(self, node: fx.Node, result) -> None:
        self._result[node.name] = result

    def workload(self, output_shape: tuple[int, ...], dtype: str | None = None) -> Workload:
        """``dtype`` : of the result, where it is not that of what kernels hand to one another."""
        count = len(self._inputs)
        number = {"input": 0, "op": count}
        ops = tuple(OpCall.make(n, *(number[kind] + i for kind, i in args), **attrs) for n, args, attrs in self._pending)
        return Workload(tuple(self._inputs), ops, TensorSpec(output_shape, dtype=dtype or self.placement.dtype), self.macs)


# --- helpers for arguments --------------------------------------------------------------------------------------

def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if position < len(node.args) else default


def _pair(value: Any, default: Any = None) -> tuple[int, int]:
    value = default if value is None or value == [] else value
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def refuse(node: fx.Node, why: str = "") -> UnsupportedOperator:
    return UnsupportedOperator(f"the compiler has no kernel for operator {node.target}{' ' + why if why else ''}")


#: Of an activation in between two convolutions of one kernel: what is made by two threads at most. One that is not joined takes its
#: way through a farther cache, which costs about as much.
_MADE_TWICE = 0.06
#: Vectors of channels for each thread that are enough to be shared.
_SHARES = 8
#: Columns that a window of such a kernel reaches at most: each tap has code of its own, and on some cores a register.
_WIDEST = 16

# --- anchors ----------------------------------------------------------------------------------------------------

def _conv2d(e: Emitter, node: fx.Node):
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    stride, dilation = _pair(argument(node, 3, "stride"), 1), _pair(argument(node, 5, "dilation"), 1)
    if len(e.shapes(x.name)) != 4:
        raise refuse(node, f"on {list(e.shapes(x.name))}; give images a batch axis")
    co, ci, kh, kw = e.shapes(weight.name)
    channels = e.shapes(x.name)[1]
    groups = channels // ci
    n, _, oh, ow = e.shapes(node.name)
    padding = _conv_padding(argument(node, 4, "padding", 0), (kh, kw), dilation, stride, node)
    norm = e.placement.norms.get(node.name)
    depthwise = groups > 1 and ci == 1
    packed = ConvWeight(weight.name, norm, depthwise)
    common = {"padding": padding, "stride": stride, "dilation": dilation, "layout": "nchw" if e.layout(x).merged == 0 else "nhwc"}
    image = e.value(x, plain(4) if e.layout(x).merged == 0 else nhwc())
    if depthwise:
        y = e.op("depthwise", image, e.constant(packed), multiplier=co // channels, channels=channels, **common)
    else:
        # the width matters to the kernel only where groups share vectors
        width = co if groups > 1 else 0
        common |= e.padding(co) if groups == 1 else {}
        y = e.op("conv2d", image, e.constant(packed), groups=groups, channels=width, out=(n, oh, ow), **common)
    e.macs += n * oh * ow * co * ci * kh * kw
    if bias is not None or norm is not None:
        y = e.op("add", y, e.constant(Bias(weight.name, bias.name if bias is not None else None, norm)))
    return y


def is_convolution(node: fx.Node) -> bool:
    return node.target in (aten.conv2d.default, aten.conv2d.padding)


@dataclass(frozen=True)
class Window:
    """Extents along rows and columns."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns from the first tap to the last."""
        rows, columns = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation))
        return rows, columns


def window_of(node: fx.Node, shapes: Shapes) -> Window | None:
    """What a depthwise convolution or a pool makes each result channel of; None for another operator, or for a pool of whole images."""
    if is_convolution(node):
        co, ci, *kernel = shapes(node.args[1].name)
        if not (ci == 1 and 1 < co == shapes(node.args[0].name)[1]):
            return None
        return Window(tuple(kernel), _pair(argument(node, 3, "stride"), 1), _pair(argument(node, 5, "dilation"), 1))
    if node.target not in (aten.max_pool2d.default, aten.avg_pool2d.default):
        return None
    kernel = _pair(node.args[1])
    dilation = argument(node, 4, "dilation") if node.target is aten.max_pool2d.default else None
    return Window(kernel, _pair(argument(node, 2, "stride"), kernel), _pair(dilation, 1)) if kernel != shapes(node.args[0].name)[2:] else None


def slides(node: fx.Node, shapes: Shapes) -> bool:
    """Whether ``node`` is a depthwise convolution or a pool whose window is not too wide for a kernel with what makes its input."""
    window = window_of(node, shapes)
    return window is not None and window.reach[1] <= _WIDEST


def expands(node: fx.Node, shapes: Shapes, lanes: int) -> bool:
    """Whether ``node`` is a convolution such as makes the channels of an inverted bottleneck: each pixel of all channels at its place,
    or of a window over an image of fewer channels than a vector has elements."""
    if is_pointwise(node, shapes):
        return True
    if not is_convolution(node):
        return False
    _, ci, *kernel = shapes(node.args[1].name)
    return ci == shapes(node.args[0].name)[1] and ci < lanes and kernel != [1, 1] and kernel[1] <= _WIDEST


def is_pointwise(node: fx.Node, shapes: Shapes) -> bool:
    """Whether ``node`` is a convolution that makes each pixel of all channels at its place."""
    if not is_convolution(node):
        return False
    _, ci, kh, kw = shapes(node.args[1].name)
    stride, padding = _pair(argument(node, 3, "stride"), 1), argument(node, 4, "padding", 0)
    whole = (ci, kh, kw) == (shapes(node.args[0].name)[1], 1, 1)
    return whole and stride == (1, 1) and not any(_conv_padding(padding, (kh, kw), (1, 1), stride, node))


def is_worth_joining(node: fx.Node, shapes: Shapes, profile: TargetProfile) -> bool:
    """Whether a depthwise convolution or a pool is faster in one kernel with what makes its input: that and the result do not stay in
    the threads' second caches, and either few rows of it are made by two threads, or there are channels enough for threads to share
    these."""
    (n, channels, height, width), (_, _, oh, ow) = shapes(node.args[0].name), shapes(node.name)
    window = window_of(node, shapes)
    assert window is not None
    twice = (profile.threads - 1) * max(window.reach[0] - window.stride[0], 0)
    far = DTYPE_BYTES[profile.dtype] * n * channels * (height * width + oh * ow) > profile.second_cache_bytes
    return far and (twice <= _MADE_TWICE * height or channels >= _SHARES * profile.threads * profile.lanes)


def _conv_padding(padding, kernel, dilation, stride, node) -> tuple[int, int, int, int]:
    """(top, left, bottom, right)."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0, 0, 0)
        total = [d * (k - 1) for k, d in zip(kernel, dilation)]
        return (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    py, px = _pair(padding, 0)
    return (py, px, py, px)


def row_layout(layout: Layout | None, rank: int, padded: bool = False) -> Layout:
    """The layout in which an operator on rows reads its operand: as it is if its rows are whole, else copied."""
    takes = layout is not None and layout.whole_rows and (layout.merged == 1 or not padded)
    return layout if takes and layout is not None else rows(rank)


def _row_operand(e: Emitter, x: fx.Node, padded: bool = True):
    return e.value(x, row_layout(e.placement.layouts.get(x.name), len(e.shapes(x.name)), padded))


def _linear(e: Emitter, node: fx.Node):
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    out, width = e.shapes(weight.name)
    y = e.op("dense", _row_operand(e, x, padded=False), e.constant(DenseWeight(weight.name)), **e.padding(out))
    e.macs += math.prod(e.shapes(x.name)[:-1]) * out * width
    if bias is not None:
        y = e.op("add", y, e.constant(Bias(weight.name, bias.name)))
    return y


def _layer_norm(e: Emitter, node: fx.Node):
    x, shape, gamma, beta = node.args[0], node.args[1], argument(node, 2, "weight"), argument(node, 3, "bias")
    if len(shape) != 1:
        raise refuse(node, f"over the last {len(shape)} axes")
    y = e.op("layer_norm", _row_operand(e, x), width=e.shapes(x.name)[-1], eps=float(argument(node, 4, "eps", 1e-5)))
    for name, parameter in (("mul", gamma), ("add", beta)):
        if parameter is not None:
            y = e.op(name, y, e.constant(Aligned(parameter.name, 2, (0, 1))))
    return y


def _softmax(e: Emitter, node: fx.Node):
    x, rank = node.args[0], len(e.shapes(node.name))
    if argument(node, 1, "dim") % rank != rank - 1:
        raise refuse(node, f"over axis {argument(node, 1, 'dim')} of {rank}")
    return e.op("softmax", _row_operand(e, x), width=e.shapes(x.name)[-1])


def _attention(e: Emitter, node: fx.Node):
    query, key, value = node.args[:3]
    shapes = [e.shapes(n.name) for n in (query, key, value)]
    if any(len(shape) != 4 for shape in shapes):
        raise refuse(node, f"on {[list(s) for s in shapes]}; give it [batch, heads, tokens, dimensions]")
    if argument(node, 3, "attn_mask") is not None:
        raise refuse(node, "with a mask")
    if argument(node, 4, "dropout_p", 0.0) or argument(node, 5, "is_causal", False):
        raise refuse(node, "with dropout or a causal mask")
    (n, heads, tokens, inner), (_, _, keys, outer) = shapes[0], shapes[2]
    if any(s[:2] != (n, heads) for s in shapes):
        raise refuse(node, "whose keys have other heads than its queries")
    scale = argument(node, 6, "scale")
    operands, maps = zip(*(e.memory(x) for x in (query, key, value)))
    e.macs += n * heads * tokens * keys * (inner + outer)
    return e.op("attention", *operands, query=text(maps[0]), key=text(maps[1]), value=text(maps[2]),
                scale=float(inner**-0.5 if scale is None else scale))


def _matmul(e: Emitter, node: fx.Node):
    """Products of two activations, batch by batch."""
    left, right, result = (tuple(e.shapes(x.name)) for x in (node.args[0], node.args[1], node))
    if len(left) < 2 or len(right) < 2:
        raise refuse(node, f"of {list(left)} and {list(right)}")
    (a, a_views), (b, b_views) = e.memory(node.args[0]), e.memory(node.args[1])
    batch = result[:-2]
    a_views = extended(a_views, lambda view: view.expanded((*batch, *left[-2:])))
    b_views = extended(b_views, lambda view: view.expanded((*batch, *right[-2:])))
    e.macs += math.prod(result) * left[-1]
    return e.op("matmul", a, b, left=text(a_views), right=text(b_views))


def _max_pool(e: Emitter, node: fx.Node):
    kernel = _pair(node.args[1])
    return _pool(e, node, "max", kernel, argument(node, 2, "stride"), argument(node, 3, "padding", 0),
                 dilation=_pair(argument(node, 4, "dilation"), 1), border=-3.4e38)


def _avg_pool(e: Emitter, node: fx.Node):
    kernel = _pair(node.args[1])
    inside = not argument(node, 5, "count_include_pad", True) or argument(node, 4, "ceil_mode", False)
    divisor = argument(node, 6, "divisor_override")
    if inside and argument(node, 4, "ceil_mode", False) and argument(node, 5, "count_include_pad", True) and any(
        _pair(argument(node, 3, "padding", 0), 0)
    ):
        raise refuse(node, "with ceil_mode, padding and count_include_pad together")
    divide = {"divide": "inside"} if inside and divisor is None else {"divide": "all", "divisor": divisor or math.prod(kernel)}
    return _pool(e, node, "avg", kernel, argument(node, 2, "stride"), argument(node, 3, "padding", 0), border=0.0, **divide)


def _pool(e: Emitter, node, kind, kernel, stride, padding, *, dilation=(1, 1), border, **attrs):
    stride, (py, px) = _pair(stride, kernel), _pair(padding, 0)
    _, _, h, w = e.shapes(node.args[0].name)
    _, _, oh, ow = e.shapes(node.name)
    mean = kind == "avg" and attrs.get("divisor", math.prod(kernel)) == math.prod(kernel)
    if mean and kernel == (h, w) and (oh, ow, py, px) == (1, 1, 0, 0):
        return e.op("global_pool", e.value(node.args[0], nhwc()), keep=True)
    # ceil_mode may let the last window reach past the border
    reach = [(o - 1) * s + d * (k - 1) + 1 - p - size
             for o, s, d, k, p, size in zip((oh, ow), stride, dilation, kernel, (py, px), (h, w))]
    padding = (py, px, max(reach[0], 0), max(reach[1], 0))
    return e.op("pool2d", e.value(node.args[0], nhwc()), kind=kind, kernel=kernel, stride=stride, dilation=dilation,
                padding=padding, out=(oh, ow), border=border, **attrs)


def _adaptive_avg_pool(e: Emitter, node: fx.Node):
    _, _, h, w = e.shapes(node.args[0].name)
    oh, ow = e.shapes(node.name)[2:]
    if (oh, ow) == (1, 1):
        return e.op("global_pool", e.value(node.args[0], nhwc()), keep=True)
    if h % oh or w % ow:
        raise refuse(node, f"from {h}x{w} to {oh}x{ow}, which does not divide")
    kernel = (h // oh, w // ow)
    return _pool(e, node, "avg", kernel, kernel, 0, border=0.0, divide="all", divisor=math.prod(kernel))


def _mean(e: Emitter, node: fx.Node):
    rank = len(e.shapes(node.args[0].name))
    dims = sorted(d % rank for d in (argument(node, 1, "dim") or range(rank)))
    if rank == 3 and dims == [1]:  # the mean of a sequence: an image of one row
        n, tokens, _ = e.shapes(node.args[0].name)
        shape = (n, 1, tokens, rows(3).physical(e.shapes(node.args[0].name), e.lanes)[-1])
        keep = len(e.shapes(node.name)) == 3
        if keep:
            raise refuse(node, "of a sequence with keepdim")
        return e.op("global_pool", e.value(node.args[0], rows(3), shape), keep=False)
    if rank != 4 or dims != [2, 3]:
        raise refuse(node, f"over axes {dims} of {rank}")
    return e.op("global_pool", e.value(node.args[0], nhwc()), keep=len(e.shapes(node.name)) == 4)


# --- element-wise -----------------------------------------------------------------------------------------------

def _unary(name: str, **fixed):
    return lambda e, node: e.op(name, _operand(e, node, node.args[0]), **fixed)


def _binary(name: str, scalar: str | None, invert: Callable[[float], float] | None = None):
    """Element-wise operator of two tensors, or of a tensor and a number (then operator ``scalar``)."""

    def handler(e: Emitter, node: fx.Node):
        left, right = node.args[0], node.args[1]
        if argument(node, 2, "alpha", 1) != 1:
            raise refuse(node, "with alpha != 1")
        if isinstance(right, (int, float)):
            if scalar is None:
                raise refuse(node, "with a number")
            return e.op(scalar, _operand(e, node, left), value=float(invert(right) if invert else right))
        return e.op(name, _operand(e, node, left), _operand(e, node, right))

    return handler


def _operand(e: Emitter, node: fx.Node, operand: fx.Node):
    """An operand of an element-wise operator in the layout of its result, broadcast where that can be read so."""
    result, logical, layout = tuple(e.shapes(node.name)), tuple(e.shapes(operand.name)), e.layout(node)
    parameter = e.parameter(operand)
    if parameter is not None and layout.merged == 1:
        return e.constant(Aligned(parameter.name, len(result), layout.order, e.fold))
    if logical == result:
        return e.value(operand, layout)
    if len(logical) != len(result) or layout.merged != 1:
        return e.gather(operand, layout, spread=result)
    value = e.value(operand, layout)
    innermost = layout.order[-1]
    if logical[innermost] == 1 and result[innermost] > 1:  # one value for all lanes: do not read its padding
        return e.op("slice", value, axis=len(logical) - 1, start=0, step=1, size=1)
    return value


def _batch_norm(e: Emitter, node: fx.Node):
    norm = batch_norm_of(node)
    _refuse_sequences(e, node)
    if e.placement.norms.get(node.args[0].name) == norm and node.args[0].name in e._result:
        return e._result[node.args[0].name]  # folded into the convolution
    y = e.op("mul", _operand(e, node, node.args[0]), e.constant(NormVector(norm, "scale")))
    return e.op("add", y, e.constant(NormVector(norm, "shift")))


def batch_norm_of(node: fx.Node) -> BatchNorm:
    """The normalization that a batch_norm node is; refuses one that takes its statistics from the batch."""
    _, gamma, beta, mean, variance, training, _, eps, *_ = node.args
    if training or mean is None:
        raise refuse(node, "with statistics of the batch")
    return BatchNorm(gamma.name if gamma is not None else None, beta.name if beta is not None else None,
                     mean.name, variance.name, float(eps))


def _clip(e: Emitter, node: fx.Node):
    low, high = argument(node, 1, "min", 0.0), argument(node, 2, "max")
    if node.target in (aten.hardtanh.default, aten.hardtanh_.default):
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    elif node.target in (aten.relu6.default, aten.relu6_.default):
        low, high = 0.0, 6.0
    return e.op("clip", _operand(e, node, node.args[0]), low=None if low is None else float(low), high=None if high is None else float(high))


def _leaky_relu(e: Emitter, node: fx.Node):
    return e.op("leaky_relu", _operand(e, node, node.args[0]), slope=float(argument(node, 1, "negative_slope", 0.01)))


def _gelu(e: Emitter, node: fx.Node):
    if argument(node, 1, "approximate", "none") != "none":
        raise refuse(node, "with approximate='tanh'")
    return e.op("gelu", _operand(e, node, node.args[0]))


def _refuse_sequences(e: Emitter, node: fx.Node) -> None:
    """Operators of channels know images and rows, whose channels are innermost; of [N, C, L] they are not."""
    if len(e.shapes(node.name)) not in (2, 4):
        raise refuse(node, f"on {list(e.shapes(node.name))}")


def _prelu(e: Emitter, node: fx.Node):
    slope = node.args[1]  # one value, or one a channel: channels are innermost either way
    _refuse_sequences(e, node)
    return e.op("prelu", _operand(e, node, node.args[0]), e.constant(Aligned(slope.name, 1, (0,))))


# --- data movement ----------------------------------------------------------------------------------------------

def _physical_axis(layout: Layout, axis: int) -> int:
    return layout.order.index(axis % len(layout.order))


def _slice(e: Emitter, node: fx.Node):
    dim, start, step = argument(node, 1, "dim", 0), argument(node, 2, "start") or 0, argument(node, 4, "step", 1)
    logical, size = e.shapes(node.args[0].name), e.shapes(node.name)
    dim %= len(logical)
    start = max(start + logical[dim], 0) if start < 0 else start
    axis = _physical_axis(e.layout(node), dim)
    return e.op("slice", e.value(node.args[0], e.layout(node)), axis=axis, start=start, step=step,
                size=e.layout(node).physical(size, e.lanes)[axis])


def _pad(e: Emitter, node: fx.Node):
    pads = list(node.args[1])
    if node.target == aten.pad.default and argument(node, 2, "mode", "constant") != "constant":
        raise refuse(node, f"in mode {argument(node, 2, 'mode')!r}")
    value = argument(node, 3 if node.target == aten.pad.default else 2, "value", 0.0) or 0.0
    logical, result = e.shapes(node.args[0].name), list(e.shapes(node.args[0].name))
    y = e.value(node.args[0], e.layout(node))
    for i in range(0, len(pads), 2):
        before, after = pads[i], pads[i + 1]
        dim = len(logical) - 1 - i // 2
        if before == 0 and after == 0:
            continue
        result[dim] += before + after
        axis = _physical_axis(e.layout(node), dim)
        size = e.layout(node).physical(result, e.lanes)[axis]
        y = e.op("pad", y, axis=axis, before=before, extent=logical[dim], size=size, value=float(value))
    return y


def _cat(e: Emitter, node: fx.Node):
    operands, dim = node.args[0], argument(node, 1, "dim", 0)
    shapes = [e.shapes(o.name) for o in operands]
    axis = _physical_axis(e.layout(node), dim)
    return e.op("concat", *(e.value(o, e.layout(node)) for o in operands), axis=axis, extents=tuple(s[dim] for s in shapes),
                size=e.physical(node)[axis])


ANCHORS: dict[Any, Callable] = {
    aten.conv2d.default: _conv2d,
    aten.conv2d.padding: _conv2d,
    aten.linear.default: _linear,
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten.mean.dim: _mean,
    aten.layer_norm.default: _layer_norm,
    aten.softmax.int: _softmax, aten._softmax.default: _softmax,
    aten.scaled_dot_product_attention.default: _attention,
    aten.matmul.default: _matmul, aten.bmm.default: _matmul,
}

#: Anchors on images, and those on rows: kernels in which all axes but the last are one.
IMAGES = {
    aten.conv2d.default, aten.conv2d.padding, aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
}
ROWS = {aten.linear.default, aten.layer_norm.default, aten.softmax.int, aten._softmax.default}

#: Anchors that read a network input in its own layout; the others are given a copy.
READ_PLAIN = {aten.conv2d.default, aten.conv2d.padding, aten.linear.default}

#: Anchors that read their operands through views.
READ_VIEWS = {aten.scaled_dot_product_attention.default, aten.matmul.default, aten.bmm.default}

#: Element-wise operators with one constant a channel: axis 1 of the value, whatever its layout.
BY_CHANNEL = {aten.batch_norm.default, aten.prelu.default}

ELEMENTWISE: dict[Any, Callable] = {
    aten.batch_norm.default: _batch_norm,
    aten.relu.default: _unary("relu"), aten.relu_.default: _unary("relu"),
    aten.sigmoid.default: _unary("sigmoid"), aten.sigmoid_.default: _unary("sigmoid"),
    aten.silu.default: _unary("silu"), aten.silu_.default: _unary("silu"),
    aten.tanh.default: _unary("tanh"), aten.exp.default: _unary("exp"), aten.neg.default: _unary("neg"),
    aten.hardsigmoid.default: _unary("hardsigmoid"), aten.hardsigmoid_.default: _unary("hardsigmoid"),
    aten.hardswish.default: _unary("hardswish"), aten.hardswish_.default: _unary("hardswish"),
    aten.relu6.default: _clip, aten.relu6_.default: _clip, aten.hardtanh.default: _clip, aten.hardtanh_.default: _clip,
    aten.clamp.default: _clip, aten.clamp_min.default: _clip,
    aten.leaky_relu.default: _leaky_relu, aten.leaky_relu_.default: _leaky_relu,
    aten.gelu.default: _gelu,
    aten.prelu.default: _prelu,
    aten.add.Tensor: _binary("add", "add_scalar"), aten.add_.Tensor: _binary("add", "add_scalar"),
    aten.sub.Tensor: _binary("sub", "add_scalar", lambda v: -v),
    aten.mul.Tensor: _binary("mul", "mul_scalar"), aten.mul_.Tensor: _binary("mul", "mul_scalar"),
    aten.div.Tensor: _binary("div", "mul_scalar", lambda v: 1.0 / v),
    aten.maximum.default: _binary("maximum", None), aten.minimum.default: _binary("minimum", None),
}

MOVEMENT: dict[Any, Callable] = {
    aten.slice.Tensor: _slice,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.cat.default: _cat,
}

#: Operators whose result may be the memory of their first operand in torch: a write into one is seen through the other.
SHARING = (set(VIEWS) | IDENTITIES | LISTS | {aten.slice.Tensor}) - {aten.clone.default, aten.lift_fresh_copy.default}
