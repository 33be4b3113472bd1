"""What the probe prints becomes a profile whose figures agree with what was measured, each with its source."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hwprune import target
from hwprune.cli import app
from hwprune.errors import CompileError, DataError, TargetError
from hwprune.measure.probe_program import build
from hwprune.measure.probe_results import base_for, calmest, from_text, profile_of
from hwprune.target_text import to_toml


def rate(best: float) -> dict:
    return {"best": best, "median": 0.9 * best}


def reach(one: float, both: float | None) -> dict:
    return {"one_core": rate(one), "all_threads": None if both is None else rate(both)}


#: A Cortex-A72 of 1.5 GHz as a probe would see it: one vector of four a cycle, so 12 GFLOP/s a core.
A72 = {
    "format": 1, "architecture": "aarch64", "processor": "BCM2711", "part": "0x41/0xd08", "features": "fp asimd evtstrm crc32 cpuid",
    "isa": "neon", "vector_bits": 128, "cores": 4, "threads": 4, "rounds": 50, "clock_mhz": rate(1500.0), "fma_latency_ns": 2.0,
    "peak_gflops": reach(11.8, 46.4),
    "read_gb_per_s": {"l1": reach(23.0, 92.0), "l2": reach(9.5, 20.0), "l3": None, "dram": reach(4.0, 5.0)},
    "copy_gb_per_s": {"l1": reach(23.0, 92.0), "l2": reach(9.5, 20.0), "l3": None, "dram": reach(4.0, 5.0)},
    "launch_us": 1.1, "kernel_us": 1.25, "network_us": 0.5, "caches_told": False,
    "caches": {"l1d_bytes": 32768, "l2_bytes": 1048576, "l3_bytes": 0}, "plateaus_bytes": [32768, 1048576],
    "latency_curve": [[8192, 2.7], [16384, 2.7]],
}  # fmt: skip


def results(**other):
    data = copy.deepcopy(A72) | other
    return from_text(json.dumps({key: value for key, value in data.items() if value is not ...}), "probe.json")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def profile(**other):
    found = results(**other)
    return profile_of(found, base_for(found), "board", "2026-01-02")


def test_figures_are_what_was_measured() -> None:
    made = profile()
    assert (made.core.fma_per_cycle, made.core.fma_latency_cycles) == (1.0, 3)  # 11.8 / (2 x 4 x 1.5) = 0.98; 2 ns at 1.5 GHz
    assert made.core.frequency_mhz == 1450.0  # 46.4 GFLOP/s / (4 threads x 4 lanes x 2)
    assert made.peak_flops == pytest.approx(46.4e9)
    memory = made.memory
    assert (memory.l1_gb_per_s, memory.l2_gb_per_s, memory.l3_gb_per_s, memory.dram_gb_per_s) == (23.0, 9.5, None, 5.0)
    assert (memory.l1d_bytes, memory.l2_bytes, memory.l3_bytes) == (32768, 1048576, 0)
    assert (made.overhead.kernel_us, made.overhead.network_us) == (1.25, 0.5)
    assert (made.cores, made.threads, made.name, made.alias_of) == (4, 4, "board", None)


def test_every_figure_says_where_it_is_from() -> None:
    made = profile()
    assert made.unsourced() == []
    assert made.source["memory.dram_gb_per_s"] == "measured by hwprune-probe on BCM2711, 2026-01-02"
    assert made.source["memory.l2_bytes"] == "seen in the latency of loads by hwprune-probe on BCM2711, 2026-01-02"
    assert made.source["core.vector_registers"].startswith("profile rpi4: ")
    assert "integer adds ran at 1500 MHz" in made.source["core.frequency_mhz"]
    assert "overhead" not in made.source
    told = profile(caches_told=True).source["memory.l2_bytes"]
    assert told == "told by the system to hwprune-probe on BCM2711, 2026-01-02"


def test_a_line_of_another_size_is_the_probe_s_to_tell() -> None:
    made = profile(caches=A72["caches"] | {"line_bytes": 128})
    assert made.memory.line_bytes == 128 and made.unsourced() == [] and made.digest() != profile().digest()
    assert made.source["memory.line_bytes"] == "told by the system to hwprune-probe on BCM2711, 2026-01-02"
    assert profile().memory.line_bytes == 64


def test_of_a_third_cache_that_others_use_too_what_loads_find_there_counts() -> None:
    """Loads on two cores of a server whose third cache has 32 MiB, of which this virtual machine gets about five."""
    caches = {"l1d_bytes": 32768, "l2_bytes": 1048576, "l3_bytes": 33554432}
    shared = [(1048576, 8.6), (2965760, 14.2), (4194304, 15.5), (5931584, 41.6), (8388608, 104.6), (33554432, 146.0), (94906240, 161.2)]
    whole = [(1048576, 8.6), (2965760, 14.2), (4194304, 15.5), (33554432, 21.0), (94906240, 161.2)]
    made = profile(caches=caches, latency_curve=shared)
    assert made.memory.l3_bytes == results(caches=caches, latency_curve=shared).third_cache_bytes() == 5931584
    assert made.source["memory.l3_bytes"].endswith("the system tells of 33554432 bytes") and made.unsourced() == []
    for curve in (whole, whole[:4], []):  # all of it; loads that did not get beyond it; none
        assert results(caches=caches, latency_curve=curve).third_cache_bytes() == 33554432
    assert results(latency_curve=shared).third_cache_bytes() == 0


def test_written_profile_reads_back_equal(folder: Path) -> None:
    (folder / "board.toml").write_text(to_toml(profile()))
    read = target.load("board.toml")
    assert read == profile() and read.unsourced() == []


def test_starts_that_no_processor_has_are_kept_as_measured() -> None:
    made = profile(peak_gflops=reach(16.8, 46.4))
    assert made.core.fma_per_cycle == 1.4
    assert made.peak_flops == pytest.approx(46.4e9, rel=1e-3)


def test_what_the_probe_could_not_see_stays_the_base_profile_s() -> None:
    unseen = {"l1": {"one_core": None, "all_threads": None}, "l2": None, "l3": None, "dram": reach(4.0, 5.0)}
    made, base = profile(caches={"l1d_bytes": 0, "l2_bytes": 0, "l3_bytes": 0}, read_gb_per_s=unseen), target.load("rpi4")
    assert (made.memory.l1d_bytes, made.memory.l2_bytes, made.memory.l2_gb_per_s) == (32768, 1048576, base.memory.l2_gb_per_s)
    assert made.source["memory.l2_bytes"] == f"profile rpi4: {base.source['memory.l2_bytes']}"
    assert made.unsourced() == []


def test_without_the_network_the_launch_counts() -> None:
    made = profile(kernel_us=None, network_us=None)
    assert made.overhead.kernel_us == 1.1
    assert made.source["overhead"].startswith("profile rpi4: assumption")


@pytest.mark.parametrize(
    ("part", "base"), [("0x41/0xd03", "rpi3"), ("0x41/0xd08", "rpi4"), ("0x41/0xd0b", "rpi5")]
)
def test_base_of_a_known_core(part: str, base: str) -> None:
    assert base_for(results(part=part)).name == base


@pytest.mark.parametrize(("bits", "base"), [(512, "x86-avx512"), (256, "x86")])
def test_base_of_an_instruction_set(bits: int, base: str) -> None:
    features = "sse2 fma avx2 avx512f avx512bw avx512cd avx512dq avx512vl"
    assert base_for(results(architecture="x86_64", part="", features=features, vector_bits=bits)).name == base


def test_unknown_core_is_not_guessed() -> None:
    with pytest.raises(TargetError, match="no shipped profile is known to fit the processor 0x41/0xfff .*--extends"):
        base_for(results(part="0x41/0xfff"))


def test_base_of_another_architecture_is_refused() -> None:
    with pytest.raises(TargetError, match="aarch64 with vectors of 128 bits, but target 'x86' is x86_64 with 256"):
        profile_of(results(), target.load("x86"), "board", "2026-01-02")


def test_no_probe_for_a_gpu(folder: Path) -> None:
    with pytest.raises(CompileError, match="'h100' is a GPU"):
        build(target.load("h100"), folder / "hwprune-probe")


def test_disturbance_is_seen() -> None:
    assert not results().disturbed
    assert results(peak_gflops=reach(11.8, 20.0)).disturbed


def test_emulator_is_seen() -> None:
    assert not results().emulated
    emulated = results(features="fpu sse2 avx2")
    assert emulated.emulated
    assert "under an emulator" in profile_of(emulated, target.load("rpi4"), "board", "2026-01-02").source["core.fma_per_cycle"]


def test_best_of_several_probes() -> None:
    slow, fast = results(peak_gflops=reach(9.0, 50.0)), results(clock_mhz=rate(1400.0))
    best = calmest([slow, fast])
    assert (best.peak_gflops.one_core.best, best.peak_gflops.all_threads.best, best.clock_mhz.best) == (11.8, 50.0, 1500.0)
    assert best.read_gb_per_s == fast.read_gb_per_s


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 7}, "probe.json has format 7, this hwprune reads 1; build the probe anew"),
        ({"launch_us": ...}, "`launch_us`: field required"),
        ({"launch_us": -1.0}, "`launch_us`: input should be greater than 0"),
        ({"more": 1}, "`more`: extra inputs are not permitted"),
        ({"clock_mhz": rate(float("nan"))}, "`clock_mhz.best`"),
        ({"architecture": "riscv64"}, "`architecture`"),
    ],
)
def test_results_that_are_wrong(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        results(**change)


def test_command_writes_a_profile_of_another_device(folder: Path) -> None:
    (folder / "probe.json").write_text(json.dumps(A72))
    written = CliRunner().invoke(app, ["targets", "new", "board", "--probe-results", "probe.json"])
    assert written.exit_code == 0, written.stderr
    checked = CliRunner().invoke(app, ["targets", "check", "board", "--json"])
    found = json.loads(checked.stdout)
    assert found["valid"] and not any("source" in note for note in found["notes"])
    assert target.load("board").codegen == target.load("rpi4").codegen


def test_results_cut_short(folder: Path) -> None:
    (folder / "probe.json").write_text(json.dumps(A72)[:200])
    result = CliRunner().invoke(app, ["targets", "new", "board", "--probe-results", "probe.json"])
    assert result.exit_code == 2 and "probe.json is no result of hwprune-probe" in result.stderr
    assert not (folder / "targets" / "board.toml").exists()
