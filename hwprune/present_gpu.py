"""Which GPU this machine has, and which target profile describes it."""

from __future__ import annotations

import shutil
import subprocess
from typing import Mapping, NamedTuple

_PATIENCE_S = 10.0


class Gpu(NamedTuple):
    """name : as NVIDIA's driver says it. arch : ``sm_XX``."""

    name: str
    arch: str


def present_gpu() -> Gpu | None:
    """The first GPU that NVIDIA's driver shows; None where there is none, or no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        command = [program, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    name, _, capability = done.stdout.partition("\n")[0].rpartition(",")
    major, _, minor = capability.strip().partition(".")
    if done.returncode != 0 or not (name and major.isdigit() and minor.isdigit()):
        return None
    return Gpu(name.strip(), f"sm_{major}{minor}")


def nearest(gpu: Gpu, archs: Mapping[str, str]) -> str | None:
    """Of profiles (name -> ``sm_XX``) the one that describes ``gpu``: of its architecture, called after it if one is."""
    alike = sorted(name for name, arch in archs.items() if arch == gpu.arch)
    plain = gpu.name.lower().replace(" ", "")
    return next((name for name in alike if name.replace("-", "") in plain), alike[0] if alike else None)
