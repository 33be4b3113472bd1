"""Loops of one block that are counted from their text, against executing every iteration."""

from __future__ import annotations

import pytest

from hwprune.cost import assembly
from hwprune.cost.assembly import Program
from hwprune.cost.steps import even_steps

HEAD = "\t.type\tk,@function\nk:\n    mov x9, #{start}\n    mov x1, #4096\n    mov x2, #{end}\n.LBB0_1:\n"


def steps(*lines: str):
    return even_steps([*lines])


def test_counters_and_addresses_move_evenly():
    found = steps("ldr q1, [x1], #16", "fmla v0.4s, v1.4s, v2.4s", "add x11, x1, #64", "subs x9, x9, #2", "b.ne .LBB0_1")
    assert dict(found.registers) == {1: 16, 9: -2} and found.flags == -2


def test_what_is_compared_with_a_moving_end_nears_it_by_both():
    assert steps("add x1, x1, #16", "sub x2, x2, #16", "cmp x1, x2", "b.ne .LBB0_1").flags == 32


@pytest.mark.parametrize(
    "lines",
    [
        ("lsl x1, x1, #1", "subs x9, x9, #1", "b.ne .L"),  # doubles
        ("add x1, x1, x2", "subs x9, x9, #1", "b.ne .L"),  # not a constant
        ("str x9, [sp, #8]", "subs x9, x9, #1", "b.ne .L"),  # may be read again
        ("bl memcpy", "subs x9, x9, #1", "b.ne .L"),
        ("ldr x9, [x1], #8", "cmp x9, #3", "b.ne .L"),  # depends on data
        ("ands x9, x9, #7", "b.ne .L"),
        ("subs x9, x9, #1", "cbnz x9, .L"),
        ("add w4, w4, #1", "subs x9, x9, #1", "b.ne .L"),  # wraps around within 32 bits
        ("mov x3, x4", "mov x4, x5", "subs x9, x9, #1", "b.ne .L"),
    ],
)
def test_whatever_else_happens_is_not_even(lines):
    assert steps(*lines) is None


LOOPS = [
    ("subs x9, x9, #1", "b.ne .LBB0_1"),
    ("ldr q0, [x1], #16", "add x9, x9, #3", "cmp x9, x2", "b.lo .LBB0_1"),
    ("sub x9, x9, #7", "cmp x9, #10", "b.gt .LBB0_1"),
    ("add x9, x9, x9, lsl #1", "cmp x9, x2", "b.lo .LBB0_1"),
    ("mov x0, x1", "mov w2, #48", "bl memset", "subs x9, x9, #1", "b.ne .LBB0_1"),
]


@pytest.mark.parametrize("loop", LOOPS, ids=lambda lines: lines[-2])
@pytest.mark.parametrize("start", [1, 2, 3, 5, 1000])
def test_as_many_iterations_as_when_each_is_executed(loop, start, monkeypatch):
    text = HEAD.format(start=start, end=5000) + "".join(f"    {line}\n" for line in loop) + "    ret\n"
    quick = Program(text).run("k", 0, 1)
    monkeypatch.setattr(assembly._Machine, "_skip", lambda *given: None)
    assert quick == Program(text).run("k", 0, 1)
