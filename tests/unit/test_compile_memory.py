"""Placement of activations: what lives together never overlaps."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.compile.memory import ALIGNMENT, Step, aligned, lifetimes, place


@st.composite
def programs(draw):
    """Steps that read inputs and earlier values; the last one makes the network's output."""
    count = draw(st.integers(1, 14))
    steps, known = [], ["in"]
    for i in range(count):
        reads = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))
        steps.append(Step(f"v{i}", draw(st.integers(1, 5000)), tuple(reads)))
        known.append(f"v{i}")
    return steps, {"in": draw(st.integers(4, 1000))}, (f"v{count - 1}",)


def alive_at(steps: list[Step], outside: set[str], now: int) -> list[Step]:
    """Made at or before ``now`` and still read, or being made: by definition, not taken from ``lifetimes``."""
    return [
        step for i, step in enumerate(steps)
        if step.name not in outside and (i == now or i < now and any(step.name in later.reads for later in steps[now:]))
    ]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(programs())
def test_values_alive_together_never_overlap(program):
    steps, inputs, outputs = program
    plan = place(steps, inputs, outputs)
    for now in range(len(steps)):
        ranges = sorted(
            (plan.offsets[s.name], plan.offsets[s.name] + s.size_bytes)
            for s in alive_at(steps, {*inputs, *outputs}, now)
        )
        assert all(end <= start for (_, end), (start, _) in zip(ranges, ranges[1:]))


@settings(max_examples=200, deadline=None)
@given(programs())
def test_offsets_are_aligned_and_inside_the_workspace(program):
    steps, inputs, outputs = program
    plan = place(steps, inputs, outputs)
    assert set(plan.offsets) == {s.name for s in steps} - set(outputs)
    for step in steps:
        if step.name in plan.offsets:
            assert plan.offsets[step.name] % ALIGNMENT == 0
            assert plan.offsets[step.name] + step.size_bytes <= plan.workspace_bytes


@settings(max_examples=200, deadline=None)
@given(programs())
def test_workspace_is_between_what_lives_at_once_and_the_sum_of_all(program):
    steps, inputs, outputs = program
    plan = place(steps, inputs, outputs)
    outside = {*inputs, *outputs}
    live = max(sum(aligned(s.size_bytes) for s in alive_at(steps, outside, now)) for now in range(len(steps)))
    assert live <= plan.workspace_bytes <= sum(aligned(s.size_bytes) for s in steps if s.name not in outside)
    assert plan.peak_bytes == plan.workspace_bytes + inputs["in"] + steps[-1].size_bytes


def test_chain_needs_two_buffers():
    steps = [
        Step("a", 64, ("in",)),
        Step("b", 64, ("a",)),
        Step("c", 64, ("b",)),
        Step("d", 64, ("c",)),
        Step("out", 8, ("d",)),
    ]
    plan = place(steps, {"in": 32}, ("out",))
    assert plan.workspace_bytes == 2 * ALIGNMENT
    assert plan.peak_bytes == 2 * ALIGNMENT + 32 + 8
    assert plan.offsets["a"] == plan.offsets["c"] != plan.offsets["b"]


def test_shortcut_keeps_its_value_alive():
    steps = [Step("x", 64, ("in",)), Step("a", 64, ("x",)), Step("b", 64, ("a",)), Step("out", 8, ("b", "x"))]
    assert lifetimes(steps, {"in", "out"}) == {"x": (0, 3), "a": (1, 2), "b": (2, 3)}
    assert place(steps, {"in": 32}, ("out",)).workspace_bytes == 3 * ALIGNMENT


def test_value_that_nobody_reads_lives_while_it_is_made():
    steps = [Step("a", 64, ("in",)), Step("unread", 64, ("a",)), Step("out", 8, ("a",))]
    plan = place(steps, {"in": 4}, ("out",))
    assert plan.offsets["unread"] != plan.offsets["a"]


def test_network_without_intermediate_values_needs_no_workspace():
    assert place([Step("out", 100, ("in",))], {"in": 20}, ("out",)).workspace_bytes == 0
