"""In-core predictions: loops are found, the core's limits count, and tools that are not here are named."""

from __future__ import annotations

import pytest

from hwprune.cost import incore
from hwprune.cost.in_order import Instruction, cycles_per_iteration, instructions
from hwprune.errors import NoLatency, TargetError
from hwprune.target import TargetProfile, load_file, shipped_folder

NESTED = """
kernel:
    mov x9, xzr
.LBB0_1:
    mov x10, xzr
.LBB0_2:                                // =>  This Inner Loop
    ldr q1, [x1, x10]
    fmla v0.4s, v1.4s, v2.s[0]
    fmla v3.4s, v1.4s, v2.s[1]
    add x10, x10, #16
    cmp x10, #64
    b.ne .LBB0_2
    str q0, [sp, #16]
    add x9, x9, #1
    cmp x9, #4
    b.ne .LBB0_1
.LBB0_3:
    ldr q5, [sp, #32]
    fmla v4.4s, v5.4s, v5.4s
    subs x3, x3, #1
    b.ne .LBB0_3
    ret
"""


def shipped(name: str) -> TargetProfile:
    return load_file(shipped_folder() / f"{name}.toml")


def test_loops_that_hold_no_other_are_found():
    first, second = incore.inner_loops(NESTED, "aarch64")
    assert (first.body[0], first.body[-1], first.multiply_adds) == (".LBB0_2:", "b.ne .LBB0_2", 2)
    assert len(first.instructions) == 6 and first.spills == ()
    assert second.multiply_adds == 1 and second.spills == ("ldr q5, [sp, #32]",)


def test_the_hottest_loop_multiplies_and_adds_most():
    assert incore.hottest_loop(NESTED, shipped("rpi4")).multiply_adds == 2
    with pytest.raises(NoLatency, match="no inner loop"):
        incore.hottest_loop("kernel:\n  ret\n", shipped("rpi4"))


def test_a_small_tile_that_is_unrolled_further_is_not_the_hottest():
    def loop(label: str, accumulators: int, times: int) -> str:
        adds = [f"  fmla v{n}.4s, v30.4s, v31.s[{t}]" for t in range(times) for n in range(accumulators)]
        return "\n".join([f"{label}:", *adds, f"  b.ne {label}"])

    text = "\n".join(["kernel:", loop(".LBB0_1", 4, 2), loop(".LBB0_2", 3, 4), "  ret", ""])
    found = incore.hottest_loop(text, shipped("rpi4"))
    assert (found.accumulators, found.multiply_adds) == (4, 8)
    x86 = incore.Loop(("vfmadd231ps (%rax){1to16}, %zmm1, %zmm2", "vfmadd231ps %zmm3, %zmm1, %zmm2", "vfmadd213ps %zmm3, %zmm1, %zmm4"), "x86_64")
    assert (x86.accumulators, x86.multiply_adds) == (2, 3)


@pytest.fixture
def tool_says(monkeypatch):
    """``tool_says(cycles, latency)``: what stands for the profile's tool says so of any loop."""

    def say(ports: float, latency: float = 0.0):
        monkeypatch.setattr(incore, "missing_tool", lambda profile: None)
        monkeypatch.setitem(incore._TOOLS, "osaca", lambda loop, profile: (ports, latency, ()))

    return say


@pytest.mark.parametrize(
    "ports, latency, cycles",
    [
        (4.0, 0.0, 4.0),
        (1.0, 7.0, 7.0),  # the chain from one iteration to the next
        (0.5, 0.0, 2.0),  # two multiply-adds, and the core starts one a cycle; six instructions at three a cycle
    ],
)
def test_the_largest_bound_counts(tool_says, ports, latency, cycles):
    tool_says(ports, latency)
    found = incore.predict(NESTED, shipped("rpi4"))
    assert found.cycles == cycles and found.fma_fraction == pytest.approx(2 / cycles)


def test_the_front_end_is_a_bound(tool_says):
    tool_says(0.5)
    profile = shipped("rpi4")
    narrow = profile.model_copy(update={"incore": profile.incore.model_copy(update={"instructions_per_cycle": 0.5})})
    assert incore.predict(NESTED, narrow).cycles == 12.0


