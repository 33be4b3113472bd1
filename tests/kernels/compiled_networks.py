"""Through the whole compile path in this process: module -> trace -> lower -> artifact -> runtime -> numbers."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
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

#: Largest error of a float32 kernel against torch in float64, relative to the largest value of the result.
TOLERANCE = 1e-5


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


def exact(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    """What torch computes in float64."""
    with torch.no_grad():
        result = copy.deepcopy(module).double().eval()(*(x.double() for x in inputs))
    return [r.numpy() for r in (result if isinstance(result, tuple) else (result,))]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def assert_computes(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], profile: TargetProfile, out: Path
) -> runtime.Program:
    """Compile ``module`` and compare every output with torch."""
    program = compiled(module.eval(), inputs, profile, out)
    for found, expected in zip(run(program, inputs), exact(module, inputs), strict=True):
        assert relative_error(found, expected) < TOLERANCE
    return program


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Parameters and statistics as a trained network might have them, so that a folding mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.uniform_(-0.3, 0.3, generator=generator)
            m.running_var.uniform_(0.5, 1.5, generator=generator)
            if m.affine:
                with torch.no_grad():
                    m.weight.uniform_(-1.5, 1.5, generator=generator)
                    m.bias.uniform_(-0.5, 0.5, generator=generator)
    return module.eval()
