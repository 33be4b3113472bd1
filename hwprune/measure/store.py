"""The measurement store: SQLite, one row per workload x schedule x device x threads x software x provenance.

Write-ahead logging, so several processes may write and a kill loses at most the row being written. Stores of older
versions are brought up to date in place, newer ones are refused. A file that is no healthy database is set aside, never
dropped.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import sqlite3
import time
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

from hwprune.errors import StoreError
from hwprune.measure.estimate import Latency
from hwprune.measure.schema import SCHEMA_VERSION, migrate, transaction, version_of
from hwprune.progress import SILENT, Progress
from hwprune.workload import Workload

#: How long another process that writes is waited for.
_TIMEOUT_S = 30.0

_COLUMNS = (
    "workload, config, device, threads, software, latency_us, low_us, high_us, rounds, noisy, effort, failure, description, "
    "measured_at, provenance, model, details"
)


@dataclass(frozen=True)
class Context:
    """Where and with what: the part of a measurement's key that is the same for a whole search."""

    device: str
    threads: int
    software: str


@dataclass(frozen=True)
class Measurement:
    """A workload's best schedule so far and its latency.

    effort : how many schedules were tried to find it.
    provenance : ``measured`` or ``simulated``. model : what simulated it, None for a measurement.
    details : what else is known of the moment, values of JSON: clock, governor, temperature, spread, why it is noisy.
    """

    workload: Workload
    config: str
    latency: Latency
    effort: int
    provenance: str = "measured"
    model: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Row:
    """All that the store keeps of one measurement. A schedule that cannot be built or run has ``failure`` and no latency."""

    workload: Workload
    config: str
    context: Context
    latency: Latency | None
    effort: int
    failure: str | None = None
    provenance: str = "measured"
    model: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)
    measured_at: str = field(default_factory=lambda: _now())

    @property
    def key(self) -> tuple:
        return self.workload.key, self.config, *astuple(self.context), self.provenance


