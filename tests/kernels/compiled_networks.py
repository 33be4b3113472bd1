"""Through the whole compile path in this process: module -> trace -> lower -> artifact -> runtime -> numbers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from operator_banks import TOLERANCE, exact, relative_error
from torch import nn

from hwprune import runtime
from hwprune.compile.artifact import build_artifact
from hwprune.compile.lower import lower
from hwprune.graph import trace
from hwprune.kernels import candidates
from hwprune.measure.device import available_cores
from hwprune.target import TargetProfile, load_file, shipped_folder

#: lanes of a vector -> (shipped profile, bits of its vectors). Four lanes on x86 stand for the 128-bit targets.
VARIANTS = {4: ("x86", 128), 8: ("x86", 256), 16: ("x86-avx512", 512)}

@lru_cache
def profile_of(lanes: int) -> TargetProfile:
    """A profile with that many lanes, on every core of this machine (one thread count a process)."""
    name, bits = VARIANTS[lanes]
    shipped = load_file(shipped_folder() / f"{name}.toml")
    cores = available_cores()
    core = shipped.core.model_copy(update={"vector_bits": bits})
    return shipped.model_copy(update={"core": core, "cores": cores, "threads": cores})


def first_candidate(profile: TargetProfile):
    return lambda workload: candidates(workload, profile)[0]


def compiled(module: nn.Module, inputs: tuple[torch.Tensor, ...], profile: TargetProfile, out: Path) -> runtime.Program:
    network = lower(trace(module, inputs), profile)
    return runtime.load(build_artifact(network, profile, first_candidate(profile), out))


def run(program: runtime.Program, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    result = program(*(x.numpy() for x in inputs))
    return list(result) if isinstance(result, tuple) else [result]


def assert_computes(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], profile: TargetProfile, out: Path
) -> runtime.Program:
    """Compile ``module`` and compare every output with torch."""
    program = compiled(module.eval(), inputs, profile, out)
    for found, expected in zip(run(program, inputs), exact(module, inputs), strict=True):
        assert relative_error(found, expected) < TOLERANCE
    return program
