"""What a simulation's parts make together, and where simulations are kept, found and refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks.cifar10_resnet56.model import resnet56
from torch import nn

from hwprune.compile.lower import lower
from hwprune.cost import incore, simulated, simulator
from hwprune.cost.assembly import Program
from hwprune.cost.simulated import Simulation, simulate, slowest
from hwprune.costing import Costing, load_target
from hwprune.errors import NoLatency
from hwprune.graph import trace
from hwprune.kernels import candidates, multiply_adds
from hwprune.kernels.schedule import Config
from hwprune.measure import shipped
from hwprune.measure.device import software
from hwprune.measure.estimate import Latency
from hwprune.measure.store import Context, Row, Store
from hwprune.measure.store_text import read, to_text
from hwprune.progress import Silent
from hwprune.target import TargetProfile, load_file, shipped_folder

BOARD = load_file(shipped_folder() / "rpi4.toml")  # 1500 cycles, 12000 bytes of L2 and 5500 of memory a microsecond; 3 us a kernel


def changed(profile: TargetProfile, table: str, **figures) -> TargetProfile:
    return profile.model_copy(update={table: getattr(profile, table).model_copy(update=figures)})


@pytest.mark.parametrize(
    "parts, microseconds",
    [
        (Simulation(1_500_000, 12_000, 0, 0), 1000 + 3),  # computing hides the L2
        (Simulation(1_500, 12_000_000, 0, 0), 1000 + 3),  # and the other way round
        (Simulation(1_500_000, 0, 5_500_000, 0), 1000 + 1000 + 3),  # what is new is waited for
        (Simulation(1_500_000, 0, 0, 11_000_000), 2000 + 3),  # what comes again streams in
    ],
)
def test_parts_of_a_latency(parts, microseconds):
    assert parts.latency_us(BOARD) == pytest.approx(microseconds)


@pytest.mark.parametrize("figure", ["dram_gb_per_s", "l2_gb_per_s"])
@pytest.mark.parametrize("parts", [Simulation(1e5, 10_000_000, 500_000, 3_000_000), Simulation(1e6, 1_000, 0, 0)])
def test_more_bandwidth_is_never_slower(figure, parts):
    faster = changed(BOARD, "memory", **{figure: 3 * getattr(BOARD.memory, figure)})
    assert parts.latency_us(faster) <= parts.latency_us(BOARD)


LOOPS = """
\t.type\tkernel_compute_,@function
kernel_compute_:
    mov x9, #1000
.LBB0_1:
    ldr q1, [x1], #16
    fmla v0.4s, v1.4s, v2.s[0]
    subs x9, x9, #1
    b.ne .LBB0_1
    mov w2, #1600
    bl memset
    ret
"""


@pytest.fixture
def tool_says(monkeypatch):
    """``tool_says(cycles)``: what stands for the profile's tool gives any block that matters so many."""

    def say(cycles: float, unknown=()):
        monkeypatch.setattr(incore, "missing_tool", lambda profile: None)
        monkeypatch.setattr("hwprune.cost.simulated._ASKED", {})
        monkeypatch.setitem(incore._TOOLS, "osaca", lambda loop, profile: (cycles, 0.0, unknown))

    return say


def test_cycles_are_those_of_the_loop_as_often_as_it_runs(tool_says):
    tool_says(7.0, ("fmla v0.4s, v1.4s, v2.s[0]",))
    program = Program(LOOPS)
    cycles, unknown = slowest(program, program.run("kernel_compute_", 2, 4), BOARD)
    # 1000 iterations; 1 + 3 instructions at three a cycle beside them; 1600 bytes at 16 a cycle
    assert cycles == pytest.approx(7000 + 4 / 3 + 100)
    assert unknown == ("fmla v0.4s, v1.4s, v2.s[0]",)


def test_loads_of_whole_vectors_keep_multiply_adds_waiting(tool_says):
    tool_says(1.0)
    program, profile = Program(LOOPS), changed(BOARD, "core", vector_load_cycles=2)
    cycles, _ = slowest(program, program.run("kernel_compute_", 2, 4), profile)
    assert cycles == pytest.approx(3000 + 4 / 3 + 100)


def test_other_processors_are_refused():
    with pytest.raises(NoLatency, match="simulated for aarch64, and target 'x86' is x86_64"):
        simulate(None, load_file(shipped_folder() / "x86.toml"), None)


# --- what is kept -----------------------------------------------------------------------------------------------


def network(width: int = 16):
    """Two convolutions and the copy to the caller's layout."""
    torch.manual_seed(0)
    return lower(trace(nn.Sequential(nn.Conv2d(8, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3)).eval(), torch.randn(1, 8, 8, 8)), BOARD)


