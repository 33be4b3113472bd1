"""Budgets as a user writes them: ``0.5x`` (of the dense network), ``3.2ms``, ``850us``, ``4MB``, ``512KiB``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hwprune.errors import UsageError

_TIME_US = {"ns": 1e-3, "us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}
_BYTES = {
    "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Zµ%]+)\s*\Z")


@dataclass(frozen=True)
class Budget:
    """An upper limit: a share of the dense network's figure, or an absolute one (microseconds or bytes).

    Exactly one of ``relative`` and ``absolute`` is set. ``text`` is what the user wrote.
    """

    text: str
    relative: float | None = None
    absolute: float | None = None

    def resolve(self, dense: float) -> float:
        """The limit in the unit of ``dense``, the dense network's figure (microseconds or bytes)."""
        return self.absolute if self.relative is None else self.relative * dense


def parse_latency(text: str) -> Budget:
    """A latency budget, such as ``0.5x``, ``50%``, ``3.2ms`` or ``850us``; its absolute value is in microseconds.

    Raises UsageError for anything else, a bare number included: `3` could mean three of several units.
    """
    return _parse(text, "latency", _TIME_US, "0.5x, 3.2ms or 850us")


def parse_bytes(text: str, what: str = "memory") -> Budget:
    """A memory or size budget, such as ``0.5x``, ``4MB`` (10^6) or ``512KiB`` (2^10); its absolute value is in bytes."""
    return _parse(text, what, _BYTES, "0.5x, 4MB or 512KiB")


def parse_share(text: str, option: str) -> float:
    """A share such as ``10%`` or ``0.1``, more than zero; UsageError names ``option`` for anything else."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", text)
    value = float(match.group(1)) / (100 if match.group(2) else 1) if match else 0.0
    if not 0 < value < 1:
        raise UsageError(f"{option} {text!r} is no share between 0 and 1; write for example 10% or 0.1")
    return value


def format_us(value_us: float) -> str:
    """Microseconds as a person reads them: ``850 us``, ``3.20 ms``."""
    if value_us >= 1e6:
        return f"{value_us / 1e6:.3g} s"
    return f"{value_us / 1e3:.3g} ms" if value_us >= 1e3 else f"{value_us:.3g} us"


def format_bytes(value: float) -> str:
    """Bytes as a person reads them, in powers of ten: ``512 B``, ``4.19 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def _parse(text: str, what: str, units: dict[str, float], examples: str) -> Budget:
    match = _PATTERN.match(text)
    unit = match.group(2) if match else ""
    if match is None or (unit not in ("x", "%") and unit.lower() not in units):
        raise UsageError(
            f"the {what} budget {text!r} is not understood; write a number with its unit, such as {examples}"
        )
    value = float(match.group(1))
    if not value > 0 or value == float("inf"):
        raise UsageError(f"the {what} budget {text!r} must be more than zero; write for example {examples}")
    if unit in ("x", "%"):
        share = value if unit == "x" else value / 100
        if share > 1:
            raise UsageError(
                f"the {what} budget {text!r} is more than the dense network takes; a share lies between 0x and 1x"
            )
        return Budget(text.strip(), relative=share)
    return Budget(text.strip(), absolute=value * units[unit.lower()])
