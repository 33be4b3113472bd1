"""Patches of an image as columns, and back: ``nn.Unfold`` and ``nn.Fold``."""

from __future__ import annotations

import math

import numpy as np

from hwprune.graph.atoms import Field, Reason, Value
from hwprune.graph.rules import Call, aten, rule


@rule(aten.im2col.default)
def im2col(call: Call) -> Value:
    """[.., C, H, W] -> [.., C * k * k, patches]: the pixels of a patch are one channel's, then the next one's."""
    x = call["self"]
    channel = len(x.shape) - 3
    x = _hold_places(call, x, channel)
    ids = call.atoms.axis(x, channel)
    fields = [f for f in x.fields if max(f.axes) < channel]
    if ids is not None:
        fields.append(Field((channel,), np.repeat(ids, math.prod(call["kernel_size"]))))
    return call.result(fields)


@rule(aten.col2im.default)
def col2im(call: Call) -> Value:
    """[.., C * k * k, patches] -> [.., C, H, W]: a channel goes with all pixels of its patches."""
    x = call["self"]
    channel = len(x.shape) - 2
    x = _hold_places(call, x, channel)
    ids = call.atoms.axis(x, channel)
    fields = [f for f in x.fields if max(f.axes) < channel]
    if ids is not None:
        pixels = ids.reshape(call.shape[channel], -1)
        call.atoms.unify(pixels[:, 1:], pixels[:, :1])
        if len(pixels) > 1:
            fields.append(Field((channel,), np.ascontiguousarray(pixels[:, 0])))
        else:
            call.atoms.freeze(ids, call.cause(Reason.UNIFORMITY, "the pixels of one channel"))
    return call.result(fields)


def _hold_places(call: Call, x: Value, channel: int) -> Value:
    """What lies on the axes after the channel stays whole."""
    places = range(channel + 1, len(x.shape))
    return call.atoms.hold(x, places, call.cause(Reason.UNIFORMITY, f"{call.name} treats the axis as spatial"))
