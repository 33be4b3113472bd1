"""Whether a kernel computes its workload: beside the workload's plain loops, which no schedule has touched, or, where it has none
(attention, products of two activations, normalizations), beside another schedule of it."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import tvm
from tvm import tirx

from hwprune.arrays import relative_error
from hwprune.kernels import build, candidates, primfunc, repacked
from hwprune.kernels.compute import compute, has_plain_loops
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import Workload

#: What a kernel computes in -> largest difference, relative to the largest value, of one that is right; rounding, Winograd's
#: included, stays far below.
TOLERANCE = {"float32": 1e-3, "float16": 5e-2}


def kernel_error(workload: Workload, config: Config, profile: TargetProfile) -> float | None:
    """Largest difference of a kernel's result on random operands to what it should be, relative to the largest value; None where
    there is nothing to compare it with.

    Builds both and runs them in this process. Raises what building raises.
    """
    other = _other(workload, config, profile)
    if other is None:
        return None
    functions = build({"kernel": primfunc(workload, profile, config), "plain": other}, profile)
    generator = np.random.default_rng(0)
    operands = [generator.standard_normal(t.shape).astype(t.dtype) for t in workload.inputs]
    if workload.half_padding:  # of the weight, which kernels may leave out: zero, as in a network
        weight = operands[workload.anchor.args[1]]
        weight[-1, ..., weight.shape[-1] // 2 :] = 0
    packed = repacked(workload, config)
    as_read = [packed[i].transform(a) if i in packed else a for i, a in enumerate(operands)]
    return relative_error(_run(functions["kernel"], as_read, workload), _run(functions["plain"], operands, workload))


def _other(workload: Workload, config: Config, profile: TargetProfile) -> tirx.PrimFunc | None:
    """What computes ``workload`` in another way than the kernel of ``config``."""
    if has_plain_loops(workload):
        return compute(workload).primfunc()
    others = [c for c in candidates(workload, profile) if c != config and not repacked(workload, c)]
    return primfunc(workload, profile, others[0]) if others else None


def _run(function: tvm.runtime.PackedFunc, operands: Sequence[np.ndarray], workload: Workload) -> np.ndarray:
    result = tvm.runtime.tensor(np.full(workload.output.shape, np.nan, workload.output.dtype))
    function(*(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in operands), result)
    return result.numpy()
