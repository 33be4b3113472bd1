"""What each exported operator becomes in a kernel.

A handler writes its operator into the workload that an ``Emitter`` collects and returns the number of its result.
Handlers read logical shapes through ``Emitter.shapes`` only, so that the same network lowers at any widths.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Container, Mapping

import torch
from torch import fx

from hwprune.compile.constants import Aligned, BatchNorm, Bias, Constant, ConvWeight, DenseWeight, NormVector, Shapes, stored
from hwprune.errors import UnsupportedOperator
from hwprune.workload import OpCall, TensorSpec, Workload

aten = torch.ops.aten


class Emitter:
    """Collects one kernel's workload, with the activations and constants that its inputs are bound to.

    layouts : node name -> layout of its value (see ``lower``).
    norms : convolution node name -> normalization folded into it.
    parameters : names of the nodes that are constants.
    copies : network input -> layout of its copy, called ``NAME@LAYOUT``, for readers that cannot take it as it is.
    resolve : node -> node whose memory holds its value (behind flattens, dropouts, ...).
    """

    def __init__(self, shapes: Shapes, lanes: int, layouts: dict[str, str], norms: dict[str, "BatchNorm"],
                 parameters: Container[str], copies: Mapping[str, str], resolve: Callable[[fx.Node], fx.Node]):
        self.shapes, self.lanes, self.layouts, self.norms = shapes, lanes, layouts, norms
        self.parameters, self.copies, self._resolve = parameters, copies, resolve
        self._inputs: list[TensorSpec] = []
        self.bindings: list[str | Constant] = []
        self._pending: list[tuple[str, tuple, dict]] = []
        self._result: dict[str, int | tuple] = {}
        self.macs = 0

    def physical(self, name: str) -> tuple[int, ...]:
        return physical_shape(self.shapes(name), self.layouts[name], self.lanes)

    def layout(self, node: fx.Node) -> str:
        return self.layouts[node.name]

    def value(self, node: fx.Node, shape: tuple[int, ...] | None = None, plain: bool = False):
        """The operand that ``node`` is: a result of this kernel, or an activation read from memory as ``shape``.

        plain : the reader takes a network input in its own layout.
        """
        if node.name in self._result:
            return self._result[node.name]
        source = self._resolve(node)
        if source.name in self._result:
            return self._result[source.name]
        if source.name in self.parameters:
            raise UnsupportedOperator(f"the compiler reads no parameter as an activation, but {source.name!r} is used as one")
        if source.name in self.copies and not plain:
            layout = self.copies[source.name]
            physical = physical_shape(self.shapes(source.name), layout, self.lanes)
            return self._input(TensorSpec(shape or physical), f"{source.name}@{layout}")
        return self._input(TensorSpec(shape or self.physical(node.name)), source.name)

    def parameter(self, node: fx.Node) -> fx.Node | None:
        """The parameter or constant that ``node`` is, if it is one."""
        source = self._resolve(node)
        return source if source.name in self.parameters else None

    def constant(self, constant: Constant):
        return self._input(TensorSpec(constant.shape(self.shapes, self.lanes), "weight"), constant)

    def _input(self, spec: TensorSpec, binding) -> tuple:
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

    def workload(self, output_shape: tuple[int, ...]) -> Workload:
        count = len(self._inputs)
        number = {"input": 0, "op": count}
        ops = tuple(OpCall.make(n, *(number[kind] + i for kind, i in args), **attrs) for n, args, attrs in self._pending)
        return Workload(tuple(self._inputs), ops, TensorSpec(output_shape), self.macs)


def physical_shape(logical: tuple[int, ...], layout: str, lanes: int) -> tuple[int, ...]:
    """How a value of ``logical`` shape lies in memory.

    plain: as it is. nhwc: channels last and padded to whole vectors. rows: innermost axis padded.
    """
    if layout == "plain":
        return tuple(logical)
    if layout == "nhwc":
        n, c, h, w = logical
        return n, h, w, stored(c, lanes)
    return (*logical[:-1], stored(logical[-1], lanes))


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
    norm = e.norms.get(node.name)
    depthwise = groups > 1 and ci == 1
    packed = ConvWeight(weight.name, norm, depthwise)
    common = {"padding": padding, "stride": stride, "dilation": dilation, "layout": _image_layout(e, x)}
    if depthwise:
        y = e.op("depthwise", e.value(x, plain=True), e.constant(packed), multiplier=co // channels, channels=channels, **common)
    else:
        # the width matters to the kernel only where groups share vectors
        width = co if groups > 1 else 0
        y = e.op("conv2d", e.value(x, plain=True), e.constant(packed), groups=groups, channels=width, out=(n, oh, ow), **common)
    e.macs += n * oh * ow * co * ci * kh * kw
    if bias is not None or norm is not None:
        y = e.op("add", y, e.constant(Bias(weight.name, bias.name if bias is not None else None, norm)))
    return y


def _conv_padding(padding, kernel, dilation, stride, node) -> tuple[int, int, int, int]:
    """(top, left, bottom, right)."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0, 0, 0)
        total = [d * (k - 1) for k, d in zip(kernel, dilation)]
        return (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    py, px = _pair(padding, 0)
    return (py, px, py, px)


def _image_layout(e: Emitter, node: fx.Node) -> str:
    return "nchw" if e.layout(node) == "plain" else "nhwc"


def _linear(e: Emitter, node: fx.Node):
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    logical = e.shapes(x.name)
    if len(logical) == 4:
        raise refuse(node, f"on an image {list(logical)}; use a 1x1 convolution")
    out, width = e.shapes(weight.name)
    rows = math.prod(logical[:-1])
    stride = width if e.layout(x) == "plain" else stored(width, e.lanes)
    y = e.op("dense", e.value(x, (rows, stride), plain=True), e.constant(DenseWeight(weight.name)))
    e.macs += rows * out * width
    if bias is not None:
        y = e.op("add", y, e.constant(Bias(weight.name, bias.name)))
    return y


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
        return e.op("global_pool", e.value(node.args[0]), keep=True)
    # ceil_mode may let the last window reach past the border
    reach = [(o - 1) * s + d * (k - 1) + 1 - p - size
             for o, s, d, k, p, size in zip((oh, ow), stride, dilation, kernel, (py, px), (h, w))]
    padding = (py, px, max(reach[0], 0), max(reach[1], 0))
    return e.op("pool2d", e.value(node.args[0]), kind=kind, kernel=kernel, stride=stride, dilation=dilation,
                padding=padding, out=(oh, ow), border=border, **attrs)


def _adaptive_avg_pool(e: Emitter, node: fx.Node):
    _, _, h, w = e.shapes(node.args[0].name)
    oh, ow = e.shapes(node.name)[2:]
    if (oh, ow) == (1, 1):
        return e.op("global_pool", e.value(node.args[0]), keep=True)
    if h % oh or w % ow:
        raise refuse(node, f"from {h}x{w} to {oh}x{ow}, which does not divide")
    kernel = (h // oh, w // ow)
    return _pool(e, node, "avg", kernel, kernel, 0, border=0.0, divide="all", divisor=math.prod(kernel))


def _mean(e: Emitter, node: fx.Node):
    rank = len(e.shapes(node.args[0].name))
    dims = sorted(d % rank for d in (argument(node, 1, "dim") or range(rank)))
    if rank != 4 or dims != [2, 3]:
        raise refuse(node, f"over axes {dims} of {rank}")
    return e.op("global_pool", e.value(node.args[0]), keep=len(e.shapes(node.name)) == 4)


# --- element-wise -----------------------------------------------------------------------------------------------

def _unary(name: str, **fixed):
    return lambda e, node: e.op(name, e.value(node.args[0]), **fixed)


def _binary(name: str, scalar: str | None, invert: Callable[[float], float] | None = None):
    """Element-wise operator of two tensors, or of a tensor and a number (then operator ``scalar``)."""

    def handler(e: Emitter, node: fx.Node):
        left, right = node.args[0], node.args[1]
        if argument(node, 2, "alpha", 1) != 1:
            raise refuse(node, "with alpha != 1")
        if isinstance(right, (int, float)):
            if scalar is None:
                raise refuse(node, "with a number")
            return e.op(scalar, e.value(left), value=float(invert(right) if invert else right))
        return e.op(name, _operand(e, node, left), _operand(e, node, right))

    return handler


def _operand(e: Emitter, node: fx.Node, operand: fx.Node):
    result, logical = e.shapes(node.name), e.shapes(operand.name)
    parameter = e.parameter(operand)
    if parameter is not None:
        return e.constant(Aligned(parameter.name, len(result), e.layout(node) == "nhwc"))
    value = e.value(operand)
    if e.layout(node) == "nhwc" and len(logical) != 4:
        raise refuse(node, f"of {list(logical)} and an image {list(result)}")
    innermost = 1 if e.layout(node) == "nhwc" else -1
    if logical[innermost] == 1 and result[innermost] > 1:  # one value for all lanes: do not read its padding
        return e.op("slice", value, axis=len(logical) - 1, start=0, step=1, size=1)
    return value


def _batch_norm(e: Emitter, node: fx.Node):
    norm = batch_norm_of(node)
    _refuse_sequences(e, node)
    if e.norms.get(node.args[0].name) == norm and node.args[0].name in e._result:
        return e._result[node.args[0].name]  # folded into the convolution
    y = e.op("mul", e.value(node.args[0]), e.constant(NormVector(norm, "scale")))
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
    return e.op("clip", e.value(node.args[0]), low=None if low is None else float(low), high=None if high is None else float(high))


def _leaky_relu(e: Emitter, node: fx.Node):
    return e.op("leaky_relu", e.value(node.args[0]), slope=float(argument(node, 1, "negative_slope", 0.01)))


def _gelu(e: Emitter, node: fx.Node):
    if argument(node, 1, "approximate", "none") != "none":
        raise refuse(node, "with approximate='tanh'")
    return e.op("gelu", e.value(node.args[0]))


def _refuse_sequences(e: Emitter, node: fx.Node) -> None:
    """Operators of channels know images and rows, whose channels are innermost; of [N, C, L] they are not."""
    if len(e.shapes(node.name)) not in (2, 4):
        raise refuse(node, f"on {list(e.shapes(node.name))}")


def _prelu(e: Emitter, node: fx.Node):
    slope = node.args[1]  # one value, or one a channel: channels are innermost either way
    _refuse_sequences(e, node)
    return e.op("prelu", e.value(node.args[0]), e.constant(Aligned(slope.name, 1, False)))


# --- data movement ----------------------------------------------------------------------------------------------

def _physical_axis(layout: str, rank: int, axis: int) -> int:
    axis %= rank
    return {0: 0, 1: 3, 2: 1, 3: 2}[axis] if layout == "nhwc" else axis


def _slice(e: Emitter, node: fx.Node):
    dim, start, step = argument(node, 1, "dim", 0), argument(node, 2, "start") or 0, argument(node, 4, "step", 1)
    logical, size = e.shapes(node.args[0].name), e.shapes(node.name)
    dim %= len(logical)
    start = max(start + logical[dim], 0) if start < 0 else start
    axis = _physical_axis(e.layout(node), len(logical), dim)
    return e.op("slice", e.value(node.args[0]), axis=axis, start=start, step=step,
                size=physical_shape(size, e.layout(node), e.lanes)[axis])


def _pad(e: Emitter, node: fx.Node):
    pads = list(node.args[1])
    if node.target == aten.pad.default and argument(node, 2, "mode", "constant") != "constant":
        raise refuse(node, f"in mode {argument(node, 2, 'mode')!r}")
    value = argument(node, 3 if node.target == aten.pad.default else 2, "value", 0.0) or 0.0
    logical, result = e.shapes(node.args[0].name), list(e.shapes(node.args[0].name))
    y = e.value(node.args[0])
    for i in range(0, len(pads), 2):
        before, after = pads[i], pads[i + 1]
        dim = len(logical) - 1 - i // 2
        if before == 0 and after == 0:
            continue
        result[dim] += before + after
        axis = _physical_axis(e.layout(node), len(logical), dim)
        size = physical_shape(tuple(result), e.layout(node), e.lanes)[axis]
        y = e.op("pad", y, axis=axis, before=before, extent=logical[dim], size=size, value=float(value))
    return y


def _cat(e: Emitter, node: fx.Node):
    operands, dim = node.args[0], argument(node, 1, "dim", 0)
    shapes = [e.shapes(o.name) for o in operands]
    axis = _physical_axis(e.layout(node), len(shapes[0]), dim)
    return e.op("concat", *(e.value(o) for o in operands), axis=axis, extents=tuple(s[dim] for s in shapes),
                size=e.physical(node.name)[axis])


ANCHORS: dict[Any, Callable] = {
    aten.conv2d.default: _conv2d,
    aten.conv2d.padding: _conv2d,
    aten.linear.default: _linear,
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten.mean.dim: _mean,
}

#: Anchors that read a network input in its own layout; the others are given a copy.
READ_PLAIN = {aten.conv2d.default, aten.conv2d.padding, aten.linear.default}

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

#: Operators whose result is their first operand, byte for byte, in inference.
IDENTITIES = {
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alias.default, aten.clone.default,
    aten.contiguous.default, aten.detach.default, aten.detach_.default, aten.lift_fresh_copy.default,
}

#: Operators that only rename the axes of their first operand where its memory allows (see ``lower``).
RESHAPES = {
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.squeeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.unsqueeze.default, aten._unsafe_view.default,
}

#: Operators whose result may be the memory of their first operand in torch: a write into one is seen through the other.
VIEWS = (RESHAPES | IDENTITIES | {aten.slice.Tensor}) - {aten.clone.default, aten.lift_fresh_copy.default}
