"""Residual branches: what an addition can do without.

In ``y = x + f(x)`` the branch ``f`` may go as a whole: the addition then gives its other operand, the shortcut. A branch
is all that nobody reads any more once the addition does not read it. It is offered where the shortcut is what the branch
reads (or a projection or rearrangement of it), so that something of every input is left, and where no other branch is
inside of it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import fx

from hwprune.graph.channels import AxisSlice, Group
from hwprune.graph.propagate import matches
from hwprune.graph.rules import aten
from hwprune.graph.trace import Traced

_ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)

#: Parameters and buffers of a shortcut that still counts as a projection of what the branch reads: a layer's and its norm's.
_PROJECTION_PARAMETERS = 6

#: Branches that are added up in a row (attention and feed-forward in parallel) are few.
_MOST_SUMMANDS = 8


@dataclass(frozen=True)
class Block(Group):
    """A residual branch, as a unit that goes or stays: a group of width 1.

    params : what of the branch's parameters lies in no group that is wholly inside the branch, each as one slice.
    addition, shortcut : node names; without the branch the addition's value is the shortcut's.
    branch : names of the nodes that go, placeholders included.
    inner : ids of the groups that lie wholly inside the branch; they go with it.
    """

    addition: str = ""
    shortcut: str = ""
    branch: frozenset[str] = frozenset()
    inner: tuple[str, ...] = ()


def residual_blocks(traced: Traced, groups: Sequence[Group], freeze: Sequence[str] = ()) -> tuple[Block, ...]:
    """The branches that may go, in the order of the graph. Those with a parameter that ``freeze`` names stay."""
    finder = _Finder(traced)
    found = [block for node in traced.graph.nodes if (block := finder.branch(node)) is not None]
    additions = {block.addition for block in found}
    blocks: list[Block] = []
    count: Counter[str] = Counter()
    for block in found:
        targets = [traced.targets[n] for n in block.branch if n in traced.targets]
        if additions & block.branch or any(matches(pattern, t) for pattern in freeze for t in targets):
            continue
        path = traced.source(block.addition).module or "(top)"
        count[path] += 1
        name = f"block:{path}" + (f"#{count[path]}" if count[path] > 1 else "")
        blocks.append(_with_groups(traced, groups, replace(block, id=name)))
    return tuple(blocks)


def without(traced: Traced, blocks: Iterable[Block]) -> Traced:
    """The network without these branches. Node names stay."""
    graph, twins = fx.Graph(), {}
    result = graph.graph_copy(traced.graph, twins)
    graph.output(result).meta = dict(traced.nodes["output"].meta)
    for old, new in twins.items():
        new.name = old.name  # copying renames what is also a name of Python's
    cut(graph, {new: old.name for old, new in twins.items()}, blocks)
    return replace(traced, edited=graph)


def cut(graph: fx.Graph, names: Mapping[fx.Node, str], blocks: Iterable[Block]) -> None:
    """Take the branches out of a graph in which ``names`` says which traced node a node is. Placeholders stay."""
    nodes = {name: node for node, name in names.items()}
    for block in blocks:
        addition, shortcut = nodes[block.addition], nodes[block.shortcut]
        if any(_writes(user, addition) for user in addition.users):
            shortcut = _spared(graph, addition, shortcut)
        addition.replace_all_uses_with(shortcut)
        graph.erase_node(addition)
        nodes[block.addition] = shortcut  # it may be the next one's shortcut
    gone = frozenset().union(*(block.branch for block in blocks))
    for node in reversed(list(graph.nodes)):
        asks = node.op == "call_function" and node not in names and not node.users  # for a size, or checks one
        if node.op != "placeholder" and (names.get(node) in gone or asks):
            graph.erase_node(node)


def _spared(graph: fx.Graph, addition: fx.Node, shortcut: fx.Node) -> fx.Node:
    """What may be read in place of an addition that is written in place: the shortcut, which others read, is not."""
    if len(addition.users) == 1:
        (user,) = addition.users
        functional = getattr(aten, user.target.overloadpacket.__name__.removesuffix("_"), None)
        overload = getattr(functional, user.target._overloadname, None)
        if overload is not None and not overload._schema.is_mutable:
            user.target = overload
            return shortcut
    with graph.inserting_before(addition):
        copied = graph.call_function(aten.clone.default, (shortcut,))
    copied.meta["val"] = addition.meta.get("val")
    return copied


def _writes(node: fx.Node, source: Any) -> bool:
    """Whether ``node`` changes ``source`` in place."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable and node.args[:1] == (source,)


