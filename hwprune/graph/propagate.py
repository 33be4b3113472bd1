"""Run the atom labels through the graph, one rule per node, and settle what is left to choose."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Sequence

import numpy as np
import torch
from torch import fx

from hwprune.graph.atoms import SILENT_CAUSE, Atoms, Cause, Field, Reason, Value
from hwprune.graph.rules import Call, find
from hwprune.graph.trace import Traced


@dataclass(frozen=True)
class Labels:
    """What propagation found out.

    values : node name -> its labelled value, or a tuple of them.
    classes : class of each atom, ``[atoms]``.
    """

    atoms: Atoms
    values: dict[str, Any]
    classes: np.ndarray


    @property
    def joint(self) -> bool:
        """Whether some label lies on several axes at once, so that either of them may be free."""
        return any(len(f.axes) > 1 for value in self.values.values() for v in _flat(value) for f in v.fields)


def propagate(traced: Traced, inner: bool = False) -> Labels:
    """One pass over the graph in data order, then joint labels are settled to one axis each: the longest, or with
    ``inner`` the innermost."""
    atoms = Atoms(inner)
    values: dict[str, Any] = {}
    tensors: dict[int, Value] = {}
    used = {id(traced.tensor(t)) for name, t in traced.targets.items() if traced.nodes[name].users}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            values[node.name] = _placeholder(traced, node, atoms, tensors, used)
        elif node.op == "call_function":
            values[node.name] = _apply(traced, node, atoms, values)
        elif node.op == "output":
            _outputs(traced, node, atoms, values)
        else:  # get_attr: a submodule of a higher-order operator, whose call is an unknown operator
            values[node.name] = None
    return Labels(atoms, values, settle(atoms, values))


def _placeholder(
    traced: Traced, node: fx.Node, atoms: Atoms, tensors: dict[int, Value], used: set[int]
) -> Value | None:
    """Parameters and buffers get one atom per index of each axis; tied ones share them. Inputs are of fixed size."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    shape = tuple(int(size) for size in value.shape)
    target = traced.targets.get(node.name)
    if target is None:
        return Value(shape, (), Cause(Reason.NETWORK_INPUT, f"input {node.name!r}", "(network input)"))
    if target in traced.literals:
        return Value(shape, (), Cause(Reason.CONSTANT, f"literal tensor {target!r}", target), weight=True)
    tensor = traced.tensor(target)
    if id(tensor) not in tensors:
        cause = Cause(Reason.CONSTANT, f"parameter of extent 1: {target}", target)
        fields = tuple(Field((dim,), atoms.new(size)) for dim, size in enumerate(shape) if size > 1)
        tensors[id(tensor)] = Value(shape, fields, cause, weight=True)
        if id(tensor) not in used:
            atoms.freeze_value(tensors[id(tensor)], SILENT_CAUSE)
    return tensors[id(tensor)]


def _apply(traced: Traced, node: fx.Node, atoms: Atoms, values: dict[str, Any]) -> Any:
    def value_of(arg: Any) -> Any:
        return fx.map_arg(arg, lambda n: values[n.name])

    if getattr(node.target, "__name__", "") == "getitem" and not hasattr(node.target, "_schema"):
        source = value_of(node.args[0])
        return source[node.args[1]] if isinstance(source, tuple) else source
    result = node.meta.get("val")
    several = isinstance(result, (list, tuple))
    tensors = [t for t in (result if several else [result]) if isinstance(t, torch.Tensor)]
    call = Call(
        op=node.target,
        operands=_operands(node, value_of),
        atoms=atoms,
        shapes=tuple(tuple(int(size) for size in t.shape) for t in tensors),
        where=str(traced.source(node)),
    )
    if not tensors:  # an assertion about a tensor, or a number read from it
        if not node.users:
            return None
        atoms_cause = call.cause(Reason.UNKNOWN_OPERATOR, f"{call.name} reads a number out of a tensor")
        for value in call.values():
            atoms.freeze_value(value, atoms_cause)
        return None
    atoms.where = call.where
    labelled = find(node.target)(call)
    if several and not isinstance(labelled, tuple):
        return (labelled,)
    return labelled


def _operands(node: fx.Node, value_of: Any) -> dict[str, Any]:
    """Operands by their names in the operator's schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        named = {str(i): value_of(arg) for i, arg in enumerate(node.args)}
        return {**named, **{k: value_of(v) for k, v in node.kwargs.items()}}
    operands = {}
    for i, argument in enumerate(schema.arguments):
        if i < len(node.args):
            operands[argument.name] = value_of(node.args[i])
        elif argument.name in node.kwargs:
            operands[argument.name] = value_of(node.kwargs[argument.name])
        else:
            operands[argument.name] = argument.default_value if argument.has_default_value() else None
    return operands


def _outputs(traced: Traced, node: fx.Node, atoms: Atoms, values: dict[str, Any]) -> None:
    for source in node.all_input_nodes:
        cause = Cause(Reason.NETWORK_OUTPUT, f"output {source.name!r}", str(traced.source(source)))
        for value in _flat(values[source.name]):
            atoms.freeze_value(value, cause)


def _flat(value: Any) -> Sequence[Value]:
    return [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Value)]


def settle(atoms: Atoms, values: dict[str, Any]) -> np.ndarray:
    """Tie joint labels along all axes but one until none is left.

    What a value keeps must be a box. A field over several axes whose classes already vary along one alone is one.
    """
    while True:
        classes = atoms.classes()
        seen: set[int] = set()
        tied = False
        for value in values.values():
            for v in _flat(value):
                for f in v.fields:
                    if len(f.axes) == 1 or id(f) in seen:
                        continue
                    seen.add(id(f))
                    tied |= _tie_joint(atoms, classes[f.ids], f.ids)
        if not tied:
            return classes


def _tie_joint(atoms: Atoms, classes: np.ndarray, ids: np.ndarray) -> bool:
    varying = [a for a in range(ids.ndim) if (classes != classes.take([0], axis=a)).any()]
    if len(varying) < 2:
        return False
    free = varying[-1] if atoms.inner else max(varying, key=lambda a: ids.shape[a])
    for axis in varying:
        if axis != free:
            atoms.unify(ids, ids.take([0], axis=axis))
    return True


def freeze_by_user(labels: Labels, traced: Traced, patterns: Sequence[str]) -> list[str]:
    """Freeze what the named modules or parameters make. Returns the patterns that name nothing."""
    unused = []
    reads = labels.atoms.readers()
    for pattern in patterns:
        matched = False
        for node_name, target in traced.targets.items():
            if not matches(pattern, target):
                continue
            matched = True
            value = labels.values.get(node_name)
            for f in value.fields if isinstance(value, Value) else ():
                if not reads[f.ids].any():
                    labels.atoms.freeze(f.ids, Cause(Reason.USER, f"frozen by {pattern!r}", target))
        if not matched:
            unused.append(pattern)
    return unused


def matches(pattern: str, target: str) -> bool:
    """A pattern names a parameter, its module, or a module above it."""
    parts = target.split(".")
    return any(fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts) + 1))
