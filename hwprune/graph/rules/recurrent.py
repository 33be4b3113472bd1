"""Recurrent networks and cells: hidden units go.

A unit owns a row of each gate in ``weight_ih`` and ``weight_hh`` and the entries of both biases. It is read by a column
of ``weight_hh`` and by what reads the output: the next layer, in both directions, and the consumer after the module.

The states of all layers and directions are one tensor, ``[layers * directions, batch, hidden]``, so ``hidden_size`` is
one number: unit j of every layer and direction goes together, and the pruned module is still an ``nn.LSTM``.

Packed sequences (the overloads ``data``) have no rule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Iterator, Sequence

import numpy as np

from hwprune.graph.atoms import SILENT_CAUSE, Field, Reason, Value
from hwprune.graph.rules import Call, aten, rule
from hwprune.graph.rules.contraction import contract
from hwprune.graph.rules.elementwise import Letter, Operand, align, fields_of

#: Operators by how often they use weights: once per step of a sequence, and once.
SEQUENCES = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
CELLS = (aten.lstm_cell.default, aten.gru_cell.default, aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default)


@dataclass(frozen=True)
class _Weights:
    """Of one layer and direction: ``[gates * hidden, in]``, ``[gates * hidden, out]``, biases, and ``[out, hidden]``
    where the hidden units are projected."""

    ih: Value
    hh: Value
    biases: Sequence[Value]
    hr: Value | None = None


@rule(*SEQUENCES)
def recurrent(call: Call) -> tuple[Value, ...]:
    """Layers feed each other; the directions of a layer are concatenated, and see the whole sequence."""
    states = [_state(call, s) for s in _listed(call["hx"])]
    lead = ["batch", "time"] if call["batch_first"] else ["time", "batch"]
    cause = call.cause(Reason.UNIFORMITY, f"{call.name} runs over the axis")
    y = call.atoms.hold(call["input"], [lead.index("time")], cause)
    y = y.having(f for f in y.fields if lead.index("time") not in f.axes)
    weights = list(_weights(call, projected=states[0].shape[-1] != states[-1].shape[-1]))
    directions = 2 if call["bidirectional"] else 1
    for first in range(0, len(weights), directions):
        y = _joined(call, [_cell(call, y, lead, states, w) for w in weights[first : first + directions]])
    after = [s.having([Field(tuple(a + 1 for a in f.axes), f.ids) for f in s.fields]) for s in states]
    return call.result(y.fields), *(call.result(s.fields, i + 1) for i, s in enumerate(after))


@rule(*CELLS)
def cell(call: Call) -> Value | tuple[Value, ...]:
    states = _listed(call["hx"])
    biases = [b for b in (call["b_ih"], call["b_hh"]) if b is not None]
    y = _cell(call, call["input"], ["batch"], states, _Weights(call["w_ih"], call["w_hh"], biases))
    results = tuple(call.result(y.fields, i) for i in range(len(call.shapes)))
    return results if len(results) != 1 else results[0]


def _listed(states: Value | Sequence[Value]) -> list[Value]:
    return [states] if isinstance(states, Value) else list(states)


def _state(call: Call, state: Value) -> Value:
    """``[batch, hidden]``, the same labels for all layers and directions."""
    state = call.atoms.hold(state, [0], SILENT_CAUSE)
    fields = [Field(tuple(a - 1 for a in f.axes), f.ids) for f in state.fields if 0 not in f.axes]
    return state.having(fields, state.shape[1:])


def _weights(call: Call, projected: bool) -> Iterator[_Weights]:
    """By layer, then by direction, as PyTorch lists them."""
    params = list(call["params"])
    each = 2 + 2 * bool(call["has_biases"]) + projected
    for i in range(0, len(params), each):
        ih, hh, *rest = params[i : i + each]
        yield _Weights(ih, hh, rest[: len(rest) - projected], rest[-1] if projected else None)


def _cell(call: Call, x: Value, lead: list[Letter], states: Sequence[Value], w: _Weights) -> Value:
    """One layer in one direction: ``x [*lead, in]`` to ``[*lead, hidden]``. Unit j is the j-th row of every gate."""
    hidden = states[-1].shape[-1]  # of an LSTM's cells, where outputs are projected
    operands: list[Operand] = [(x, [*lead, "in"]), (w.ih, ["gate", "in"])]
    operands += [(states[0], ["batch", "out"]), (w.hh, ["gate", "out"])]
    operands += [(b, ["gate"]) for b in w.biases]
    gates = contract(_of_shape(call, (*x.shape[:-1], w.ih.shape[0])), _sized(operands), [*lead, "gate"])
    units = _met(call, [(_first_of(call, gates, hidden), [*lead, "unit"]), (states[-1], ["batch", "unit"])])
    if w.hr is None:
        return _met(call, [(units, [*lead, "unit"]), (states[0], ["batch", "unit"])])
    cause = call.cause(Reason.UNIFORMITY, "hidden_size must stay above proj_size")
    units = call.atoms.hold(units, [len(lead)], cause)
    operands = _sized([(units, [*lead, "unit"]), (w.hr, ["out", "unit"])])
    out = contract(_of_shape(call, (*x.shape[:-1], w.hr.shape[0])), operands, [*lead, "out"])
    return _met(call, [(out, [*lead, "out"]), (states[0], ["batch", "out"])])


def _first_of(call: Call, gates: Value, hidden: int) -> Value:
    """The rows of all gates tied to those of the first one, which stand for the units."""
    last = len(gates.shape) - 1
    ids = call.atoms.axis(gates, last)
    fields = [f for f in gates.fields if last not in f.axes]
    if ids is not None:
        rows = ids.reshape(-1, hidden)
        call.atoms.unify(rows[1:], rows[:1])
        fields += [Field((last,), np.ascontiguousarray(rows[0]))] if hidden > 1 else []
    return gates.having(fields, (*gates.shape[:-1], hidden))


def _met(call: Call, operands: list[Operand]) -> Value:
    """The first operand with its labels unified with those of the others, on the axes that it has."""
    value, letters = operands[0]
    joined = [(tuple(letters.index(x) for x in ls), ids) for ls, ids in align(call.atoms, _sized(operands))]
    return value.having(fields_of(joined))


def _joined(call: Call, ends: list[Value]) -> Value:
    """``[.., forward, backward]``."""
    last = len(ends[0].shape) - 1
    parts = [call.atoms.axis(v, last) for v in ends]
    fields = [f for f in ends[0].fields if last not in f.axes]
    if all(ids is not None for ids in parts):
        fields.append(Field((last,), np.concatenate(parts)))
    return ends[0].having(fields, (*ends[0].shape[:-1], len(ends) * ends[0].shape[-1]))


def _sized(operands: list[Operand]) -> list[Operand]:
    """An axis of extent 1 has no letter."""
    return [(v, [x if size > 1 else None for x, size in zip(letters, v.shape)]) for v, letters in operands]


def _of_shape(call: Call, shape: tuple[int, ...]) -> Call:
    return replace(call, shapes=(shape,))
