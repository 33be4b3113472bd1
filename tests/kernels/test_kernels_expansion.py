"""A convolution and the depthwise one that reads it in one kernel: all its schedules compute what the two do."""

from __future__ import annotations

import random

import pytest
import torch
from compiled_networks import run
from joined_pairs import PAIRS, Pair, joined, pair
from operator_banks import TOLERANCE, exact, randomized, relative_error
from torch import nn

from hwprune import runtime
from hwprune.compile import ops
from hwprune.compile.artifact import build_artifact
from hwprune.compile.lower import lower
from hwprune.errors import Infeasible
from hwprune.graph import trace
from hwprune.kernels import candidates, primfunc
from hwprune.kernels.common import expansion
from hwprune.kernels.schedule import Config
from hwprune.measure.verify import kernel_error


@pytest.fixture(autouse=True)
def join(monkeypatch):
    """These images are too small to be worth it."""
    monkeypatch.setattr(ops, "is_worth_joining", lambda *_: True)


def network_of(name: str, profile):
    operator, shape, inside = PAIRS[name]
    module = randomized(Pair(operator, inside))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return module, x, lower(trace(module, (x,)), profile)


def some(offered: list[Config], count: int) -> list[Config]:
    """Of each way to share the work the first, and others from all over the list."""
    ways = {(c["split"], c.get("half")): c for c in reversed(offered)}
    return list(dict.fromkeys([*ways.values(), *random.Random(0).sample(list(offered), min(count, len(offered)))]))


@pytest.mark.parametrize("name", PAIRS)
def test_every_way_computes_what_torch_does(usable, tmp_path, name):
    profile = usable(8)
    module, x, network = network_of(name, profile)
    (workload,) = joined(network)
    (expected,) = exact(module, (x,))
    for i, config in enumerate(some(list(candidates(workload, profile)), 1)):
        pick = lambda w, config=config: config if w.key == workload.key else candidates(w, profile)[0]
        artifact = build_artifact(network, profile, pick, tmp_path / str(i))
        (found,) = run(runtime.load(artifact), (x,))
        assert relative_error(found, expected) < TOLERANCE, config.to_text()


@pytest.mark.parametrize("lanes", [4, 16])
@pytest.mark.parametrize("name", ["3x3_stride_2", "stem"])
def test_vectors_of_other_widths(usable, lanes, name):
    profile = usable(lanes)
    (workload,) = joined(network_of(name, profile)[2])
    for config in some(list(candidates(workload, profile)), 2):
        assert kernel_error(workload, config, profile) < TOLERANCE, config.to_text()


@pytest.mark.parametrize(
    "name, in_order", [("3x3_stride_2", True), ("5x5_stride_2_batch", False), ("shortcut", False), ("stem_max_pool", True), ("stem_batch_5x3", False), ("stem", False)]
)
def test_channels_by_lane(usable, name, in_order):
    """As cores multiply that take one lane for all: channels beyond the last whole vector, too."""
    profile = usable(4)
    profile = profile.model_copy(update={"core": profile.core.model_copy(update={"lane_broadcast": True, "in_order": in_order})})
    (workload,) = joined(network_of(name, profile)[2])
    for config in some(list(candidates(workload, profile)), 1):
        assert kernel_error(workload, config, profile) < TOLERANCE, config.to_text()


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("name", PAIRS)
def test_images_of_any_size_have_schedules(usable, lanes, name):
    """One vector of channels on few columns: register tiles are of several rows, but of these kernels."""
    profile = usable(lanes)
    (workload,) = joined(network_of(name, profile)[2])
    assert {c.rule for c in candidates(workload, profile)} == {expansion.name}


def test_one_vector_on_few_columns(usable):
    profile = usable(16)
    for name in ("7x7_taller_than_the_image", "stem_batch_5x3", "average_pool_beyond_the_border"):
        (workload,) = joined(network_of(name, profile)[2])
        for config in some(list(candidates(workload, profile)), 1):
            assert kernel_error(workload, config, profile) < TOLERANCE, f"{name} {config.to_text()}"


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_any_number_of_threads(usable, threads):
    """More threads than panels or rows, too."""
    profile = usable(8).model_copy(update={"threads": threads})
    for name in ("5x5_stride_2_batch", "7x7_taller_than_the_image", "stem"):
        (workload,) = joined(network_of(name, profile)[2])
        for config in some(list(candidates(workload, profile)), 1):
            assert kernel_error(workload, config, profile) < TOLERANCE, f"{name} {config.to_text()}"


def test_half_of_the_last_vector_is_left_out(usable):
    profile = usable(8)
    profile = profile.model_copy(update={"core": profile.core.model_copy(update={"fma_per_cycle": 1.0})})
    module = randomized(nn.Sequential(nn.Hardswish(), pair(12, 44, 3)))
    (workload,) = joined(lower(trace(module, (torch.zeros(1, 12, 9, 9),)), profile))
    halves = [c for c in candidates(workload, profile) if c.get("half")]
    assert len(halves) > 3
    for config in some(halves, 4):
        assert kernel_error(workload, config, profile) < TOLERANCE, config.to_text()
    (whole,) = joined(network_of("3x3", profile)[2])
    with pytest.raises(Infeasible, match="half of the last vector"):
        primfunc(whole, profile, halves[0])


def test_windows_that_leave_vectors_out_are_refused(usable):
    profile = usable(8)
    (workload,) = joined(network_of("3x3", profile)[2])
    params = dict(candidates(workload, profile)[0].params)
    with pytest.raises(Infeasible, match="do not divide into 3"):
        primfunc(workload, profile, Config.make(expansion.name, **{**params, "cov": 2, "vectors": 3}))
