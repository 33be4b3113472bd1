"""The probe is built and runs here; its figures stand in the relations that hold on any machine."""

from __future__ import annotations

import json
import subprocess

import pytest
from typer.testing import CliRunner

from hwprune import target
from hwprune.cli import app
from hwprune.measure import probe_program
from hwprune.measure.probe import native_profile

pytestmark = pytest.mark.timed


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "hwprune-probe"
    probe_program.build(native_profile(), path, static=False)
    return path


def test_figures_are_sane(program):
    found = probe_program.run([str(program), "--vector-bits", str(native_profile().core.vector_bits)], seconds=0.1)
    peak, read = found.peak_gflops, found.read_gb_per_s
    assert found.threads == native_profile().threads and not found.emulated
    # Other programs may have a core for themselves meanwhile: then all threads together are slower than one.
    assert peak.all_threads.best > 0.2 * peak.one_core.best
    assert 0.4 < found.fma_per_cycle() < 4.5
    assert 2 <= found.fma_latency_ns * found.clock_mhz.best / 1e3 < 12
    assert read.l1.one_core.best > read.dram.one_core.best
    assert 0 < found.launch_us < 10_000 and found.kernel_us > 0
    if found.threads > 1 and found.copy_gb_per_s.l2 is not None:  # at most as fast as each from its own cache
        assert 0 < found.handed_gb_per_s.best < 1.5 * (found.copy_gb_per_s.l2.all_threads or found.copy_gb_per_s.l1.all_threads).best
    assert found.latency_curve[-1][1] > 2 * found.latency_curve[0][1]
    assert found.caches.l1d_bytes >= 8192


def test_narrower_vectors(program):
    if native_profile().core.vector_bits == 512:
        narrow = probe_program.run([str(program), "--vector-bits", "256", "--threads", "1"], seconds=0.01)
        assert narrow.isa == "avx2" and narrow.handed_gb_per_s is None
    refused = subprocess.run([str(program), "--vector-bits", "96"], capture_output=True, text=True)
    assert refused.returncode == 1 and "no vectors of 96 bits" in refused.stderr
    assert subprocess.run([str(program), "--seconds", "soon"], capture_output=True).returncode == 2


def test_command_writes_a_profile_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probe_program, "SECONDS", 0.1)
    written = CliRunner().invoke(app, ["targets", "new", "thisbox", "--probe"])
    assert written.exit_code == 0, written.stderr
    profile = target.load("thisbox")
    assert profile.unsourced() == [] and profile.runs_here()
    assert profile.codegen == native_profile().codegen
    shown = json.loads(CliRunner().invoke(app, ["targets", "show", "thisbox", "--json"]).stdout)
    assert "measured by hwprune-probe" in shown["source"]["memory.dram_gb_per_s"]
