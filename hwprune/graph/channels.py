"""ChannelGraph: the pruning groups of a network, what is frozen and why, and the shapes that a choice of widths gives.

    traced ──propagate──▶ labels ──gather──▶ groups
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Callable, Mapping, Sequence

import networkx
import numpy as np

from hwprune.errors import PlanError, UsageError
from hwprune.graph.atoms import Reason
from hwprune.graph.trace import Traced

if TYPE_CHECKING:
    from hwprune.graph.blocks import Block

__all__ = ["AxisSlice", "ChannelGraph", "FrozenAxis", "Group", "Reason", "Terms", "analyze", "widths_of"]


@dataclass(frozen=True)
class AxisSlice:
    """Where the units of a group lie on one axis.

    name : parameter or buffer fqn, or fx node name.
    index : int64 ``[width, multiplicity]``; row u holds the positions along ``dim`` that go with unit u.
    """

    name: str
    dim: int
    index: np.ndarray


@dataclass(frozen=True)
class Group:
    """Units that may be removed one by one, each of them a slice through the same axes with the same multiplicity.

    id : fqn of the first producing module, with a suffix "#2" where that is not unique.
    width : number of units.
    params, values : the slices through parameters and buffers, and through values of the graph.
    producers : (parameter, dim) whose slices make the channel: a convolution's output, its bias, a norm's scale.
    consumers : (parameter, dim) whose slices read it: removing a unit means taking them as zero.
    """

    id: str
    width: int
    params: tuple[AxisSlice, ...]
    values: tuple[AxisSlice, ...]
    producers: tuple[tuple[str, int], ...]
    consumers: tuple[tuple[str, int], ...]

    def slice_of(self, name: str, dim: int) -> AxisSlice:
        """The slice through one parameter axis; KeyError if the group does not touch it."""
        for s in self.params:
            if (s.name, s.dim) == (name, dim):
                return s
        raise KeyError(f"group {self.id!r} does not touch dim {dim} of {name!r}")


@dataclass(frozen=True)
class FrozenAxis:
    """``count`` of the ``total`` indices of a parameter's axis that must stay, for one reason.

    where : module and file:line in the user's source of what freezes them.
    """

    param: str
    dim: int
    count: int
    total: int
    reason: Reason
    detail: str
    where: str


@dataclass(frozen=True)
class Terms:
    """Extent of an axis: ``const + sum(multiplicity * product of the kept units of some groups)``.

    groups : ((group ids, multiplicity), ...); two ids where heads and head dimensions factor one axis.
    labels : layers of int64 [extent, 2], group number (-1: none) and unit of each index. An index stays if no layer
        takes it.
    """

    const: int
    groups: tuple[tuple[tuple[str, ...], int], ...]
    labels: tuple[np.ndarray, ...]


class ChannelGraph:
    """Groups, frozen axes and shapes of one traced network. Build it with ``analyze``."""

    def __init__(
        self,
        traced: Traced,
        groups: tuple[Group, ...],
        frozen: tuple[FrozenAxis, ...],
        axes: Mapping[tuple[str, int], Terms],
        blocks: tuple[Block, ...] = (),
    ) -> None:
        self.traced = traced
        self.groups = groups
        self.frozen = frozen
        self.blocks = blocks
        self._axes = dict(axes)
        self._by_id = {g.id: g for g in self.choices}
        self._block_of = {name: block for block in blocks for name in (block.id, *block.inner)}
        self._number = {g.id: i for i, g in enumerate(groups)}
        self._shapes = {
            node.name: tuple(int(s) for s in node.meta["val"].shape)
            for node in traced.graph.nodes
            if hasattr(node.meta.get("val"), "shape")
        }

    @property
    def choices(self) -> tuple[Group, ...]:
        """All that a plan decides on: the groups, and the residual branches that may go as a whole."""
        return (*self.groups, *self.blocks)

    def removed(self, widths: Mapping[str, int]) -> tuple[Block, ...]:
        """The branches that go: those that keep 0 units.

        Raises
        ------
        PlanError : a group that keeps no unit although a branch that it belongs to stays, or the other way round.
        """
        empty = {name for name, width in widths.items() if width == 0}
        gone = tuple(block for block in self.blocks if block.id in empty)
        explained = {name for block in gone for name in (block.id, *block.inner)}
        for name in empty - explained:
            raise PlanError(f"group {name!r} would keep no unit; at least one of its {self.group(name).width} must stay")
        for name in explained - empty:
            raise PlanError(f"{self._block_of[name].id!r} goes as a whole, so that {name!r} must keep no unit, too")
        return gone

    def group(self, group_id: str) -> Group:
        """The group of that id; PlanError with the nearest ids otherwise."""
        if group_id not in self._by_id:
            near = difflib.get_close_matches(group_id, self._by_id, n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise PlanError(f"the network has no pruning group {group_id!r}{hint}")
        return self._by_id[group_id]

    @cached_property
    def nx(self) -> networkx.Graph:
        """Bipartite graph of axes ``("axis", name, dim)`` and groups ``("group", id)``; an edge's ``multiplicity`` is
        the number of indices per unit. A connected component is a coupling: groups whose sizes meet on some axis."""
        graph = networkx.Graph()
        for group in self.groups:
            graph.add_node(("group", group.id), width=group.width)
            for kind, slices in (("param", group.params), ("value", group.values)):
                for s in slices:
                    graph.add_node(("axis", s.name, s.dim), kind=kind)
                    graph.add_edge(("axis", s.name, s.dim), ("group", group.id), multiplicity=s.index.shape[1])
        for f in self.frozen:
            graph.add_node(("axis", f.param, f.dim), kind="param")
            graph.nodes[("axis", f.param, f.dim)].setdefault("frozen", []).append(f.reason.value)
        return graph

    def couplings(self) -> list[list[str]]:
        """Group ids by connected component of ``nx``, in the order of ``groups``."""
        components = networkx.connected_components(self.nx)
        found = [sorted((n[1] for n in c if n[0] == "group"), key=self._number.__getitem__) for c in components]
        return sorted((c for c in found if c), key=lambda c: self._number[c[0]])

    def shapes(self, widths: Mapping[str, int]) -> Callable[[str], tuple[int, ...]]:
        """Shapes of all nodes, placeholders included, when each group keeps ``widths[id]`` units (absent: all).

        Returns
        -------
        function of an fx node name; O(1) a call, no tensor is touched. KeyError for a node that holds no single tensor.
        Inside of a branch that goes (its groups keep 0 units) they mean nothing.
        """
        kept = {g.id: g.width for g in self.groups}
        for group_id, width in widths.items():
            if not (width == 0 and group_id in self._block_of) and not 1 <= width <= self.group(group_id).width:
                raise PlanError(f"group {group_id!r} has {kept[group_id]} units and cannot keep {width}")
            kept[group_id] = width

        def shape(node_name: str) -> tuple[int, ...]:
            return tuple(
                size if (terms := self._axes.get((node_name, dim))) is None
                else terms.const + sum(m * math.prod(kept[g] for g in ids) for ids, m in terms.groups)
                for dim, size in enumerate(self._shape(node_name))
            )  # fmt: skip

        return shape

    def terms(self, node_name: str, dim: int) -> tuple[int, tuple[tuple[tuple[str, ...], int], ...]]:
        """Size of an axis of a node's value: ``(const, ((group ids, multiplicity), ...))``, see ``Terms``."""
        size = self._shape(node_name)[dim]
        terms = self._axes.get((node_name, dim % len(self._shapes[node_name])))
        return (size, ()) if terms is None else (terms.const, terms.groups)

    def _shape(self, node_name: str) -> tuple[int, ...]:
        if node_name not in self._shapes:
            raise KeyError(f"node {node_name!r} holds no single tensor; ask for the nodes that take its elements")
        return self._shapes[node_name]

    def positions(self, node_name: str, dim: int, kept: Mapping[str, Sequence[int]]) -> np.ndarray | None:
        """Positions along an axis of a node's value that stay, ascending; None where all of them do."""
        terms = self._axes.get((node_name, dim))
        if terms is None or not any(g in kept for ids, _ in terms.groups for g in ids):
            return None
        stays = np.ones(len(terms.labels[0]), dtype=bool)
        for group_id in {g for ids, _ in terms.groups for g in ids if g in kept}:
            unit_stays = np.zeros(self._by_id[group_id].width, dtype=bool)
            unit_stays[np.asarray(kept[group_id], dtype=np.int64)] = True
            for layer in terms.labels:
                own = layer[:, 0] == self._number[group_id]
                stays[own] &= unit_stays[layer[own, 1]]
        return np.flatnonzero(stays)

    def kept_params(self, kept: Mapping[str, Sequence[int]]) -> dict[str, dict[int, np.ndarray]]:
        """Positions that stay: parameter or buffer fqn -> dim -> int64 positions, for the axes that lose something.

        Parameters
        ----------
        kept : group id -> units that stay; absent groups stay whole.

        Raises
        ------
        PlanError : an unknown group, no unit, or units out of range.
        """
        self.check(kept)
        result: dict[str, dict[int, np.ndarray]] = {}
        gone = self.gone(widths_of(kept))
        for node_name, fqn in self.traced.targets.items():
            for dim, size in enumerate(() if node_name in gone else self._shapes.get(node_name, ())):
                positions = self.positions(node_name, dim, kept)
                if positions is not None and len(positions) < size:
                    result.setdefault(fqn, {})[dim] = positions
        return result

    def gone(self, widths: Mapping[str, int]) -> frozenset[str]:
        """Names of the nodes in the branches that go, placeholders included."""
        return frozenset().union(*(block.branch for block in self.removed(widths)))

    def check(self, kept: Mapping[str, Sequence[int]]) -> None:
        """PlanError unless every group exists and keeps units within its width, each once; none only in a branch that
        goes as a whole."""
        self.removed(widths_of(kept))
        for group_id, units in kept.items():
            width = self.group(group_id).width
            units = np.asarray(units)
            if units.size and (units.min() < 0 or units.max() >= width or len(np.unique(units)) != len(units)):
                raise PlanError(f"group {group_id!r} has units 0..{width - 1}, each at most once, not {units.tolist()}")

    def text(self) -> str:
        """Groups and frozen axes as text that diffs well."""
        from hwprune.graph.describe import describe

        return describe(self)


