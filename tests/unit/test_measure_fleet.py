"""Boards that share work: what happens to it when they die, hang or come late."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from hwprune.errors import MeasureError, UsageError
from hwprune.measure.fleet import share
from hwprune.measure.job import BuiltLibrary, Header, Job, Limits, Placed
from hwprune.measure.rpc import only, parse_address
from hwprune.progress import Silent
from hwprune.workload import OpCall, TensorSpec, Workload


def workload(width: int) -> Workload:
    spec = TensorSpec((1, width))
    return Workload((spec,), (OpCall.make("clip", 0, low=0.0, high=None),), spec)


def job(libraries: int) -> Job:
    """One workload with two schedules a library."""
    numbers = range(libraries)
    return Job(
        Header("rpi4", "digest", "software", "aarch64", 4, 0), Limits(),
        tuple(BuiltLibrary(f"lib/{i}.so", str(i) * 64) for i in range(libraries + 1)),
        tuple(workload(8 * (i + 1)) for i in numbers), tuple(10 + i for i in numbers),
        (Placed(-1, 0, 0, 0, "reference"), *(Placed(i, i + 1, step, 64, f"{i} {step}") for i in numbers for step in (0, 1))),
        tuple((i, "why", f"{i} 9") for i in numbers),
    )  # fmt: skip


JOBS = [only(job(6), n) for n in range(1, 7)]


class Board:
    """Answers with the job's efforts; ``dies`` or ``hangs`` on its n-th job."""

    def __init__(self, log: list, dies: int = -1, hangs: int = -1):
        self.log, self.dies, self.hangs, self.count = log, dies, hangs, 0

    def measure(self, job: Job) -> str:
        self.count += 1
        if self.count - 1 == self.dies:
            raise ConnectionResetError("Connection reset by peer")
        if self.count - 1 == self.hangs:
            threading.Event().wait(30)
        time.sleep(0.01)
        self.log.append(self)
        return str(job.efforts[0])


class Saying(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def shared(*boards, jobs=JOBS, limit_s=20.0):
    """What was kept, who measured, and what was said."""
    kept, log, saying = [], [], Saying()
    made = [(f"board{i}", lambda how=how: Board(log, **how) if isinstance(how, dict) else how()) for i, how in enumerate(boards)]
    try:
        share(jobs, made, kept.append, limit_s, saying)
    except MeasureError as err:
        return sorted(kept), log, saying.said, str(err)
    return sorted(kept), log, saying.said, None


ALL = sorted(str(10 + i) for i in range(6))


def test_boards_measure_at_the_same_time_and_everything_once():
    kept, log, said, _ = shared({}, {}, {})
    assert kept == ALL and len(set(log)) == 3 and said == []


@pytest.mark.parametrize("how", [{"dies": 0}, {"dies": 1}, {"hangs": 1}])
def test_work_of_a_board_that_dies_or_hangs_goes_to_another(how):
    kept, log, said, _ = shared(how, {}, limit_s=0.3)
    assert kept == ALL and len(said) == 1
    assert said[0].startswith("board board0 is dropped (") and said[0].endswith("; its work goes to another board")


def test_last_work_finds_an_idle_board_when_its_own_dies():
    kept, _, said, _ = shared({"dies": 0}, {}, jobs=JOBS[:1])
    assert kept == ALL[:1] and len(said) <= 1


def test_board_that_does_not_connect_is_dropped():
    def refuses():
        raise RuntimeError("Cannot request rpi4 after 1 retry\nlast_error: refused")

    kept, _, said, _ = shared(refuses, {})
    assert kept == ALL and said == ["board board0 is dropped (last_error: refused)"]


def test_when_all_boards_die_what_was_measured_is_kept_and_the_rest_is_counted():
    kept, _, said, err = shared({"dies": 1}, {"dies": 2})
    assert len(kept) == 3 and len(said) == 2
    assert "no board is left (board" in err and "Connection reset by peer" in err and "3 of 6 libraries" in err


def test_work_that_kills_boards_is_not_given_to_all_of_them():
    kept, _, said, err = shared(*[{"dies": 0}] * 5, jobs=JOBS[:1])
    assert kept == [] and "3 boards died on the same kernels" in err and len(said) == 3


def test_answer_that_cannot_be_kept_ends_it():
    def refuses(text):
        raise UsageError("of an emulator")

    with pytest.raises(UsageError, match="of an emulator"):
        share(JOBS, [("board", lambda: Board([]))], refuses, 20.0)


def test_part_of_a_job_holds_together():
    whole = job(3)
    part = only(whole, 2)
    assert Job.from_text(part.to_text(), "here") == part
    assert [b.file for b in part.libraries] == ["0.so", "2.so"] and part.workloads == (whole.workloads[1],) and part.efforts == (11,)
    assert part.kernels == (whole.kernels[0], replace(whole.kernels[3], workload=0, library=1), replace(whole.kernels[4], workload=0, library=1))
    assert part.failures == ((0, "why", "1 9"),)


def test_addresses():
    assert parse_address("127.0.0.1:9190") == ("127.0.0.1", 9190)
    for wrong in ("board", ":9190", "board:", "board:0", "board:70000", "board:x"):
        with pytest.raises(UsageError, match="write host:port"):
            parse_address(wrong)
