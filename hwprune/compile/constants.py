"""Constants of kernels: how each is made from the network's parameters, and its shape at any widths.

Batch normalization is folded here: a convolution's constants take the normalization that follows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Mapping

import numpy as np

from hwprune.errors import CompileError

#: node name -> logical shape, at some choice of widths
Shapes = Callable[[str], tuple[int, ...]]
#: placeholder node name -> value
Params = Mapping[str, np.ndarray]


def stored(width: int, lanes: int) -> int:
    """``width`` rounded up to whole vectors."""
    return -(-width // lanes) * lanes


@dataclass(frozen=True)
class BatchNorm:
    """A normalization with fixed statistics; placeholders may be None where the network has no such parameter."""

    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    eps: float

    def scale(self, params: Params) -> np.ndarray:
        """gamma / sqrt(variance + eps), shape [channels], float64."""
        inverse = 1.0 / np.sqrt(params[self.variance].astype(np.float64) + self.eps)
        return inverse if self.gamma is None else inverse * params[self.gamma]

    def shift(self, params: Params) -> np.ndarray:
        """beta - mean * scale, shape [channels], float64."""
        shift = -params[self.mean] * self.scale(params)
        return shift if self.beta is None else shift + params[self.beta]


@dataclass(frozen=True)
class ConvWeight:
    """[co, ci/groups, kh, kw] packed as [co/v, kh, kw, ci/groups, v], or [kh, kw, co] when depthwise."""

    weight: str
    norm: BatchNorm | None
    depthwise: bool

    def shape(self, shapes: Shapes, lanes: int) -> tuple[int, ...]:
        co, ci, kh, kw = shapes(self.weight)
        if self.depthwise:
            return kh, kw, stored(co, lanes)
        return stored(co, lanes) // lanes, kh, kw, ci, lanes

    def pack(self, params: Params, lanes: int) -> np.ndarray:
        weight = params[self.weight].astype(np.float64)
        if self.norm is not None:
            weight = weight * self.norm.scale(params)[:, None, None, None]
        co, ci, kh, kw = weight.shape
        padded = np.zeros((stored(co, lanes), ci, kh, kw))
        padded[:co] = weight
        if self.depthwise:
            return _float32(padded[:, 0].transpose(1, 2, 0))
        return _float32(padded.reshape(-1, lanes, ci, kh, kw).transpose(0, 3, 4, 2, 1))


@dataclass(frozen=True)
class DenseWeight:
    """[out, in] packed as [out/v, in, v]."""

    weight: str

    def shape(self, shapes: Shapes, lanes: int) -> tuple[int, ...]:
        out, width = shapes(self.weight)
        return stored(out, lanes) // lanes, width, lanes

    def pack(self, params: Params, lanes: int) -> np.ndarray:
        weight = params[self.weight]
        padded = np.zeros((stored(weight.shape[0], lanes), weight.shape[1]))
        padded[: weight.shape[0]] = weight
        return _float32(padded.reshape(-1, lanes, weight.shape[1]).transpose(0, 2, 1))


@dataclass(frozen=True)
class Bias:
    """What a convolution or matrix product adds per output channel, its normalization included: [co padded]."""

    weight: str
    bias: str | None
    norm: BatchNorm | None = None

    def shape(self, shapes: Shapes, lanes: int) -> tuple[int, ...]:
        return (stored(shapes(self.weight)[0], lanes),)

    def pack(self, params: Params, lanes: int) -> np.ndarray:
        width = params[self.weight].shape[0]
        bias = np.zeros(width) if self.bias is None else params[self.bias].astype(np.float64)
        if self.norm is not None:
            bias = bias * self.norm.scale(params) + self.norm.shift(params)
        return _pad_last(bias, lanes)


@dataclass(frozen=True)
class NormVector:
    """Scale or shift of a normalization that has no convolution to fold into: [channels padded]."""

    norm: BatchNorm
    part: str  # "scale" or "shift"

    def shape(self, shapes: Shapes, lanes: int) -> tuple[int, ...]:
        return (stored(shapes(self.norm.mean)[0], lanes),)

    def pack(self, params: Params, lanes: int) -> np.ndarray:
        return _pad_last(getattr(self.norm, self.part)(params), lanes)


@dataclass(frozen=True)
class Aligned:
    """A free parameter as an element-wise operand: brought to ``rank`` axes, in the order of the activation it meets.

    folded : for a kernel on rows, all axes but the innermost are one.
    """

    name: str
    rank: int
    order: tuple[int, ...]
    folded: bool = False

    def shape(self, shapes: Shapes, lanes: int) -> tuple[int, ...]:
        logical = shapes(self.name)
        logical = (1,) * (self.rank - len(logical)) + tuple(logical)
        *outer, last = (logical[axis] for axis in self.order)
        last = last if last == 1 else stored(last, lanes)
        return (math.prod(outer), last) if self.folded else (*outer, last)

    def pack(self, params: Params, lanes: int) -> np.ndarray:
        value = params[self.name].astype(np.float64)
        value = value.reshape((1,) * (self.rank - value.ndim) + value.shape).transpose(self.order)
        if self.folded:
            value = value.reshape(-1, value.shape[-1])
        return _float32(value) if value.shape[-1] == 1 else _pad_last(value, lanes)


@dataclass(frozen=True)
class Raw:
    """A parameter as it is, for readers that index into it: one axis."""

    name: str

    def shape(self, shapes: Shapes, lanes: int) -> tuple[int, ...]:
        return (math.prod(shapes(self.name)),)

    def pack(self, params: Params, lanes: int) -> np.ndarray:
        return _float32(params[self.name].ravel())


#: Halfway from the largest float16 to what would come after it: rounds to infinity.
_BEYOND_FLOAT16 = 65520

Constant = ConvWeight | DenseWeight | Bias | NormVector | Aligned | Raw


def as_type(value: np.ndarray, dtype: str) -> np.ndarray:
    """A packed constant as it lies in memory. CompileError if float16 does not hold one of its values."""
    if dtype != "float16":
        return value.astype(dtype, copy=False)
    largest = float(np.abs(value).max(initial=0.0))
    if largest >= _BEYOND_FLOAT16:
        raise CompileError(
            f"a weight of {largest:.6g} is beyond 65504, the largest of float16; leave `core.precision` of the target at fp32"
        )
    return value.astype(np.float16)


def _float32(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value, dtype=np.float32)


def _pad_last(value: np.ndarray, lanes: int) -> np.ndarray:
    width = value.shape[-1]
    padded = np.zeros((*value.shape[:-1], stored(width, lanes)))
    padded[..., :width] = value
    return _float32(padded)
