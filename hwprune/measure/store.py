"""The measurement store: SQLite, one row per workload x schedule x device x threads x software.

Write-ahead logging, so several processes may write and a kill loses at most the row being written. A file that is no
healthy database is set aside, never dropped.
"""

from __future__ import annotations

import datetime
import json
import os
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Sequence

from hwprune.errors import StoreError
from hwprune.measure.estimate import Latency
from hwprune.progress import SILENT, Progress
from hwprune.workload import Workload

SCHEMA_VERSION = 1

_SCHEMA = """
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
"""


@dataclass(frozen=True)
class Context:
    """Where and with what: the part of a measurement's key that is the same for a whole search."""

    device: str
    threads: int
    software: str


@dataclass(frozen=True)
class Measurement:
    """A workload's best schedule so far and its latency. ``effort``: how many schedules were tried to find it."""

    workload: Workload
    config: str
    latency: Latency
    effort: int


def default_path() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("hwprune")) / "measurements.sqlite"


class Store:
    """Opens (or makes) the store at ``path``; the user's cache folder by default."""

    def __init__(self, path: str | os.PathLike | None = None, progress: Progress = SILENT):
        self.path = Path(path) if path is not None else default_path()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise StoreError(f"cannot make folder {self.path.parent} for measurements: {err.strerror}; choose another with --store") from None
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as err:
            if isinstance(err, sqlite3.OperationalError):
                raise StoreError(f"cannot open measurement store {self.path}: {err}; choose another with --store") from None
            aside = self._set_aside()
            progress.say(f"{self.path} is damaged ({err}); it is kept as {aside.name} and a new store is begun")
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            with _transaction(db):
                if db.execute("PRAGMA user_version").fetchone()[0] == 0:  # another process may have been first
                    for statement in _SCHEMA.strip().split(";\n"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise StoreError(f"{self.path} has schema version {version}, this hwprune reads {SCHEMA_VERSION}; choose another with --store")
        return db

    def _set_aside(self) -> Path:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}-{os.getpid()}")
        os.replace(self.path, aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        return aside

    def close(self) -> None:
        self._db.close()

    def record(self, workload: Workload, config: str, context: Context, latency: Latency, effort: int) -> None:
        """Keep a measurement; a newer one of the same key replaces it."""
        self._write(workload, config, context, effort, latency, None)

    def record_failure(self, workload: Workload, config: str, context: Context, why: str, effort: int) -> None:
        """Keep that a schedule cannot be built or run, so that it is not tried again."""
        self._write(workload, config, context, effort, None, why[:500])

    def _write(self, workload, config, context, effort, latency: Latency | None, failure: str | None) -> None:
        numbers = (latency.latency_us, latency.low_us, latency.high_us, latency.rounds, int(latency.noisy)) if latency else (None,) * 5
        row = (workload.key, config, context.device, context.threads, context.software, *numbers, effort, failure,
               json.dumps(workload.to_json()), _now())
        self._execute(f"INSERT OR REPLACE INTO measurement VALUES ({','.join('?' * len(row))})", row)

    def best(self, workload: Workload, context: Context) -> Measurement | None:
        """The fastest schedule measured for ``workload``, or None."""
        return self.best_of([workload], context)[0]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What is written within is kept as a whole or not at all. StoreError."""
        self._execute("BEGIN IMMEDIATE", ())
        try:
            yield
        except BaseException:
            self._execute("ROLLBACK", ())
            raise
        self._execute("COMMIT", ())

    def best_of(self, workloads: Sequence[Workload], context: Context) -> list[Measurement | None]:
        """``best`` of each, in one pass over the store."""
        table = self._table(context)
        return [table.get(w.key) for w in workloads]

    def all_best(self, context: Context, admits: Callable[[str], bool] = lambda config: True) -> list[Measurement]:
        """The fastest schedule of every workload measured in ``context``, of those that ``admits`` says yes to."""
        return list(self._table(context, admits).values())

    def failures(self, workload: Workload, context: Context) -> dict[str, str]:
        """Schedules of ``workload`` that cannot be built or run -> why."""
        rows = self._execute(
            "SELECT config, failure FROM measurement WHERE workload=? AND device=? AND threads=? AND software=? AND failure IS NOT NULL",
            (workload.key, context.device, context.threads, context.software),
        )
        return dict(rows)

    def _table(self, context: Context, admits: Callable[[str], bool] = lambda config: True) -> dict[str, Measurement]:
        rows = self._execute(
            "SELECT workload, config, latency_us, low_us, high_us, rounds, noisy, description, "
            "MAX(effort) OVER (PARTITION BY workload) FROM measurement "
            "WHERE device=? AND threads=? AND software=? AND failure IS NULL ORDER BY workload, latency_us, config",
            (context.device, context.threads, context.software),
        )
        table: dict[str, Measurement] = {}
        for key, config, value, low, high, rounds, noisy, description, effort in rows:
            if key not in table and admits(config):
                latency = Latency(value, low, high, rounds, bool(noisy))
                table[key] = Measurement(Workload.from_json(description), config, latency, effort)
        return table

    def calibrate(self, name: str, value: float, context: Context) -> None:
        """Keep a figure of the device itself: the reference kernel's latency, overheads."""
        row = (name, context.device, context.threads, context.software, value, _now())
        self._execute("INSERT OR REPLACE INTO calibration VALUES (?,?,?,?,?,?)", row)

    def calibration(self, name: str, context: Context) -> float | None:
        rows = self._execute(
            "SELECT value FROM calibration WHERE name=? AND device=? AND threads=? AND software=?",
            (name, context.device, context.threads, context.software),
        )
        return rows[0][0] if rows else None

    def _execute(self, statement: str, values: tuple) -> list[tuple]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as err:
            raise StoreError(f"measurement store {self.path}: {err}; free some space or choose another with --store") from None


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
