"""The measurement store: what is committed stays, whatever happens to the process or the file."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path

import pytest

from hwprune.errors import StoreError
from hwprune.measure.estimate import Latency
from hwprune.measure.schema import SCHEMA_VERSION
from hwprune.measure.store import Calibration, Context, Row, Store
from hwprune.progress import Silent
from hwprune.workload import OpCall, TensorSpec, Workload

HERE = Context("board", 2, "kernels 1")


def workload(width: int = 8) -> Workload:
    spec = TensorSpec((1, 4, 4, width))
    return Workload((spec,), (OpCall.make("clip", 0, low=0.0, high=None),), spec, macs=width)


def latency(value: float) -> Latency:
    return Latency(value, value * 0.9, value * 1.1, 9, False)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "m.sqlite")
    yield store
    store.close()


class Saying(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


# --- what it keeps ----------------------------------------------------------------------------------------------


def test_round_trip(store):
    store.record(workload(), "config", HERE, Latency(3.5, 3.0, 4.0, 15, True), effort=14)
    found = store.best(workload(), HERE)
    assert found.workload == workload() and found.config == "config" and found.effort == 14
    assert found.latency == Latency(3.5, 3.0, 4.0, 15, True)


def test_best_is_the_fastest_and_effort_the_largest(store):
    store.record(workload(), "slow", HERE, latency(5.0), effort=14)
    store.record(workload(), "fast", HERE, latency(2.0), effort=3)
    found = store.best(workload(), HERE)
    assert (found.config, found.latency.latency_us, found.effort) == ("fast", 2.0, 14)


def test_newer_measurement_replaces_the_older(store):
    store.record(workload(), "a", HERE, latency(1.0), effort=3)
    store.record(workload(), "a", HERE, latency(4.0), effort=3)
    assert store.best(workload(), HERE).latency.latency_us == 4.0


@pytest.mark.parametrize(
    "other", [Context("board", 4, "kernels 1"), Context("desk", 2, "kernels 1"), Context("board", 2, "kernels 2")]
)
def test_measurements_of_another_place_do_not_answer(store, other):
    store.record(workload(), "a", HERE, latency(1.0), effort=3)
    store.calibrate("reference_us", 7.0, HERE)
    assert store.best(workload(), other) is None
    assert store.all_best(other) == []
    assert store.calibration("reference_us", other) is None
    assert store.calibration("reference_us", HERE) == 7.0


def test_best_of_many_in_their_order(store):
    for width in (8, 24):
        store.record(workload(width), "a", HERE, latency(width), effort=3)
    found = store.best_of([workload(24), workload(16), workload(8)], HERE)
    assert [m and m.latency.latency_us for m in found] == [24.0, None, 8.0]
    assert {m.workload for m in store.all_best(HERE)} == {workload(8), workload(24)}


def test_failures_are_kept_and_never_win(store):
    store.record_failure(workload(), "crashes", HERE, "x" * 1000, effort=3)
    assert store.best(workload(), HERE) is None
    store.record(workload(), "runs", HERE, latency(1.0), effort=3)
    assert store.best(workload(), HERE).config == "runs"
    assert store.failures(workload(), HERE) == {"crashes": "x" * 500}


def test_survives_closing(tmp_path):
    first = Store(tmp_path / "deep" / "folder" / "m.sqlite")
    first.record(workload(), "a", HERE, latency(1.0), effort=3)
    first.close()
    assert Store(tmp_path / "deep" / "folder" / "m.sqlite").best(workload(), HERE).config == "a"


# --- files that are not right -----------------------------------------------------------------------------------


def test_damaged_file_is_set_aside_and_said(tmp_path):
    path = tmp_path / "m.sqlite"
    path.write_bytes(b"this was a store once" * 100)
    progress = Saying()
    store = Store(path, progress)
    store.record(workload(), "a", HERE, latency(1.0), effort=3)
    (aside,) = tmp_path.glob("m.sqlite.damaged-*")
    assert aside.read_bytes() == b"this was a store once" * 100
    assert len(progress.said) == 1 and aside.name in progress.said[0]


def test_truncated_file_is_set_aside_or_refused_but_never_dropped(tmp_path):
    path = tmp_path / "m.sqlite"
    store = Store(path)
    for width in range(1, 200):
        store.record(workload(width), "a" * 200, HERE, latency(1.0), effort=3)
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        assert Store(path).all_best(HERE) is not None
    except StoreError as err:
        assert str(path) in str(err)
    kept = [p.stat().st_size for p in tmp_path.iterdir()]
    assert len(whole) // 2 in kept


def test_another_schema_version_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "m.sqlite"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE other (x)")
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(
        StoreError, match=rf"schema version {SCHEMA_VERSION + 1}, this hwprune reads {SCHEMA_VERSION}: .*update hwprune.*--store"
    ):
        Store(path)
    assert sqlite3.connect(path).execute("SELECT name FROM sqlite_master").fetchall() == [("other",)]


# As the first release made it; written out, so that a change of the migrations cannot change it as well.
_VERSION_1 = """
CREATE TABLE measurement (
  workload TEXT NOT NULL, config TEXT NOT NULL, device TEXT NOT NULL, threads INTEGER NOT NULL, software TEXT NOT NULL,
  latency_us REAL, low_us REAL, high_us REAL, rounds INTEGER, noisy INTEGER,
  effort INTEGER NOT NULL, failure TEXT, description TEXT NOT NULL, measured_at TEXT NOT NULL,
  PRIMARY KEY (workload, config, device, threads, software)
) WITHOUT ROWID;
CREATE TABLE calibration (
  name TEXT NOT NULL, device TEXT NOT NULL, threads INTEGER NOT NULL, software TEXT NOT NULL,
  value REAL NOT NULL, measured_at TEXT NOT NULL,
  PRIMARY KEY (name, device, threads, software)
) WITHOUT ROWID;
PRAGMA user_version=1;
"""


def store_of_version_1(path: Path) -> Path:
    db = sqlite3.connect(path)
    db.executescript(_VERSION_1)
    description = json.dumps(workload().to_json())
    place = (workload().key, "a", *astuple(HERE))
    db.execute("INSERT INTO measurement VALUES (?,?,?,?,?,2.5,2.0,3.0,9,1,14,NULL,?,'2026-01-01T00:00:00+00:00')", (*place, description))
    place = (workload().key, "b", *astuple(HERE))
    db.execute("INSERT INTO measurement VALUES (?,?,?,?,?,NULL,NULL,NULL,NULL,NULL,4,'hangs',?,'2026-01-01T00:00:00+00:00')", (*place, description))
    db.execute("INSERT INTO calibration VALUES ('reference_us','board',2,'kernels 1',7.0,'2026-01-01T00:00:00+00:00')")
    db.commit()
    db.close()
    return path


def assert_is_the_store_of_version_1(store: Store) -> None:
    found = store.best(workload(), HERE)
    assert (found.latency, found.effort, found.provenance, found.model) == (Latency(2.5, 2.0, 3.0, 9, True), 14, "measured", None)
    assert store.failures(workload(), HERE) == {"b": "hangs"}
    assert store.calibration("reference_us", HERE) == 7.0


def test_store_of_version_1_is_brought_up_to_date(tmp_path):
    path = store_of_version_1(tmp_path / "m.sqlite")
    store = Store(path)
    assert_is_the_store_of_version_1(store)
    store.close()
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_migration_that_is_killed_leaves_the_old_store(tmp_path):
    path = store_of_version_1(tmp_path / "m.sqlite")
    script = """
