"""TIR schedule templates, and the one builder that measuring, tuning and compiling all call.

``compute`` says what a workload computes; rules (``common/`` and one folder an architecture) say how. ``build`` is the
only way from a workload to machine code.
"""

from __future__ import annotations

from typing import Sequence

import tvm
from tvm import tirx

from hwprune.errors import CompileError, Infeasible
from hwprune.kernels.common import conv_direct, elementwise
from hwprune.kernels.cuda import RULES as CUDA_RULES
from hwprune.kernels.schedule import Config, Rule
from hwprune.target import TargetProfile
from hwprune.workload import Workload

#: Bumped when the code generated for the same workload and config changes: measurements made before no longer hold.
KERNELS_VERSION = 2

#: The first rule that offers candidates has the workload; rules for GPUs offer none to a CPU, nor these to a GPU.
RULES: tuple[Rule, ...] = (*CUDA_RULES, conv_direct, elementwise)


def candidates(workload: Workload, profile: TargetProfile) -> Sequence[Config]:
    """Configurations for ``workload``, the most promising first. CompileError if no rule takes it."""
    for rule in RULES:
        offered = rule.candidates(workload, profile)
        if offered:
            return offered
    raise CompileError(f"no schedule rule takes workload {workload.key}")


def primfunc(workload: Workload, profile: TargetProfile, config: Config) -> tirx.PrimFunc:
    """The scheduled function of ``workload``. Infeasible if ``config`` does not fit it."""
    for rule in RULES:
        if rule.name == config.rule:
            try:
                return rule.schedule(workload, profile, config)
            except tvm.s_tir.ScheduleError as err:
                raise Infeasible(f"{config.to_text()}: {str(err).strip().splitlines()[-1]}") from None
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
