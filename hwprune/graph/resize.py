"""The exported graph of a network with smaller sizes, for networks whose own ``forward`` cannot take them."""

from __future__ import annotations

import copy
import operator
import warnings
from typing import Any, Callable, Mapping, Sequence

import numpy as np
import torch
from torch import fx, nn

from hwprune.errors import PlanError
from hwprune.graph.blocks import Block, cut
from hwprune.graph.channels import ChannelGraph, widths_of
from hwprune.graph.rules import aten, overloads
from hwprune.graph.trace import evaluating, quiet

Kept = Mapping[str, Sequence[int]]


def resized_graph(module: nn.Module, graph: ChannelGraph, kept: Kept, free_batch: bool) -> fx.GraphModule:
    """A graph with copies of the tensors of ``module`` and every literal size rewritten; tensors are not sliced yet.

    An exported module keeps its own graph. The one of any other module has a free batch size if that is wanted and
    torch.export can do it, and its batch normalization and dropout follow ``train()`` and ``eval()``.
    """
    own = isinstance(module, fx.GraphModule)
    with quiet():
        root, names = _graph_like(_start(module, graph, free_batch), graph)
    _adopt(root, module)
    removed = graph.removed(widths_of(kept))
    if removed:
        cut(root.graph, names, removed)
        _drop_unread(root, removed, graph)
    sizes = _Sizes(graph, kept, names)
    for node in list(root.graph.nodes):
        if node.op == "call_module" and str(node.target).startswith("_guards"):
            root.graph.erase_node(node)  # it checks the batch, which literal sizes check as well
        elif node.target is aten._assert_tensor_metadata.default:
            root.graph.erase_node(node)  # it asks for the dtype that the network was traced with
        elif node in names and node.target in _RESIZE:
            _RESIZE[node.target](node, sizes)
    if not own:
        _follow_mode(root)
    root.recompile()
    root.training = module.training
    return root


def _start(module: nn.Module, graph: ChannelGraph, free_batch: bool) -> fx.GraphModule | None:
    if isinstance(module, fx.GraphModule):
        return copy.deepcopy(module)
    return _free_batch(graph) if free_batch else None


def _free_batch(graph: ChannelGraph) -> fx.GraphModule | None:
    """The network exported again with a free batch; None where it has none."""
    traced = graph.traced
    # a batch of 1 would be taken for fixed
    pairs = tuple(torch.cat([x, x]) if x.dim() and len(x) == 1 else x for x in traced.example_inputs)
    free = tuple({0: torch.export.Dim.AUTO} if x.dim() else None for x in pairs)
    try:
        with evaluating(traced.module), torch.no_grad():
            return torch.export.export(traced.module, pairs, dynamic_shapes=free).module(check_guards=False)
    except Exception:  # torch.export says so in as many ways as there are networks
        return None


def _graph_like(module: fx.GraphModule | None, graph: ChannelGraph) -> tuple[fx.GraphModule, dict[fx.Node, str]]:
    """A plain graph module (an exported one refuses train()), and which traced node each of its nodes is.

    A graph with a free batch computes the same tensors in the same order, with slices of the whole batch and
    questions for its size in between. Where it does not, the graph as it was traced serves.
    """
    operators = [n for n in graph.traced.graph.nodes if _makes_tensors(n) and not _takes_all(n)]
    for candidate in (module, None):
        if candidate is None:
            candidate = graph.traced.exported.module(check_guards=False)
        for node in list(candidate.graph.nodes):
            if _takes_all(node):
                node.replace_all_uses_with(node.args[0])
                candidate.graph.erase_node(node)
        found = [node for node in candidate.graph.nodes if _makes_tensors(node)]
        if [n.target for n in found] == [n.target for n in operators]:
            break
    else:
        raise PlanError("torch.export gives this network another graph each time; its graph cannot be rewritten")
    names = {node: twin.name for node, twin in zip(found, operators)}
    placeholders = {fqn: name for name, fqn in graph.traced.targets.items()}
    given = [n.name for n in graph.traced.graph.nodes if n.op == "placeholder"]
    inputs = iter(name for name in given if name not in graph.traced.targets)
    for node in candidate.graph.nodes:
        if node.op == "get_attr" and node.target in placeholders:
            names[node] = placeholders[node.target]
        elif node.op == "placeholder":
            names[node] = next(inputs)
    return _plain(candidate, names)


