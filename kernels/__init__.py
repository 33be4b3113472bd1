"""TIR schedule templates, and the one builder that measuring, tuning and compiling all call.

``compute`` says what a workload computes; rules (``common/`` and one folder an architecture) say how. ``build`` is the
only way from a workload to machine code.
"""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import Mapping, Sequence

import tvm
from tvm import tirx

from hwprune.errors import CompileError, Infeasible
from hwprune.kernels.arm import conv_lane, conv_lane_half
from hwprune.kernels.common import attention, conv_direct, depthwise, elementwise, expansion, gemm, normalize, winograd
from hwprune.kernels.cuda import RULES as CUDA_RULES
from hwprune.kernels.cuda import gemm as cuda_gemm
from hwprune.kernels.cuda import split as cuda_split
from hwprune.kernels.cuda import tensor as cuda_tensor
from hwprune.kernels.schedule import Config, Repack, Rule, as_read
from hwprune.target import TargetProfile
from hwprune.workload import TensorSpec, Workload

#: Bumped when the code generated for the same workload and config changes, or how it is timed: measurements made before no
#: longer hold.
KERNELS_VERSION = 8

#: The first rule that offers candidates has the workload.
CPU_RULES: tuple[Rule, ...] = (expansion, conv_lane_half, gemm, conv_lane, normalize, attention, conv_direct, depthwise, elementwise)

#: Name of the rule that has a workload -> rules that offer other ways to compute it, beside that one.
ALTERNATIVES: Mapping[str, tuple[Rule, ...]] = {
    gemm.name: (conv_direct, winograd),
    conv_lane.name: (winograd,),
    conv_direct.name: (winograd,),
    cuda_split.name: (cuda_tensor,),
    cuda_tensor.name: (cuda_gemm,),
}


def candidates(workload: Workload, profile: TargetProfile, exact: bool = False) -> Sequence[Config]:
    """Configurations for ``workload``, the most promising first; those of alternatives take turns with the others.

    exact : leave out rules whose results differ by more than the rounding of single operations.
    CompileError if no rule takes the workload.
    """
    rules = CPU_RULES if profile.gpu is None else CUDA_RULES
    if len(workload.anchors) > 1:  # the others look at one anchor
        rules = (expansion,)
    allowed = [rule for rule in rules if _is_exact(rule) or not exact]
    offered = next(filter(None, (rule.candidates(workload, profile) for rule in allowed)), None)
    if offered is None:
        raise CompileError(f"no schedule rule takes workload {workload.key}")
    alternatives = ALTERNATIVES.get(offered[0].rule, ())
    others = [rule.candidates(workload, profile) or () for rule in alternatives if _is_exact(rule) or not exact]
    return [config for config in chain.from_iterable(zip_longest(offered, *others)) if config is not None]


def primfunc(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    """The scheduled function of ``workload``. Infeasible if ``config`` does not fit it."""
    try:
        return _rule(config).schedule(workload, profile, config)
    except tvm.s_tir.ScheduleError as err:
        raise Infeasible(f"{config.to_text()}: {str(err).strip().splitlines()[-1]}") from None


def repacked(workload: Workload, config: Config) -> Mapping[int, Repack]:
    """Number of each input that the kernel of ``config`` wants packed in another way -> how."""
    repack = getattr(_rule(config), "repack", None)
    return repack(workload, config) if repack else {}


def kernel_inputs(workload: Workload, config: Config) -> tuple[TensorSpec, ...]:
    """The workload's inputs as the kernel of ``config`` reads them."""
    return as_read(workload.inputs, repacked(workload, config))


def multiply_adds(workload: Workload, config: Config) -> float:
    """Multiplications of pairs of numbers that the kernel of ``config`` makes for a convolution or product, at least."""
    count = getattr(_rule(config), "multiply_adds", None)
    return count(workload, config) if count else workload.macs


def transform_operations(workload: Workload, config: Config) -> float:
    """Operations on single numbers, a multiply-add being one, that the kernel of ``config`` makes so that it has less to multiply."""
    count = getattr(_rule(config), "transform_operations", None)
    return count(workload, config) if count else 0.0


def is_exact(config: Config) -> bool:
    """Whether the kernel of ``config`` computes its workload operation by operation."""
    return _is_exact(_rule(config))


def _is_exact(rule: Rule) -> bool:
    return getattr(rule, "exact", True)


def _rule(config: Config) -> Rule:
    for rule in (*CPU_RULES, *CUDA_RULES, winograd):
        if rule.name == config.rule:
            return rule
    raise Infeasible(f"unknown schedule rule {config.rule!r}")


def tvm_target(profile: TargetProfile) -> tvm.target.Target:
    """The profile as TVM wants it."""
    c = profile.codegen
    spec = {"kind": c.kind, "mtriple": c.mtriple, "mcpu": c.mcpu, "mattr": list(c.mattr), "arch": c.arch}
    return tvm.target.Target({k: v for k, v in spec.items() if v})


def build(functions: dict[str, tirx.PrimFunc], profile: TargetProfile) -> tvm.runtime.Module:
    """Machine code for named functions (symbols), in one module."""
    module = tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in functions.items()})
    return tvm.tirx.build(module, target=tvm_target(profile))
