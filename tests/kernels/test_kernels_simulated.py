"""Kernels simulated end to end, from their schedule to microseconds. Nothing is run."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from benchmarks.incore import convolution, profile_of
from joined_pairs import joined
from torch import nn

from hwprune.compile import ops
from hwprune.compile.lower import lower
from hwprune.cost.assembly import Program
from hwprune.cost.incore import missing_tool
from hwprune.cost.simulated import Simulation, best, simulate
from hwprune.graph import trace
from hwprune.kernels import build, candidates, primfunc
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import Workload

#: 61 outputs are 16 vectors, 37 inputs leave a tail: 19 columns do not divide into tiles.
SHAPE = (37, 61, 3, 19)


def counted(profile: TargetProfile, shape=SHAPE) -> list[int]:
    """Vector multiply-adds of each thread."""
    workload = convolution(*shape, profile)
    return _multiply_adds(workload, candidates(workload, profile, exact=True)[0], profile)


def _multiply_adds(workload: Workload, config: Config, profile: TargetProfile) -> list[int]:
    program = Program(build({"kernel": primfunc(workload, profile, config)}, profile).inspect_source("s"))
    total: Counter = Counter()
    for region in program.run("kernel_compute_", len(workload.inputs) + 1, profile.threads):
        for number, thread in enumerate(region.threads):
            adds = {label: sum(line.startswith("fmla") for line in block.lines) for label, block in program.blocks.items()}
            total[number] += sum(adds[label] * n for label, n in thread.counts.items())
    return list(total.values())


@pytest.mark.parametrize("core", ["A53", "A72", "A76"])
def test_every_multiply_add_is_counted(core):
    # channels beyond 61 up to 16 vectors are computed, rows and columns beyond 19 are not
    assert sum(counted(profile_of(core))) == 19 * 19 * 9 * 37 * 16


@pytest.mark.parametrize("core", ["A53", "A72", "A76"])
def test_multiply_adds_of_joined_convolutions_are_those_of_both(core, monkeypatch):
    """By channels, no row is made twice; taps outside of the image are left out. 40 channels are ten vectors."""
    monkeypatch.setattr(ops, "is_worth_joining", lambda *_: True)
    profile = profile_of(core)
    pair = nn.Sequential(nn.Hardswish(), nn.Conv2d(18, 40, 1), nn.ReLU6(), nn.Conv2d(40, 40, 3, padding=1, groups=40))
    (workload,) = joined(lower(trace(pair.eval(), torch.zeros(1, 18, 11, 13)), profile))
    shared = [c for c in candidates(workload, profile) if c["split"] == "channels"]
    for config in (shared[0], shared[-1]):
        expected = 10 * (11 * 13 * 18 + (3 * 11 - 2) * (3 * 13 - 2))
        assert sum(_multiply_adds(workload, config, profile)) == expected, config.to_text()


def one(core: str, **core_figures) -> tuple[TargetProfile, Simulation]:
    profile = profile_of(core)
    profile = profile.model_copy(update={"core": profile.core.model_copy(update=core_figures)})
    missing = missing_tool(profile)
    if missing:
        pytest.skip(f"NOT CHECKED on {core}: {missing}")
    workload = convolution(*SHAPE, profile)
    return profile, simulate(workload, profile, candidates(workload, profile, exact=True)[0])


@pytest.mark.parametrize("core, most", [("A53", 2.0), ("A72", 1.6)])  # the A53 waits for loads of whole vectors
def test_a_kernel_takes_as_long_as_its_slowest_thread_computes(core, most):
    profile, found = one(core)
    least = max(counted(profile)) / profile.core.fma_per_cycle
    assert least <= found.cycles <= most * least
    # all of it fits into the last cache; a core fetches its input and its part of the rest
    assert (found.new_bytes, found.again_bytes) == (0, 0) and found.near_bytes > 19 * 19 * 37 * 4 / profile.threads
    assert found.latency_us(profile) >= found.cycles / profile.core.frequency_mhz


def test_cold_constants_come_from_memory():
    profile = profile_of("A53")
    if missing_tool(profile):
        pytest.skip(f"NOT CHECKED: {missing_tool(profile)}")
    workload = convolution(*SHAPE, profile)
    config = candidates(workload, profile, exact=True)[0]
    assert simulate(workload, profile, config, cold_constants=True).new_bytes == pytest.approx(workload.weight_bytes, abs=128)


def latencies(profile: TargetProfile, widths) -> list[float]:
    """Microseconds of the convolution at each number of outputs, under its best schedule by simulation."""
    if missing_tool(profile):
        pytest.skip(f"NOT CHECKED: {missing_tool(profile)}")
    found = []
    for width in widths:
        workload = convolution(32, width, 3, 14, profile)
        found.append(best(workload, profile, candidates(workload, profile, exact=True)[:6], 2)[1].latency_us(profile))
    return found


def test_wider_is_never_much_faster():
    narrow, middle, wide = latencies(profile_of("A53"), (16, 32, 64))
    assert narrow < middle < wide and wide < 5 * narrow


def test_threads_share_the_work_in_whole_tasks():
    four = profile_of("A53")
    ((alone,), (together,)) = (latencies(four.model_copy(update={"threads": n}), (64,)) for n in (1, 4))
    assert 2.5 < alone / together <= 4.0
