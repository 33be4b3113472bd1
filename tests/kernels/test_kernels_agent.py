"""The agent, over kernels that do as the test wants."""

from __future__ import annotations

import contextlib
import json
import platform
import resource
import signal
import time

import psutil
import pytest
from agent_fakes import CRASHES, FAILS, HANGS, LIMITS, SLEEPS, Device

from hwprune.measure.device import local_device
from hwprune.measure.importing import read_results, store_results
from hwprune.measure.job import Limits
from hwprune.measure.store import Store

pytestmark = pytest.mark.timed


@pytest.fixture
def device(agent, tmp_path):
    return lambda steps, limits=LIMITS: Device(tmp_path, agent, steps, limits)


def test_the_fastest_are_timed_properly_and_the_others_are_named(device):
    board = device([[5, 1, 9, 2], [3]])
    assert board.measure()[0] == 0
    results = read_results(board.folder / "results.json")
    assert results.job == board.job and results.context.device == local_device() and results.baseline_us == 20.0
    first, second = results.measured
    assert {k.kernel: k.samples_us for k in first.kernels} == {2: [21.0] * 3, 4: [22.0] * 3}  # the interval is zero: 3 rounds
    assert first.screened_us == {1: 25.0, 3: 29.0} and first.reference_us == [20.0] * 3
    assert [k.kernel for k in second.kernels] == [5] and second.stopped == "interval" and not second.throttled


def test_kernels_that_crash_hang_or_fail_take_nothing_else_down(device):
    board = device([[1, CRASHES, 2], [HANGS, 3], [FAILS], [4]])
    assert board.measure()[0] == 0
    results = read_results(board.folder / "results.json")
    assert sorted(board.measured()) == [1, 3, 5, 7]
    said = {f.kernel: f.failure for f in results.failed}
    assert said == {2: "crashed: Segmentation fault", 4: "did not end within 0.5 s", 6: "Error: too hot"}


def test_killed_in_the_middle_it_goes_on_where_it_was(device):
    board = device([[1], [2], [SLEEPS], [3]], Limits(min_rounds=3, max_rounds=5, baseline_rounds=3, pause_us=0))
    process = board.start()
    while len(board.journal()) < 4:  # device, baseline, two workloads
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    before = board.journal()
    with open(board.folder / "journal.jsonl", "a") as file:
        file.write('{"workload":2,"kernels":[{"kern')  # as a kill within a write leaves it
    assert board.measure()[0] == 0
    after = board.journal()
    assert after[: len(before)] == before and len(after) == 6
    assert sorted(board.measured()) == [1, 2, 3, 4]
    assert board.measure()[0] == 0 and board.journal() == after  # nothing is left to do


def test_full_disk_is_one_sentence_and_loses_nothing(device):
    board = device([[1], [2], [3]])

    def no_space():
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))

    said = board.refusal(preexec_fn=no_space)
    before = board.journal()
    assert "cannot write" in said and "File too large" in said and f"the {len(before)} lines before are kept" in said
    assert 2 <= len(before) < 5 and before[-1].endswith("}\n")
    assert board.measure()[0] == 0
    assert board.journal()[: len(before)] == before and sorted(board.measured()) == [1, 2, 3]


def test_on_a_disturbed_machine_it_goes_on_and_the_figure_is_flagged(device, tmp_path):
    board = device([[SLEEPS]])
    process = board.start()
    while len(board.journal()) < 2:  # device, baseline
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=60)
    (board.folder / "slow").touch()
    assert board.measure()[0] == 0
    results = read_results(board.folder / "results.json")
    (measured,) = results.measured
    assert measured.reference_us == [40.0] * 5 and measured.stopped == "rounds" and measured.interval == 0
    store = Store(tmp_path / "m.sqlite")
    assert store_results(results, store).noisy == 1
    store.close()


def test_damaged_journal_is_set_aside_and_what_is_lost_is_measured_again(device):
    board = device([[1], [2], [3]])
    assert board.measure()[0] == 0
    lines = board.journal()
    edited = [*lines[:3], lines[3].replace("22", "11"), lines[4]]
    (board.folder / "journal.jsonl").write_text("".join(edited))
    code, err = board.measure()
    assert code == 0 and "is damaged after 3 lines" in err
    assert (board.folder / "journal.jsonl.damaged").read_text() == "".join(edited)
    assert board.journal()[:3] == lines[:3] and sorted(board.measured()) == [1, 2, 3]


def test_journal_of_another_job_is_not_taken_over(device):
    board = device([[1]])
    assert board.measure()[0] == 0
    (board.folder / "job.tsv").write_text(board.job.to_text().replace("software\tsoftware", "software\tnewer"))
    assert "of another job" in board.measure()[1]
    assert read_results(board.folder / "results.json").job.header.software == "newer"


def test_one_process_at_a_time(device):
    board = device([[SLEEPS]])
    first = board.start()
    while not board.journal():
        time.sleep(0.005)
    assert "another process is measuring here" in board.refusal()
    first.kill()
    first.communicate(timeout=60)


def test_measuring_thread_stays_on_one_processor(device):
    process, seen = device([[SLEEPS]]).start(), set()
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # it has ended
            seen.update(len(child.cpu_affinity()) for child in psutil.Process(process.pid).children())
        time.sleep(0.002)
    process.communicate(timeout=60)
    assert 1 in seen


def test_altered_files_are_refused(device):
    board = device([[1]])
    library = board.folder / "1.so"
    good = library.read_bytes()
    library.write_bytes(good[:-1] + b"x")
    assert "1.so is not what the bundle was made with" in board.refusal()
    library.write_bytes(good)
    job = board.folder / "job.tsv"
    text = job.read_text()
    for altered, said in (
        (text[: len(text) // 2], "is cut short"),
        (text.replace("hwprune-job\t1", "hwprune-job\t2"), "no job of this agent's version"),
        (text.replace(f"machine\t{platform.machine()}", "machine\tpdp11"), "this bundle is for pdp11"),
        (text.replace("threads\t1\n", "threads\t9999\n"), "measures on 9999 threads, but only"),
        (text.replace("burst_us\t1500.0", "burst_us\tmuch"), "`much` is no number"),
        (text.replace("kernel\t0\t1\t", "kernel\t0\t7\t"), "kernel of no library"),
    ):
        assert altered != text
        job.write_text(altered)
        assert said in board.refusal()


def test_reference_that_does_not_run_says_that_the_processor_may_be_wrong(device):
    board = device([[1]])
    text = board.job.to_text()
    (board.folder / "job.tsv").write_text(text.replace("reference\t-1\t0\t0\t", f"reference\t-1\t0\t{CRASHES}\t"))
    assert "the reference kernel does not run here (crashed: Segmentation fault): is this processor one of target 'x86'?" in board.refusal()


def test_journal_is_json_lines(device):
    board = device([[1]])
    assert board.measure()[0] == 0
    assert [next(iter(json.loads(line))) for line in board.journal()] == ["device", "baseline_us", "workload"]
