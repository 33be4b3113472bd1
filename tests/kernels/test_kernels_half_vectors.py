"""Products whose last vector is half padding leave that half out, where half a vector takes half the time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compiled_networks import run
from operator_banks import TOLERANCE, exact, randomized, relative_error
from torch import nn

from hwprune import runtime
from hwprune.compile.artifact import build_artifact
from hwprune.compile.lower import lower
from hwprune.errors import Infeasible
from hwprune.graph import trace
from hwprune.kernels import candidates, primfunc
from hwprune.kernels.schedule import Config
from hwprune.measure.verify import kernel_error


class Network(nn.Module):
    """Odd widths in every kind of product: with a border, a residual, an epilogue that runs in a loop, two rows."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 19, 3, 2, 1), nn.Conv2d(19, 19, 1)
        self.third, self.fourth, self.last = nn.Conv2d(19, 36, 3, padding=1), nn.Conv2d(36, 5, 1), nn.Linear(5, 20)

    def forward(self, x):
        y = F.relu(self.first(x))
        y = F.relu6(self.second(y) + y)
        y = self.fourth(F.silu(self.third(y)))
        return self.last(y.mean((2, 3)))


def halving(profile):
    """``profile`` of a core that starts one whole multiply-add in a cycle."""
    return profile.model_copy(update={"core": profile.core.model_copy(update={"fma_per_cycle": 1.0})})


def products(profile):
    network = lower(trace(Network().eval(), (torch.zeros(2, 3, 13, 11),)), profile)
    return network, [w for w in network.workloads() if w.anchor is not None and w.anchor.op in ("conv2d", "dense")]


def halves(workload, profile) -> list[Config]:
    return [c for c in candidates(workload, profile) if c.get("half")]


@pytest.mark.parametrize("lanes", [8, 16])
def test_each_computes_the_same_as_with_the_padding(usable, lanes):
    profile = halving(usable(lanes))
    tried = [(w, c) for w in products(profile)[1] for c in halves(w, profile)[:3]]
    assert len({w.key for w, _ in tried}) >= 3
    for workload, config in tried:
        assert kernel_error(workload, config, profile) < TOLERANCE, config.to_text()


def test_a_network_of_them_computes_what_torch_does(usable, tmp_path):
    profile = halving(usable(8))
    module, x = randomized(Network()), torch.randn(2, 3, 13, 11, generator=torch.Generator().manual_seed(0))
    network, used = lower(trace(module, (x,)), profile), []

    def pick(workload):
        offered = candidates(workload, profile)
        used.append((halves(workload, profile) or offered)[0])
        return used[-1]

    artifact = build_artifact(network, profile, pick, tmp_path / "artifact")
    assert sum(bool(c.get("half")) for c in used) >= 3
    (found,), (expected,) = run(runtime.load(artifact), (x,)), exact(module, (x,))
    assert relative_error(found, expected) < TOLERANCE


def test_a_schedule_that_leaves_out_what_counts_is_refused(usable):
    profile = halving(usable(8))
    whole, half = (
        next(w for w in lower(trace(nn.Sequential(nn.Hardswish(), nn.Conv2d(8, n, 1)), (torch.zeros(1, 8, 6, 6),)), profile).workloads() if w.macs)
        for n in (24, 20)
    )
    assert whole.key != half.key and not halves(whole, profile)
    with pytest.raises(Infeasible):
        primfunc(whole, profile, halves(half, profile)[0])