@pytest.fixture
def quick(monkeypatch):
    """The tool is here, and each kernel takes 10 us under its second schedule. ``quick``: workloads that were asked for."""
    asked = []

    def best(workload, profile, offered, built, *, cold_constants):
        asked.append(workload.key)
        if workload.output.shape[-1] == 24:
            raise NoLatency("a branch of the kernel depends on data")
        return offered[1], Simulation(7.0 * profile.core.frequency_mhz, 0, 0, 0)

    monkeypatch.setattr(incore, "missing_tool", lambda profile: None)
    monkeypatch.setattr("hwprune.cost.simulated.best", best)
    monkeypatch.setattr(shipped, "shipped_folder", lambda: shipped_folder() / "nowhere")
    return asked


def test_simulations_answer_and_say_so(quick, tmp_path):
    dense = network().workloads()
    with Costing(BOARD, tmp_path / "store.sqlite") as cost:
        assert cost.learns and not cost.measurable
        assert {e.provenance for e in cost.model.predict(dense)} == {"analytic"}
        cost.measure(dense, "tune")
        found = cost.model.predict(dense)
        assert [e.provenance for e in found] == ["simulated"] * 3 and found[0].latency_us == pytest.approx(10.0)
        assert found[0].low_us < 10.0 < found[0].high_us
        assert cost.pick(dense[0]) == candidates(dense[0], BOARD)[1]
        # a width that was not simulated is the analytic model's, calibrated
        assert cost.model.predict(network(12).workloads())[0].provenance == "analytic"


def test_what_was_simulated_is_found_again(quick, tmp_path):
    for _ in range(2):
        with Costing(BOARD, tmp_path / "store.sqlite") as cost:
            cost.measure(network().workloads(), "tune")
    assert len(quick) == len(set(quick)) == 3


def test_another_profile_or_model_is_another_answer(quick, tmp_path, monkeypatch):
    with Costing(BOARD, tmp_path / "store.sqlite") as cost:
        cost.measure(network().workloads())
    with Costing(changed(BOARD, "memory", dram_gb_per_s=6.0), tmp_path / "store.sqlite") as cost:
        assert not cost.model.is_measured(network().workloads()[0])
    monkeypatch.setattr(simulator, "MODEL_VERSION", simulator.MODEL_VERSION + 1)
    with Costing(BOARD, tmp_path / "store.sqlite") as cost:
        assert not cost.model.is_measured(network().workloads()[0])


def test_what_cannot_be_simulated_is_analytic_and_not_tried_again(quick, tmp_path):
    odd = network(24).workloads()
    for _ in range(2):
        with Costing(BOARD, tmp_path / "store.sqlite") as cost:
            cost.measure(odd)
            assert [e.provenance for e in cost.model.predict(odd)] == ["analytic", "simulated", "simulated"]
    assert quick.count(odd[0].key) == 1


def test_without_the_tool_the_analytic_model_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(incore, "missing_tool", lambda profile: "`llvm-mca` is not here")
    with Costing(BOARD, tmp_path / "store.sqlite") as cost:
        assert not cost.learns and cost.model is cost.prior
    assert not (tmp_path / "store.sqlite").exists()


def test_shipped_rows_count_for_the_same_kernels_only(tmp_path, monkeypatch):
    workload = network().workloads()[0]
    context = simulator.context(BOARD, 0)
    config = candidates(workload, BOARD)[0].to_text()
    with_store = Store(tmp_path / "store.sqlite")
    with_store.record(workload, config, context, Latency(50.0, 40.0, 60.0, 0, False), 12, provenance="simulated")
    rows = simulator.Simulator(BOARD, with_store).rows([workload.key, "of no kernel"])
    with_store.close()
    assert [row.provenance for row in rows] == ["simulated"]
    ship(tmp_path, monkeypatch, "rpi4", rows)
    (found,) = simulator.shipped(BOARD, context)
    assert (found.workload, found.config, found.latency.latency_us) == (workload, config, 50.0)
    (same,) = simulator.shipped(BOARD.model_copy(update={"name": "arm", "alias_of": "rpi4"}), context)
    assert same == found
    assert list(simulator.shipped(BOARD, replace(context, software="kernels 0"))) == []
    assert list(simulator.shipped(BOARD, replace(context, threads=2))) == []


def ship(tmp_path, monkeypatch, target, rows):
    folder = tmp_path / "models" / target
    folder.mkdir(parents=True)
    (folder / "net.tsv").write_text(to_text(rows))
    monkeypatch.setattr(shipped, "shipped_folder", lambda: tmp_path / "models")


def test_measurements_that_ship_answer_where_nothing_was_imported(tmp_path, monkeypatch):
    workload = network().workloads()[0]
    config = candidates(workload, BOARD)[0].to_text()
    there = Context("Raspberry Pi 4; 4 cores", BOARD.threads, software(BOARD))
    row = Row(workload, config, there, Latency(50.0, 49.0, 51.0, 9, False), 24)
    ship(tmp_path, monkeypatch, "rpi4", [row, replace(row, context=replace(there, software="kernels 0"), latency=Latency(1.0, 1.0, 1.0, 9, False))])
    said = []

    class Saying(Silent):
        def say(self, text):
            said.append(text)

    with Costing(BOARD, tmp_path / "none.sqlite", Saying()) as cost:
        (estimate,) = cost.model.predict([workload])
        assert (estimate.latency_us, estimate.provenance, cost.pick(workload).to_text()) == (50.0, "measured", config)
        assert not cost.learns
    assert len(said) == 1 and "Raspberry Pi 4" in said[0] and "come with hwprune" in said[0]


