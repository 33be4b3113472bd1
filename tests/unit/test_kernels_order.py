"""In which order schedules are offered: few are tried, so those few have to differ in what costs tell badly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hwprune import target
from hwprune.compile.lower import lower
from hwprune.graph import trace
from hwprune.kernels import candidates
from hwprune.kernels.common.conv_direct import Geometry, fetch_cycles
from hwprune.kernels.schedule import Config, varied
from hwprune.measure.measurer import EFFORTS

TRIED = EFFORTS["tune"][0]


def product(rows: int, inputs: int, outputs: int, profile):
    """The workload of a linear layer on so many rows that a kernel makes."""
    net = nn.Sequential(nn.Hardswish(), nn.Linear(inputs, outputs)).eval()
    return next(w for w in lower(trace(net, (torch.zeros(1, rows, inputs),)), profile).workloads() if w.macs)


def convolution(channels: int, side: int, profile):
    net = nn.Sequential(nn.Hardswish(), nn.Conv2d(channels, channels, 3, padding=1)).eval()
    return next(w for w in lower(trace(net, (torch.zeros(1, channels, side, side),)), profile).workloads() if w.macs)


def test_variants_of_a_kind_give_way_to_other_kinds():
    a, b = ([Config.make(kind, number=i) for i in range(3)] for kind in "ab")
    offered = [*((1 + i / 1000, "a", config) for i, config in enumerate(a)), *((1.06, "b", config) for config in b)]
    assert varied(offered, 0.05) == [a[0], a[1], b[0], a[2], b[1], b[2]]
    assert varied(offered, 0.0) == [*a, *b]


@pytest.mark.parametrize("inputs, outputs", [(192, 192), (192, 768), (768, 192)])
def test_rows_and_columns_of_a_product_are_both_tried(inputs, outputs):
    profile = target.load("x86-avx512")
    tried = [c for c in candidates(product(197, inputs, outputs, profile), profile)[:TRIED] if c.rule == "gemm"]
    assert {c["split"] for c in tried} == {"rows", "columns"}


def test_threads_share_what_is_larger():
    profile = target.load("x86-avx512")
    many_rows, many_weights = (product(*extents, profile) for extents in ((784, 96, 96), (49, 768, 3072)))
    assert candidates(many_rows, profile)[0]["split"] == "rows"
    assert candidates(many_weights, profile)[0]["split"] == "columns"


def test_what_threads_fetch_from_one_another():
    apart, together = target.load("x86-avx512"), target.load("rpi4")
    g = Geometry(product(196, 96, 64, apart))
    per_cycle = 1e3 * apart.memory.dram_gb_per_s / apart.threads / apart.core.frequency_mhz
    of_others = (apart.threads - 1) / apart.threads
    assert fetch_cycles(g, apart, by_rows=False) == pytest.approx(4 * 196 * 96 * of_others / per_cycle)
    assert fetch_cycles(g, apart, by_rows=True) == pytest.approx(4 * 96 * 64 / 4 * of_others / per_cycle)
    assert not together.memory.l3_bytes and fetch_cycles(g, together, by_rows=False) == 0


def test_partitions_of_winograd_are_all_tried():
    profile = target.load("x86-avx512")
    for channels, side, splits in ((256, 14, {"tiles", "phases"}), (128, 28, {"tiles", "shares", "phases"})):
        tried = [c for c in candidates(convolution(channels, side, profile), profile)[:TRIED] if c.rule == "winograd" and c["m"] == 4]
        assert {c["split"] for c in tried} == splits
