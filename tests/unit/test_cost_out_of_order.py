"""Ports and chains of loops on out-of-order cores, by hand; figures of instructions, from OSACA and from the files beside it."""

from __future__ import annotations

import re

import pytest

from hwprune.cost import out_of_order
from hwprune.cost.operands import accesses
from hwprune.cost.out_of_order import Figures, bounds, busiest, figures_of, form


def uses(*parts: tuple[float, str]) -> Figures:
    return Figures(tuple((cycles, frozenset(ports)) for cycles, ports in parts), 1.0)


@pytest.mark.parametrize(
    "figures, cycles",
    [
        ([uses((1, "1"))] * 3, 3.0),
        ([uses((1, "12"))] * 3, 1.5),
        ([uses((1, "1")), uses((1, "12")), uses((1, "12"))], 1.5),  # the first keeps 1, the others share
        ([uses((1, "1")), uses((1, "1")), uses((1, "12"))], 2.0),  # 1 is full, 2 takes the last
        ([uses((2, "1"), (1, "23")), uses((1, "34"))], 2.0),
        ([], 0.0),
    ],
)
def test_the_busiest_ports_bound_a_loop_that_is_shared_best(figures, cycles):
    assert busiest(figures) == pytest.approx(cycles)


@pytest.mark.parametrize(
    "line, same",
    [
        ("fmla v21.4s, v13.4s, v23.s[3]", "fmla v0.4s, v1.4s, v9.s[0]"),
        ("ldr q5, [x19, #-48]", "ldr q31, [x2, #3604]"),
        ("b.ne .LBB4_46", "b.ne .L"),
        ("str wzr, [x1, #4]", "str w3, [x9, #8]"),
        ("fmov v9.4s, #4.00000000", "fmov v1.4s, #-5.0"),
    ],
)
def test_registers_lanes_and_offsets_make_no_difference(line, same):
    assert form(line) == form(same)


def test_shifts_and_kinds_of_registers_do():
    sums = ["add x0, x1, x2", "add w0, w1, w2", "add x0, x1, x2, lsl #2", "add x0, x1, x2, lsl #7"]
    texts = [*sums, "ldr q0, [x1]", "ldr d0, [x1]"]
    assert len({form(text) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    "line, reads, writes",
    [
        ("fmla v0.4s, v1.4s, v2.s[1]", {"v0", "v1", "v2"}, {"v0": 7}),
        ("ldp q1, q2, [x3], #32", {"x3"}, {"v1": 7, "v2": 7, "x3": 1}),
        ("str q1, [x3, x4]", {"v1", "x3", "x4"}, {}),
        ("str q1, [x3, #16]!", {"v1", "x3"}, {"x3": 1}),
        ("cmp x1, #4", {"x1"}, {"nzcv": 7}),
        ("subs w9, w9, #1", {"x9"}, {"x9": 7, "nzcv": 7}),
        ("b.ne .L", {"nzcv"}, {}),
        ("prfm pldl1keep, [x5, x6]", {"x5", "x6"}, {}),
        ("mov v3.s[1], w2", {"v3", "x2"}, {"v3": 7}),
    ],
)
def test_what_an_instruction_reads_and_writes(line, reads, writes):
    assert accesses(line, 7) == (reads, writes)


pytest.importorskip("osaca")

CHAIN = ["fmla v0.4s, v1.4s, v2.4s", "fmla v0.4s, v3.4s, v4.4s", "subs x9, x9, #1", "b.ne .L"]


def test_a_chain_of_multiply_adds_takes_their_latencies():
    ports, chain, unknown = bounds(CHAIN, "A72", carried=True)
    assert (ports, chain, unknown) == (2.0, 14.0, [])
    assert bounds(CHAIN, "A72", carried=False)[1] == 0.0


def test_independent_multiply_adds_wait_for_none_but_themselves():
    lines = [f"fmla v{n}.4s, v30.4s, v31.4s" for n in range(8)]
    assert bounds(lines, "A72", carried=True)[:2] == (8.0, 7.0)
    assert bounds(lines, "N1", carried=True)[0] == 4.0


#: What Winograd's transforms and the activations of a network consist of beside multiply-adds.
OTHERS = (
    "mov v0.16b, v1.16b", "movi v0.2d, #0000000000000000", "fmov v0.4s, #4.00000000", "fmaxnm v0.4s, v1.4s, v2.4s",
    "ld1r { v0.4s }, [x1], #4", "prfm pldl1keep, [x1, x2]", "ldp s0, s1, [x2, #24]", "add x1, x2, w3, sxtw #2", "movk w1, #3, lsl #16", "mov w1, w2",
)  # fmt: skip


@pytest.mark.parametrize("line", OTHERS)
@pytest.mark.parametrize("model", ["A72", "N1"])
def test_what_winograd_and_activations_use_takes_time(model, line):
    found = figures_of(model, form(line))
    assert found.known and found.latency >= 1 and sum(cycles for cycles, _ in found.uses) >= 0.5


#: What kernels in float16 have beside loads and integers.
HALVES = (
    "fmla v0.8h, v1.8h, v2.h[3]", "fcvtl2 v0.4s, v1.8h", "fcvtn v0.4h, v1.4s", "fadd v0.8h, v1.8h, v2.8h", "fmaxnm v0.8h, v1.8h, v2.8h",
    "fmul v0.8h, v1.8h, v2.8h", "ld1r { v0.8h }, [x1], #2", "ldr h0, [x1, #6]", "str h0, [x1, #2]", "fcvt s0, h1", "dup v0.8h, v1.h[2]",
)  # fmt: skip


@pytest.mark.parametrize("line", HALVES)
def test_what_float16_uses_takes_time(line):
    found = figures_of("N1", form(line))
    assert found.known and found.latency >= 2 and sum(cycles for cycles, _ in found.uses) >= 0.5


def test_what_nobody_knows_is_named():
    strange = "tbx v0.8b, { v1.16b }, v2.8b"
    assert bounds(["fmla v0.4s, v1.4s, v2.4s", strange], "A72", carried=True)[2] == [strange]


@pytest.mark.parametrize("model", ["A72", "N1"])
def test_every_added_figure_has_a_source_and_ports_that_osaca_has(model):
    rows = out_of_order._supplement(model)
    ports = set(out_of_order._osaca(model)[1]._machine_model.get_ports())
    assert len(rows) > 25 and all({p for _, group in figures.uses for p in group} <= ports for _, figures in rows)
    text = (out_of_order.resources.files("hwprune.cost") / f"figures/{model}.tsv").read_text()
    lines = [line.split("\t") for line in text.splitlines() if not line.startswith("#")][1:]
    assert all(re.match(r"LLVM AArch64Sched\w+\.td\b.*\w", source) for *_, source in lines)


def test_osaca_agrees_where_it_is_asked_itself():
    """Ports of a loop as OSACA shares them, in steps of a hundredth of a cycle."""
    others = ["ldr q1, [x1, #16]", "ldp q2, q3, [x2, #32]", "str q0, [x3]", "add x1, x1, #16"]
    lines = [*(f"fmla v{n}.4s, v30.4s, v31.4s" for n in range(6)), *others]
    parser, semantics = out_of_order._osaca("A72")
    kernel = [parser.parse_line(line, number) for number, line in enumerate(lines, 1)]
    semantics.normalize_instruction_forms(kernel)
    semantics.add_semantics(kernel)
    semantics.assign_optimal_throughput(kernel)
    assert bounds(lines, "A72", carried=False)[0] == pytest.approx(max(semantics.get_throughput_sum(kernel)), abs=0.02)