def test_arm_is_answered_by_what_ships_for_rpi4():
    assert simulator.context(load_target("arm"), 0) == simulator.context(load_target("rpi4"), 0)


def test_a_search_for_arm_starts_from_what_ships(tmp_path, monkeypatch):
    """Fails when kernels, profile or model changed: then `python -m benchmarks.cost_models` is due."""
    monkeypatch.setattr(incore, "missing_tool", lambda profile: None)
    profile = load_target("arm")
    traced = trace(resnet56().eval(), torch.zeros(1, 3, 32, 32))
    dense = lower(traced, profile)
    with Costing(profile, tmp_path / "store.sqlite", weights_bytes=dense.weight_bytes()) as cost:
        known = [cost.model.is_measured(w) for w in dense.workloads()]
        assert all(known) and {e.provenance for e in cost.model.predict(dense.workloads())} == {"simulated"}
        missing = [w for w in dense.workloads() if cost.simulator._effort(w) < max(n for n, _ in simulator.EFFORTS.values())]
        assert missing == []  # nothing of the dense network is simulated again


# --- which schedule ---------------------------------------------------------------------------------------------


def test_the_fastest_of_those_that_can_be_simulated(monkeypatch):
    a, b, c, d, e = offered = [Config.make("one", n=0), Config.make("two", n=0), *(Config.make("one", n=n) for n in (1, 2, 3))]
    computing, far = {a: 9e5, c: 8e5, d: 2e5, e: 7e5}, {a: 5, c: 3, d: 9, e: 1}
    built = []

    def pretended(workload, profile, config, *, cold_constants):
        built.append(config)
        if config == b:
            raise NoLatency("a branch of the kernel depends on data")
        return Simulation(computing[config], 0, far[config] * 10**6, 0)

    monkeypatch.setattr(simulated, "simulate", pretended)
    monkeypatch.setattr(simulated, "moved", lambda workload, profile, config, cold: (0, far[config] * 10**6, 0))
    monkeypatch.setattr(simulated, "least_us", lambda workload, profile, config: 0.0)
    config, found = simulated.best(None, BOARD, offered, built=4)
    # the first of each rule; of the others those that move least, so that d is never compiled
    assert set(built) == {a, b, c, e} and (config, found.cycles) == (e, 7e5)
    with pytest.raises(NoLatency, match="depends on data"):
        simulated.best(None, BOARD, [b])


def test_what_has_lost_by_its_multiply_adds_alone_is_not_compiled(monkeypatch):
    slow, quick, other = offered = [Config.make("direct"), Config.make("few", n=0), Config.make("few", n=1)]
    built = []

    def pretended(workload, profile, config, *, cold_constants):
        built.append(config)
        return Simulation({quick: 6e5, other: 5e5}[config], 0, 0, 0)

    monkeypatch.setattr(simulated, "simulate", pretended)
    monkeypatch.setattr(simulated, "moved", lambda workload, profile, config, cold: (0, 0, 0))
    monkeypatch.setattr(simulated, "least_us", lambda workload, profile, config: 1000.0 if config == slow else 100.0)
    assert simulated.best(None, BOARD, offered, built=3)[0] == other and built == [quick, other]


def test_winograd_multiplies_least():
    module = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1)).eval()
    (workload,) = (w for w in lower(trace(module, torch.randn(1, 8, 12, 12)), BOARD).workloads() if w.anchor is not None)
    direct, four = (Config.make("conv_lane"), Config.make("winograd", m=4))
    assert multiply_adds(workload, direct) == workload.macs == 12 * 12 * 16 * 8 * 9
    assert multiply_adds(workload, four) == workload.macs / 4
    # 4 cores, a vector of 4 a cycle at 1500 MHz
    assert simulated.least_us(workload, BOARD, direct) == pytest.approx(workload.macs / 16 / 1500)


@pytest.mark.parametrize("path", sorted(shipped.shipped_folder().glob("*/*.tsv")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_shipped_files_are_what_an_export_would_be(path):
    rows, calibrations = read(path)
    assert to_text(rows, calibrations) == path.read_text() and not calibrations
    assert len(rows) > 10 and len({row.workload.key for row in rows}) == len(rows)
    (provenance,) = {row.provenance for row in rows}
    assert provenance == ("measured" if load_target(path.parent.name).architecture == "x86_64" else "simulated")
    assert all(row.latency.low_us <= row.latency.latency_us <= row.latency.high_us for row in rows)
