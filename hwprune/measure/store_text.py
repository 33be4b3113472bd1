"""Measurements as text: sorted, one line each, so that two exports can be compared and kept under version control.

The first line names the format. Lines that begin with ``#calibration`` hold figures of devices. Then comes the line of
column names, and a line for each measurement. Fields stand between tabs and are escaped as PostgreSQL's COPY does:
``\\t``, ``\\n``, ``\\r``, ``\\\\``, and ``\\N`` for nothing.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import astuple
from datetime import datetime
from pathlib import Path
from typing import Any, Callable, Iterable, NoReturn, Sequence

from hwprune.errors import DataError
from hwprune.measure.estimate import Latency
from hwprune.measure.store import Calibration, Context, Row
from hwprune.workload import Workload

FORMAT = 1
COLUMNS = (
    "workload", "config", "device", "threads", "software", "latency_us", "low_us", "high_us", "rounds", "noisy", "effort",
    "provenance", "model", "measured_at", "details", "failure",
)  # fmt: skip

_FIRST = f"#hwprune measurements, format {FORMAT}"
_CALIBRATION = "#calibration"
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {escaped[1]: char for char, escaped in _ESCAPES.items()}


def to_text(rows: Iterable[Row], calibrations: Iterable[Calibration] = ()) -> str:
    """The text of these measurements; equal measurements in any order give equal text."""
    heads = [_joined((_CALIBRATION, c.name, *astuple(c.context), c.value, c.measured_at)) for c in calibrations]
    return "\n".join([_FIRST, *sorted(heads), _joined(COLUMNS), *sorted(_joined(_fields(r)) for r in rows)]) + "\n"


def from_text(text: str, path: Path | str) -> tuple[list[Row], list[Calibration]]:
    """What ``to_text`` wrote, checked. DataError names the line of ``path`` and what is wrong with it."""
    lines = text.split("\n")
    if lines[0] != _FIRST:
        other = re.fullmatch(r"#hwprune measurements, format (\d+)", lines[0])
        _refuse(path, 1, f"the format is {other[1]}, this hwprune reads {FORMAT}" if other else "this is no export of `hwprune store export`")
    if lines.pop() != "":
        _refuse(path, len(lines) + 1, "the last line is not complete: the file is cut short")
    rows, calibrations, header = [], [], None
    for number, line in enumerate(lines[1:], start=2):
        fields = [_unescaped(field) for field in line.split("\t")]
        try:
            if header is not None:
                rows.append(_row(fields))
            elif fields[0] == _CALIBRATION:
                calibrations.append(_calibration(fields[1:]))
            elif tuple(fields) == COLUMNS:
                header = number
            else:
                raise ValueError(f"expected the column names {', '.join(COLUMNS)}")
        except ValueError as err:
            _refuse(path, number, str(err))
    if header is None:
        _refuse(path, len(lines), "the line of column names is missing: the file is cut short")
    return rows, calibrations


def read(path: Path) -> tuple[list[Row], list[Calibration]]:
    """``from_text`` of a file; DataError if it cannot be read."""
    try:
        return from_text(path.read_bytes().decode(), path)
    except OSError as err:
        raise DataError(f"cannot read {path}: {err.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text; it should be an export of `hwprune store export`") from None


def _fields(row: Row) -> tuple:
    x = row.latency
    numbers = (x.latency_us, x.low_us, x.high_us, x.rounds, int(x.noisy)) if x else (None,) * 5
    return (
        json.dumps(row.workload.to_json(), sort_keys=True), row.config, *astuple(row.context), *numbers, row.effort, row.provenance,
        row.model, row.measured_at, json.dumps(dict(row.details), sort_keys=True), row.failure,
    )  # fmt: skip


def _joined(fields: Sequence[Any]) -> str:
    return "\t".join(_escaped(field) for field in fields)


def _escaped(field: Any) -> str:
    if field is None:
        return "\\N"
    text = repr(field) if isinstance(field, float) else str(field)
    return re.sub(r"[\\\t\n\r]", lambda m: _ESCAPES[m[0]], text)


def _unescaped(field: str) -> str | None:
    return None if field == "\\N" else re.sub(r"\\(.)", lambda m: _UNESCAPES.get(m[1], m[0]), field)


def _row(fields: list[str | None]) -> Row:
    _count(fields, len(COLUMNS))
    given = dict(zip(COLUMNS, fields))
    failure, latency, provenance = given["failure"], None, given["provenance"]
    if provenance not in ("measured", "simulated"):
        raise ValueError(f"`provenance` must be measured or simulated, but got {provenance!r}")
    if failure is None:
        low, value, high = (_number(given, key, float, lambda x: 0 < x < math.inf) for key in ("low_us", "latency_us", "high_us"))
        if not low <= value <= high:
            raise ValueError(f"`low_us <= latency_us <= high_us` must hold, but got ({low}, {value}, {high})")
        rounds = _number(given, "rounds", int, lambda x: x > 0 or (x == 0 and provenance == "simulated"))
        noisy = _number(given, "noisy", int, lambda x: x in (0, 1))
        latency = Latency(value, low, high, rounds, bool(noisy))
    details = _object(given, "details")
    return Row(
        _workload(_object(given, "workload")), _text(given, "config"), _context(given), latency,
        _number(given, "effort", int, lambda x: x >= 0), failure, provenance, given["model"], details, _time(given),
    )  # fmt: skip


def _workload(data: dict) -> Workload:
    try:
        workload = Workload.from_json(data)
        if workload.to_json() == data and isinstance(workload.macs, int):
            return workload
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        pass
    raise ValueError(f"`workload` = {json.dumps(data)[:100]} is not written as hwprune writes it")


def _calibration(fields: list[str | None]) -> Calibration:
    _count(fields, 6)
    given = dict(zip(("name", "device", "threads", "software", "value", "measured_at"), fields))
    return Calibration(_text(given, "name"), _context(given), _number(given, "value", float, math.isfinite), _time(given))


def _context(given: dict[str, str | None]) -> Context:
    return Context(_text(given, "device"), _number(given, "threads", int, lambda x: x > 0), _text(given, "software"))


def _count(fields: list, expected: int) -> None:
    if len(fields) != expected:
        raise ValueError(f"expected {expected} fields, but got {len(fields)}")


def _text(given: dict[str, str | None], key: str) -> str:
    if not given[key]:
        raise ValueError(f"`{key}` is empty")
    return given[key]


def _number(given: dict[str, str | None], key: str, kind: type, fits: Callable[[Any], bool]):
    try:
        value = kind(_text(given, key))
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise ValueError(f"`{key}` = {given[key]!r} is out of range or no number")
    return value


def _object(given: dict[str, str | None], key: str) -> dict:
    try:
        value = json.loads(_text(given, key))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"`{key}` is no JSON object")
    return value


def _time(given: dict[str, str | None]) -> str:
    text = _text(given, "measured_at")
    if datetime.fromisoformat(text).utcoffset() is None:
        raise ValueError(f"`measured_at` = {text!r} has no time zone")
    return text


def _refuse(path: Path | str, line: int, what: str) -> NoReturn:
    raise DataError(f"{path}, line {line}: {what}; nothing of it was taken")
