"""Blocks of assembly are counted as often as they run: by hand, and as a plain interpreter would."""

from __future__ import annotations

import pytest

from hwprune.cost.assembly import Program
from hwprune.errors import NoLatency


def function(body: str, name: str = "kernel_compute_") -> str:
    return f"\t.type\t{name},@function\n{name}:\n{body}\n\t.size\t{name}, 1\n"


def counts(body: str, threads: int = 1) -> dict[str, int]:
    (region,) = Program(function(body)).run("kernel_compute_", 2, threads)
    (alone,) = region.threads
    return {label: n for label, n in alone.counts.items() if label.startswith(".") and "+" not in label}


NESTED = """
    mov x9, xzr
.LBB0_1:
    mov x10, xzr
    add x11, x9, #3
.LBB0_2:
    ldr q1, [x1, x10]
    fmla v0.4s, v1.4s, v2.s[0]
    add x10, x10, #1
    cmp x10, x11
    b.ne .LBB0_2
    add x9, x9, #1
    cmp x9, #1000
    b.ne .LBB0_1
    ret
"""


def test_trip_counts_that_depend_on_the_loop_around():
    # the inner loop runs 3, 4, ... 1002 times
    assert counts(NESTED) == {".LBB0_1": 1000, ".LBB0_2": sum(range(3, 1003))}


@pytest.mark.parametrize(
    "last, times",
    [
        ("subs x9, x9, #4\n b.ne .LBB0_1", 250),
        ("subs w9, w9, #7\n b.gt .LBB0_1", 143),  # 1000 / 7, rounded up
        ("sub x9, x9, #1\n cbnz x9, .LBB0_1", 1000),
        ("add x10, x10, #16\n cmp x10, x9\n b.lo .LBB0_1", 63),
        ("add x10, x10, #16\n cmp x10, x9\n b.ls .LBB0_1", 63),
        ("add w10, w10, #1\n cmp w10, w9, lsr #1\n b.lt .LBB0_1", 500),
        ("sub x9, x9, #8\n tbz x9, #63, .LBB0_1", 126),  # until it is negative
    ],
)
def test_ends_of_loops(last, times):
    assert counts(f"    mov w9, #1000\n    mov x10, xzr\n.LBB0_1:\n    fmla v0.4s, v1.4s, v2.4s\n {last}\n    ret") == {".LBB0_1": times}


def test_long_loops_are_solved_not_run():
    assert counts("    mov x9, #1\n    lsl x9, x9, #40\n.LBB0_1:\n    subs x9, x9, #1\n    b.ne .LBB0_1\n    ret") == {".LBB0_1": 1 << 40}


def test_a_loop_whose_step_changes_is_run():
    assert counts("    mov x9, #1\n.LBB0_1:\n    lsl x9, x9, #1\n    cmp x9, #1024\n    b.ne .LBB0_1\n    ret") == {".LBB0_1": 10}


def test_integers_survive_the_stack_and_selections():
    body = """
    sub sp, sp, #32
    mov w8, #5
    str x8, [sp, #8]
    stp x8, xzr, [sp, #16]
    ldr w9, [sp, #8]
    cmp w9, #4
    mov w10, #9
    csel w9, w10, w9, gt
    csinc w9, w9, wzr, gt
.LBB0_1:
    subs w9, w9, #1
    b.ne .LBB0_1
    add sp, sp, #32
    ret
"""
    assert counts(body) == {".LBB0_1": 9}


PARALLEL = function(
    """
    adrp x8, :got:__TVMBackendParallelLaunch
    ldr x8, [x8, :got_lo12:__TVMBackendParallelLaunch]
    ldr x8, [x8]
    adrp x0, .L__tvm_parallel_lambda
    add x0, x0, :lo12:.L__tvm_parallel_lambda
    mov x1, sp
    mov w2, wzr
    blr x8
    ret
"""
) + function(
    """
    ldr w8, [x1, #8]
    add w9, w8, #9
    sdiv w9, w9, w8
    mul w8, w9, w0
    add w9, w9, w8
    cmp w9, #10
    mov w10, #10
    csel w9, w9, w10, lt
    cmp w8, w9
    b.ge .LBB1_3
.LBB1_2:
    movi v0.2d, #0
    add w8, w8, #1
    cmp w8, w9
    b.ne .LBB1_2
.LBB1_3:
    mov w0, wzr
    ret
""",
    ".L__tvm_parallel_lambda",
)


@pytest.mark.parametrize("threads, tasks", [(1, [10]), (2, [5, 5]), (4, [3, 3, 3, 1]), (3, [4, 4, 2])])
def test_ten_tasks_among_threads(threads, tasks):
    _, region = Program(PARALLEL).run("kernel_compute_", 2, threads)
    assert [t.counts.get(".LBB1_2", 0) for t in region.threads] == tasks


def test_copies_by_the_library_are_counted():
    (region,) = Program(function("    mov w2, #4440\n    bl memset\n    ret")).run("kernel_compute_", 2, 1)
    assert region.threads[0].copied_bytes == 4440


@pytest.mark.parametrize(
    "body, why",
    [
        ("    bl expf\n    ret", "calls 'expf'"),
        ("    fcmp s0, s1\n    b.gt .LBB0_1\n.LBB0_1:\n    ret", "depends on data"),
        ("    clz x1, x2\n    ret", "'clz x1, x2' is not known"),
        (".LBB0_1:\n    b .LBB0_1", "more than"),
    ],
)
def test_what_is_not_known_is_refused(body, why, monkeypatch):
    monkeypatch.setattr("hwprune.cost.assembly.MOST_STEPS", 1000)
    with pytest.raises(NoLatency, match=why):
        counts(body)


def test_a_function_that_is_not_there_is_named():
    with pytest.raises(NoLatency, match="no function 'kernel_compute_'"):
        Program("").run("kernel_compute_", 1, 1)
