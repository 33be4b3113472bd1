"""The real measuring process: builds, times, and survives what happens to it. No figure is compared with another: this
machine may be busy."""

from __future__ import annotations

import json
import mmap
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiled_networks import first_candidate
from torch import nn

from hwprune import costing, measuring, programs
from hwprune.compile.artifact import build_artifact
from hwprune.compile.lower import lower
from hwprune.costing import Costing
from hwprune.errors import MeasureError
from hwprune.graph import analyze, trace
from hwprune.kernels import candidates, primfunc
from hwprune.kernels.compute import compute
from hwprune.kernels.schedule import Config
from hwprune.library import Library, Memory, aligned
from hwprune.measure import measurer as measurer_module
from hwprune.measure import timed, verify
from hwprune.measure.measurer import Measurer
from hwprune.measure.process import Worker, WorkerLost
from hwprune.measure.store import Store
from hwprune.progress import SILENT, Silent
from hwprune.search.tables import NetworkView
from hwprune.workload import Workload

pytestmark = pytest.mark.timed


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


@pytest.fixture(scope="module", autouse=True)
def impatient():
    """A machine that is disturbed is not waited for."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (costing, measurer_module):
            patch.setattr(module, "_ATTEMPTS", 1)
            patch.setattr(module, "_PAUSE_S", 0.0)
        patch.setattr(measurer_module, "_NETWORK_ATTEMPTS", 1)
        yield


@pytest.fixture(scope="module")
def network(usable):
    return lower(trace(Small().eval(), torch.zeros(1, 3, 12, 12)), usable(8))


@pytest.fixture(scope="module")
def measurer(usable, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store") / "m.sqlite")
    with Measurer(usable(8), store) as measurer:
        yield measurer
    store.close()


class Sum(nn.Module):
    def forward(self, x, y):
        return F.relu(x) + y


def dirty_bytes(array: np.ndarray) -> int:
    """Of the private mapping of a file that ``array`` lies in, what was written: such pages are no longer the file's."""
    address = array.ctypes.data
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if (m := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line))
              and int(m[1], 16) <= address < int(m[2], 16))
    return next(int(line.split()[1]) << 10 for line in lines[at:] if line.startswith("Anonymous:"))