import os, signal, sqlite3, sys
from hwprune.measure import schema
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.set_trace_callback(lambda statement: statement.startswith("DROP TABLE") and os.kill(os.getpid(), signal.SIGKILL))
schema.migrate(db)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (1,)
    assert_is_the_store_of_version_1(Store(path))


def test_several_processes_migrate_at_once(tmp_path):
    path = store_of_version_1(tmp_path / "m.sqlite")
    for process in (processes := [writer(path, first, first + 3) for first in (100, 200, 300)]):
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    store = Store(path)
    assert_is_the_store_of_version_1(store)
    assert len(store.all_best(HERE)) == 10


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make folder .*--store"):
        Store(tmp_path / "file" / "m.sqlite")


def test_path_that_is_a_folder(tmp_path):
    with pytest.raises(StoreError, match="cannot open measurement store .*--store"):
        Store(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders; run the tests as another user")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot open measurement store .*--store"):
        Store(tmp_path / "m.sqlite")
    tmp_path.chmod(0o700)


def test_full_disk_keeps_what_was_stored_before(store):
    store.record(workload(1), "a", HERE, latency(1.0), effort=3)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages + 4}")
    written = 1
    with pytest.raises(StoreError, match="database or disk is full; free some space .what was stored before is kept.*--store"):
        for written in range(2, 1000):
            store.record(workload(written), "a" * 500, HERE, latency(1.0), effort=3)
    assert {m.workload for m in store.all_best(HERE)} == {workload(width) for width in range(1, written)}
    with pytest.raises(StoreError, match="database or disk is full"):
        store.add(Row(workload(width), "imported" * 50, HERE, latency(1.0), 3) for width in range(1, 1000))
    assert "imported" not in str(store.rows())
    store._db.execute(f"PRAGMA max_page_count={pages + 1000}")
    store.record(workload(5000), "a", HERE, latency(1.0), effort=3)
    assert len(store.all_best(HERE)) == written


def test_store_that_is_damaged_while_it_is_open_is_left_as_it_is(tmp_path):
    store = Store(tmp_path / "m.sqlite")
    for width in range(1, 300):
        store.record(workload(width), "a" * 300, HERE, latency(1.0), effort=3)
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    whole = bytearray((tmp_path / "m.sqlite").read_bytes())
    whole[4096:] = b"x" * (len(whole) - 4096)
    (tmp_path / "m.sqlite").write_bytes(whole)
    with pytest.raises(StoreError, match="malformed; the file is damaged: move it away"):
        Store(tmp_path / "m.sqlite").all_best(HERE)
    assert (tmp_path / "m.sqlite").read_bytes() == whole


