"""Results of a device: what is refused, and what is stored of the rest."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hwprune.costing import Costing
from hwprune.errors import UsageError
from hwprune.kernels import KERNELS_VERSION
from hwprune.measure.device import software
from hwprune.measure.elsewhere import latest_of
from hwprune.measure.importing import check_fits, parse_results, profile_of, read_results, store_results
from hwprune.measure.job import BuiltLibrary, Header, Job, Limits, Placed
from hwprune.measure.measurer import spread_bytes
from hwprune.measure.store import Context, Store
from hwprune.progress import Silent
from hwprune.target import load
from hwprune.workload import OpCall, TensorSpec, Workload

TARGET = "rpi4"
FACTS = {"machine": "aarch64", "cores": 4, "cpuinfo": {"CPU implementer": "0x41", "CPU part": "0xd08"},
         "board": "Raspberry Pi 4 Model B Rev 1.4", "cpus": [0, 1, 2, 3], "emulated": ""}  # fmt: skip
DEVICE = "Raspberry Pi 4 Model B Rev 1.4, 0xd08; 4 cores"


def workload(width: int) -> Workload:
    spec = TensorSpec((1, 4, 4, width))
    return Workload((spec,), (OpCall.make("clip", 0, low=0.0, high=None),), spec)


def config(number: int) -> str:
    return json.dumps({"rule": "elementwise", "chunk": number})


@pytest.fixture(scope="module")
def job() -> Job:
    profile = load(TARGET)
    header = Header(TARGET, profile.digest(), software(profile), "aarch64", 4, 0)
    libraries = (BuiltLibrary("lib/0.so", "0" * 64), BuiltLibrary("lib/1.so", "1" * 64))
    kernels = (Placed(-1, 0, 0, 64, config(0)), Placed(0, 1, 0, 0, config(1)), Placed(0, 1, 1, 0, config(2)), Placed(1, 1, 2, 0, config(1)))
    return Job(header, Limits(), libraries, (workload(8), workload(16)), (4, 2), kernels, ((1, "does not divide", config(9)),))


def sealed(job: Job, records: list[dict], schema: int = 1) -> str:
    """A results file as the agent writes it."""
    lines = ",\n".join(json.dumps({**record, "sha256": "0" * 64}) for record in records)
    head = f'{{"format":"hwprune results","schema":{schema},\n"job":{json.dumps(job.to_text())},\n"journal":[\n{lines}]'
    return f'{head},\n"sha256":"{hashlib.sha256(head.encode()).hexdigest()}"}}\n'


def timed(number: int, samples: dict[int, list[float]], reference: list[float], **more) -> dict:
    return {"workload": number, "kernels": [{"kernel": k, "samples_us": s} for k, s in samples.items()], "reference_us": reference,
            "screened_us": {}, "interval": 0.01, "stopped": "interval", "before": {}, "after": {}, "throttled": False, **more}  # fmt: skip


def records(**facts) -> list[dict]:
    return [
        {"device": {**FACTS, **facts}},
        {"baseline_us": [10.0] * 5},
        timed(0, {1: [100.0] * 5, 2: [50.0] * 5}, [20.0] * 5, energy={"kernel": 2, "energy_uj": 7.5}),
        timed(1, {3: [30.0] * 5}, [10.0] * 5, throttled=True),
        {"kernel": 1, "failure": "crashed: Illegal instruction"},
    ]


@pytest.fixture
def store(tmp_path):
    with_rows = Store(tmp_path / "m.sqlite")
    yield with_rows
    with_rows.close()


def rows(path: Path) -> int:
    return sqlite3.connect(path).execute("SELECT COUNT(*) FROM measurement").fetchone()[0]


# --- what is stored ---------------------------------------------------------------------------------------------


def test_job_is_the_same_after_its_text(job):
    assert Job.from_text(job.to_text(), "here") == job


def test_job_of_a_gpu_says_so_and_that_of_a_cpu_is_as_it_was(job):
    assert "\ngpu\t" not in job.to_text()
    gpu = replace(job, header=replace(job.header, gpu="sm_90"))
    assert "\ngpu\tsm_90\n" in gpu.to_text() and Job.from_text(gpu.to_text(), "here") == gpu


def test_a_gpu_gives_the_device_its_name(job):
    gpu = replace(job, header=replace(job.header, gpu="sm_90"))
    told = {"name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "multiprocessors": 132, "driver_cuda": "12.4"}
    energy = {"kernel": 2, "energy_uj": 7.5, "of": "the card"}
    entries = [*records(gpu=told, board="")[:2], timed(0, {2: [50.0] * 5}, [10.0] * 5, energy=energy)]
    results = parse_results(sealed(gpu, entries), "r.json")
    assert results.context.device == "NVIDIA H100 80GB HBM3; 132 SMs" and results.measured[0].energy.of == "the card"
    on_a_board = parse_results(sealed(gpu, records(gpu={**told, "name": "Orin"}, board="NVIDIA Jetson AGX Orin")), "r.json")
    assert on_a_board.context.device == "NVIDIA Jetson AGX Orin, Orin; 132 SMs"
    for one, facts in ((job, {"gpu": told}), (gpu, {})):
        with pytest.raises(UsageError, match="it is of a GPU, or its job is, but not both"):
            parse_results(sealed(one, records(**facts)), "r.json")


def test_latencies_are_made_by_the_estimator_and_stored_under_the_device(job, store):
    told = store_results(parse_results(sealed(job, records()[:-1]), "r.json"), store)
    here = Context(DEVICE, 4, job.header.software)
    assert told.device == DEVICE and (told.workloads, told.schedules, told.noisy, told.failures) == (2, 3, 2, 1)
    first, second = store.best_of(job.workloads, here)
    assert first.config == config(2) and first.effort == 4
    assert first.latency.latency_us == pytest.approx(50.0 * 0.8)  # the reference took twice as long: corrected up to the bound
    assert first.latency.noisy  # and flagged
    assert second.latency.latency_us == pytest.approx(30.0) and second.latency.noisy  # it was throttled
    assert store.failures(job.workloads[1], here) == {config(9): "does not divide"}
    assert store.calibration("reference_us", here) == 10.0
    assert store.calibration(f"energy_uj of {job.workloads[0].key} {config(2)}", here) == 7.5 and told.energy_uj == {0: 7.5}


def test_latencies_are_at_the_speed_at_which_the_store_knows_the_device(job, store):
    here = Context(DEVICE, 4, job.header.software)
    store.calibrate("reference_us", 9.5, here)
    store_results(parse_results(sealed(job, records()), "r.json"), store)
    assert store.best(job.workloads[1], here).latency.latency_us == pytest.approx(30.0 * 0.95)
    assert store.calibration("reference_us", here) == 9.5


def test_reference_that_was_disturbed_at_the_start_only_is_taken_from_later_rounds(job):
    slow = [records()[0], {"baseline_us": [14.0] * 5}, *records()[2:]]
    assert parse_results(sealed(job, slow), "r.json").baseline_us == 10.0


def test_schedules_that_crashed_there_are_stored_as_failures(job, store):
    told = store_results(parse_results(sealed(job, records()), "r.json"), store)
    assert store.failures(job.workloads[0], Context(DEVICE, 4, job.header.software)) == {config(1): "crashed: Illegal instruction"}
    assert told.failures == 2


def test_killed_in_the_middle_it_has_stored_nothing_and_can_be_repeated(job, tmp_path):
    results, path = tmp_path / "results.json", tmp_path / "m.sqlite"
    results.write_text(sealed(job, records()))
    script = f"""
