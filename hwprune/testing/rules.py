"""The contract of an operator rule: whatever it lets go, the pruned network must still compute.

    class TestMyShuffle(RuleContract):
        def case(self, random):
            groups, size = int(random.integers(2, 4)), int(random.integers(2, 5))
            return RuleCase(lambda x: torch.ops.mine.shuffle(x, groups), inputs=[(2, groups * size, 3)])

pytest then builds small networks around the operator on random shapes: every axis of its inputs is made by a linear
layer, alone or jointly with a neighbour (as heads and head dimensions are), and every axis of its results is read by
one. Random units are removed, and the proof must hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Callable, ClassVar, Sequence

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from hwprune.errors import PlanError
from hwprune.graph import ChannelGraph, Traced, analyze, trace
from hwprune.graph.atoms import Value
from hwprune.graph.propagate import propagate
from hwprune.prove import prove
from hwprune.prune import prune

_WIDTH = 3  # of what the made axes come from, and of what they are read into


@dataclass(frozen=True)
class RuleCase:
    """One use of an operator.

    function : of the inputs and then the parameters; returns a tensor or several.
    inputs : shapes of the activations, axis 0 being the batch.
    parameters : shapes of the operator's weights.
    """

    function: Callable[..., Any]
    inputs: Sequence[tuple[int, ...]]
    parameters: Sequence[tuple[int, ...]] = ()


class RuleContract:
    """Inherit in a class whose name begins with ``Test``, and write ``case``.

    examples : how many random cases are tried.
    removes : whether the rule lets anything go; a rule that holds every axis says False.
    """

    examples: ClassVar[int] = 8
    removes: ClassVar[bool] = True

    def case(self, random: np.random.Generator) -> RuleCase:
        """A use of the operator on shapes drawn from ``random``."""
        raise NotImplementedError(f"{type(self).__name__} must define case(random)")

    def test_labels_fit_the_results(self) -> None:
        for seed in range(self.examples):
            traced = _traced(type(self), seed)
            values = propagate(traced).values
            for node in traced.graph.nodes:
                if isinstance(node.meta.get("val"), torch.Tensor):
                    check_value(values[node.name], traced.shape(node.name), node.name)

    def test_pruned_network_is_proved(self) -> None:
        for seed in range(self.examples):
            graph = analyze(_traced(type(self), seed))
            module = graph.traced.module
            kept = random_units(graph, np.random.default_rng(seed))
            try:
                pruned, _ = prune(module, graph, kept)
            except PlanError as err:
                raise AssertionError(f"case {seed}: the pruned network does not run: {err}") from err
            report = prove(module, pruned, graph, kept, seed=seed, check=False)
            assert report.passed, f"case {seed}: off by {report.relative_error:.3g} with {kept}\n{graph.text()}"

    def test_something_can_go(self) -> None:
        graphs = (analyze(_traced(type(self), seed)) for seed in range(self.examples if self.removes else 0))
        free = [any(s.name.startswith("makers") for g in graph.groups for s in g.params) for graph in graphs]
        assert any(free) or not self.removes, (
            "no unit that reaches the operator can go in any case; does the operator have a rule?"
        )


@lru_cache(maxsize=256)
def _traced(contract: type[RuleContract], seed: int) -> Traced:
    """Case number ``seed`` of a contract in its network."""
    random = np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        case = contract().case(random)
        network = Harness(case, random).eval()
        return trace(network, tuple(torch.randn(_before(shape)) for shape in case.inputs))


def _before(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape from which linear layers make an input of ``shape``."""
    return (shape[0], *[_WIDTH] * (len(shape) - 1))


class Harness(nn.Module):
    """The operator between linear layers on every axis but the batch."""

    def __init__(self, case: RuleCase, random: np.random.Generator) -> None:
        super().__init__()
        self.function = case.function
        self.weights = nn.ParameterList(nn.Parameter(torch.rand(shape) + 0.5) for shape in case.parameters)
        self.makers = nn.ModuleList(
            nn.ModuleList(_Along(a, (_WIDTH,) * len(a), [shape[i] for i in a]) for a in _runs(shape, random))
            for shape in case.inputs
        )
        with torch.no_grad():
            results = self._results([torch.randn(_before(shape)) for shape in case.inputs])
        self.readers = nn.ModuleList(
            nn.ModuleList(_Along((axis,), (size,), [_WIDTH]) for axis, size in enumerate(result.shape) if axis > 0)
            for result in results
        )

    def _results(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        operands = []
        for x, makers in zip(inputs, self.makers):
            for make in makers:
                x = make(x)
            operands.append(x)
        found = tree_leaves(self.function(*operands, *self.weights))
        return [t for t in found if isinstance(t, torch.Tensor) and t.is_floating_point()]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = []
        for y, readers in zip(self._results(inputs), self.readers):
            for read in readers:
                y = read(y)
            outputs.append(y)
        return tuple(outputs)


class _Along(nn.Module):
    """A linear layer over neighbouring axes of extents ``old`` taken together, which become axes of extents ``new``."""

    def __init__(self, axes: Sequence[int], old: Sequence[int], new: Sequence[int]) -> None:
        super().__init__()
        self.axes, self.new = tuple(axes), tuple(new)
        self.linear = nn.Linear(math.prod(old), math.prod(new))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = tuple(range(-len(self.axes), 0))
        x = self.linear(x.movedim(self.axes, last).flatten(last[0]))
        if len(last) > 1:
            x = x.unflatten(-1, self.new)
        return x.movedim(last, self.axes)


def _runs(shape: Sequence[int], random: np.random.Generator) -> list[tuple[int, ...]]:
    """All axes but the batch, one by one, now and then two neighbours together."""
    runs = []
    axis = 1
    while axis < len(shape):
        together = 2 if axis + 1 < len(shape) and random.random() < 0.3 else 1
        runs.append(tuple(range(axis, axis + together)))
        axis += together
    return runs


def random_units(graph: ChannelGraph, random: np.random.Generator) -> dict[str, list[int]]:
    """A random choice of units of each group, at least one, and now and then all."""
    return {
        g.id: sorted(random.choice(g.width, int(random.integers(1, g.width + 1)), replace=False).tolist())
        for g in graph.groups
    }


def check_value(value: Any, shape: tuple[int, ...], name: str) -> None:
    """What a rule returned is of the right shape, and its labels lie on disjoint axes and have their extents."""
    if value is None:
        return
    assert isinstance(value, Value), f"the rule of {name!r} returned {type(value).__name__} instead of a Value"
    assert value.shape == shape, f"the rule of {name!r} says shape {value.shape}, but the operator gives {shape}"
    axes = [a for f in value.fields for a in f.axes]
    assert len(set(axes)) == len(axes), f"the rule of {name!r} labels an axis twice: {axes}"
    for f in value.fields:
        assert list(f.axes) == sorted(f.axes), f"the rule of {name!r} gives axes out of order: {f.axes}"
        extent = tuple(shape[a] for a in f.axes)
        assert f.ids.shape == extent, f"the rule of {name!r} gives labels of shape {f.ids.shape} for extents {extent}"