def test_store_that_has_become_read_only(store):
    store._db.execute("PRAGMA query_only=ON")
    with pytest.raises(StoreError, match="readonly database.*--store"):
        store.record(workload(), "a", HERE, latency(1.0), effort=3)


# --- provenance, and what comes from elsewhere ------------------------------------------------------------------


def test_simulated_figures_stand_beside_measured_ones(store):
    store.record(workload(), "a", HERE, latency(5.0), effort=3, details={"governor": "performance"})
    store.record(workload(), "a", HERE, latency(1.0), effort=3, provenance="simulated", model="osaca")
    (measured,), (simulated,) = store.all_best(HERE), store.all_best(HERE, provenance="simulated")
    assert (measured.latency.latency_us, measured.provenance, measured.details) == (5.0, "measured", {"governor": "performance"})
    assert (simulated.latency.latency_us, simulated.provenance, simulated.model) == (1.0, "simulated", "osaca")
    assert store.best(workload(), HERE) == measured


def test_of_two_figures_the_newer_one_stays(store):
    def row(value, day):
        return Row(workload(), "a", HERE, latency(value), 3, measured_at=f"2026-01-0{day}T00:00:00+00:00")

    assert store.add([row(2.0, 2)], [Calibration("x", HERE, 2.0, "2026-01-02T00:00:00+00:00")]) == 2
    assert store.add([row(1.0, 1)], [Calibration("x", HERE, 1.0, "2026-01-01T00:00:00+00:00")]) == 0
    assert (store.best(workload(), HERE).latency.latency_us, store.calibration("x", HERE)) == (2.0, 2.0)
    assert store.add([row(3.0, 3)], [Calibration("x", HERE, 3.0, "2026-01-03T00:00:00+00:00")]) == 2
    assert (store.best(workload(), HERE).latency.latency_us, store.calibration("x", HERE)) == (3.0, 3.0)


def test_rows_hold_all_that_was_kept(store):
    rows = [
        Row(workload(8), "a", HERE, latency(1.0), 3, details={"clock_mhz": 1800}),
        Row(workload(8), "b", HERE, None, 3, "hangs"),
        Row(workload(16), "a", HERE, latency(1.0), 3, None, "simulated", "osaca"),
    ]
    store.add(rows)
    assert sorted(store.rows(), key=lambda r: r.key) == sorted(rows, key=lambda r: r.key)


def test_import_that_is_killed_takes_nothing(tmp_path):
    path = tmp_path / "m.sqlite"
    Store(path).record(workload(1), "a", HERE, latency(1.0), effort=3)
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_measure_store import HERE, Row, Store, latency, workload
def rows():
    for width in range(10, 1000):
        yield Row(workload(width), "a", HERE, latency(1.0), 3)
    os.kill(os.getpid(), signal.SIGKILL)
Store(sys.argv[1]).add(rows())
"""
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -signal.SIGKILL
    assert [m.workload for m in Store(path).all_best(HERE)] == [workload(1)]


# --- several processes, and the end of one ----------------------------------------------------------------------

_WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_measure_store import HERE, Store, latency, workload
store = Store(sys.argv[1])
for width in range(int(sys.argv[2]), int(sys.argv[3])):
    store.record(workload(width), "config", HERE, latency(width), effort=3)
    print(width, flush=True)
"""


def writer(path: Path, first: int, last: int) -> subprocess.Popen:
    script = _WRITER.format(tests=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path), str(first), str(last)], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_write_at_once(tmp_path):
    path = tmp_path / "m.sqlite"
    writers = [writer(path, 0, 150), writer(path, 150, 300)]
    for process in writers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert {m.workload for m in Store(path).all_best(HERE)} == {workload(width) for width in range(300)}


def test_killed_writer_loses_nothing_that_it_committed(tmp_path):
    path = tmp_path / "m.sqlite"
    process = writer(path, 0, 1_000_000)
    said = [process.stdout.readline() for _ in range(50)]
    time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    said += process.stdout.readlines()
    process.wait()
    committed = {workload(int(line)) for line in said if line.endswith("\n")}
    assert len(committed) >= 50
    assert committed <= {m.workload for m in Store(path).all_best(HERE)}


def test_schedules_that_are_not_admitted_do_not_count(tmp_path):
    store = Store(tmp_path / "m.sqlite")
    store.record(workload(8), "quick", HERE, latency(10.0), 1)
    store.record(workload(8), "slow", HERE, latency(20.0), 1)
    assert [m.config for m in store.all_best(HERE)] == ["quick"]
    assert [m.config for m in store.all_best(HERE, lambda config: config != "quick")] == ["slow"]
    assert store.all_best(HERE, lambda config: False) == []
