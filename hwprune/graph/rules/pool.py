"""Pooling, interpolation and padding of spatial axes, pixel shuffles."""

from __future__ import annotations

import numpy as np

from hwprune.graph.atoms import Field, Reason, Value
from hwprune.graph.rules import Call, aten, overloads, rule

_POOLS = {
    1: ("avg_pool1d", "max_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d", "max_pool1d_with_indices",
        "upsample_nearest1d", "upsample_linear1d", "_upsample_nearest_exact1d"),
    2: ("avg_pool2d", "max_pool2d", "max_pool2d_with_indices", "adaptive_avg_pool2d", "_adaptive_avg_pool2d",
        "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
        "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d"),
    3: ("avg_pool3d", "max_pool3d", "max_pool3d_with_indices", "adaptive_avg_pool3d", "adaptive_max_pool3d",
        "upsample_nearest3d", "upsample_trilinear3d", "_upsample_nearest_exact3d"),
}  # fmt: skip


def _window(spatial: int):
    def pool(call: Call) -> Value | tuple[Value, ...]:
        x = next(call.values())
        first = len(x.shape) - spatial
        detail = f"{call.name} treats the axis as spatial"
        x = call.atoms.hold(x, range(first, len(x.shape)), call.cause(Reason.UNIFORMITY, detail))
        fields = [f for f in x.fields if max(f.axes) < first]
        results = tuple(call.result(fields, i) for i in range(len(call.shapes)))
        return results if len(results) != 1 else results[0]

    return pool


for _spatial, _names in _POOLS.items():
    rule(*overloads(*_names))(_window(_spatial))


@rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(call: Call) -> Value:
    """Channels that padding adds are constants that the forward pass hard-codes: they stay."""
    x, amounts = next(call.values()), list(call["pad"])
    rank = len(x.shape)
    fields = list(x.fields)
    constant = call.operands.get("mode", "constant") == "constant"
    for i in range(len(amounts) // 2):
        axis, (before, after) = rank - 1 - i, amounts[2 * i : 2 * i + 2]
        f = x.field(axis)
        if (before, after) == (0, 0) or f is None:
            continue
        ids = call.atoms.axis(x, axis)
        fields = [g for g in fields if g is not f]
        if not constant or before < 0 or after < 0:
            call.atoms.freeze(ids, call.cause(Reason.UNIFORMITY, "padding copies or crops channels by position"))
            continue
        cause = call.cause(Reason.CONSTANT, "channels added by zero padding")
        ends = [call.atoms.new_frozen(n, cause) for n in (before, after)]
        fields.append(Field((axis,), np.concatenate([ends[0], ids, ends[1]])))
    return call.result(fields)


def _channels_of_image(call: Call) -> tuple[int, np.ndarray | None, list[Field]]:
    """The channel axis of an image, its ids, and the fields before it; what lies on height and width is frozen."""
    x = call["self"]
    axis = len(x.shape) - 3
    ids = call.atoms.axis(x, axis)
    _freeze_spatial(call, x, axis)
    return axis, ids, [f for f in x.fields if max(f.axes) < axis]


@rule(aten.pixel_shuffle.default)
def pixel_shuffle(call: Call) -> Value:
    """[.., C*r*r, H, W] -> [.., C, H*r, W*r]: a channel goes with its r*r sources."""
    r = int(call["upscale_factor"])
    axis, ids, fields = _channels_of_image(call)
    if ids is not None:
        blocks = ids.reshape(-1, r * r)
        call.atoms.unify(blocks[:, 1:], blocks[:, :1])
        fields += [Field((axis,), np.ascontiguousarray(blocks[:, 0]))] if len(blocks) > 1 else []
        if len(blocks) == 1:
            call.atoms.freeze(ids, call.cause(Reason.UNIFORMITY, "pixel shuffle needs all of them"))
    return call.result(fields)


@rule(aten.pixel_unshuffle.default)
def pixel_unshuffle(call: Call) -> Value:
    """[.., C, H*r, W*r] -> [.., C*r*r, H, W]: a channel becomes r*r that go together."""
    r = int(call["downscale_factor"])
    axis, ids, fields = _channels_of_image(call)
    return call.result(fields if ids is None else [*fields, Field((axis,), np.repeat(ids, r * r))])


@rule(aten.channel_shuffle.default)
def channel_shuffle(call: Call) -> Value:
    """[N, g*c, ..] -> [N, c*g, ..]: all g groups stay of one size."""
    x, groups = call["self"], int(call["groups"])
    ids = call.atoms.axis(x, 1)
    fields = [f for f in x.fields if 1 not in f.axes]
    if ids is None:
        return call.result(fields)
    columns = ids.reshape(groups, -1)
    call.atoms.unify(columns[1:], columns[:1])
    return call.result([*fields, Field((1,), np.ascontiguousarray(columns.T).ravel())])


def _freeze_spatial(call: Call, x: Value, axis: int) -> None:
    cause = call.cause(Reason.UNIFORMITY, f"{call.name} treats the axis as spatial")
    call.atoms.freeze_axes(x, range(axis + 1, len(x.shape)), cause)