def _plain(module: fx.GraphModule, names: dict[fx.Node, str]) -> tuple[fx.GraphModule, dict[fx.Node, str]]:
    plain = fx.GraphModule(module, module.graph)  # whether or not fx copies the graph, its order stays
    return plain, {new: names[old] for old, new in zip(module.graph.nodes, plain.graph.nodes) if old in names}


def _makes_tensors(node: fx.Node) -> bool:
    """Not a question for a size, and not a check."""
    if node.op != "call_function":
        return False
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) or isinstance(value, (list, tuple))


def _takes_all(node: fx.Node) -> bool:
    return (
        node.op == "call_function"
        and node.target is aten.slice.Tensor
        and node.args[2:] in ((0, _EVERYTHING), (None, None), (0, _EVERYTHING, 1), ())
    )


_EVERYTHING = 2**63 - 1  # what torch.export writes for an open end


_MODE_ARGUMENT = {
    aten.batch_norm.default: "training",
    **dict.fromkeys(overloads("dropout", "dropout_", "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
                              "lstm", "gru", "rnn_tanh", "rnn_relu"), "train"),
}  # fmt: skip


def _follow_mode(root: fx.GraphModule) -> None:
    """Read the module's own training flag in place of the literal that the export made of it."""
    nodes = [
        n
        for n in root.graph.nodes
        if n.op == "call_function" and n.target in _MODE_ARGUMENT and not _argument(n, _MODE_ARGUMENT[n.target])
    ]  # what is in training mode at all times (statistics of a weight) stays so
    if not nodes:
        return
    with warnings.catch_warnings(), root.graph.inserting_before(nodes[0]):
        warnings.simplefilter("ignore")  # fx expects a tensor behind an attribute
        mode = root.graph.get_attr("training")
    for node in nodes:
        _set_argument(node, _MODE_ARGUMENT[node.target], mode)


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


def _drop_unread(root: fx.GraphModule, removed: Sequence[Block], graph: ChannelGraph) -> None:
    """Drop the tensors of branches that are gone, and with a module's last parameter its counters."""
    read = {node.target for node in root.graph.nodes if node.op == "get_attr"}
    targets = graph.traced.targets
    owners = {targets[n].rpartition(".")[0] for block in removed for n in block.branch if n in targets}
    for owner in owners:
        m = root.get_submodule(owner)
        for tensors in (m._parameters, m._buffers):
            for leaf in [leaf for leaf in tensors if (f"{owner}.{leaf}" if owner else leaf) not in read]:
                del tensors[leaf]


class _Sizes:
    """Shapes and positions of the pruned network, by node."""

    def __init__(self, graph: ChannelGraph, kept: Kept, names: Mapping[fx.Node, str]) -> None:
        self.graph, self.kept, self.name = graph, kept, names.__getitem__
        self.new = graph.shapes(widths_of(kept))
        self.old = graph.shapes({})

    def shrinks(self, node: fx.Node, dim: int) -> bool:
        return self.new(self.name(node))[dim] != self.old(self.name(node))[dim]

    def until(self, node: fx.Node, dim: int, bound: int) -> int:
        """How many of the first ``bound`` positions of an axis stay."""
        positions = self.graph.positions(self.name(node), dim, self.kept)
        return bound if positions is None else int(np.searchsorted(positions, bound))


def _view(node: fx.Node, sizes: _Sizes) -> None:
    """Sizes that shrink; others (a free batch, -1) stay as they are."""
    old, new = sizes.old(sizes.name(node)), sizes.new(sizes.name(node))
    given = list(node.args[1])
    lead = len(old) - len(given)
    node.args = (node.args[0], [_size(node, g, old[lead + i], new[lead + i]) for i, g in enumerate(given)])


