"""Workload: what one compiled kernel computes, as a value.

A workload is a small program in SSA form: its inputs are tensors, its operators refer to earlier values by number.
Value ``i`` is input ``i`` for ``i < len(inputs)``, else the result of operator ``i - len(inputs)``. Exactly one
operator may be an *anchor* (a reduction such as a convolution); everything else is element-wise and is computed in the
same kernel, before it (prologue) or after it (epilogue).

Shapes are **physical**: activations are channels-last and their innermost axis is padded up to the target's vector
width (``stored``), while reductions run over the **logical** extent only. Two widths that round up to the same stored
width therefore give the same workload for their producer: the staircase of latency over width, seen before measuring.

Workloads are hashable, equal by value, and have a canonical text (``key``) under which measurements are stored.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Mapping

DTYPE_BYTES = {"float32": 4, "float16": 2, "int32": 4, "int64": 8, "bool": 1}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a workload.

    shape : physical shape. Activations of rank 4 are NHWC.
    role : ``data`` (an activation) or ``weight`` (a constant, packed when the network is compiled).
    """

    shape: tuple[int, ...]
    role: str = "data"
    dtype: str = "float32"

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.role[0]}{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class OpCall:
    """One operator: ``op`` applied to values ``args`` with static ``attrs`` (sorted name, value pairs)."""

    op: str
    args: tuple[int, ...]
    attrs: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def make(op: str, *args: int, **attrs: Any) -> "OpCall":
        return OpCall(op, tuple(args), tuple(sorted((k, _freeze(v)) for k, v in attrs.items())))

    def __getitem__(self, name: str) -> Any:
        for key, value in self.attrs:
            if key == name:
                return value
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        for key, value in self.attrs:
            if key == name:
                return value
        return default


@dataclass(frozen=True)
class Workload:
    """A kernel's computation. See the module docstring.

    macs : multiply-accumulates over logical extents (padding lanes do not count), set by whoever lowers the network.
    """

    inputs: tuple[TensorSpec, ...]
    ops: tuple[OpCall, ...]
    output: TensorSpec
    macs: int = 0

    @cached_property
    def key(self) -> str:
        """Canonical text; equal keys mean equal workloads."""
        args = ",".join(str(t) for t in self.inputs)
        body = ";".join(
            f"{c.op}({','.join(map(str, c.args))}{''.join(f' {k}={_text(v)}' for k, v in c.attrs)})" for c in self.ops
        )
        return f"({args}){body}->{self.output}"

    @cached_property
    def dtype(self) -> str:
        """What the kernel computes in. A network's inputs and outputs are float32 also where all else is float16: the kernels that
        read and write them convert."""
        return "float16" if any(t.dtype == "float16" for t in (*self.inputs, self.output)) else "float32"

    @property
    def anchor(self) -> OpCall | None:
        """The operator that is a reduction or a data movement of its own; None for a purely element-wise kernel."""
        return self.anchors[0] if self.anchors else None

    @cached_property
    def anchors(self) -> tuple[OpCall, ...]:
        """All operators that are anchors. A kernel of a convolution and a depthwise one, or a pool, that reads it has two."""
        return tuple(call for call in self.ops if call.op in ANCHORS)

    @cached_property
    def stages(self) -> tuple["Workload", ...]:
        """The kernels, of one anchor each, that would compute this one: the result of one is the first input of the next."""
        if len(self.anchors) < 2:
            return (self,)
        first, second = self.anchors
        count, at, weight = len(self.inputs), self.ops.index(second), self.inputs[first.args[1]].shape
        made = TensorSpec((*first["out"], weight[0] * weight[-1]), dtype=self.dtype)
        # multiply-adds for each channel, which both have the same number of; a pool has none
        window = self.inputs[second.args[1]].shape[:-1] if len(second.args) > 1 else (0,)
        each = (math.prod(first["out"]) * math.prod(weight[1:-1]), math.prod((*self.output.shape[:-1], *window)))
        channels = self.macs // sum(each)
        read = [[(i, self.inputs[i]) for i in numbers] for numbers in self.inputs_of_stages]
        return (
            self._stage(self.ops[:at], read[0], count, made, channels * each[0]),
            self._stage(self.ops[at:], [(count + at - 1, made), *read[1]], count + at, self.output, channels * each[1]),
        )

    @cached_property
    def inputs_of_stages(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the inputs that each of ``stages`` reads, beside the result of the one before."""
        at = self.ops.index(self.anchors[1]) if len(self.anchors) > 1 else len(self.ops)
        parts = [ops for ops in (self.ops[:at], self.ops[at:]) if ops]
        return tuple(tuple(i for i in range(len(self.inputs)) if any(i in call.args for call in ops)) for ops in parts)

    @staticmethod
    def _stage(ops: tuple[OpCall, ...], inputs: list[tuple[int, TensorSpec]], first: int, output: TensorSpec, macs: int) -> "Workload":
        """``ops``, the first of which makes value number ``first``, over ``inputs``: (number of the value, what it is)."""
        number = {value: i for i, (value, _) in enumerate(inputs)} | {first + i: len(inputs) + i for i in range(len(ops))}
        renumbered = tuple(OpCall(call.op, tuple(number[a] for a in call.args), call.attrs) for call in ops)
        return Workload(tuple(spec for _, spec in inputs), renumbered, output, macs)

    @property
    def half_padding(self) -> bool:
        """Whether the second half of the last vector of a convolution's or product's results is padding, and leaving it out saves time:
        see ``Emitter.padding``."""
        return self.anchor is not None and bool(self.anchor.get("half"))

    @property
    def bytes_moved(self) -> int:
        """Bytes of all operands and the result, each touched once: the least a kernel can move."""
        return sum(t.size_bytes for t in self.inputs) + self.output.size_bytes

    @property
    def weight_bytes(self) -> int:
        return sum(t.size_bytes for t in self.inputs if t.role == "weight")

    def to_json(self) -> dict:
        return {
            "inputs": [[list(t.shape), t.role, t.dtype] for t in self.inputs],
            "ops": [[c.op, list(c.args), {k: _thaw(v) for k, v in c.attrs}] for c in self.ops],
            "output": [list(self.output.shape), self.output.role, self.output.dtype],
            "macs": self.macs,
        }

    @staticmethod
    def from_json(data: Mapping | str) -> "Workload":
        if isinstance(data, str):
            data = json.loads(data)
        return Workload(
            inputs=tuple(TensorSpec(tuple(s), r, d) for s, r, d in data["inputs"]),
            ops=tuple(OpCall.make(op, *args, **attrs) for op, args, attrs in data["ops"]),
            output=TensorSpec(tuple(data["output"][0]), data["output"][1], data["output"][2]),
            macs=data["macs"],
        )


#: Operators that define a kernel; every other operator is element-wise and fuses into one of these.
ANCHORS = frozenset({"conv2d", "depthwise", "dense", "pool2d", "global_pool", "layer_norm", "softmax", "attention", "matmul"})


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, (list, tuple)) else value


def _thaw(value: Any) -> Any:
    return [_thaw(v) for v in value] if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    return "x".join(_text(v) for v in value) if isinstance(value, tuple) else repr(value) if isinstance(value, float) else str(value)
