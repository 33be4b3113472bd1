"""Check that a pruned network computes what the dense one computes without the removed units.

Without them means: the slices of all parameters that read a removed unit are taken as zero, a product of two
activations reads the removed positions of its operands as zero, normalizations over a pruned axis take their statistics
over what is kept, and an addition whose branch is gone gives its shortcut. Both networks run in float64 on copies, so
that the comparison has nothing to do with rounding, in eval mode, so that BatchNorm and dropout are plain functions.

The dense side interprets the exported graph, one operator at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import numpy as np
import torch
from torch import fx, nn

from hwprune.errors import ProofError, UsageError
from hwprune.float64 import Double, doubled, float64_by_default, outputs, tensors
from hwprune.graph.channels import ChannelGraph, widths_of
from hwprune.graph.rules import aten, overloads
from hwprune.graph.rules.compare import COMPARED
from hwprune.graph.rules.reduce import OVER_KEPT, named_axes

TOLERANCE = 1e-5  # relative to the largest output; float64 leaves 1e-12 or so


@dataclass(frozen=True)
class ProofReport:
    """relative_error : largest absolute error over the largest absolute value of the dense output."""

    max_abs_error: float
    relative_error: float
    tolerance: float
    passed: bool
    dtype: str = "float64"


def prove(
    dense: nn.Module,
    pruned: nn.Module,
    graph: ChannelGraph,
    kept: Mapping[str, Sequence[int]],
    inputs: Sequence[torch.Tensor] | torch.Tensor | None = None,
    seed: int = 0,
    check: bool = True,
    tolerance: float = TOLERANCE,
) -> ProofReport:
    """Compare ``pruned`` with ``dense`` on the same input.

    Parameters
    ----------
    dense, pruned : not changed; ``dense`` has the parameters of the traced network by name and shape.
    kept : group id -> units that stay, as given to ``prune``.
    inputs : of the shapes of the traced example; by default standard normal values (integers: the example's).
    check : raise ProofError where the error exceeds ``tolerance``; otherwise the report says so.

    Raises
    ------
    ProofError : the outputs differ, in shape or in value.
    UsageError : inputs of other shapes than the network was traced with.
    """
    inputs = _inputs(graph, inputs, seed)
    with torch.no_grad(), float64_by_default():
        expected = _dense_outputs(dense, graph, kept, inputs)
        got = outputs(pruned, inputs)
    if [t.shape for t in got] != [t.shape for t in expected]:
        shapes = [tuple(t.shape) for t in got], [tuple(t.shape) for t in expected]
        raise ProofError(f"the pruned network's outputs have shapes {shapes[0]}, the dense one's {shapes[1]}")
    error = max((float((a - b).abs().max()) for a, b in zip(got, expected) if a.numel()), default=0.0)
    scale = max((float(b.abs().max()) for b in expected if b.numel()), default=0.0)
    relative = error / scale if scale > 0 else error
    passed = bool(relative <= tolerance)  # a NaN does not pass
    if check and not passed:
        raise ProofError(
            f"the pruned network does not compute what it should: its output is off by {error:.3g}, {relative:.3g} of "
            f"the largest value, where {tolerance:g} is allowed; freeze the groups at fault and report the network"
        )
    return ProofReport(error, relative, tolerance, passed)


def _inputs(graph: ChannelGraph, inputs: Any, seed: int) -> list[torch.Tensor]:
    examples = graph.traced.example_inputs
    if inputs is None:
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.randn(x.shape, generator=generator, dtype=torch.float64) if x.is_floating_point() else x
            for x in examples
        ]
    inputs = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    if [x.shape for x in inputs] != [x.shape for x in examples]:
        shapes = [tuple(x.shape) for x in inputs], [tuple(x.shape) for x in examples]
        raise UsageError(f"inputs must have the shapes that the network was traced with, {shapes[1]}, not {shapes[0]}")
    return doubled(inputs)


def _dense_outputs(dense, graph: ChannelGraph, kept, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    own = dict(dense.named_parameters(remove_duplicate=False)) | dict(dense.named_buffers(remove_duplicate=False))
    zeros = _removed(graph, kept)
    exported = graph.traced.exported
    rest = iter(inputs)
    values = []
    for node in graph.traced.graph.nodes:
        if node.op != "placeholder":
            continue
        fqn = graph.traced.targets.get(node.name)
        if fqn is None:
            values.append(next(rest) if isinstance(node.meta.get("val"), torch.Tensor) else node.meta.get("val"))
            continue
        tensor = (own[fqn] if fqn in own else exported.constants[fqn]).detach().cpu()
        tensor = tensor.to(torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for dim, positions in zeros.get(fqn, {}).items():
            tensor.index_fill_(dim, torch.from_numpy(positions), 0)
        values.append(tensor)
    module = fx.GraphModule(exported.graph_module, graph.traced.graph)
    return tensors(_Dense(module, graph, kept).run(*values))


def _removed(graph: ChannelGraph, kept: Mapping[str, Sequence[int]]) -> dict[str, dict[int, np.ndarray]]:
    """Positions of the consumers' slices for the removed units: fqn -> dim -> positions."""
    zeros: dict[str, dict[int, np.ndarray]] = {}
    for group_id, units in kept.items():
        group = graph.group(group_id)
        gone = np.setdiff1d(np.arange(group.width), np.asarray(units, dtype=np.int64))
        for name, dim in group.consumers:
            before = zeros.setdefault(name, {}).get(dim, np.empty(0, dtype=np.int64))
            zeros[name][dim] = np.concatenate([before, group.slice_of(name, dim).index[gone].ravel()])
    return zeros


class _Dense(Double):
    """Runs the dense graph with the statistics of normalizations taken over what is kept."""

    def __init__(self, module: fx.GraphModule, graph: ChannelGraph, kept: Mapping[str, Sequence[int]]) -> None:
        super().__init__(module)
        self._graph, self._kept = graph, kept
        self._gone = graph.gone(widths_of(kept))
        removed = graph.removed(widths_of(kept))
        self._shortcut = {block.addition: graph.traced.nodes[block.shortcut] for block in removed}
        self.extra_traceback = False

    def run_node(self, node: fx.Node) -> Any:
        if node.target is aten._assert_tensor_metadata.default:
            return None  # it asks for the dtype that the network was traced with
        if node.op == "call_function" and node.name in self._gone:
            return None  # the addition that would read it does not
        if node.name in self._shortcut:
            return self.env[self._shortcut[node.name]]
        if node.op == "call_function" and node.target in _STATISTICS:
            axes = {
                dim: positions
                for dim in _STATISTICS[node.target](node)
                if (positions := self._graph.positions(node.name, dim, self._kept)) is not None
            }
            if axes:
                return self._over_kept(node, axes)
        if node.op == "call_function" and node.target in _LAYERS and not self._is_parameter(node.args[1]):
            args, kwargs = self.fetch_args_kwargs_from_env(node)  # a weight that is computed: zero where it is read
            return self.call_function(node.target, (args[0], self._without_removed(node.args[1]), *args[2:]), kwargs)
        if node.op == "call_function" and node.target in OVER_KEPT:
            return self._reduced(node)
        if node.op == "call_function" and node.target in COMPARED:
            return self._compared(node)
        if node.target is aten._weight_norm.default:
            return self._normed_weight(node)
        if node.op == "call_function" and node.target in _PRODUCTS and not self._reads_parameter(node):
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._without_removed)
            return self.call_function(node.target, args, kwargs)
        return super().run_node(node)

    def _reads_parameter(self, node: fx.Node) -> bool:
        """Then its slices are zero already."""
        return any(map(self._is_parameter, node.all_input_nodes))

    def _is_parameter(self, node: fx.Node) -> bool:
        return node.name in self._graph.traced.targets

    def _without_removed(self, node: fx.Node) -> Any:
        """A value with zeros at the removed positions."""
        value = self.env[node]
        if not isinstance(value, torch.Tensor):
            return value
        for dim in range(value.dim()):
            positions = self._graph.positions(node.name, dim, self._kept)
            if positions is not None:
                gone = np.setdiff1d(np.arange(value.shape[dim]), positions)
                value = value.index_fill(dim, torch.from_numpy(gone), 0)
        return value

    def _reduced(self, node: fx.Node) -> Any:
        """A reduction over what is kept of the axes that it reduces."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        names = [argument.name for argument in node.target._schema.arguments]
        x, source = args[0], node.all_input_nodes[0]
        for dim in named_axes({**dict(zip(names, args)), **kwargs}, x.dim()):
            x = self._over_what_stays(x, source, dim)
        return self.call_function(node.target, (x, *args[1:]), kwargs)

    def _over_what_stays(self, x: torch.Tensor, source: fx.Node, dim: int) -> torch.Tensor:
        """``x``, which has the axis ``dim`` of the value of ``source``, without the removed positions along it."""
        positions = self._graph.positions(source.name, dim, self._kept)
        return x if positions is None else x.index_select(dim, torch.from_numpy(positions))

    def _compared(self, node: fx.Node) -> torch.Tensor:
        """A comparison of two operands over what is kept of the axis that it runs over."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        names = [argument.name for argument in node.target._schema.arguments]
        rank = max(x.dim() for x in args[:2])
        axis = {**dict(zip(names, args)), **kwargs}.get("dim", COMPARED[node.target]) % rank - rank
        both = [
            self._over_what_stays(x, source, x.dim() + axis) if x.dim() + axis >= 0 else x
            for x, source in zip(args[:2], node.args)
        ]
        return self.call_function(node.target, (*both, *args[2:]), kwargs)

    def _normed_weight(self, node: fx.Node) -> torch.Tensor:
        """A weight whose length along one axis is that of what is kept along the others."""
        (v, g, *rest), _ = self.fetch_args_kwargs_from_env(node)
        dim, small = rest[0] if rest else 0, v
        for other in range(v.dim()):
            if other != dim:
                small = self._over_what_stays(small, node.args[0], other)
        return v * (g / torch.norm_except_dim(small, 2, dim))

    def _over_kept(self, node: fx.Node, axes: Mapping[int, np.ndarray]) -> torch.Tensor:
        """Take what is kept, normalize, and put it back; removed positions become zero."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        names = [argument.name for argument in node.target._schema.arguments]
        operands = {**dict(zip(names, args)), **kwargs}
        x = operands["input"]
        small = x
        for dim, positions in axes.items():
            small = small.index_select(dim, torch.from_numpy(positions))
        for name in ("weight", "bias"):
            w = operands.get(name)
            if w is not None:
                first = x.dim() - w.dim() if node.target in _LAST_AXES else 1
                for dim, positions in ((d, p) for d, p in axes.items() if 0 <= d - first < w.dim()):
                    w = w.index_select(dim - first, torch.from_numpy(positions))
                operands[name] = w
        operands["input"] = small
        if "normalized_shape" in operands:
            operands["normalized_shape"] = list(small.shape[-len(operands["normalized_shape"]) :])
        result = node.target(**operands)
        grid = np.ix_(*[axes.get(dim, np.arange(size)) for dim, size in enumerate(x.shape)])
        full = torch.zeros_like(x)
        full[tuple(torch.from_numpy(g) for g in grid)] = result
        return full


def _last_axes(node: fx.Node) -> list[int]:
    rank = len(node.meta["val"].shape)
    return list(range(rank - len(node.args[1]), rank))


def _axes_from(node: fx.Node, first: int) -> list[int]:
    return list(range(first, len(node.meta["val"].shape)))


def _own_statistics(node: fx.Node) -> list[int]:
    """The axes over which a BatchNorm takes statistics of its input (weights are standardized so)."""
    return [dim for dim in range(len(node.meta["val"].shape)) if dim != 1] if node.args[5] else []


_PRODUCTS = (
    aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default, aten.baddbmm.default,
    aten.einsum.default, aten.scaled_dot_product_attention.default, aten.tensordot.default, aten.inner.default,
    aten.bilinear.default, aten.addmv.default,
)  # fmt: skip

_LAYERS = frozenset(overloads(
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
))  # fmt: skip

_LAST_AXES = (aten.layer_norm.default, aten.rms_norm.default)

_STATISTICS = {
    aten.layer_norm.default: _last_axes,
    aten.rms_norm.default: _last_axes,
    aten.group_norm.default: lambda node: _axes_from(node, 1),
    aten.instance_norm.default: lambda node: _axes_from(node, 2),
    aten.batch_norm.default: _own_statistics,
}
