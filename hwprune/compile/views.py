"""Operators that only look at their operand differently: each is a change of a ``View``.

Sizes are asked of the graph at the widths in question, never read from the operator's arguments: those are the dense
network's.
"""

from __future__ import annotations

import operator
from typing import Any, Callable

import torch
from torch import fx

from hwprune.compile.constants import Shapes
from hwprune.compile.layouts import Layout, View, Views, extended, Pad
from hwprune.errors import UnsupportedOperator

aten = torch.ops.aten
Change = Callable[[View], View | None]

#: Operators whose result is their first operand, byte for byte, in inference.
IDENTITIES = {
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alias.default, aten.clone.default,
    aten.contiguous.default, aten.detach.default, aten.detach_.default, aten.lift_fresh_copy.default,
}


def _reshape(shapes: Shapes, node: fx.Node) -> Change:
    shape = shapes(node.name)
    return lambda view: view.reshaped(shape)


def _permute(shapes: Shapes, node: fx.Node) -> Change:
    rank = len(shapes(node.name))
    order = [axis % rank for axis in node.args[1]]
    return lambda view: view.permuted(order)


def _transpose(shapes: Shapes, node: fx.Node) -> Change:
    rank = len(shapes(node.name))
    # ``t`` and ``mT`` take no axes: they are the last two
    first, second = node.args[1:3] if len(node.args) > 2 else (-min(rank, 2), -1)
    order = list(range(rank))
    order[first % rank], order[second % rank] = second % rank, first % rank
    return lambda view: view.permuted(order)


def _select(shapes: Shapes, node: fx.Node) -> Change:
    return _selected(shapes(node.args[0].name), node.args[1], node.args[2])


def _selected(shape: tuple[int, ...], axis: int, index: int) -> Change:
    axis %= len(shape)
    return lambda view: view.selected(axis, index % shape[axis])


def _expand(shapes: Shapes, node: fx.Node) -> Change:
    shape = shapes(node.name)
    return lambda view: view.expanded(shape)


def _element(shapes: Shapes, node: fx.Node) -> Change:
    """One of the tensors that an ``unbind``, ``chunk`` or ``split`` gives."""
    parts, index = node.args
    source = shapes(parts.args[0].name)
    axis = _axis_of(parts) % len(source)
    if parts.target is aten.unbind.int:
        return _selected(source, axis, index)
    start, size = _start(shapes, parts, index, axis, source[axis]), shapes(node.name)[axis]
    return lambda view: view.narrowed(axis, start, size)


def _axis_of(parts: fx.Node) -> int:
    position = 1 if parts.target is aten.unbind.int else 2
    return parts.kwargs.get("dim", parts.args[position] if len(parts.args) > position else 0)


def _start(shapes: Shapes, parts: fx.Node, index: int, axis: int, extent: int) -> int:
    """Where a part begins: behind those before it, or before those behind it, if all of them are used."""
    sizes = {user.args[1]: shapes(user.name)[axis] for user in parts.users}
    count = len(parts.meta["val"])
    if all(i in sizes for i in range(index)):
        return sum(sizes[i] for i in range(index))
    if all(i in sizes for i in range(index, count)):
        return extent - sum(sizes[i] for i in range(index, count))
    dense = [int(part.shape[axis]) for part in parts.meta["val"]]
    if sum(dense) == extent:
        return sum(dense[:index])
    raise UnsupportedOperator(f"the compiler has no kernel for operator {parts.target} of which parts {index - 1} and {index + 1} are not used")


#: operator -> the change that it is; of its first operand
VIEWS: dict[Any, Callable[[Shapes, fx.Node], Change]] = {
    aten.flatten.using_ints: _reshape, aten.view.default: _reshape, aten.reshape.default: _reshape,
    aten.squeeze.default: _reshape, aten.squeeze.dim: _reshape, aten.squeeze.dims: _reshape,
    aten.unsqueeze.default: _reshape, aten._unsafe_view.default: _reshape, aten.unflatten.int: _reshape,
    aten.permute.default: _permute, aten.transpose.int: _transpose, aten.t.default: _transpose, aten.mT.default: _transpose,
    aten.select.int: _select, aten.expand.default: _expand, aten.expand_as.default: _expand,
    operator.getitem: _element,
}  # fmt: skip

#: Operators that give a list of views, of which ``getitem`` takes one.
LISTS = {aten.unbind.int, aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default}


def is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and node.args[0].target in LISTS
    return node.target in VIEWS


def source_of(node: fx.Node) -> fx.Node:
    """The value that a view is of."""
    return node.args[0].args[0] if node.target is operator.getitem else node.args[0]


def views_of(base: fx.Node, layout: Layout, steps: tuple[fx.Node, ...], shapes: Shapes, pad: Pad) -> Views:
    """The chain of views that ``steps`` make of ``base``, which lies in memory as ``layout``."""
    views: Views = (layout.view(shapes(base.name), pad),)
    for step in steps:
        views = extended(views, VIEWS[step.target](shapes, step))
    return views
