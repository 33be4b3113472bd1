"""Tables of the measurement store, as the migrations that lead to them: a new file runs them all, an older one the rest."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import Iterator

#: Migration number n leads from schema version n to n + 1.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE measurement (
          workload TEXT NOT NULL, config TEXT NOT NULL, device TEXT NOT NULL, threads INTEGER NOT NULL, software TEXT NOT NULL,
          latency_us REAL, low_us REAL, high_us REAL, rounds INTEGER, noisy INTEGER,
          effort INTEGER NOT NULL, failure TEXT, description TEXT NOT NULL, measured_at TEXT NOT NULL,
          PRIMARY KEY (workload, config, device, threads, software)
        ) WITHOUT ROWID""",
        """CREATE TABLE calibration (
          name TEXT NOT NULL, device TEXT NOT NULL, threads INTEGER NOT NULL, software TEXT NOT NULL,
          value REAL NOT NULL, measured_at TEXT NOT NULL,
          PRIMARY KEY (name, device, threads, software)
        ) WITHOUT ROWID""",
    ),
    (
        # Provenance joins the key: a simulated figure never replaces a measured one. A key cannot be altered in place.
        "ALTER TABLE measurement RENAME TO measurement_1",
        """CREATE TABLE measurement (
          workload TEXT NOT NULL, config TEXT NOT NULL, device TEXT NOT NULL, threads INTEGER NOT NULL, software TEXT NOT NULL,
          latency_us REAL, low_us REAL, high_us REAL, rounds INTEGER, noisy INTEGER,
          effort INTEGER NOT NULL, failure TEXT, description TEXT NOT NULL, measured_at TEXT NOT NULL,
          provenance TEXT NOT NULL DEFAULT 'measured' CHECK (provenance IN ('measured', 'simulated')),
          model TEXT, details TEXT NOT NULL DEFAULT '{}',
          PRIMARY KEY (workload, config, device, threads, software, provenance)
        ) WITHOUT ROWID""",
        """INSERT INTO measurement (workload, config, device, threads, software, latency_us, low_us, high_us, rounds, noisy,
             effort, failure, description, measured_at)
           SELECT workload, config, device, threads, software, latency_us, low_us, high_us, rounds, noisy,
             effort, failure, description, measured_at FROM measurement_1""",
        "DROP TABLE measurement_1",
    ),
)  # fmt: skip

SCHEMA_VERSION = len(_MIGRATIONS)


def version_of(db: sqlite3.Connection) -> int:
    """Schema version of the file; 0 for a new one."""
    return db.execute("PRAGMA user_version").fetchone()[0]


def migrate(db: sqlite3.Connection) -> None:
    """Bring the file to the current version, all or nothing. Several processes may do so at once: the first one does it."""
    with transaction(db):
        for number in range(version_of(db), SCHEMA_VERSION):
            for statement in _MIGRATIONS[number]:
                db.execute(statement)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All that is written within is kept, or nothing of it. Waits for other writers first."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # on a full disk SQLite has rolled back by itself
            db.execute("ROLLBACK")
        raise
