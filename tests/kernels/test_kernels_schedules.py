"""Every schedule that a rule offers computes the same: a sample with each split, loop order and tile remainder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from compiled_networks import TOLERANCE, VARIANTS, relative_error
from torch import nn

from hwprune.compile.lower import lower
from hwprune.graph import trace
from hwprune.kernels import build, candidates, primfunc
from hwprune.kernels.schedule import Config

class Attention(nn.Module):
    """Three heads of seven dimensions out of one value."""

    def forward(self, x):
        q, k, v = x.reshape(*x.shape[:2], 3, 3, 7).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v)


class Products(nn.Module):
    def forward(self, x):
        return x @ x.transpose(1, 2)


#: name -> (operator, its input); the input is made by a kernel before it
OPERATORS = {
    "conv": (nn.Sequential(nn.Conv2d(19, 64, 3, padding=1), nn.ReLU()), (1, 19, 12, 14)),
    "conv_prime_width": (nn.Conv2d(7, 32, 3, padding=1), (2, 7, 8, 13)),
    "conv_stride": (nn.Conv2d(32, 64, 3, 2, 1), (1, 32, 16, 16)),
    "conv_1x1": (nn.Conv2d(24, 64, 1), (1, 24, 8, 8)),
    "conv_groups": (nn.Conv2d(32, 64, 3, padding=1, groups=2), (1, 32, 8, 8)),
    "linear": (nn.Sequential(nn.Linear(37, 64), nn.GELU()), (6, 37)),
    "depthwise": (nn.Conv2d(32, 32, 3, padding=1, groups=32), (1, 32, 12, 12)),
    "pool": (nn.MaxPool2d(3, 2, 1), (1, 32, 12, 12)),
    "global_pool": (nn.AdaptiveAvgPool2d(1), (1, 64, 7, 5)),
    "elementwise": (nn.SiLU(), (2, 19, 9, 7)),
    "tokens": (nn.Sequential(nn.Linear(37, 120), nn.GELU()), (2, 29, 37)),
    "layer_norm": (nn.LayerNorm(37), (2, 29, 37)),
    "softmax": (nn.Softmax(-1), (2, 29, 37)),
    "attention": (Attention(), (2, 29, 3 * 3 * 7)),
    "matmul": (Products(), (2, 29, 37)),
}


def tried(lanes: int) -> tuple[str, ...]:
    """Operators tried with that vector width: all with the middle one, else those whose loops depend on it most."""
    return tuple(OPERATORS) if lanes == 8 else ("conv", "linear", "depthwise", "tokens", "layer_norm", "softmax", "attention", "matmul")


_SAMPLE = 6


def sample(offered: list[Config]) -> list[Config]:
    """The first, one of each value of each parameter that is a choice, and some from all over the list."""
    picked = [offered[0]]
    for parameter in ("split", "order", "nv"):
        values = {dict(c.params).get(parameter): c for c in reversed(offered)}
        picked += list(values.values())
    picked += offered[:: max(1, len(offered) // 3)]
    return list(dict.fromkeys(picked))[:_SAMPLE]


def workload_of(operator: nn.Module, shape, profile):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.operator = operator

        def forward(self, x):
            return self.operator(F.hardswish(x))

    network = lower(trace(Network().eval(), (torch.zeros(shape),)), profile)
    chosen = [w for w in network.workloads() if not any(op.op in ("relayout", "hardswish") for op in w.ops)]
    return (chosen or [w for w in network.workloads() if any(op.op == "silu" for op in w.ops)])[0]


@pytest.fixture(scope="module")
def outcomes(usable):
    """``outcomes(lanes)``: operator -> [(schedule, result)] of the sampled schedules, all built in one module."""
    made: dict[int, dict] = {}

    def of(lanes: int) -> dict:
        if lanes not in made:
            made[lanes] = _outcomes(usable(lanes))
        return made[lanes]

    return of


def _outcomes(profile) -> dict[str, list[tuple[Config, np.ndarray]]]:
    cases, functions = {}, {}
    for name in tried(profile.lanes):
        workload = workload_of(*OPERATORS[name], profile)
        configs = sample(list(candidates(workload, profile)))
        cases[name] = (workload, configs)
        functions |= {f"{name}_{i}": primfunc(workload, profile, c) for i, c in enumerate(configs)}
    module = build(functions, profile)
    generator = np.random.default_rng(0)
    found = {}
    for name, (workload, configs) in cases.items():
        inputs = [tvm.runtime.tensor(generator.standard_normal(t.shape).astype(t.dtype)) for t in workload.inputs]
        results = []
        for i, config in enumerate(configs):
            output = tvm.runtime.tensor(np.full(workload.output.shape, np.nan, np.float32))
            module[f"{name}_{i}"](*inputs, output)
            results.append((config, output.numpy()))
        found[name] = results
    return found


@pytest.mark.parametrize("lanes, name", [(lanes, name) for lanes in VARIANTS for name in tried(lanes)])
def test_every_schedule_computes_the_same(outcomes, lanes, name):
    (first, expected), *others = outcomes(lanes)[name]
    assert np.isfinite(expected).all()
    for config, result in others:
        assert relative_error(result, expected) < TOLERANCE, f"{config.to_text()} differs from {first.to_text()}"


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_the_sample_holds_every_way_to_share_the_work(usable, outcomes, name):
    profile = usable(8)
    splits = {c["split"] for c, _ in outcomes(8)[name]}
    assert splits == {c["split"] for c in candidates(workload_of(*OPERATORS[name], profile), profile)}
    assert "rows" in splits


@pytest.mark.parametrize("lanes", VARIANTS)
def test_a_schedule_survives_its_text(usable, lanes):
    profile = usable(lanes)
    for name in tried(lanes):
        for config in candidates(workload_of(*OPERATORS[name], profile), profile)[:3]:
            assert Config.from_text(config.to_text()) == config
