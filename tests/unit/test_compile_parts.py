"""Batches in parts: how many, for which networks, and what of it calls, memory and programs see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hwprune import target
from hwprune.compile.artifact import network_program
from hwprune.compile.emit_c import INPUT, OUTPUT
from hwprune.compile.lower import lower
from hwprune.compile.parts import best_parts, lower_batch, trace_in_parts
from hwprune.graph import analyze, trace
from hwprune.kernels import candidates
from hwprune.search.tables import NetworkView, grids

PROFILE = target.load("x86")


class Net(nn.Module):
    """Wide images, few weights: what it moves is activations."""

    def __init__(self, size: int = 16):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(32, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def with_caches(l2_bytes: int, l3_bytes: int):
    memory = PROFILE.memory.model_copy(update={"l2_bytes": l2_bytes, "l3_bytes": l3_bytes})
    return PROFILE.model_copy(update={"memory": memory})


def test_a_batch_whose_activations_leave_the_caches_runs_in_parts_that_fit():
    network = lower(trace(Net().eval(), torch.zeros(16, 3, 64, 64)), PROFILE)
    largest = max(2 * w.output.size_bytes for w in network.workloads())
    fitting = with_caches(largest, 0)
    assert best_parts(network, fitting) == 1
    cached = with_caches(largest // 8 // PROFILE.threads + 4096, 0)
    parts = best_parts(network, cached)
    assert parts > 1 and largest / parts <= cached.threads * cached.memory.l2_bytes


def test_constants_that_leave_the_caches_are_read_once_for_the_whole_batch():
    class Heavy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4)))

        def forward(self, x):
            return self.layers(x)

    assert best_parts(lower(trace(Heavy().eval(), torch.zeros(16, 1024)), with_caches(1 << 17, 0)), with_caches(1 << 17, 0)) == 1


def test_parts_are_whole_lines_of_memory():
    """An output of 10 numbers: parts of 1, 2, 4 images would begin in the middle of a line."""
    network = lower(trace(Net(10).eval(), torch.zeros(16, 3, 64, 64)), PROFILE)
    assert best_parts(network, with_caches(1 << 16, 0)) in (1, 2)


@pytest.mark.parametrize("module", [nn.Softmax(0), nn.Flatten(0)])
def test_a_network_that_mixes_images_runs_whole(module):
    body, profile = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)], with_caches(1 << 20, 0)
    x = torch.zeros(16, 3, 64, 64)
    assert trace_in_parts(nn.Sequential(*body).eval(), x, profile)[1] > 1
    traced, parts = trace_in_parts(nn.Sequential(*body, module).eval(), x, profile)
    assert parts == 1 and traced.example_inputs[0].shape[0] == 16


def in_parts():
    profile = with_caches(1 << 20, 0)
    network = lower_batch(Net().eval(), torch.zeros(16, 3, 64, 64), profile)
    assert network.parts > 1
    return network, profile


def test_each_part_reads_and_writes_its_own_images_and_reuses_the_memory_of_the_last():
    network, profile = in_parts()
    one = lower(network.traced, profile)
    assert len(network.calls) == network.parts * len(one.calls) and len({c.name for c in network.calls}) == len(network.calls)
    assert network.memory().workspace_bytes == one.memory().workspace_bytes
    program = network_program(network, profile, lambda w: candidates(w, profile)[0])
    ends = {space: sorted({a.at for c in program.calls for a in c.arguments if a.space == space}) for space in (INPUT, OUTPUT)}
    images = 16 // network.parts
    assert ends[INPUT] == [k * images * 4 * 3 * 64 * 64 for k in range(network.parts)]
    assert ends[OUTPUT] == [k * images * 4 * 16 for k in range(network.parts)]
    assert program.facts.inputs == (16 * 3 * 64 * 64,) and program.facts.outputs == (16 * 16,)
    assert len(program.kernels) == len({w.key for w in one.workloads()})


def test_the_search_sees_every_part():
    network, profile = in_parts()
    view = NetworkView(network, analyze(network.traced))
    one = NetworkView(lower(network.traced, profile), view.graph)
    groups = [view.graph.groups[0].id]
    widths = [torch.tensor([16, 32]).numpy()]
    found, expected = grids(view, groups, widths), grids(one, groups, widths)
    assert len(found) == network.parts * len(expected) and found[: len(expected)] == expected
    assert sum(w.macs for w in view.workloads({groups[0]: 16})) == network.parts * sum(w.macs for w in one.workloads({groups[0]: 16}))
