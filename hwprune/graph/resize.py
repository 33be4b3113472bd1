"""The exported graph of a network with smaller sizes, for networks whose own ``forward`` cannot take them."""

from __future__ import annotations

import warnings
from typing import Any, Callable, Mapping, Sequence

import numpy as np
import torch
from torch import fx, nn

from hwprune.graph.channels import ChannelGraph
from hwprune.graph.rules import aten, overloads

Kept = Mapping[str, Sequence[int]]


def resized_graph(module: nn.Module, graph: ChannelGraph, kept: Kept) -> fx.GraphModule:
    """The exported graph with the tensors of ``module`` and every literal size rewritten; tensors are not sliced yet.

    Batch normalization and dropout follow ``train()`` and ``eval()`` as they do in a module.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pytree deprecations inside torch.export
        exported = graph.traced.exported.module()
        root = GraphNetwork(exported, exported.graph)
    _adopt(root, module)
    sizes = _Sizes(graph, kept)
    for node in list(root.graph.nodes):
        if node.op == "call_module" and str(node.target).startswith("_guards"):
            root.graph.erase_node(node)  # it checks the batch, which literal sizes check as well
        elif node.op == "call_function" and node.target in _RESIZE and node.name in graph.traced.nodes:
            _RESIZE[node.target](node, sizes)
    root.recompile()
    root.train(module.training)
    return root


class GraphNetwork(fx.GraphModule):
    """A graph module whose normalization and dropout have a mode, as a module's have."""

    def train(self, mode: bool = True) -> "GraphNetwork":
        super().train(mode)
        for node in self.graph.nodes:
            place = _MODE_ARGUMENT.get(node.target) if node.op == "call_function" else None
            if place is not None:
                node.args = (*node.args[:place], mode, *node.args[place + 1 :])
        self.recompile()
        return self


_MODE_ARGUMENT = {aten.batch_norm.default: 5, aten.dropout.default: 2, aten.dropout_.default: 2}


def _adopt(root: nn.Module, module: nn.Module) -> None:
    """Copies of the module's tensors; tied ones stay tied."""
    copies: dict[int, torch.Tensor] = {}
    for named, place in (("named_parameters", "_parameters"), ("named_buffers", "_buffers")):
        own = dict(getattr(module, named)(remove_duplicate=False))
        for name, _ in list(getattr(root, named)(remove_duplicate=False)):
            if name not in own:
                continue
            tensor = own[name]
            if id(tensor) not in copies:
                copy = tensor.detach().clone()
                copies[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if place == "_parameters" else copy
            owner, _, leaf = name.rpartition(".")
            getattr(root.get_submodule(owner), place)[leaf] = copies[id(tensor)]


class _Sizes:
    """Shapes and positions of the pruned network, by node."""

    def __init__(self, graph: ChannelGraph, kept: Kept) -> None:
        self.graph, self.kept = graph, kept
        self.new = graph.shapes({group: len(units) for group, units in kept.items()})
        self.old = graph.shapes({})

    def shrinks(self, node: fx.Node, dim: int) -> bool:
        return self.new(self.name(node))[dim] != self.old(self.name(node))[dim]

    def name(self, node: fx.Node) -> str:
        """Parameters are attributes in the module's graph and placeholders in the exported one."""
        if node.op != "get_attr":
            return node.name
        return next(name for name, fqn in self.graph.traced.targets.items() if fqn == node.target)

    def until(self, node: fx.Node, dim: int, bound: int) -> int:
        """How many of the first ``bound`` positions of an axis stay."""
        positions = self.graph.positions(self.name(node), dim, self.kept)
        return bound if positions is None else int(np.searchsorted(positions, bound))


def _view(node: fx.Node, sizes: _Sizes) -> None:
    if sizes.new(node.name) != sizes.old(node.name):
        node.args = (node.args[0], list(sizes.new(node.name)))


def _unflatten(node: fx.Node, sizes: _Sizes) -> None:
    dim, parts = _dim(node, place=1), len(node.args[2])
    node.args = (node.args[0], dim, list(sizes.new(node.name)[dim : dim + parts]))


def _split(node: fx.Node, sizes: _Sizes) -> None:
    source = node.args[0]
    parts = [int(t.shape[_dim(node)]) for t in sizes.graph.traced.nodes[node.name].meta["val"]]
    dim = _dim(node)
    if not sizes.shrinks(source, dim):
        return
    bounds = [sizes.until(source, dim, int(b)) for b in np.cumsum([0, *parts])]
    node.target = aten.split_with_sizes.default
    node.args, node.kwargs = (source, [b - a for a, b in zip(bounds, bounds[1:])], dim), {}


def _dim(node: fx.Node, place: int = 2) -> int:
    dim = node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)
    return int(dim) % len(node.args[0].meta["val"].shape)


def _slice(node: fx.Node, sizes: _Sizes) -> None:
    dim = _dim(node, place=1)
    source = node.args[0]
    if not sizes.shrinks(source, dim):
        return
    size = sizes.old(sizes.name(source))[dim]
    start = node.args[2] if len(node.args) > 2 and node.args[2] is not None else 0
    start = max(start + size, 0) if start < 0 else min(start, size)
    stop = start + sizes.old(node.name)[dim]  # labelled axes are sliced without steps
    node.target = aten.slice.Tensor
    node.args = (source, dim, sizes.until(source, dim, start), sizes.until(source, dim, stop))
    node.kwargs = {}


def _conv_groups(node: fx.Node, sizes: _Sizes) -> None:
    weight, groups = node.args[1], _argument(node, "groups")
    per_group = sizes.old(sizes.name(weight))[0 if "transpose" in str(node.target) else 1]
    x = node.args[0]
    channel = len(x.meta["val"].shape) - (len(weight.meta["val"].shape) - 2) - 1
    if groups > 1 and (sizes.old(sizes.name(x))[channel] == groups or per_group == 1):
        _set_argument(node, "groups", sizes.new(sizes.name(x))[channel])


def _normalized_shape(node: fx.Node, sizes: _Sizes) -> None:
    rank = len(node.args[1])
    node.args = (node.args[0], list(sizes.new(node.name)[-rank:]), *node.args[2:])


def _argument(node: fx.Node, name: str) -> Any:
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.name == name:
            return node.args[place] if place < len(node.args) else node.kwargs.get(name, argument.default_value)
    raise KeyError(name)


def _set_argument(node: fx.Node, name: str, value: Any) -> None:
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.name == name and place < len(node.args):
            node.args = (*node.args[:place], value, *node.args[place + 1 :])
        elif argument.name == name:
            node.kwargs = {**node.kwargs, name: value}


_RESIZE: dict[Any, Callable[[fx.Node, _Sizes], None]] = {
    **dict.fromkeys(overloads("view", "reshape", "_unsafe_view", "expand", "view_copy", "broadcast_to"), _view),
    aten.unflatten.int: _unflatten,
    **dict.fromkeys(overloads("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk"), _split),
    **dict.fromkeys(overloads("slice", "narrow"), _slice),
    **dict.fromkeys(overloads("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
                              "conv_transpose3d"), _conv_groups),
    **dict.fromkeys(overloads("layer_norm", "rms_norm"), _normalized_shape),
}  # fmt: skip
