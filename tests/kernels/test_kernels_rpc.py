"""Boards behind TVM's RPC tracker, on the loopback interface: they share the work, and one of them dies."""

from __future__ import annotations

import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from agent_fakes import LIMITS, SLEEPS, job
from typer.testing import CliRunner

from hwprune.cli import app
from hwprune.errors import UsageError
from hwprune.measure.importing import parse_results
from hwprune.measure.rpc import boards, measure_job
from hwprune.progress import Silent
from hwprune.target import load_file

pytestmark = pytest.mark.timed

rpc = pytest.importorskip("tvm.rpc")
tracker_of = pytest.importorskip("tvm.rpc.tracker", reason="the tracker needs tornado: pip install 'hwprune[rpc]'")

KEY, LIBRARIES = "board", 6


class Saying(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def tracker():
    running = tracker_of.Tracker("127.0.0.1", port=9400, port_end=9500, silent=True)
    yield ("127.0.0.1", running.port)
    running.terminate()


@pytest.fixture(scope="module")
def servers(tracker):
    def start(first_port: int):
        return rpc.Server("127.0.0.1", port=first_port, port_end=first_port + 50, tracker_addr=tracker, key=KEY, silent=True)

    with ThreadPoolExecutor() as threads:
        running = list(threads.map(start, (9500, 9550)))
    wait_until_known(tracker, len(running))
    yield running
    for server in running:
        server.terminate()


def wait_until_known(tracker, count: int, patience_s: float = 60.0) -> None:
    """A server reports to the tracker some time after it was started."""
    end = time.monotonic() + patience_s
    while True:
        try:
            if len(boards(tracker, KEY)) == count:
                return
        except UsageError:
            pass
        assert time.monotonic() < end, f"the tracker does not know {count} boards after {patience_s} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def folder(agent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rpc")
    (folder / "lib").mkdir()
    for number in range(LIBRARIES + 1):
        shutil.copy(agent / "kernels.so", folder / "lib" / f"{number}.so")
    return folder


def test_profile_of_a_board(tracker, servers, usable, tmp_path, monkeypatch):
    profile = usable(8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hwprune.measure.probe_program.SECONDS", 0.05)
    where = ["--extends", profile.name, "--rpc", ":".join(map(str, tracker)), "--key", KEY]
    done = CliRunner().invoke(app, ["targets", "new", "there", "--probe", *where])
    assert done.exit_code == 0, done.output
    probed = load_file(tmp_path / "targets" / "there.toml")
    assert probed.lanes == 8 and probed.unsourced() == [] and probed.core.frequency_mhz != profile.core.frequency_mhz
    for given, wrong in ((where, "--probe"), (["--probe", *where[:4]], "go together"), (["--probe", *where[2:]], "--extends")):
        done = CliRunner().invoke(app, ["targets", "new", "other", *given])
        assert done.exit_code == 2 and wrong in done.output


def test_a_board_that_dies_is_dropped_and_nothing_is_lost(usable, agent, tracker, servers, folder, monkeypatch):
    monkeypatch.setattr("hwprune.measure.rpc.build_agent", lambda profile, out: shutil.copy(agent / "measure", out))
    whole, kept, saying = job((agent / "kernels.so").read_bytes(), [[SLEEPS, 1]] * LIBRARIES, LIMITS), [], Saying()

    def keep(text: str) -> None:
        kept.append(parse_results(text, "answer"))
        if len(kept) == 2:  # by now both are at work
            servers[0].terminate()

    measure_job(whole, usable(8), folder, tracker, KEY, keep, saying)
    assert {r.job.workloads[0].key for r in kept} == {w.key for w in whole.workloads} and len(kept) == LIBRARIES
    assert all({k.kernel: k.samples_us for k in m.kernels}[2] == [21.0] * 3 for r in kept for m in r.measured)
    assert len(saying.said) == 1 and "is dropped" in saying.said[0]


def test_tracker_or_board_that_is_not_there_is_one_sentence(tracker, servers):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UsageError, match="no RPC tracker answers at 127.0.0.1:.*rpc_tracker --host 127.0.0.1"):
            boards(unused.getsockname(), KEY)
    with pytest.raises(UsageError, match="knows no board 'rpi9'; it knows board"):
        boards(tracker, "rpi9")
