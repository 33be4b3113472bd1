"""What a measurement's key says about where and with what it was made."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Mapping

from hwprune.target import TargetProfile


#: How the text of a device begins that was none.
EMULATED = "emulated"


@lru_cache
def local_device() -> str:
    """This machine's processor, as text: measurements are shared between machines that read the same."""
    try:
        board = Path("/proc/device-tree/model").read_text(errors="replace").strip("\0\n")
    except OSError:
        board = ""
    return device_text(cpuinfo(), board, platform.processor() or platform.machine(), available_cores())


def cpuinfo() -> dict[str, str]:
    """What the system tells of the first processor; nothing where it tells nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines if ":" in line)}


def device_text(cpuinfo: Mapping[str, str], board: str, machine: str, cores: int) -> str:
    """A device by name. ``cpuinfo``: of its first processor; ``board``: its name in the device tree, if it has one."""
    name = cpuinfo.get("model name") or cpuinfo.get("CPU part") or machine
    detail = [cpuinfo[k] for k in ("cpu family", "model", "stepping") if k in cpuinfo]
    name = f"{name} ({'/'.join(detail)})" if detail else name
    return f"{f'{board}, ' if board else ''}{name}; {cores} cores"


def gpu_text(name: str, multiprocessors: int, board: str) -> str:
    """A GPU by name. ``board``: that of its host in the device tree, if it has one."""
    return f"{f'{board}, ' if board else ''}{name}; {multiprocessors} SMs"


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def software(profile: TargetProfile, spread_bytes: int = 0) -> str:
    """Everything about the code generator, and about how kernels were timed, that a kernel's measured speed depends on."""
    from hwprune.kernels import KERNELS_VERSION
    from hwprune.kernels.cuda.resources import compiler_name

    codegen = hashlib.sha256(f"{profile.codegen.model_dump_json()}{profile.lanes}".encode()).hexdigest()[:8]
    spread = f"; constants over {spread_bytes >> 20} MiB" if spread_bytes else ""
    compiler = f"; {compiler_name()}" if profile.gpu is not None else ""
    return f"kernels {KERNELS_VERSION}; tvm {version('apache-tvm')}; codegen {codegen}{compiler}{spread}"
