"""AArch64's conditions, as comparisons of the two numbers that set the flags."""

from __future__ import annotations

from typing import Callable

#: Conditions that are a comparison of numbers without sign.
SIGNS = {"eq": "==", "ne": "!=", "hs": ">=", "cs": ">=", "lo": "<", "cc": "<", "hi": ">", "ls": "<="}


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


#: condition -> whether it holds after two numbers a and b of so many bits were compared
_CONDITIONS: dict[str, Callable[[int, int, int], bool]] = {
    "eq": lambda a, b, bits: a == b,
    "ne": lambda a, b, bits: a != b,
    "hs": lambda a, b, bits: a >= b,
    "lo": lambda a, b, bits: a < b,
    "hi": lambda a, b, bits: a > b,
    "ls": lambda a, b, bits: a <= b,
    "ge": lambda a, b, bits: signed(a, bits) >= signed(b, bits),
    "lt": lambda a, b, bits: signed(a, bits) < signed(b, bits),
    "gt": lambda a, b, bits: signed(a, bits) > signed(b, bits),
    "le": lambda a, b, bits: signed(a, bits) <= signed(b, bits),
    "mi": lambda a, b, bits: signed(a - b, bits) < 0,
    "pl": lambda a, b, bits: signed(a - b, bits) >= 0,
}
_CONDITIONS |= {"cs": _CONDITIONS["hs"], "cc": _CONDITIONS["lo"]}


def holds(condition: str, flags: tuple[int, int, int]) -> bool:
    """Whether ``condition`` holds after the comparison of two numbers of so many bits."""
    return _CONDITIONS[condition](*flags)
