"""Torch-Pruning on the same networks: uniform 50 %, group magnitude, the layers that make the output ignored.

What it did is read off the tensors that it leaves, so that the same columns can be filled: each slice of a pruned
weight is found again in the dense weight by its values.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, Iterator

import numpy as np
import torch
from torch import nn

from benchmarks.coverage.catalog import Network
from benchmarks.coverage.measure import Announce, Stages, prunable, removed, run, tensors, train_step

RATIO = 0.5
_NORMS_OF_KEPT = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def torch_pruning(network: Network, record: dict[str, Any], announce: Announce) -> None:
    """Build the dependency graph, prune, run, prove where that can be said, take one training step."""
    warnings.simplefilter("ignore")
    import torch_pruning as tp

    stage = Stages(announce)
    record["seconds"] = stage.seconds
    module = copy.deepcopy(network.module)
    twins = dict(zip(network.module.modules(), module.modules()))
    ignored = [twins[m] for m in network.outputs]
    with stage("analyze"):
        pruner = tp.pruner.BasePruner(
            module, network.inputs, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=RATIO,
            ignored_layers=ignored,
        )  # fmt: skip
        record["groups"] = sum(1 for _ in pruner.DG.get_all_groups(
            ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types))
        record["prunable"] = prunable(network.module, _slices(pruner, network.module))
    with stage("prune"):
        for group in pruner.step(interactive=True):
            group.prune()
    record["removed"] = removed(network.module, module)
    with stage("run"):
        run(module, network)
    with stage("prove"):
        record["proof_error"] = proof_error(network, module)
    with stage("train"):
        train_step(module, network.inputs)


def _slices(pruner, dense: nn.Module) -> Iterator[tuple[str, int, np.ndarray]]:
    """Every axis of a weight that lies in a group of more than one index."""
    names = {id(m): name for name, m in pruner.model.named_modules()}
    own = dict(dense.named_parameters())
    for group in pruner.DG.get_all_groups(
        ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
    ):
        for dep, positions in group:
            target = dep.target.module
            if id(target) not in names:
                continue
            made = pruner.DG.is_out_channel_pruning_fn(dep.handler)
            prefix = names[id(target)] + "." if names[id(target)] else ""
            for leaf, parameter in target.named_parameters(recurse=False):
                name = prefix + leaf
                if name not in own or parameter.dim() == 1 and not made:
                    continue
                transposed = isinstance(target, nn.modules.conv._ConvTransposeNd)
                dim = 0 if parameter.dim() == 1 else int(made == transposed)
                indices = np.asarray([int(i) for i in positions])
                yield name, dim, indices[indices < own[name].shape[dim]]


# -- proof


def proof_error(network: Network, pruned: nn.Module) -> float | None:
    """Relative error against the dense network whose removed inputs are zero, in float64.

    None where it cannot be told: a slice that is not found again, a grouped convolution that was pruned, a free
    parameter that was pruned, or statistics over a pruned axis.
    """
    dense = copy.deepcopy(network.module)
    modules = dict(pruned.named_modules())
    for path, m in dense.named_modules():
        twin = modules.get(path)
        if twin is None or isinstance(m, nn.MultiheadAttention):
            return None
        for leaf, tensor in m.named_parameters(recurse=False):
            after = getattr(twin, leaf)
            if after.shape == tensor.shape:
                continue
            if isinstance(m, _NORMS_OF_KEPT) or not _is_layer(m):
                return None
        if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)) and twin.weight.shape != m.weight.shape:
            transposed = isinstance(m, nn.modules.conv._ConvTransposeNd)
            axis = 0 if transposed else 1
            if getattr(m, "groups", 1) > 1:
                if m.weight.shape[axis] != twin.weight.shape[axis] or m.groups != m.in_channels:
                    return None
                continue
            gone = _gone(m.weight.detach(), twin.weight.detach(), axis)
            if gone is None:
                return None
            m.weight.data.index_fill_(axis, torch.from_numpy(gone), 0)
    inputs = [x.double() if x.is_floating_point() else x for x in network.inputs]
    with torch.no_grad():
        expected, got = (tensors(copy.deepcopy(m).double().eval()(*inputs)) for m in (dense, pruned))
    error = max(float((a - b).abs().max()) for a, b in zip(expected, got))
    scale = max(float(a.abs().max()) for a in expected)
    return error / scale if scale else error


def _is_layer(m: nn.Module) -> bool:
    return isinstance(m, (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.PReLU, nn.Embedding))


def _gone(dense: torch.Tensor, pruned: torch.Tensor, axis: int) -> np.ndarray | None:
    """Positions along ``axis`` that are left out, found by the values of the first line along it; None if it is not
    found, or holds a value twice."""
    lines = dense.movedim(axis, -1).reshape(-1, dense.shape[axis])
    line = pruned.movedim(axis, -1).reshape(-1, pruned.shape[axis])[0]
    for candidate in (lines == line[0]).any(1).nonzero().flatten().tolist():
        values, places = np.unique(lines[candidate].numpy(), return_index=True)
        found = np.searchsorted(values, line.numpy()).clip(max=len(values) - 1)
        if (values[found] == line.numpy()).all() and len(np.unique(found)) == len(found):
            return np.setdiff1d(np.arange(dense.shape[axis]), places[found])
    return None
