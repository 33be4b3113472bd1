"""Types and element-wise functions of expressions: what an activation or a sum is made of."""

from __future__ import annotations

from typing import Callable

from tvm import tirx

#: Terms of a sum of products that is one of float16; longer ones are of float32, where a rule has no better way. The error grows
#: with the root of the terms: at 256 it is eleven times what storing the result rounds off.
FLOAT16_TERMS = 256
LOWEST_FLOAT16 = -65504.0


def dtype_of(x: tirx.Expr) -> str:
    return str(getattr(getattr(x, "ty", None), "dtype", None) or x.dtype)  # tensors and expressions keep it apart


def as_type(x: tirx.Expr, dtype: str) -> tirx.Expr:
    """``x`` converted where it is of another type."""
    return x if dtype_of(x) == dtype else tirx.Cast(dtype, x)


def single(x: tirx.Expr) -> tirx.Expr:
    """``x`` in float32, for what float16 is too coarse for."""
    return as_type(x, "float32")


def in_single(function: Callable) -> Callable:
    """A function of numbers that computes in float32 whatever its operands are."""
    return lambda x: as_type(function(single(x)), dtype_of(x))


def literal(x: tirx.Expr, value: float) -> tirx.Expr:
    """``value`` as the type of ``x``, the nearest that it has."""
    dtype = dtype_of(x)
    if dtype.startswith("float16"):  # bounds may be beyond it: clamps, and what is less than any value
        value = max(LOWEST_FLOAT16, min(value, -LOWEST_FLOAT16))
    return tirx.const(value, dtype)


def _clip(x, low, high):
    if low is not None:
        x = tirx.max(x, literal(x, low))
    if high is not None:
        x = tirx.min(x, literal(x, high))
    return x


def exponential(x):
    """exp by range reduction and a polynomial, in vector operations only (libm's is called lane by lane).

    Cephes expf: exp(x) = 2^n exp(r), |r| <= ln 2 / 2; relative error below 2e-7 in float32.
    """
    x = tirx.max(tirx.min(x, literal(x, 88.37)), literal(x, -87.33))
    n = tirx.floor(x * literal(x, 1.44269504088896341) + literal(x, 0.5))
    r = x - n * literal(x, 0.693359375) + n * literal(x, 2.12194440e-4)
    poly = literal(x, 1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        poly = poly * r + literal(x, c)
    power = tirx.reinterpret("float32", (tirx.Cast("int32", n) + 127) << 23)
    return (poly * r * r + r + literal(x, 1.0)) * power


def _sigmoid(x):
    return literal(x, 1.0) / (literal(x, 1.0) + exponential(-x))


def _polynomial(x, first, *rest):
    """By Horner's rule, the coefficient of the highest power first."""
    value = literal(x, first)
    for c in rest:
        value = value * x + literal(x, c)
    return value


def _silu(x):
    """x sigmoid(x), with sigmoid(x) - 1/2 as an odd quotient of polynomials: half the instructions of one with an exponential.

    Absolute error of the sigmoid below 9e-8 and rounding; it is not relative to the sigmoid's own size where x < 0. Weighted least
    squares, reweighted until the error is even over 0 <= x <= 16.6 (Loeb's algorithm; Barrodale and Mason, 1970).
    """
    x = tirx.max(x, literal(x, -16.6))  # below, the sigmoid is that of -16.6, and x not larger
    clamped = tirx.min(x, literal(x, 16.6))
    square = clamped * clamped

    above = _polynomial(square, 4.2968427038658774e-08, 4.5462158595910296e-05, 0.00805384386330843, 0.2499997913837433)
    below = _polynomial(square, 9.085180940893167e-10, 3.6395063034433406e-06, 0.001477715210057795, 0.11554793268442154, 1.0)
    return x * (clamped * above / below + literal(x, 0.5))


def _erf(x):
    """A quotient of polynomials: absolute error below 5e-7. The coefficients are those of Eigen's ``erf``."""
    x = _clip(x, -4.0, 4.0)
    square = x * x

    above = _polynomial(square, -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
                       -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)
    below = _polynomial(square, -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
                       -1.42647390514189e-02)
    return x * above / below


def _gelu(x):
    return x * literal(x, 0.5) * (literal(x, 1.0) + _erf(x * literal(x, 0.7071067811865476)))


#: operator -> function of its operands' expressions and its OpCall
ELEMENTWISE: dict[str, Callable] = {
    "add": lambda c, a, b: a + b,
    "sub": lambda c, a, b: a - b,
    "mul": lambda c, a, b: a * b,
    "div": lambda c, a, b: a / b,
    "maximum": lambda c, a, b: tirx.max(a, b),
    "minimum": lambda c, a, b: tirx.min(a, b),
    "add_scalar": lambda c, a: a + literal(a, c["value"]),
    "mul_scalar": lambda c, a: a * literal(a, c["value"]),
    "rsub_scalar": lambda c, a: literal(a, c["value"]) - a,
    "relu": lambda c, a: tirx.max(a, literal(a, 0.0)),
    "clip": lambda c, a: _clip(a, c["low"], c["high"]),
    "leaky_relu": lambda c, a: tirx.max(a, literal(a, 0.0)) + tirx.min(a, literal(a, 0.0)) * literal(a, c["slope"]),
    "prelu": lambda c, a, w: tirx.max(a, literal(a, 0.0)) + tirx.min(a, literal(a, 0.0)) * w,
    "sigmoid": lambda c, a: in_single(_sigmoid)(a),
    "silu": lambda c, a: in_single(_silu)(a),
    "tanh": lambda c, a: in_single(lambda x: literal(x, 2.0) * _sigmoid(x * literal(x, 2.0)) - literal(x, 1.0))(a),
    "exp": lambda c, a: in_single(exponential)(a),
    "hardsigmoid": lambda c, a: _clip(a * literal(a, 1 / 6) + literal(a, 0.5), 0.0, 1.0),
    "hardswish": lambda c, a: a * _clip(a * literal(a, 1 / 6) + literal(a, 0.5), 0.0, 1.0),
    "gelu": lambda c, a: in_single(_gelu)(a),
    "neg": lambda c, a: -a,
}
