"""Every schedule that a rule offers computes the same: a sample with each split, loop order and tile remainder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from compiled_networks import VARIANTS
from operator_banks import OPERATORS, TOLERANCE, relative_error, sample
from torch import nn

from hwprune.compile.lower import lower
from hwprune.errors import Infeasible
from hwprune.graph import trace
from hwprune.kernels import build, candidates, primfunc, repacked
from hwprune.kernels.schedule import Config
from hwprune.measure.verify import kernel_error


def tried(lanes: int) -> tuple[str, ...]:
    """Operators tried with that vector width: all with the middle one, else those whose loops depend on it most."""
    few = ("conv", "linear", "depthwise", "tokens", "layer_norm", "softmax", "attention", "attention_of_vectors", "matmul")
    return tuple(OPERATORS) if lanes == 8 else few


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
        inputs = [generator.standard_normal(t.shape).astype(t.dtype) for t in workload.inputs]
        results = []
        for i, config in enumerate(configs):
            output = tvm.runtime.tensor(np.full(workload.output.shape, np.nan, np.float32))
            packed = repacked(workload, config)
            operands = [packed[k].transform(x) if k in packed else x for k, x in enumerate(inputs)]
            module[f"{name}_{i}"](*map(tvm.runtime.tensor, operands), output)
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


@pytest.mark.parametrize("lanes", (8, 16))
def test_heads_of_whole_vectors_are_transposed_in_squares(usable, outcomes, lanes):
    profile = usable(lanes)
    squares = [c for c, _ in outcomes(lanes)["attention_of_vectors"] if c.get("squares")]
    assert squares and all(f"float32x{lanes}" in primfunc(workload_of(*OPERATORS["attention_of_vectors"], profile), profile, c).script() for c in squares)
    other = workload_of(*OPERATORS["attention"], profile)  # seven dimensions
    assert not any(c.get("squares") for c in candidates(other, profile))
    with pytest.raises(Infeasible, match="no whole vectors in one piece"):
        primfunc(other, profile, squares[0])


@pytest.mark.parametrize("lanes", VARIANTS)
def test_a_schedule_survives_its_text(usable, lanes):
    profile = usable(lanes)
    for name in tried(lanes):
        for config in candidates(workload_of(*OPERATORS[name], profile), profile)[:3]:
            assert Config.from_text(config.to_text()) == config


def test_a_relative_s_schedule_that_leaves_channels_out_is_infeasible(usable):
    profile = usable(8)
    workload = workload_of(nn.Conv2d(40, 40, 3, padding=1, groups=40), (1, 40, 9, 7), profile)
    offered = candidates(workload, profile)[0]
    config = Config.make(offered.rule, **{**dict(offered.params), "cov": 3})  # of five vectors
    assert offered.rule == "depthwise"
    with pytest.raises(Infeasible):
        primfunc(workload, profile, config)


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 2)])
def test_input_that_no_near_cache_holds_is_fetched_a_row_ahead(usable, kernel, stride):
    profile = usable(8)
    operator = nn.Conv2d(24, 24, kernel, stride, kernel // 2, groups=24)
    workload = workload_of(operator, (1, 24, 17, 19), profile)
    far = profile.model_copy(update={"memory": profile.memory.model_copy(update={"l2_bytes": 4096})})
    assert not any(c.get("ahead") for c in candidates(workload, profile))
    ahead = [c for c in candidates(workload, far) if c.get("ahead")]
    assert {(c["split"], c["order"]) for c in ahead} == {(s, o) for s in ("rows", "channels") for o in ("cy", "yc")}
    for config in ahead[:6]:
        assert "llvm.prefetch" in primfunc(workload, far, config).script()
        assert kernel_error(workload, config, far) < TOLERANCE


@pytest.mark.parametrize(
    "operator, width",
    [
        (nn.Conv2d(24, 24, 3, padding=1, groups=24), 7), (nn.Conv2d(24, 24, 5, 2, 2, groups=24), 17), (nn.Conv2d(24, 24, 7, padding=3, groups=24), 4),
        (nn.Conv2d(24, 24, 3, padding=2, dilation=2, groups=24), 9), (nn.MaxPool2d(3, 2, 1), 11),
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), 8),
    ],
)  # fmt: skip
def test_columns_at_the_border_are_computed_with_their_neighbours(usable, operator, width):
    profile = usable(8)
    workload = workload_of(operator, (2, 24, 6, width), profile)
    edges = [c for c in candidates(workload, profile) if c.get("edges")]
    assert {c["split"] for c in edges} == {"rows", "channels"}
    for config in [*edges[:2], *edges[-2:]]:
        assert kernel_error(workload, config, profile) < TOLERANCE, config.to_text()


def test_rows_of_many_tiles_keep_the_border_apart(usable):
    profile = usable(8)
    narrow, wide = (workload_of(nn.Conv2d(24, 24, 3, padding=1, groups=24), (1, 24, 4, width), profile) for width in (13, 60))
    config = next(c for c in candidates(narrow, profile) if c.get("edges"))
    assert not any(c.get("edges") for c in candidates(wide, profile))
    assert not any(c.get("edges") for c in candidates(workload_of(nn.Conv2d(24, 24, 3, groups=24), (1, 24, 9, 9), profile), profile))
    with pytest.raises(Infeasible, match="more than 3 tiles"):
        primfunc(wide, profile, config)
