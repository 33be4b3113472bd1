"""A function in several processes: answers, errors that pass, and processes that do not survive."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from hwprune.errors import Infeasible, NoLatency
from hwprune.processes import Processes, ProcessLost


def work(what: str):
    """What the processes of these tests do."""
    if what == "pid":
        time.sleep(0.1)
        return os.getpid()
    if what == "refuse":
        raise NoLatency("a branch of the kernel depends on data")
    if what == "impossible":
        raise Infeasible("does not divide")
    if what == "print":
        print("what a library says")
        return what
    if what == "die":
        os._exit(3)
    raise ValueError("a fault")


@pytest.fixture(scope="module")
def processes():
    with Processes("test_processes:work", 2) as both:
        yield both


@pytest.fixture(scope="module", autouse=True)
def found_by_them():
    """The processes import this file."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.path.dirname(__file__), before]))
    yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def test_all_of_them_work(processes):
    found = {future.result() for future in [processes.submit("pid") for _ in range(6)]}
    assert len(found) == 2 and os.getpid() not in found


def test_what_hwprune_raises_passes(processes):
    with pytest.raises(NoLatency, match="depends on data"):
        processes.submit("refuse").result()
    with pytest.raises(Infeasible, match="does not divide"):
        processes.submit("impossible").result()


def test_what_is_printed_is_no_answer(processes):
    assert processes.submit(what="print").result() == "print"


def test_a_process_that_dies_is_replaced(processes):
    with pytest.raises(ProcessLost, match="ended with code 3"):
        processes.submit("die").result()
    with pytest.raises(ProcessLost, match="ValueError: a fault"):
        processes.submit("fault").result()
    assert isinstance(processes.submit("pid").result(), int)


def test_closed_they_are_gone():
    with Processes("test_processes:work", 1) as one:
        pid = one.submit("pid").result()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_if_hwprune_is_killed_they_end():
    text = """if True:
        import time
        from hwprune.processes import Processes
        print(Processes("test_processes:work", 1).submit("pid").result(), flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as user:
        pid = int(user.stdout.readline())
        user.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    assert time.monotonic() < deadline
