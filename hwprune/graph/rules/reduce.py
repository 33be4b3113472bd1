"""Reductions, softmax and other operators that read whole axes."""

from __future__ import annotations

from typing import Any, Mapping

from hwprune.graph.atoms import Field, Reason, Value
from hwprune.graph.rules import Call, overloads, rule
from hwprune.graph.rules.elementwise import pointwise

_REDUCTIONS = (
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "argmax", "argmin", "any", "all", "norm",
    "logsumexp", "linalg_vector_norm", "nanmean", "median", "count_nonzero", "var_mean", "std_mean",
    "linalg_norm", "linalg_matrix_norm", "aminmax", "nansum", "kthvalue", "mode", "quantile", "nanquantile",
    "nanmedian",
)  # fmt: skip
#: Reductions that a pruned network takes over what is kept, as a normalization takes its statistics.
OVER_KEPT = frozenset(overloads(
    "mean", "sum", "amax", "amin", "var", "std", "norm", "logsumexp", "linalg_vector_norm", "var_mean", "std_mean",
    "linalg_norm", "linalg_matrix_norm", "aminmax",
))  # fmt: skip
_ALONG = (
    "softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "flip", "roll", "rot90",
    "sort", "topk", "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2",
    "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_fftshift", "fft_ifftshift", "diff",
)  # fmt: skip


@rule(*overloads(*_REDUCTIONS))
def reduction(call: Call) -> Value | tuple[Value, ...]:
    """Reduced axes vanish. A labelled one may lose units where the result is a statistic of what is kept, and stays
    whole where its extent or the places along it are part of the result (a product, the place of the largest).

    ``max`` and ``min`` of two tensors are element-wise.
    """
    if "other" in call.operands:
        return pointwise(call)
    x = next(call.values())
    reduced = named_axes(call.operands, len(x.shape))
    if call.op in OVER_KEPT:
        x = _statistic(call, x, reduced)
    else:
        x = call.atoms.hold(x, reduced, call.cause(Reason.UNIFORMITY, f"{call.name} reduces the axis"))
    keepdim = bool(call.operands.get("keepdim"))
    place = {}
    for axis in range(len(x.shape)):
        if axis not in reduced:
            place[axis] = axis if keepdim else len(place)
    fields = [
        Field(tuple(place[a] for a in f.axes), f.ids) for f in x.fields if all(a in place for a in f.axes)
    ]
    results = tuple(call.result(fields, i) for i in range(len(call.shapes)))
    return results if len(results) != 1 else results[0]


@rule(*overloads(*_ALONG))
def along_axis(call: Call) -> Value | tuple[Value, ...]:
    """Shapes other than the named axis pass through; the named axis stays whole."""
    x = next(call.values())
    axes = named_axes(call.operands, len(x.shape))
    x = call.atoms.hold(x, axes, call.cause(Reason.UNIFORMITY, f"{call.name} runs over the axis"))
    fields = [f for f in x.fields if not axes & set(f.axes)]
    results = tuple(call.result(fields, i) for i in range(len(call.shapes)))
    return results if len(results) != 1 else results[0]


def _statistic(call: Call, x: Value, reduced: set[int]) -> Value:
    """A joint label goes on along the axes that are left (where inner units are to go, those are what is tied)."""
    fields = []
    for f in x.fields:
        rest = [a for a in f.axes if a not in reduced]
        if call.atoms.inner and f.axes[-1] in reduced:
            rest = [a for a in f.axes if a in reduced]
        fields.append(f if len(rest) in (0, len(f.axes)) else call.atoms.along(f, rest))
    return x.having(fields)


def named_axes(operands: Mapping[str, Any], rank: int) -> set[int]:
    """The axes that the operator names; all of them when it names none."""
    named = operands.get("dim", operands.get("dims"))
    if named is None or named == []:
        return set(range(rank))
    return {d % max(rank, 1) for d in ([named] if isinstance(named, int) else named)}