def _memory_of(node: fx.Node) -> fx.Node:
    """The node whose memory this one's value lies in."""
    while True:
        schema = getattr(node.target, "_schema", None)
        shares = schema is not None and any(r.alias_info is not None for r in schema.returns)
        if node.op != "call_function" or not shares or not isinstance(node.args[0], fx.Node):
            return node
        node = node.args[0]


class _Finder:
    def __init__(self, traced: Traced):
        self.traced = traced
        self.order = {node: i for i, node in enumerate(traced.graph.nodes)}
        self.idle: set[fx.Node] = set()  # nothing that they make is read: assertions, writes into views
        for node in reversed(self.order):
            if node.op == "call_function" and all(user in self.idle for user in node.users):
                self.idle.add(node)

    def branch(self, addition: fx.Node) -> Block | None:
        """The branch of an addition, as a block without id and groups; None where it has none."""
        operands = self._operands(addition)
        for end, shortcut in (operands, operands[::-1]) if operands else ():
            gone = self._gone(addition, end, shortcut)
            if not any(n.name in self.traced.targets for n in gone):
                continue
            if any(_writes(n, n.args[0]) and _memory_of(n) not in gone for n in gone if n.args):
                continue
            reads = self._reads(gone)
            if reads & _summands(shortcut) or reads and reads == self._projected(addition, shortcut, end):
                return Block("", 1, (), (), (), (), addition.name, shortcut.name, frozenset(n.name for n in gone))
        return None

    def _operands(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The two operands of a plain addition of equals, the later one first."""
        if node.target not in _ADDITIONS or len(node.args) < 2 or node.kwargs.get("alpha", 1) != 1:
            return ()
        operands = node.args[:2]
        if operands[0] is operands[1] or not all(isinstance(x, fx.Node) and _alike(x, node) for x in operands):
            return ()
        return tuple(sorted(operands, key=self.order.__getitem__, reverse=True))

    def _gone(self, addition: fx.Node, end: fx.Node, shortcut: fx.Node) -> set[fx.Node]:
        """What nobody reads once ``addition`` does not read ``end``: from the end backwards."""
        gone: set[fx.Node] = set()
        waiting: Any = [(-self.order[end], end)]
        seen = {end, shortcut}
        while waiting:
            _, node = heapq.heappop(waiting)
            is_input = node.op == "placeholder" and node.name not in self.traced.targets
            readers = (user for user in node.users if user is not addition and user not in self.idle)
            if is_input or any(user not in gone for user in readers):
                continue
            gone.add(node)
            for source in node.all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    heapq.heappush(waiting, (-self.order[source], source))
        waiting = list(gone)
        while waiting:
            idle = (self.idle & waiting.pop().users.keys()) - gone
            gone |= idle
            waiting += idle
        return gone

    def _reads(self, nodes: set[fx.Node]) -> set[fx.Node]:
        """The activations from outside that they read."""
        return {i for n in nodes for i in n.all_input_nodes if i not in nodes and i.name not in self.traced.targets}

    def _projected(self, addition: fx.Node, shortcut: fx.Node, end: fx.Node) -> set[fx.Node] | None:
        """What a projection on the shortcut reads; None where it is more than a projection."""
        nodes = self._gone(addition, shortcut, end)
        parameters = sum(n.name in self.traced.targets for n in nodes)
        return self._reads(nodes) if parameters <= _PROJECTION_PARAMETERS else None


def _alike(x: fx.Node, y: fx.Node) -> bool:
    a, b = x.meta.get("val"), y.meta.get("val")
    return isinstance(a, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype and a.is_floating_point()


def _summands(node: fx.Node) -> set[fx.Node]:
    """The node, and what it is a sum of: of ``x + f(x) + g(x)`` each branch may go."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting and len(found) < _MOST_SUMMANDS:
        node = waiting.pop()
        if isinstance(node, fx.Node) and node not in found:
            found.add(node)
            waiting += node.args[:2] if node.target in _ADDITIONS else ()
    return found


def _with_groups(traced: Traced, groups: Sequence[Group], block: Block) -> Block:
    """The block with its inner groups, and as params what none of them has, whole."""
    inner = [
        g for g in groups
        if g.values and g.values[0].name in block.branch and all(s.name in block.branch for s in g.values)
    ]  # fmt: skip
    inside = {s.name for g in inner for s in g.params}
    trainable = traced.exported.graph_signature.inputs_to_parameters
    names = [trainable[n] for n in sorted(block.branch) if n in trainable and trainable[n] not in inside]
    sizes = {name: traced.tensor(name).shape[:1] for name in names}
    slices = tuple(AxisSlice(name, 0, np.arange(size[0])[None]) for name, size in sizes.items() if size)
    return replace(block, inner=tuple(g.id for g in inner), params=slices, producers=tuple((s.name, 0) for s in slices))
