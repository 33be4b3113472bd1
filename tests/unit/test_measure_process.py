"""The measuring process may crash, hang or refuse; the run goes on. With a fake process: nothing is built here."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from measure_fakes import COMMAND

from hwprune.errors import MeasureError
from hwprune.kernels.schedule import Config, handicap
from hwprune.measure import measurer as measurer_module
from hwprune.measure.measurer import EFFORTS, Measurer
from hwprune.measure.process import Worker, WorkerLost
from hwprune.measure.store import Store
from hwprune.target import load_file, shipped_folder
from hwprune.workload import OpCall, TensorSpec, Workload

PROFILE = load_file(shipped_folder() / "x86.toml")


@pytest.fixture
def worker():
    with Worker(PROFILE, threads=2, timeout_s=10.0, command=COMMAND) as worker:
        yield worker


# --- the process ------------------------------------------------------------------------------------------------


def test_one_process_answers_all_requests_with_its_thread_count(worker):
    first, second = worker.ask("echo", say="a"), worker.ask("echo", say="ä\n")
    assert (first["said"], second["said"]) == ("a", "ä\n")
    assert first["pid"] == second["pid"] and first["threads"] == 2


def test_after_a_crash_the_next_request_works(worker):
    before = worker.ask("echo", say=1)["pid"]
    with pytest.raises(WorkerLost, match="ended with code 7 on request 'crash'"):
        worker.ask("crash")
    assert worker.ask("echo", say=2)["pid"] != before


def test_after_a_hang_the_next_request_works_and_the_process_is_gone(worker):
    before = worker.ask("echo", say=1)["pid"]
    start = time.monotonic()
    with pytest.raises(WorkerLost, match="did not answer in time on request 'hang'"):
        worker.ask("hang", timeout_s=0.3)
    assert time.monotonic() - start < 5
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)
    assert worker.ask("echo", say="mine")["said"] == "mine"


def test_process_killed_from_outside(worker):
    pid = worker.ask("echo", say=1)["pid"]
    os.kill(pid, 9)
    with pytest.raises(WorkerLost, match="'echo'"):
        worker.ask("echo", say=2)
    assert worker.ask("echo", say=3)["said"] == 3


def test_refused_request_leaves_the_process_alive(worker):
    pid = worker.ask("echo", say=1)["pid"]
    with pytest.raises(MeasureError, match="cannot do 'fail': three is not a number") as caught:
        worker.ask("fail")
    assert not isinstance(caught.value, WorkerLost)
    assert worker.ask("echo", say=1)["pid"] == pid


def test_process_that_cannot_start_says_so_each_time(worker, monkeypatch):
    monkeypatch.setenv("FAKE_START", "refuse")
    for _ in range(2):
        with pytest.raises(MeasureError, match="cannot do 'start': no such processor"):
            worker.ask("echo", say=1)
    monkeypatch.delenv("FAKE_START")
    assert worker.ask("echo", say=1)["said"] == 1


@pytest.fixture
def interruptible():
    """A shell's background jobs, and all that they start, ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_answer_to_an_interrupted_request_goes_to_nobody(worker, interruptible):
    """Ctrl-C while a measurement runs: its answer must not be taken for that of the next request."""
    worker.ask("echo", say=1)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        worker.ask("hang", timeout_s=20.0)
    assert worker.ask("echo", say="after")["said"] == "after"


# --- the measurer over it ---------------------------------------------------------------------------------------


def workload(op: str = "relu") -> Workload:
    spec = TensorSpec((1, 4, 4, 8))
    return Workload((spec,), (OpCall.make(op, 0),), spec)


def schedules(*does: str | int) -> list[Config]:
    return [Config.make("fake", us=d) if isinstance(d, int) else Config.make("fake", does=d) for d in does]


@pytest.fixture
def measuring(tmp_path, monkeypatch):
    """``measuring(*schedules)``: a measurer whose rule offers these, over the fake process; and the process's log."""
    opened = []
    log = tmp_path / "log"
    monkeypatch.setenv("FAKE_LOG", str(log))

    def make(*does: str | int) -> Measurer:
        monkeypatch.setattr(measurer_module, "candidates", lambda workload, profile, exact: schedules(*does))
        store = Store(tmp_path / "m.sqlite")
        measurer = Measurer(PROFILE, store)
        measurer._worker = Worker(PROFILE, 2, command=COMMAND)
        opened.append(measurer)
        return measurer

    make.log = lambda: log.read_text().splitlines() if log.exists() else []
    yield make
    for measurer in opened:
        measurer.close()
        measurer.store.close()


def test_fastest_schedule_is_kept_and_found_again(measuring):
    measurer = measuring(70, 30, 50)
    measurer.ensure([workload(), workload()])
    assert measurer.best(workload()).latency_us == 30.0
    assert measurer.schedule(workload()) == Config.make("fake", us=30)
    again = measuring(70, 30, 50)
    assert again.best(workload()).latency_us == 30.0
    before = len(measuring.log())
    again.ensure([workload()])
    assert len(measuring.log()) == before  # nothing is measured twice


def test_among_schedules_about_equal_the_one_whose_threads_keep_to_themselves_is_taken(measuring, monkeypatch):
    offered = [Config.make("fake", us=1000, split="columns"), Config.make("fake", us=1020, split="rows")]
    measurer = measuring()
    monkeypatch.setattr(measurer_module, "candidates", lambda workload, profile, exact: offered)
    measurer.ensure([workload()])
    assert (measurer.schedule(workload()), measurer.best(workload()).latency_us) == (offered[1], 1020.0)
    again = measuring()
    assert (again.schedule(workload()), again.best(workload()).latency_us) == (offered[1], 1020.0)
    assert again.store.best(workload(), again.context).config == offered[0].to_text()  # the store itself knows no such thing