@pytest.mark.parametrize("alone", [True, False])
def test_before_a_kernel_is_timed_alone_its_first_activation_is_written_by_the_threads(usable, tmp_path, alone):
    profile, shape = usable(8), (256, 1024)
    network = lower(trace(Sum(), (torch.zeros(shape), torch.ones(shape))), profile)
    (workload,) = (w for w in network.workloads() if len(w.inputs) == 2)
    if alone:
        out = tmp_path / "kernels.so"
        config = candidates(workload, profile)[0]
        timed.link_kernels([timed.Kernel(workload, config.to_text())], [primfunc(workload, profile, config)], profile, profile.threads, out)
    else:
        out = build_artifact(network, profile, first_candidate(profile), tmp_path / "a") / "network.so"
    library = Library(out)
    size = 4 * library.inputs[0]
    maps = []
    for name in "xy":
        (tmp_path / name).write_bytes(np.ones(size // 4, np.float32).tobytes())
        with open(tmp_path / name) as file:
            maps.append(mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))
    inputs = [np.frombuffer(m, np.uint8) for m in maps]
    memory = Memory(inputs, [aligned(size)], aligned(library.weights_bytes), aligned(library.workspace_bytes))
    library.time_ns(memory, profile.threads, 2)
    assert [dirty_bytes(x) for x in inputs] == ([size, 0] if alone else [0, 0])
    assert all((x.view(np.float32) == 1).all() for x in inputs)


def test_every_kernel_of_a_network_is_measured(measurer, network):
    workloads = network.workloads()
    measurer.ensure(workloads)
    for workload in workloads:
        found = measurer.store.best(workload, measurer.context)
        assert 0 < found.latency.latency_us < 1e5
        assert found.latency.low_us <= found.latency.latency_us <= found.latency.high_us
        assert Config.from_text(found.config) in candidates(workload, measurer.profile)
        assert measurer.schedule(workload).to_text() == found.config


def test_whole_network_is_timed_with_the_schedules_measured(measurer, network, tmp_path):
    measurer.ensure(network.workloads())
    path = build_artifact(network, measurer.profile, measurer.schedule, tmp_path / "artifact")
    (latency,) = measurer.time_artifacts([path], rounds=6)
    assert 0.5 < latency.latency_us < 1e6
    first, again = measurer.time_networks({"one": network, "other": network}, rounds=6)
    assert 0.5 < first.latency_us / again.latency_us < 2.0


def test_schedule_that_computes_something_else_is_found_and_replaced(usable, tmp_path, monkeypatch):
    monkeypatch.setitem(measurer_module.EFFORTS, "tune", (3, 2, 2, 3))
    asked, said = [], []
    ask, error = Worker.ask, programs.output_error

    def lying(self, do, **request):  # of the first kernel, the worker says that it is wrong
        if do == "verify":
            asked.append((request["workload"], request["config"]))
            return {"error": 0.5} if len(asked) == 1 else ask(self, do, **request)
        return ask(self, do, **request)

    class Saying(Silent):
        def say(self, text):
            said.append(text)

    errors = iter([0.5])
    monkeypatch.setattr(Worker, "ask", lying)
    monkeypatch.setattr(programs, "output_error", lambda *args: next(errors, None) or error(*args))
    out = programs.compile_to(
        Small().eval(), torch.zeros(1, 3, 12, 12), usable(8), tmp_path / "artifact", tmp_path / "s.sqlite", {}, Saying()
    )
    manifest = json.loads((out / "manifest.json").read_text())
    workload, wrong = asked[0]
    chosen = [k["schedule"] for k in manifest["kernels"].values() if k["workload"] == Workload.from_json(workload).key]
    assert len(chosen) == 1 and chosen[0] != json.loads(wrong)
    assert manifest["verified"]["relative_error"] < 1e-5 and len(said) == 1 and wrong in said[0]


def test_error_of_a_kernel_is_seen(usable, network, monkeypatch):
    right = next(w for w in network.workloads() if any(call.op == "relu" for call in w.ops))
    config = candidates(right, usable(8))[0]
    assert verify.kernel_error(right, config, usable(8)) < 1e-5
    monkeypatch.setattr(verify, "primfunc", lambda w, profile, config: compute(without_relu(w)).primfunc())
    assert verify.kernel_error(right, config, usable(8)) > 0.1


class Product(nn.Module):
    def forward(self, x, y):
        return F.relu(x) @ F.relu(y)


def test_a_kernel_without_plain_loops_is_compared_with_another_schedule_of_it(usable, monkeypatch):
    network = lower(trace(Product(), (torch.zeros(2, 9, 12), torch.zeros(2, 12, 20))), usable(8))
    (workload,) = (w for w in network.workloads() if w.anchor is not None)
    configs = candidates(workload, usable(8))
    assert len(configs) > 1 and verify.kernel_error(workload, configs[0], usable(8)) < 1e-5
    results = iter((1.5, 1.0))  # the kernel's own comes first
    run = verify._run
    with monkeypatch.context() as patch:
        patch.setattr(verify, "_run", lambda *arguments: next(results) * run(*arguments))
        assert verify.kernel_error(workload, configs[0], usable(8)) == pytest.approx(0.5, rel=0.01)
    monkeypatch.setattr(verify, "candidates", lambda w, profile: configs[:1])
    assert verify.kernel_error(workload, configs[0], usable(8)) is None


def without_relu(workload):
    return replace(workload, ops=tuple(replace(c, op="neg") if c.op == "relu" else c for c in workload.ops))


def test_killed_in_the_middle_of_a_measurement(measurer, network):
    measurer.ensure(network.workloads()[:1])
    os.kill(measurer._worker._process.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost):
        measurer._worker.ask("baseline", rounds=1)
    assert len(measurer._worker.ask("baseline", rounds=2)["reference"]) == 2


def test_schedule_that_does_not_fit_is_a_failure_and_not_a_crash(usable, measurer, network):
    convolution = network.workloads()[1]
    good = first_candidate(usable(8))(convolution).to_text()
    odd = Config.make("conv_direct", ht=5, wt=4, cov=1, order="hwc", split="rows", rows=5).to_text()
    unknown = Config.make("nobody").to_text()
    answer = measurer._worker.ask(
        "measure", workload=convolution.to_json(), configs=[odd, good, unknown], finalists=2, rounds=2, spread_bytes=1 << 20
    )
    assert set(answer["failures"]) == {odd, unknown} and set(answer["samples"]) == {good}
    assert (
        "does not divide" in answer["failures"][odd] and "unknown schedule rule 'nobody'" in answer["failures"][unknown]
    )


def test_profile_that_cannot_be_built_for_says_why(usable):
    profile = usable(8)
    wrong = profile.model_copy(update={"link": profile.link.model_copy(update={"cxx": "no-such-compiler"})})
    with Worker(wrong, 1) as worker, pytest.raises(MeasureError, match="no-such-compiler"):
        worker.ask("baseline", rounds=1)


def test_predictions_are_checked_against_whole_networks(usable, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "_SHARES", ())
    monkeypatch.setattr(measuring, "RANDOM_CALIBRATORS", 1)
    monkeypatch.setattr(measurer_module, "_NETWORK_ROUNDS", 4)
    profile = usable(8)
    traced = trace(Small().eval(), torch.zeros(1, 3, 12, 12))
    view = NetworkView(lower(traced, profile), analyze(traced))
    with Costing(profile, tmp_path / "m.sqlite") as cost:
        report = measuring.check(view, cost, networks=3, seed=0, progress=SILENT)
        assert all(cost.model.is_measured(w) for n in report.networks for w in view.workloads(n.widths))
    assert len(report.networks) == report.after.networks == 3
    for n in report.networks:
        assert 0 < n.low_us <= n.predicted_us <= n.high_us
        assert 0.2 < n.again_us / n.measured_us < 5.0 and 0.2 < n.predicted_us / n.measured_us < 5.0
