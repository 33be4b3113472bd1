"""Winograd's kernels against torch in float64, packed and compiled as a user gets them, and when they are left out."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from compiled_networks import run
from operator_banks import TOLERANCE, exact, randomized, relative_error
from torch import nn

from hwprune import runtime
from hwprune.compile.artifact import build_artifact
from hwprune.compile.lower import lower
from hwprune.graph import trace
from hwprune.kernels import candidates, is_exact, kernel_inputs
from hwprune.kernels.common import winograd


class Block(nn.Module):
    """Convolutions with everything that is fused into them: normalization, residual, activation."""

    def __init__(self, width: int, padding: int, outputs: int):
        super().__init__()
        self.first = nn.Conv2d(3, width, 1)
        self.one = nn.Conv2d(width, outputs, 3, padding=padding, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.two = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x):
        y = F.silu(self.norm(self.one(F.relu(self.first(x)))))
        return F.relu6(self.two(y) + y)


def picker(profile, m: int, split: str):
    """The first Winograd schedule of that kind where one is offered."""

    def pick(workload):
        offered = candidates(workload, profile)
        kind = [c for c in offered if c.rule == "winograd" and (c["m"], c["split"]) == (m, split)]
        return (kind or offered)[0]

    return pick


@pytest.mark.parametrize("split", ["tiles", "phases"])
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize(
    "lanes, batch, size, width, padding, outputs",
    [(8, 1, (13, 11), 19, 1, 37), (8, 2, (8, 12), 16, 0, 24), (16, 1, (7, 9), 33, 2, 48), (4, 3, (6, 5), 7, 1, 5)],
)
def test_winograd_computes_what_torch_does(usable, tmp_path, lanes, batch, size, width, padding, outputs, m, split):
    check(usable(lanes), tmp_path, m, split, batch, size, width, padding, outputs)


@pytest.mark.parametrize(
    "lanes, threads, size, width, padding, outputs, m",
    [(8, 2, (13, 11), 19, 1, 37, 2), (8, 3, (15, 17), 16, 0, 24, 4), (16, 2, (18, 9), 33, 2, 48, 4), (4, 3, (10, 5), 7, 1, 5, 2), (8, 3, (5, 8), 8, 1, 8, 4)],
)
def test_threads_share_tiles_that_rows_cannot_be_cut_into(usable, tmp_path, lanes, threads, size, width, padding, outputs, m):
    profile = usable(lanes).model_copy(update={"threads": threads, "cores": threads})
    check(profile, tmp_path, m, "shares", 1, size, width, padding, outputs)


def check(profile, folder, m, split, batch, size, width, padding, outputs) -> None:
    """Both convolutions of the block by Winograd schedules of that kind, against torch."""
    module, x = randomized(Block(width, padding, outputs)), torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    network = lower(trace(module, (x,)), profile)
    artifact = build_artifact(network, profile, picker(profile, m, split), folder / "artifact")
    used = [k["schedule"] for k in json.loads((artifact / "manifest.json").read_text())["kernels"].values()]
    assert sum((k["rule"], k.get("m"), k.get("split")) == ("winograd", m, split) for k in used) == 2
    (found,), (expected,) = run(runtime.load(artifact), (x,)), exact(module, (x,))
    assert relative_error(found, expected) < TOLERANCE


def convolutions(profile, *modules: nn.Module):
    """The workload of each, on an image of 12 x 12 that a kernel makes."""
    for module in modules:
        channels = module.in_channels
        network = lower(trace(nn.Sequential(nn.Hardswish(), module).eval(), (torch.zeros(1, channels, 12, 12),)), profile)
        yield next(w for w in network.workloads() if w.anchor is not None)


def test_offered_only_where_it_applies(usable):
    profile = usable(8)
    fits, *others = convolutions(
        profile, nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, padding=2, dilation=2),
        nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.Conv2d(32, 32, 5, padding=2), nn.Conv2d(3, 32, 3, padding=1),
    )  # fmt: skip
    assert any(c.rule == "winograd" for c in candidates(fits, profile))
    assert not any(c.rule == "winograd" for w in others for c in candidates(w, profile))


def test_exact_leaves_it_out(usable):
    profile = usable(8)
    (workload,) = convolutions(profile, nn.Conv2d(32, 32, 3, padding=1))
    offered = candidates(workload, profile)
    assert [c for c in offered if is_exact(c)] == list(candidates(workload, profile, exact=True)) != list(offered)


def test_weights_grow_as_said(usable):
    profile = usable(8)
    (workload,) = convolutions(profile, nn.Conv2d(32, 48, 3, padding=1))
    direct = workload.inputs[1].size_bytes
    for config in candidates(workload, profile):
        if config.rule == "winograd":
            assert kernel_inputs(workload, config)[1].size_bytes == direct * {2: 16, 4: 36}[config["m"]] // 9


@pytest.mark.parametrize("m, into, back", [(2, 4, 4), (4, 13, 10)])
def test_operations_of_transforms(m, into, back):
    """As Lavin and Gray share sums: of F(4, 3) a line of the input takes 2 + 4 + 5 + 2, one of the result 4 + 2 + 1 + 1 + 2."""
    assert winograd._rows_operations(winograd._INPUT[m]) == into
    assert winograd._columns_operations(winograd._OUTPUT[m]) == back
