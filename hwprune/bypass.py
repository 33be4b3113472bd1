"""Take residual branches out of a module: what is left of the module that holds one stands in for it.

That works where nothing is left but the shortcut, a child that projects it, and an activation after it. Whoever calls
this compares the result with the pruned graph; where it does not work, that graph is the result.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, Sequence

from torch import fx, nn

from hwprune.graph.blocks import Block
from hwprune.graph.channels import ChannelGraph
from hwprune.graph.rules import aten
from hwprune.graph.trace import Traced

#: Activations without a module of their own in the user's code.
_ACTIVATIONS: dict[Any, type[nn.Module]] = {
    aten.relu.default: nn.ReLU, aten.relu_.default: nn.ReLU, aten.silu.default: nn.SiLU, aten.silu_.default: nn.SiLU,
    aten.hardswish.default: nn.Hardswish, aten.hardswish_.default: nn.Hardswish, aten.gelu.default: nn.GELU,
}  # fmt: skip

#: Module path, what changed, what was there, what is there now.
Row = tuple[str, str, str, str]


def bypass(module: nn.Module, graph: ChannelGraph, blocks: Sequence[Block]) -> tuple[list[Row], str | None]:
    """Replace, in place, the modules that hold ``blocks``: what was replaced, and why not all, if so."""
    traced = graph.traced
    holders: dict[str, list[Block]] = {}
    for block in blocks:
        holder = _holder(traced, block)
        if not holder:
            return [], f"no module of its own holds {block.id}"
        holders.setdefault(holder, []).append(block)
    rows = []
    for path, own in holders.items():
        old = module.get_submodule(path)
        rest = _rest(traced, path, own, old)
        if rest is None:
            return [], f"{path}: computes more than a shortcut without {', '.join(b.id for b in own)}"
        parent, _, name = path.rpartition(".")
        module.get_submodule(parent)._modules[name] = rest
        rows.append((path, "module", type(old).__name__, type(rest).__name__))
    return rows, None


def _paths(node: fx.Node) -> list[str]:
    """The modules in which a node runs, the network itself first."""
    return [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def _holder(traced: Traced, block: Block) -> str:
    """The innermost module that runs the addition and all of the branch; empty if that is the network."""
    computed = [n for name in block.branch if (n := traced.nodes[name]).op == "call_function"]
    for path in reversed(_paths(traced.nodes[block.addition])):
        if all(path in _paths(n) for n in computed):
            return path
    return ""


def _rest(traced: Traced, path: str, blocks: Sequence[Block], holder: nn.Module) -> nn.Module | None:
    """What a module computes without its branches: nothing, or a child of it, and an activation at most."""
    gone = frozenset().union(*(block.branch for block in blocks)) | {block.addition for block in blocks}
    nodes = [n for n in traced.graph.nodes if n.op == "call_function" and path in _paths(n) and n.name not in gone]
    parts: dict[str, nn.Module] = {}  # children keep their names, so that parameters do
    while nodes and (child := _child(nodes[0], path)) is not None:
        inside = [n for n in nodes if _child(n, path) == child]
        if inside != nodes[: len(inside)]:
            return None
        parts[child] = _not_in_place(holder.get_submodule(child))
        nodes = nodes[len(inside) :]
    for node in nodes:
        if node.target not in _ACTIVATIONS or len(node.args) > 1 or node.kwargs:
            return None
        parts["activation"] = _ACTIVATIONS[node.target]()
    if set(parts) <= {"activation"}:
        return parts.get("activation", nn.Identity())
    return nn.Sequential(OrderedDict(parts))


def _not_in_place(m: nn.Module) -> nn.Module:
    """The shortcut is read by others, and its maker's gradient may need its value."""
    if not getattr(m, "inplace", False):
        return m
    m = copy.copy(m)
    m.inplace = False
    return m


def _child(node: fx.Node, path: str) -> str | None:
    """Name of the child of module ``path`` in which a node runs; None if it runs in the module itself."""
    paths = _paths(node)
    below = paths[paths.index(path) + 1 :]
    return below[0].removeprefix(f"{path}.").split(".")[0] if below else None
