"""What a GPU schedule takes of the card, as nvcc reports it: registers, spills, shared memory. Needs no GPU.

All kernels given are compiled as one file, since most of nvcc's time is its start.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from tvm import tirx

from hwprune.errors import CompileError
from hwprune.occupancy import Usage, occupancy
from hwprune.target import TargetProfile


@dataclass(frozen=True)
class Resources:
    """One kernel as compiled: registers of a thread, bytes spilled by it, static shared memory of a block."""

    threads: int
    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    stack_bytes: int

    @property
    def usage(self) -> Usage:
        return Usage(self.threads, self.registers, self.shared_bytes)

    def occupancy(self, profile: TargetProfile) -> float:
        """Share of an SM's warps that are resident, as far as these resources limit it."""
        assert profile.gpu is not None
        return occupancy(self.usage, profile.gpu)


@dataclass(frozen=True)
class MachineCode:
    """What nvcc made: the code, as the driver loads it, and what the assembler said of each kernel."""

    cubin: bytes
    report: str


def source(functions: Mapping[str, tirx.PrimFunc], profile: TargetProfile) -> str:
    """CUDA source of named functions: the kernel of function ``f`` is ``f_kernel``. CompileError if TVM has none."""
    from hwprune.kernels import build

    try:
        module = build(dict(functions), profile)
    except Exception as err:  # TVM raises all kinds of exceptions
        reasons = [line for line in str(err).splitlines() if "failed" in line] or str(err).strip().splitlines()[-1:]
        raise CompileError(f"TVM cannot generate CUDA for target {profile.name!r}: {reasons[0].strip()}") from err
    return "\n".join(part.inspect_source() for part in module.imports if part.kind == "cuda")


def resources(functions: Mapping[str, tirx.PrimFunc], profile: TargetProfile) -> dict[str, Resources]:
    """What each function's kernel takes on the architecture of ``profile``. CompileError: nvcc is missing or fails."""
    text = source(functions, profile)
    report = machine_code(text, profile).report
    return {name: _parse(report, text, f"{name}_kernel") for name in functions}


def nvcc() -> str:
    """Path of nvcc; CompileError with how to get it where it is missing."""
    found = shutil.which("nvcc")
    if found is None:
        raise CompileError("CUDA is compiled by `nvcc`, which is not here; install NVIDIA's CUDA toolkit and put it on PATH")
    return found


def machine_code(text: str, profile: TargetProfile) -> MachineCode:
    """Machine code of CUDA source for the architecture of ``profile``. CompileError: nvcc is missing or fails."""
    compiler = nvcc()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernels.cu")
        path.write_text(text)
        command = [compiler, "-cubin", f"-arch={profile.codegen.arch}", "-O3", "-Xptxas", "-v", "-o", str(path.with_suffix(".cubin")), str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or [f"exit code {done.returncode}"]
            raise CompileError(f"`nvcc` cannot compile for {profile.codegen.arch}: {errors[0].strip()}")
        return MachineCode(path.with_suffix(".cubin").read_bytes(), done.stderr)


def _parse(report: str, text: str, kernel: str) -> Resources:
    entry = re.search(rf"Compiling entry function '{kernel}'.*?Used (\d+) registers([^\n]*)", report, re.S)
    if entry is None:
        raise CompileError(f"nvcc reports nothing of kernel {kernel!r}")
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry[0])
    shared = re.search(r"(\d+) bytes smem", entry[2])
    bounds = re.search(rf"__launch_bounds__\((\d+)\) {kernel}\(", text)
    assert frame is not None and bounds is not None, entry[0]
    stack, stores, loads = (int(x) for x in frame.groups())
    return Resources(int(bounds[1]), int(entry[1]), stores, loads, int(shared[1]) if shared else 0, stack)
