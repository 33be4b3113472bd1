"""What both tools are asked to do with a network, and what is written down about it.

A record is a flat dict of JSON values: ``passed``, ``stage`` (the last one entered), ``error`` (None or one sentence),
``parameters``, ``prunable`` and ``removed`` (shares of the parameters), ``proof_error``, ``seconds`` by stage, and
``frozen`` (reason -> number of parameter axes).
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from contextlib import contextmanager
from typing import Any, Callable, Iterator

import numpy as np
import torch
from torch import nn

from benchmarks.coverage.catalog import Network

Announce = Callable[[str], None]


class Stages:
    """Times each stage, and tells which one is running in case it never ends."""

    def __init__(self, announce: Announce) -> None:
        self.announce = announce
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.announce(name)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)


def hwprune(network: Network, record: dict[str, Any], announce: Announce) -> None:
    """Analyze, prune half of every group by magnitude, run, prove, take one training step."""
    from hwprune.graph import analyze, trace
    from hwprune.importance import CRITERIA
    from hwprune.prove import prove
    from hwprune.prune import prune

    stage = Stages(announce)
    record["seconds"] = stage.seconds
    with stage("trace"):
        traced = trace(network.module, network.inputs)
    record["nodes"] = len(traced.graph.nodes)
    with stage("analyze"):
        graph = analyze(traced)
    record["groups"] = len(graph.groups)
    record["frozen"] = _frozen(graph)
    record["prunable"] = prunable(network.module, _positions(graph))
    with stage("score"):
        scores = CRITERIA["l2"].score(graph, None)
        kept = {group: np.sort(np.argsort(-s, kind="stable")[: (len(s) + 1) // 2]).tolist() for group, s in scores.items()}
    with stage("prune"):
        pruned, rewrites = prune(network.module, graph, kept)
    record["rewrites"] = len(rewrites)
    record["as_graph"] = next((str(r.old) for r in rewrites if r.attribute == "forward"), None)
    record["removed"] = removed(network.module, pruned)
    with stage("run"):
        run(pruned, network)
    with stage("prove"):
        record["proof_error"] = prove(network.module, pruned, graph, kept).relative_error
    with stage("train"):
        train_step(pruned, network.inputs)


def _frozen(graph) -> dict[str, int]:
    """Reason and detail -> number of parameter axes with frozen indices."""
    return dict(Counter(f"{f.reason.value}: {f.detail}" for f in graph.frozen).most_common())


def _positions(graph) -> Iterator[tuple[str, int, np.ndarray]]:
    for group in graph.groups:
        for s in group.params:
            yield s.name, s.dim, s.index.ravel()


def prunable(module: nn.Module, slices) -> float:
    """Share of the parameters that lie on a slice that can go: all but those fixed along every axis."""
    parameters = dict(module.named_parameters())
    free: dict[str, list[np.ndarray]] = {}
    for name, dim, positions in slices:
        if name in parameters:
            masks = free.setdefault(name, [np.zeros(size, dtype=bool) for size in parameters[name].shape])
            masks[dim][positions] = True
    total = sum(p.numel() for p in parameters.values())
    stuck = {name: int(np.prod([(~mask).sum() for mask in masks])) for name, masks in free.items()}
    return sum(parameters[name].numel() - rest for name, rest in stuck.items()) / max(total, 1)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def removed(dense: nn.Module, pruned: nn.Module) -> float:
    return 1 - parameters(pruned) / max(parameters(dense), 1)


def tensors(result: Any) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]


def run(module: nn.Module, network: Network) -> None:
    """Same output shapes as the dense network, all finite where the dense ones are."""
    module.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, got = (tensors(m(*[x.clone() for x in network.inputs])) for m in (network.module, module))
    shapes = [tuple(t.shape) for t in expected], [tuple(t.shape) for t in got]
    if shapes[0] != shapes[1]:
        raise RuntimeError(f"outputs of shape {shapes[1]} instead of {shapes[0]}")
    for a, b in zip(expected, got):
        if a.isfinite().all() and not b.isfinite().all():
            raise RuntimeError("the pruned network's output is not finite")


def train_step(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Forward and backward in training mode and one step of SGD; some gradient must not be zero."""
    module.train()
    outputs = [t for t in tensors(module(*[x.clone() for x in inputs])) if t.is_floating_point()]
    loss = sum(t.float().square().mean() for t in outputs)
    loss.backward()
    if not any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters()):
        raise RuntimeError("no parameter has a gradient")
    torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 1e-4).step()
