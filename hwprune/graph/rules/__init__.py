"""Rules of propagation, one operator family a file.

A rule is a function ``rule(call) -> Value | tuple[Value, ...]`` registered for the operators it understands::

    @rule(aten.conv2d.default)
    def conv(call: Call) -> Value: ...

It reads its operands' labels, unifies and freezes atoms through ``call.atoms``, and returns the labelled result. An
operator without a rule that PyTorch itself declares pointwise (``torch.Tag.pointwise``) is element-wise; any other one
is unknown, and freezes what touches it.

Rules of other packages register through entry points of the group ``hwprune.rules``; each names a module whose import
registers them (docs/operators.md).
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Callable, Iterator

import torch

from hwprune.errors import UsageError
from hwprune.graph.atoms import Atoms, Cause, Field, Reason, Value

aten = torch.ops.aten
ENTRY_POINTS = "hwprune.rules"
Rule = Callable[["Call"], "Value | tuple[Value, ...]"]
_RULES: dict[Any, Rule] = {}


@dataclass(frozen=True)
class Call:
    """One node of the graph as a rule sees it: operands by the name that the operator's schema gives them.

    shapes : shapes of the results (one, or one per element of a tuple result).
    where : module and file:line in the user's source.
    """

    op: Any
    operands: dict[str, Any]
    atoms: Atoms
    shapes: tuple[tuple[int, ...], ...]
    where: str

    def __getitem__(self, name: str) -> Any:
        return self.operands[name]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[0]

    @property
    def name(self) -> str:
        return str(self.op)

    def values(self) -> Iterator[Value]:
        """All tensor operands, also those inside lists."""
        for operand in self.operands.values():
            for item in operand if isinstance(operand, (list, tuple)) else (operand,):
                if isinstance(item, Value):
                    yield item

    def result(self, fields: list[Field] | tuple[Field, ...] = (), index: int = 0) -> Value:
        """A result that inherits the cause of fixed axes from the first operand that is not a weight."""
        values = list(self.values())
        lead = next((v for v in values if not v.weight), values[0] if values else Value(()))
        return Value(self.shapes[index], tuple(fields), lead.fixed, all(v.weight for v in values))

    def cause(self, reason: Reason, detail: str) -> Cause:
        return Cause(reason, detail, self.where)


def rule(*ops: Any) -> Callable[[Rule], Rule]:
    """Register a rule for operators; a second rule for one operator is an error."""

    def register(function: Rule) -> Rule:
        for op in ops:
            if op in _RULES:
                raise ValueError(f"two rules for {op}: {_RULES[op].__module__} and {function.__module__}")
            _RULES[op] = function
        return function

    return register


def overloads(*names: str) -> list[Any]:
    """Every overload of the named ATen operators that this PyTorch has, without the ``out`` variants."""
    found = []
    for name in names:
        packet = getattr(aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            if overload != "out" and not overload.endswith("_out"):
                found.append(getattr(packet, overload))
    return found


def find(op: Any) -> Rule:
    """The rule for an operator; ``unknown`` where there is none."""
    _load()
    if op in _RULES:
        return _RULES[op]
    if torch.Tag.pointwise in getattr(op, "tags", ()):
        return _RULES["pointwise"]
    return unknown


def unknown(call: Call) -> Value | tuple[Value, ...]:
    """Freeze everything that the operator touches."""
    namespace = getattr(call.op, "namespace", "")
    reason = Reason.UNKNOWN_OPERATOR if namespace == "aten" else Reason.CUSTOM_FUNCTION
    cause = call.cause(reason, f"no rule for {call.name}")
    for value in call.values():
        call.atoms.freeze_value(value, cause)
    weight = all(v.weight for v in call.values())
    results = tuple(Value(shape, (), cause, weight) for shape in call.shapes)
    return results if len(results) != 1 else results[0]


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    load_user_rules()


def load_user_rules() -> list[str]:
    """Import what other packages name under the entry point group ``hwprune.rules``; returns their names.

    Raises
    ------
    UsageError : one that cannot be imported, or that has a rule for an operator which has one already.
    """
    loaded = []
    for point in metadata.entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as err:
            package = point.dist.name if point.dist is not None else "unknown package"
            why = (str(err).splitlines() or [type(err).__name__])[0]
            raise UsageError(f"operator rules {point.value!r} of {package} cannot be loaded: {why}") from err
        loaded.append(point.name)
    return loaded