def _size(node: fx.Node, given: Any, old: int, new: int) -> Any:
    if old == new or given == -1:
        return given
    if not isinstance(given, fx.Node):
        return new
    graph = node.graph  # a free batch times something that shrinks (heads): it shrinks in proportion
    with graph.inserting_before(node):
        return graph.call_function(operator.floordiv, (graph.call_function(operator.mul, (given, new)), old))


def _filled(node: fx.Node, sizes: _Sizes) -> None:
    """A tensor of one value takes the sizes of what it meets."""
    place = 1 if "new_" in str(node.target) else 0
    old, new = sizes.old(sizes.name(node)), sizes.new(sizes.name(node))
    given = [_size(node, g, a, b) for g, a, b in zip(node.args[place], old, new)]
    node.args = (*node.args[:place], given, *node.args[place + 1 :])


def _unflatten(node: fx.Node, sizes: _Sizes) -> None:
    dim, parts = _dim(node, sizes, place=1), len(node.args[2])
    node.args = (node.args[0], dim, list(sizes.new(sizes.name(node))[dim : dim + parts]))


def _split(node: fx.Node, sizes: _Sizes) -> None:
    source = node.args[0]
    dim = _dim(node, sizes)
    parts = [int(t.shape[dim]) for t in sizes.graph.traced.nodes[sizes.name(node)].meta["val"]]
    if not sizes.shrinks(source, dim):
        return
    bounds = [sizes.until(source, dim, int(b)) for b in np.cumsum([0, *parts])]
    node.target = aten.split_with_sizes.default
    node.args, node.kwargs = (source, [b - a for a, b in zip(bounds, bounds[1:])], dim), {}


def _dim(node: fx.Node, sizes: _Sizes, place: int = 2) -> int:
    dim = node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)
    return int(dim) % len(sizes.old(sizes.name(node.args[0])))


def _slice(node: fx.Node, sizes: _Sizes) -> None:
    dim = _dim(node, sizes, place=1)
    source = node.args[0]
    if not sizes.shrinks(source, dim):
        return
    size = sizes.old(sizes.name(source))[dim]
    start = node.args[2] if len(node.args) > 2 and node.args[2] is not None else 0
    start = max(start + size, 0) if start < 0 else min(start, size)
    stop = start + sizes.old(sizes.name(node))[dim]  # labelled axes are sliced without steps
    node.target = aten.slice.Tensor
    node.args = (source, dim, sizes.until(source, dim, start), sizes.until(source, dim, stop))
    node.kwargs = {}


def _conv_groups(node: fx.Node, sizes: _Sizes) -> None:
    weight, groups = node.args[1], _argument(node, "groups")
    x = sizes.name(node.args[0])
    channel = len(sizes.old(x)) - (len(sizes.old(sizes.name(weight))) - 2) - 1
    if groups > 1 and sizes.old(x)[channel] == groups:  # depthwise: a group is a channel
        _set_argument(node, "groups", sizes.new(x)[channel])


def _normalized_shape(node: fx.Node, sizes: _Sizes) -> None:
    rank = len(node.args[1])
    node.args = (node.args[0], list(sizes.new(sizes.name(node))[-rank:]), *node.args[2:])


def _attention_scale(node: fx.Node, sizes: _Sizes) -> None:
    """The default scale is that of the head's size; it stays the dense network's."""
    query = _argument(node, "query")
    rank = len(sizes.old(sizes.name(query)))
    if _argument(node, "scale") is None and sizes.shrinks(query, rank - 1):
        _set_argument(node, "scale", sizes.old(sizes.name(query))[-1] ** -0.5)


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
    **dict.fromkeys(overloads("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"), _filled),
    aten.unflatten.int: _unflatten,
    **dict.fromkeys(overloads("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk"), _split),
    **dict.fromkeys(overloads("slice", "narrow"), _slice),
    **dict.fromkeys(overloads("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
                              "conv_transpose3d"), _conv_groups),
    **dict.fromkeys(overloads("layer_norm", "rms_norm"), _normalized_shape),
    aten.scaled_dot_product_attention.default: _attention_scale,
}  # fmt: skip