@dataclass(frozen=True)
class Calibration:
    """A figure of the device itself, such as the reference kernel's latency."""

    name: str
    context: Context
    value: float
    measured_at: str = field(default_factory=lambda: _now())

    @property
    def key(self) -> tuple:
        return self.name, *astuple(self.context)


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
        db = sqlite3.connect(self.path, timeout=_TIMEOUT_S, isolation_level=None)
        version = version_of(db)
        if version > SCHEMA_VERSION:
            db.close()
            raise StoreError(
                f"{self.path} has schema version {version}, this hwprune reads {SCHEMA_VERSION}: a newer hwprune wrote it; "
                "update hwprune, or choose another with --store"
            )
        _write_ahead(db)
        db.execute("PRAGMA synchronous=NORMAL")
        if version < SCHEMA_VERSION:
            migrate(db)
        return db

    def _set_aside(self) -> Path:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}-{os.getpid()}")
        os.replace(self.path, aside)
        for suffix in ("-wal", "-shm"):  # what was written last may be there alone
            if Path(f"{self.path}{suffix}").exists():
                os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        return aside

    def close(self) -> None:
        self._db.close()

    def record(
        self, workload: Workload, config: str, context: Context, latency: Latency, effort: int, *,
        provenance: str = "measured", model: str | None = None, details: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Keep a measurement; a newer one of the same key replaces it. The rest as in ``Measurement``."""
        self._write(Row(workload, config, context, latency, effort, None, provenance, model, details or {}))

    def record_failure(self, workload: Workload, config: str, context: Context, why: str, effort: int) -> None:
        """Keep that a schedule cannot be built or run, so that it is not tried again."""
        self._write(Row(workload, config, context, None, effort, why[:500]))

    def _write(self, row: Row) -> None:
        self._execute(f"INSERT OR REPLACE INTO measurement ({_COLUMNS}) VALUES ({','.join('?' * 17)})", _values(row))

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

    def all_best(
        self, context: Context, admits: Callable[[str], bool] = lambda config: True, provenance: str = "measured",
        handicap: Callable[[str], float] = lambda config: 1.0,
    ) -> list[Measurement]:  # fmt: skip
        """The fastest schedule of every workload known in ``context``, of those that ``admits`` says yes to; the latency of each counts
        ``handicap`` times."""
        return list(self._table(context, admits, provenance, handicap).values())

    def failures(self, workload: Workload, context: Context) -> dict[str, str]:
        """Schedules of ``workload`` that cannot be built or run -> why."""
        rows = self._execute(
            "SELECT config, failure FROM measurement WHERE workload=? AND device=? AND threads=? AND software=? AND failure IS NOT NULL",
            (workload.key, *astuple(context)),
        )
        return dict(rows)

    def _table(
        self, context: Context, admits: Callable[[str], bool] = lambda config: True, provenance: str = "measured",
        handicap: Callable[[str], float] = lambda config: 1.0,
    ) -> dict[str, Measurement]:  # fmt: skip
        rows = self._execute(
            "SELECT workload, config, latency_us, low_us, high_us, rounds, noisy, description, "
            "MAX(effort) OVER (PARTITION BY workload), model, details FROM measurement "
            "WHERE device=? AND threads=? AND software=? AND provenance=? AND failure IS NULL ORDER BY workload, latency_us, config",
            (*astuple(context), provenance),
        )
        table: dict[str, Measurement] = {}
        counted: dict[str, float] = {}
        for key, config, value, low, high, rounds, noisy, description, effort, model, details in rows:
            if value < counted.get(key, math.inf) and admits(config) and (counts := value * handicap(config)) < counted.get(key, math.inf):
                counted[key] = counts
                latency = Latency(value, low, high, rounds, bool(noisy))
                table[key] = Measurement(Workload.from_json(description), config, latency, effort, provenance, model, json.loads(details))
        return table

    def calibrate(self, name: str, value: float, context: Context) -> None:
        """Keep a figure of the device itself: the reference kernel's latency, overheads."""
        self._execute("INSERT OR REPLACE INTO calibration VALUES (?,?,?,?,?,?)", (name, *astuple(context), value, _now()))

    def calibration(self, name: str, context: Context) -> float | None:
        rows = self._execute(
            "SELECT value FROM calibration WHERE name=? AND device=? AND threads=? AND software=?", (name, *astuple(context))
        )
        return rows[0][0] if rows else None

    def rows(self) -> list[Row]:
        """All measurements and failures, of all devices, in the order of their keys."""
        return [_row(values) for values in self._execute(f"SELECT {_COLUMNS} FROM measurement ORDER BY device, threads, software, workload, config, provenance")]

    def calibrations(self) -> list[Calibration]:
        """All figures of devices, in the order of their keys."""
        found = self._execute("SELECT name, device, threads, software, value, measured_at FROM calibration ORDER BY device, threads, software, name")
        return [Calibration(name, Context(*context), value, at) for name, *context, value, at in found]

    def add(self, rows: Iterable[Row], calibrations: Iterable[Calibration] = ()) -> int:
        """Keep what comes from elsewhere: all of it, or nothing if it cannot be written.

        Of two figures with the same key the newer one stays. Returns how many were taken.
        """
        newer = "WHERE excluded.measured_at > measured_at"
        measurement = f"""INSERT INTO measurement ({_COLUMNS}) VALUES ({','.join('?' * 17)}) ON CONFLICT DO UPDATE SET
            latency_us=excluded.latency_us, low_us=excluded.low_us, high_us=excluded.high_us, rounds=excluded.rounds,
            noisy=excluded.noisy, effort=excluded.effort, failure=excluded.failure, measured_at=excluded.measured_at,
            model=excluded.model, details=excluded.details {newer}"""
        calibration = f"""INSERT INTO calibration VALUES (?,?,?,?,?,?) ON CONFLICT DO UPDATE SET
            value=excluded.value, measured_at=excluded.measured_at {newer}"""
        try:
            before = self._db.total_changes
            with transaction(self._db):
                self._db.executemany(measurement, map(_values, rows))
                self._db.executemany(calibration, ((c.name, *astuple(c.context), c.value, c.measured_at) for c in calibrations))
            return self._db.total_changes - before
        except sqlite3.Error as err:
            raise self._refusal(err) from None

    def _execute(self, statement: str, values: tuple = ()) -> list[tuple]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as err:
            raise self._refusal(err) from None

    def _refusal(self, err: sqlite3.Error) -> StoreError:
        damaged = any(text in str(err) for text in ("malformed", "not a database"))
        mend = "the file is damaged: move it away (it is left as it is)" if damaged else "free some space (what was stored before is kept)"
        return StoreError(f"measurement store {self.path}: {err}; {mend}, or choose another with --store")


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switch to write-ahead logging. SQLite does not wait here for another process that is switching, as it does for locks."""
    until = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as err:
            if "locked" not in str(err) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _values(row: Row) -> tuple:
    x = row.latency
    numbers = (x.latency_us, x.low_us, x.high_us, x.rounds, int(x.noisy)) if x else (None,) * 5
    return (
        row.workload.key, row.config, *astuple(row.context), *numbers, row.effort, row.failure, json.dumps(row.workload.to_json()),
        row.measured_at, row.provenance, row.model, json.dumps(dict(row.details), sort_keys=True),
    )  # fmt: skip


def _row(values: tuple) -> Row:
    (_, config, device, threads, software, value, low, high, rounds, noisy, effort, failure, description, at, provenance,
     model, details) = values  # fmt: skip
    latency = None if failure is not None else Latency(value, low, high, rounds, bool(noisy))
    return Row(Workload.from_json(description), config, Context(device, threads, software), latency, effort, failure,
               provenance, model, json.loads(details), at)  # fmt: skip


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
