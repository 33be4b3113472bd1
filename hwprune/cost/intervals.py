"""Interval arithmetic on the integer expressions of a kernel: where an index reaches while some loops run and others stand.

An expression is translated once into a function of Python's own numbers. Asking TVM for the parts of one takes microseconds
each, and a kernel's indices are evaluated tens of thousands of times.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping

from tvm import tirx

from hwprune.errors import NoLatency

#: Lowest and highest value, and how many different ones there are at most.
Span = tuple[int, int, int]
#: ``number_of(variable)`` -> the values that it takes; one that is not in it is 0.
Where = Mapping[int, Span]
Interval = Callable[[Where], Span]

_ZERO: Span = (0, 0, 1)


def number_of(var: tirx.Var) -> int:
    """What stands for a variable in a dictionary: comparing two of them takes TVM long."""
    return hash(var)


def interval(e: Any, bound: Mapping[int, Interval]) -> Interval:
    """``e`` as a function of where its variables are. NoLatency if it is not understood.

    bound : variables that stand for expressions.
    """
    if isinstance(e, (int, tirx.IntImm)):
        value: Span = (int(e), int(e), 1)
        return lambda where: value
    if isinstance(e, tirx.Var):
        number = number_of(e)
        return bound[number] if number in bound else lambda where: where.get(number, _ZERO)
    if isinstance(e, (tirx.Cast, tirx.Broadcast)):
        return interval(e.value, bound)
    if isinstance(e, tirx.Ramp):
        return _ramp(interval(e.base, bound), int(e.stride), int(e.lanes))
    if isinstance(e, tirx.Select):
        return _chosen(e.condition, interval(e.true_value, bound), interval(e.false_value, bound), bound)
    rule = next((rule for kind, rule in _RULES.items() if isinstance(e, kind)), None)
    if rule is None:
        raise NoLatency(f"an index of the kernel is not understood: {e}")
    return _combined(rule, interval(e.a, bound), interval(e.b, bound))


def _ramp(base: Interval, stride: int, lanes: int) -> Interval:
    def ramp(where: Where) -> Span:
        low, high, count = base(where)
        return low, high + stride * (lanes - 1), count * lanes

    return ramp


def _chosen(condition: Any, yes: Interval, no: Interval, bound: Mapping[int, Interval]) -> Interval:
    """One of two, where it is known which; else what lies in either."""
    if not isinstance(condition, tirx.EQ):
        return lambda where: _either(yes(where), no(where))
    left, right = interval(condition.a, bound), interval(condition.b, bound)

    def chosen(where: Where) -> Span:
        a, b = left(where), right(where)
        if a[1] < b[0] or b[1] < a[0]:
            return no(where)
        return yes(where) if a[:2] == b[:2] and a[0] == a[1] else _either(yes(where), no(where))

    return chosen


def _either(a: Span, b: Span) -> Span:
    low, high = min(a[0], b[0]), max(a[1], b[1])
    return low, high, min(a[2] + b[2], high - low + 1)


def _combined(rule: Callable[[Span, Span], tuple[int, int]], left: Interval, right: Interval) -> Interval:
    def combined(where: Where) -> Span:
        a, b = left(where), right(where)
        low, high = rule(a, b)
        return low, high, min(a[2] * b[2], high - low + 1)

    return combined


def _product(a: Span, b: Span) -> tuple[int, int]:
    ends = [x * y for x in a[:2] for y in b[:2]]
    return min(ends), max(ends)


def _quotient(a: Span, b: Span) -> tuple[int, int]:
    return (a[0] // b[0], a[1] // b[0]) if b[0] == b[1] and b[0] > 0 else (0, max(a[1], 0))


def _remainder(a: Span, b: Span) -> tuple[int, int]:
    n = max(b[1], 1)
    return (a[0] % n, a[1] % n) if a[0] // n == a[1] // n else (0, n - 1)


#: Lowest and highest value of the result from those of both operands.
_RULES: dict[type, Callable[[Span, Span], tuple[int, int]]] = {
    tirx.Add: lambda a, b: (a[0] + b[0], a[1] + b[1]),
    tirx.Sub: lambda a, b: (a[0] - b[1], a[1] - b[0]),
    tirx.Mul: _product,
    tirx.FloorDiv: _quotient,
    tirx.Div: _quotient,
    tirx.FloorMod: _remainder,
    tirx.Mod: _remainder,
    tirx.Min: lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    tirx.Max: lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
}