def test_a_profile_without_a_tool_is_refused():
    with pytest.raises(NoLatency, match=r"target 'x86' has no \[incore\] table"):
        incore.predict(NESTED, shipped("x86").model_copy(update={"architecture": "aarch64"}))


def test_a_tool_that_is_not_here_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoLatency, match="`llvm-mca` is not here; install it .*apt-get install llvm"):
        incore.predict(NESTED, shipped("rpi3"))


def test_osaca_predicts_a_loop_by_hand():
    pytest.importorskip("osaca", reason="the Python package `osaca` is not here: the test extra brings it")
    # two multiply-adds at one a cycle; each waits for the one of the iteration before, seven cycles on an A72
    found = incore.predict(NESTED, shipped("rpi4"))
    assert (found.latency_cycles, found.cycles, found.unknown) == (7.0, 7.0, ())


def test_lines_that_osaca_does_not_know_take_what_the_added_figures_say():
    pytest.importorskip("osaca", reason="the Python package `osaca` is not here: the test extra brings it")
    found = incore.predict_loop(incore.Loop(("adrp x8, :got:__TVMBackendParallelLaunch",), "aarch64", repeats=False), shipped("rpi4"))
    assert found.throughput_cycles == pytest.approx(1 / 2) and found.unknown == ()  # one of two integer pipelines


def test_unknown_tools_are_refused(tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "rpi4"\nname = "mine"\n[incore]\ntool = "guess"\n')
    with pytest.raises(TargetError, match="incore.tool.*guess"):
        load_file(tmp_path / "mine.toml")


# --- in-order issue ---------------------------------------------------------------------------------------------

UNITS = {"LdSt": 1, "FP": 1, "ALU": 2}


def load(text: str, micro_ops: int = 1) -> Instruction:
    return Instruction(text, 4, micro_ops, (("LdSt", float(micro_ops)),))


def fmla(text: str) -> Instruction:
    return Instruction(text, 10, 1, (("FP", 1.0),))


def test_independent_loads_and_multiply_adds_issue_together():
    # four of each, two instructions a cycle: a load goes with a multiply-add that does not need it
    loop = [x for i in range(4) for x in (load(f"ldr q{i}, [x0]"), fmla(f"fmla v{10 + i}.4s, v20.4s, v21.4s"))]
    loop = loop + [fmla(f"fmla v{14 + i}.4s, v20.4s, v21.4s") for i in range(6)]
    assert cycles_per_iteration(loop, UNITS, 2) == 10.0


def test_an_accumulator_waits_for_itself():
    assert cycles_per_iteration([fmla("fmla v0.4s, v20.4s, v21.4s")], UNITS, 2) == 10.0


def test_an_operand_waits_for_its_load():
    # issue at 0, the multiply-add at 4, the next load beside it
    assert cycles_per_iteration([load("ldr q1, [x0]"), fmla("fmla v0.4s, v1.4s, v2.4s")], UNITS, 2) >= 4.0


def test_a_pair_takes_the_unit_twice():
    assert cycles_per_iteration([load("ldp q1, q2, [x0]", 2), load("ldp q3, q4, [x0]", 2)], UNITS, 2) == 4.0


def test_llvm_mcas_report_is_read():
    report = {
        "TargetInfo": {"Resources": ["ALU.\x00", "ALU.\x01", "LdSt"]},
        "CodeRegions": [{
            "Instructions": ["add\tx1, x1, #4", "ldr\tq0, [x1]"],
            "SummaryView": {"DispatchWidth": 2},
            "InstructionInfoView": {"InstructionList": [{"Latency": 3, "NumMicroOpcodes": 1}, {"Latency": 4, "NumMicroOpcodes": 1}]},
            "ResourcePressureView": {"ResourcePressureInfo": [
                {"InstructionIndex": 0, "ResourceIndex": 1, "ResourceUsage": 1},
                {"InstructionIndex": 1, "ResourceIndex": 2, "ResourceUsage": 1},
                {"InstructionIndex": 2, "ResourceIndex": 2, "ResourceUsage": 1},
            ]},
        }],
    }  # fmt: skip
    found, units, width = instructions(report)
    assert units == {"ALU": 2, "LdSt": 1} and width == 2
    assert found == [Instruction("add x1, x1, #4", 3, 1, (("ALU", 1),)), Instruction("ldr q0, [x1]", 4, 1, (("LdSt", 1),))]
