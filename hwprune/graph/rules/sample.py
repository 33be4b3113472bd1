"""Sampling of images at places that are computed: ``grid_sample``, ``affine_grid``, and pooling undone by its indices."""

from __future__ import annotations

from hwprune.graph.atoms import Reason, Value
from hwprune.graph.rules import Call, aten, rule
from hwprune.graph.rules.elementwise import Operand, align, fields_of

_BATCH, _CHANNEL = 0, 1


@rule(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sampler(call: Call) -> Value:
    """[N, C, places] at a grid [N, places', coordinates] -> [N, C, places']."""
    x, grid = call["input"], call["grid"]
    rank = len(x.shape)
    x = _without(call, x, range(2, rank), "the axis is spatial")
    grid = _without(call, grid, [rank - 1], "the axis holds coordinates")
    places = [_BATCH, *range(2, rank), None]
    operands: list[Operand] = [(x, [_BATCH, _CHANNEL, *[None] * (rank - 2)]), (grid, places)]
    return call.result(fields_of(align(call.atoms, operands)))


@rule(aten.affine_grid_generator.default)
def affine_grid(call: Call) -> Value:
    """Matrices [N, 2, 3] -> a grid [N, H, W, 2] of the size that the user's code says."""
    theta = _without(call, call["theta"], [1, 2], "the axis is one of a matrix")
    return call.result(theta.fields)


@rule(aten.max_unpool2d.default, aten.max_unpool3d.default)
def max_unpool(call: Call) -> Value:
    """Values go back to the places that the pooling took them from; both have the channels of the result."""
    x, indices = call["self"], call["indices"]
    rank = len(x.shape)
    spatial = 2 if call.op is aten.max_unpool2d.default else 3
    lead = [*range(rank - spatial), *[None] * spatial]
    values = [_without(call, v, range(rank - spatial, rank), "the axis is spatial") for v in (x, indices)]
    return call.result(fields_of(align(call.atoms, [(v, lead) for v in values])))


def _without(call: Call, value: Value, axes, detail: str) -> Value:
    """The value with these axes held, and no labels on them."""
    held = set(axes)
    value = call.atoms.hold(value, held, call.cause(Reason.UNIFORMITY, f"{call.name}: {detail}"))
    return value.having(f for f in value.fields if not held & set(f.axes))