def test_what_threads_take_from_each_other_counts_where_their_second_caches_are_their_own():
    board = load_file(shipped_folder() / "rpi4.toml")
    columns, rows = Config.make("fake", split="columns"), Config.make("fake", split="rows")
    assert handicap(rows, PROFILE) == 1 < handicap(columns, PROFILE) < 1.05
    assert handicap(columns, board) == handicap(columns, PROFILE.model_copy(update={"threads": 1})) == 1


def test_quick_tries_the_first_few_and_tuning_more(measuring):
    measurer = measuring(90, 80, 70, 60, 50)
    assert EFFORTS["quick"][0] == 3
    measurer.ensure([workload()], "quick")
    assert measurer.best(workload()).latency_us == 70.0  # three of five
    measurer.ensure([workload()], "tune")
    assert measurer.best(workload()).latency_us == 50.0


def test_crashing_schedule_is_recorded_and_the_others_are_measured(measuring):
    measurer = measuring(70, "crash", 50)
    measurer.ensure([workload()])
    assert measurer.best(workload()).latency_us == 50.0
    ((config, why),) = measurer.store.failures(workload(), measurer.context).items()
    assert "crash" in config and "ended with code 11" in why


def test_schedule_that_failed_is_not_tried_again(measuring):
    measurer = measuring(70, "crash", 50)
    measurer.ensure([workload()], "quick")
    starts = measuring.log().count("start")
    measurer.ensure([workload()], "tune")
    assert measuring.log().count("start") == starts


def test_schedule_that_cannot_be_built_is_recorded(measuring):
    measurer = measuring("refuse", 40)
    measurer.ensure([workload()])
    assert measurer.best(workload()).latency_us == 40.0
    assert list(measurer.store.failures(workload(), measurer.context).values()) == ["does not divide"]


def test_schedules_that_only_crash_together_come_to_an_end(measuring):
    measurer = measuring("together", 60, 50)
    measurer.ensure([workload()])
    assert measurer.best(workload()).latency_us == 100.0  # the fake's default, alone
    assert measurer.store.failures(workload(), measurer.context) == {}


@pytest.mark.parametrize(
    "does, said", [(("crash", "crash"), "runs on this machine"), (("refuse",), "can be built: does not divide")]
)
def test_workload_without_any_schedule_says_so(measuring, does, said):
    measurer = measuring(*does)
    with pytest.raises(MeasureError, match=f"no schedule of workload .*relu.* {said}"):
        measurer.ensure([workload()])
    assert measurer.best(workload()) is None


def test_what_was_measured_before_a_failure_is_kept(measuring, monkeypatch):
    measurer = measuring(40)
    offered = {"relu": schedules(40), "tanh": schedules("refuse")}
    monkeypatch.setattr(measurer_module, "candidates", lambda w, profile, exact: offered[w.ops[0].op])
    with pytest.raises(MeasureError, match="tanh"):
        measurer.ensure([workload("relu"), workload("tanh")])
    assert measurer.store.best(workload("relu"), measurer.context).latency.latency_us == 40.0


@pytest.fixture
def no_pauses(monkeypatch):
    """Pauses that were made, in seconds; none takes any time."""
    made = []
    monkeypatch.setattr(measurer_module.time, "sleep", made.append)
    return made


def test_while_something_else_has_the_machine_a_measurement_is_repeated(measuring, monkeypatch, no_pauses):
    monkeypatch.setenv("FAKE_DISTURBED", "2")
    measurer = measuring("disturbed")
    measurer.ensure([workload()])
    found = measurer.best(workload())
    assert (found.latency_us, found.noisy) == (100.0, False) and len(no_pauses) == 2


def test_on_a_machine_that_stays_disturbed_measurements_are_flagged_and_do_not_wait_for_ever(measuring, monkeypatch, no_pauses):
    monkeypatch.setenv("FAKE_DISTURBED", "1000")
    measurer = measuring("disturbed")
    measurer.ensure([workload("relu")])
    waited = len(no_pauses)
    measurer.ensure([workload("tanh"), workload("exp")])
    assert all(measurer.best(workload(op)).noisy for op in ("relu", "tanh", "exp"))
    assert 3 <= waited < 20 and len(no_pauses) - waited <= 2


def test_repeated_measurement_keeps_the_lower_latency(measuring, monkeypatch, no_pauses):
    measurer = measuring(50, 60)
    measurer.ensure([workload("relu"), workload("tanh")])
    monkeypatch.setattr(measurer_module, "candidates", lambda w, profile, exact: schedules(40, 50))
    measurer.repeat([workload("relu")])
    assert measurer.best(workload("relu")).latency_us == 40.0
    old = measurer._known[workload("tanh").key]
    slower = replace(old, latency=replace(old.latency, latency_us=75.0))
    monkeypatch.setattr(measurer, "_measure", lambda w, effort: measurer._known.update({w.key: slower}))
    measurer.repeat([workload("tanh")])
    assert measurer.best(workload("tanh")).latency_us == 50.0
    assert measurer.store.best(workload("tanh"), measurer.context).latency.latency_us == 50.0