def widths_of(kept: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """How many units each group keeps."""
    return {group_id: len(units) for group_id, units in kept.items()}


def analyze(traced: Traced, freeze: Sequence[str] = ()) -> ChannelGraph:
    """Find the pruning groups of a traced network.

    Parameters
    ----------
    freeze : patterns (``fnmatch``) of modules or parameters whose outputs must keep their size.

    Raises
    ------
    UsageError : a pattern that names nothing.
    """
    from hwprune.graph.blocks import residual_blocks
    from hwprune.graph.factors import with_inner_groups
    from hwprune.graph.gather import gather
    from hwprune.graph.propagate import freeze_by_user, propagate

    labels = propagate(traced)
    unused = freeze_by_user(labels, traced, freeze)
    if unused:
        names = sorted({t.rpartition(".")[0] or t for t in traced.targets.values()})
        near = difflib.get_close_matches(unused[0], names, n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise UsageError(f"--freeze {unused[0]!r} names no module or parameter of the network{hint}")
    groups, frozen, axes = gather(traced, labels)
    if labels.joint:
        inner = propagate(traced, inner=True)
        freeze_by_user(inner, traced, freeze)
        groups, frozen, axes = with_inner_groups(traced, (groups, frozen, axes), gather(traced, inner))
    return ChannelGraph(traced, groups, frozen, axes, residual_blocks(traced, groups, freeze))
