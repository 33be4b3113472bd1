"""What a measurement's key says about where and with what it was made."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from hwprune.target import TargetProfile


@lru_cache
def local_device() -> str:
    """This machine's processor, as text: measurements are shared between machines that read the same."""
    name = platform.processor() or platform.machine()
    try:
        fields = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line]
        facts = {key.strip(): value.strip() for key, value in fields}
        name = facts.get("model name") or facts.get("CPU part") or name
        detail = [facts[k] for k in ("cpu family", "model", "stepping") if k in facts]
        name = f"{name} ({'/'.join(detail)})" if detail else name
    except OSError:
        pass
    return f"{name}; {available_cores()} cores"


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def software(profile: TargetProfile, spread_bytes: int = 0) -> str:
    """Everything about the code generator, and about how kernels were timed, that a kernel's measured speed depends on."""
    from hwprune.kernels import KERNELS_VERSION

    codegen = hashlib.sha256(f"{profile.codegen.model_dump_json()}{profile.lanes}".encode()).hexdigest()[:8]
    spread = f"; constants over {spread_bytes >> 20} MiB" if spread_bytes else ""
    return f"kernels {KERNELS_VERSION}; tvm {version('apache-tvm')}; codegen {codegen}{spread}"
