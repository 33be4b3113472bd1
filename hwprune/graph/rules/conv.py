"""Convolutions: plain, grouped, depthwise, transposed, in one to three dimensions."""

from __future__ import annotations

import numpy as np

from hwprune.graph.atoms import SILENT_CAUSE, Field, Reason, Value
from hwprune.graph.rules import Call, aten, overloads, rule

_OUT, _IN = 0, 1


@rule(*overloads("conv1d", "conv2d", "conv3d"))
def conv(call: Call) -> Value:
    return _convolution(call, out_dim=_OUT, in_dim=_IN)


@rule(*overloads("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"))
def conv_transpose(call: Call) -> Value:
    """The weight is [in, out / groups, ...]."""
    return _convolution(call, out_dim=_IN, in_dim=_OUT)


@rule(aten.convolution.default)
def convolution(call: Call) -> Value:
    return _convolution(call, *((_IN, _OUT) if call["transposed"] else (_OUT, _IN)))


def _convolution(call: Call, out_dim: int, in_dim: int) -> Value:
    x, weight, bias, groups = call["input"], call["weight"], call["bias"], int(call["groups"])
    atoms = call.atoms
    channel = len(x.shape) - (len(weight.shape) - 2) - 1  # an input without a batch axis is allowed
    atoms.freeze_axes(weight, range(2, len(weight.shape)), SILENT_CAUSE)
    mixed = _mixed(call, weight, channel)
    x = atoms.hold(x, mixed, call.cause(Reason.UNIFORMITY, "convolved as a spatial axis"))
    source, makes, reads = atoms.axis(x, channel), atoms.axis(weight, out_dim), atoms.axis(weight, in_dim)
    per_group = x.shape[channel] // groups
    if groups > 1 and per_group == 1:
        out = _depthwise(call, x, source, makes, weight, out_dim, groups)
    elif groups > 1:
        out = _grouped(call, x, source, makes, reads, weight, out_dim, groups)
    else:
        _read(call, x, source, reads)
        out = makes
    if bias is not None and out is not None:
        b = atoms.axis(bias, 0)
        atoms.freeze(out, bias.fixed) if b is None else atoms.unify(b, out)
    kept = [f for f in x.fields if not {channel, *mixed} & set(f.axes)]
    if out is None:
        return call.result(kept)
    return call.result([*kept, Field((channel,), out)])


def _mixed(call: Call, weight: Value, channel: int) -> list[int]:
    """Spatial axes along which values meet or places change: all but those of a kernel of 1 at every place."""
    spatial = len(weight.shape) - 2

    def each(given: int | list[int] | str) -> list[int]:
        given = [0] if isinstance(given, str) else [given] if isinstance(given, int) else list(given)  # a name: no
        return given * spatial if len(given) == 1 else given  # padding where the kernel is 1

    plain = [sizes == (1, 1, 0) for sizes in zip(weight.shape[2:], each(call["stride"]), each(call["padding"]))]
    return [channel + 1 + i for i in range(spatial) if not plain[i]]


def _read(call: Call, x: Value, source: np.ndarray | None, reads: np.ndarray | None) -> None:
    """The weight's input axis follows the input's channels and is what reads them."""
    if reads is None:
        if source is not None:
            call.atoms.freeze(source, call.cause(Reason.CONSTANT, "read by a weight of fixed size"))
    elif source is None:
        call.atoms.freeze(reads, x.fixed)
    else:
        call.atoms.unify(source, reads)
        call.atoms.read(reads)


def _depthwise(
    call: Call, x: Value, source: np.ndarray | None, makes: np.ndarray | None, weight: Value, out_dim: int, groups: int
) -> np.ndarray | None:
    """One group a channel: output channels k*m .. k*m+m-1 follow input channel k (m: the channel multiplier)."""
    atoms = call.atoms
    multiplier = call.shape[len(x.shape) - (len(weight.shape) - 2) - 1] // groups
    if out_dim == _OUT:
        out, per_channel = makes, makes
    else:  # a transposed weight is [in, multiplier]: its first axis is the channel
        atoms.freeze_axes(weight, [out_dim], call.cause(Reason.UNIFORMITY, "a depthwise convolution's multiplier"))
        per_channel = atoms.axis(weight, 0)
        out = None if per_channel is None else np.repeat(per_channel, multiplier)
    if per_channel is None or source is None:
        if per_channel is not None:
            atoms.freeze(per_channel, x.fixed)
        if source is not None:
            atoms.freeze(source, call.cause(Reason.CONSTANT, "follows a weight of fixed size"))
        return out
    atoms.unify(per_channel.reshape(groups, -1), source[:, None])
    return out


def _grouped(call, x, source, makes, reads, weight, out_dim, groups) -> np.ndarray | None:
    """Unit j is the j-th channel of every group: all groups stay, and stay of one size."""
    atoms = call.atoms
    if out_dim == _OUT:  # weight [out, in / groups]
        if makes is not None:
            _tie(atoms, makes, groups)
        if reads is not None:
            if source is not None:
                _tie(atoms, source, groups)
            _read(call, x, None if source is None else source[: len(reads)], reads)
        return makes
    if makes is not None:  # weight [in, out / groups]: one column of weights makes a channel of every group
        makes = np.tile(makes, groups)
    if source is not None:
        _tie(atoms, source, groups)
    _tie(atoms, reads, groups)
    _read(call, x, source, reads)
    return makes


def _tie(atoms, ids: np.ndarray, parts: int) -> None:
    columns = ids.reshape(parts, -1)
    atoms.unify(columns[1:], columns[:1])