import os, signal
from pathlib import Path
from hwprune.measure import importing
from hwprune.measure.store import Store
class Dying(Store):
    def record_failure(self, *arguments):
        os.kill(os.getpid(), signal.SIGKILL)
importing.store_results(importing.read_results(Path({str(results)!r})), Dying({str(path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, timeout=120)
    assert done.returncode == -signal.SIGKILL and rows(path) == 0
    again = Store(path)
    store_results(read_results(results), again)
    again.close()
    assert rows(path) == 4


# --- what is refused --------------------------------------------------------------------------------------------


def refused(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_results(text, "r.json")
    assert str(caught.value).startswith("r.json ") and "\n" not in str(caught.value)
    return str(caught.value)


def test_every_cut_is_refused(job):
    text = sealed(job, records())
    for end in (*range(0, len(text) - 1, 41), len(text) - 1, len(text) - 3, len(text) - 60):
        assert "cut short" in refused(text[:end]) or end < 40


def test_every_edit_is_refused(job):
    text = sealed(job, records())
    edits = (("50.0", "40.0"), (DEVICE.split(",")[0], "Raspberry Pi 5"), (f"kernels {KERNELS_VERSION}", "kernels 0"), ('"emulated": ""', '"emulated":  ""'))
    for old, new in edits:
        assert old in text and "not as the agent wrote it" in refused(text.replace(old, new, 1))


def test_other_versions_are_refused(job):
    assert "schema 2, this hwprune reads 1" in refused(sealed(job, records(), schema=2))
    newer = sealed(job, records()).replace("hwprune-job\\t1", "hwprune-job\\t2")
    head, _, _ = newer.rpartition(',\n"sha256":"')
    assert "hwprune-job 1 is expected" in refused(f'{head},\n"sha256":"{hashlib.sha256(head.encode()).hexdigest()}"}}\n')


@pytest.mark.parametrize(
    "wrong",
    [
        timed(0, {3: [1.0] * 5}, [1.0] * 5),  # a kernel of another workload
        timed(0, {1: [1.0] * 5}, [1.0] * 4),  # not a reference for each round
        timed(0, {1: [1.0, -1.0]}, [1.0, 1.0]),
        timed(0, {1: [float("nan")]}, [1.0]),
        timed(7, {1: [1.0]}, [1.0]),
        timed(0, {99: [1.0]}, [1.0]),
        {"kernel": 99, "failure": "crashed"},
        {"surprise": 1},
        {"baseline_us": []},
    ],
)
def test_what_no_agent_writes_is_refused_though_its_hash_fits(job, wrong):
    assert "does not hold what an agent writes" in refused(sealed(job, [*records()[:2], wrong]))


def test_results_without_a_device_or_a_baseline_are_refused(job):
    for missing in (0, 1):
        assert "does not hold what an agent writes" in refused(sealed(job, [r for i, r in enumerate(records()) if i != missing]))


@pytest.mark.parametrize("text", ["", "{}", '{"format":"hwprune run"}', "\x00"])
def test_other_files_are_refused(text):
    assert "is no results file of a bundle" in refused(text)


def check(job, target=None):
    results = parse_results(sealed(job, records()), "r.json")
    profile = profile_of(results, target, "r.json")
    check_fits(results, profile, False, "r.json")
    return profile


def test_results_of_another_target_or_profile_are_refused(job):
    assert check(job).name == check(job, TARGET).name == TARGET
    with pytest.raises(UsageError, match="is of target 'rpi4', but --target says 'rpi3'"):
        check(job, "rpi3")
    with pytest.raises(UsageError, match="is of target 'gone': unknown target .* give its profile with --target FILE.toml"):
        check(replace(job, header=replace(job.header, target="gone")))
    with pytest.raises(UsageError, match="measured with 'kernels 1', but kernels for target 'rpi4' are now"):
        check(replace(job, header=replace(job.header, software="kernels 1")))
    for text in ("fast", "{}", "[1]", '{"rule": {}, "x": []'):
        with pytest.raises(UsageError, match="names a schedule that is none"):
            check(replace(job, kernels=(*job.kernels[:-1], replace(job.kernels[-1], config=text))))


# --- emulators --------------------------------------------------------------------------------------------------


def test_an_emulators_times_are_stored_by_name_only_and_nothing_reads_them(job, store):
    results = parse_results(sealed(job, records(emulated="qemu")), "r.json")
    with pytest.raises(UsageError, match="measured in an emulator \\(qemu\\), whose times say nothing of a board; --emulated"):
        check_fits(results, load(TARGET), False, "r.json")
    check_fits(results, load(TARGET), True, "r.json")
    assert store_results(results, store).device == f"emulated (qemu): {DEVICE}"
    assert latest_of(store, 4, job.header.software) is None
    with Costing(load(TARGET), store.path) as cost:
        assert [e.provenance for e in cost.model.predict(job.workloads)] == ["analytic", "analytic"]


# --- who answers for a target that is not here ------------------------------------------------------------------


class Saying(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_imported_measurements_answer_where_this_machine_cannot_run_the_target(job, store):
    store_results(parse_results(sealed(job, records()[:-1]), "r.json"), store)
    saying = Saying()
    with Costing(load(TARGET), store.path, saying) as cost:
        known, other = cost.model.predict([job.workloads[1], workload(24)])
        assert known.provenance == "measured" and known.latency_us == pytest.approx(30.0) and other.provenance == "analytic"
        assert cost.pick(job.workloads[0]).to_text() == json.dumps(json.loads(config(2)), sort_keys=True)
        assert not cost.measurable
    assert len(saying.said) == 1 and f"kernels measured on {DEVICE}" in saying.said[0]


def test_of_several_devices_the_latest_counts_and_is_named(job, store):
    for board, when in (("second", "2026-01-02"), ("first", "2026-01-01")):
        store_results(parse_results(sealed(job, records(board=board)[:-1]), "r.json"), store)
        store._execute("UPDATE measurement SET measured_at=? WHERE device LIKE ?", (when, f"{board}%"))
    saying = Saying()
    with Costing(load(TARGET), store.path, saying):
        pass
    assert "second, 0xd08; 4 cores until 2026-01-02, the latest of 2 devices" in saying.said[0]


def test_other_thread_counts_networks_and_profiles_stay_analytic(job, store):
    store_results(parse_results(sealed(job, records()[:-1]), "r.json"), store)
    profile = load(TARGET)
    for other, weights in ((profile.model_copy(update={"threads": 2}), 0), (profile, 1 << 30), (load("rpi3"), 0)):
        with Costing(other, store.path, weights_bytes=weights) as cost:
            assert cost.model.predict(job.workloads)[0].provenance == "analytic"


def test_without_a_store_none_is_made(tmp_path):
    with Costing(load(TARGET).model_copy(update={"incore": None}), tmp_path / "none.sqlite") as cost:  # nor simulations
        assert cost.model is cost.prior
    assert not (tmp_path / "none.sqlite").exists()


def test_constants_are_spread_beyond_the_one_cache_of_a_gpu():
    h100, rpi4 = load("h100"), load("rpi4")
    l2 = h100.memory.l2_bytes  # of the whole card, which every core sees: 50 MiB
    assert spread_bytes(l2, h100) == 0 and spread_bytes(l2 + 1, h100) == 1 << 26 and spread_bytes(1 << 40, h100) == 1 << 27
    assert spread_bytes(rpi4.threads * rpi4.memory.l2_bytes, rpi4) == 0
