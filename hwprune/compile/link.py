"""From scheduled functions to a library that runs by itself: kernels and program in one file, and a thread pool or a GPU's
machine code."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Sequence

from tvm import tirx

from hwprune.compile.emit_c import Facts, KernelCall, tables
from hwprune.errors import CompileError
from hwprune.kernels import build
from hwprune.target import TargetProfile

#: e_machine of the ELF header (System V ABI) -> as uname has it
_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}

_OPTIONS = ("-O2", "-std=gnu11", "-fPIC", "-shared", "-pthread")


def link(functions: dict[str, tirx.PrimFunc], calls: Sequence[KernelCall], facts: Facts, profile: TargetProfile, out: Path) -> None:
    """Build ``functions`` (by symbol) for ``profile`` and link them with the program over ``calls`` into ``out``.

    Raises CompileError: TVM or nvcc does not build them, or the target's linker is missing (the sentence names its package).
    """
    linker(profile)
    with tempfile.TemporaryDirectory() as folder:
        if profile.gpu is not None:
            _link_gpu(functions, calls, facts, profile, Path(folder), out)
            return
        objects = Path(folder, "kernels.o")
        write_object(functions, profile, objects)
        link_objects([objects], tables(calls, facts), profile, out)


def _link_gpu(functions, calls, facts, profile: TargetProfile, folder: Path, out: Path) -> None:
    from hwprune.compile.emit_gpu import gpu_tables
    from hwprune.kernels.cuda import resources
    from hwprune.kernels.cuda.code import device_code

    code = device_code(functions, profile)
    (folder / "kernels.cubin").write_bytes(resources.machine_code(code.source, profile).cubin)
    text = gpu_tables(calls, facts, code.launches, profile, resources.compiler_name())
    _link(("gpu_program.c",), [], text, [f"-Wa,-I,{folder}", "-ldl"], profile, out)
    made = _ELF_MACHINES.get(int.from_bytes(out.read_bytes()[18:20], "little"), "another processor")
    if made != profile.machine:
        raise CompileError(
            f"`{profile.link.cxx}` links for {made}, but the host of target {profile.name!r} is {profile.machine}: give its profile that "
            f"processor's compiler as `link.cxx`, or another `host`"
        )


def write_object(functions: dict[str, tirx.PrimFunc], profile: TargetProfile, out: Path) -> None:
    """Machine code of ``functions`` (by symbol) as the object file ``out``. CompileError: TVM does not build them."""
    try:
        build(functions, profile).write_to_file(str(out))
    except Exception as err:  # TVM raises all kinds of exceptions
        raise CompileError(f"TVM cannot build the kernels for target {profile.name!r}: {last_line(err)}") from err


def link_objects(objects: Sequence[Path], tables: str, profile: TargetProfile, out: Path) -> None:
    """Link object files of a CPU's kernels with the program over ``tables`` into ``out``; raises as ``link`` does."""
    _link(("program.c", "pool.c"), objects, tables, [*ffi_includes(), "-lm"], profile, out)


def _link(names: Sequence[str], objects: Sequence[Path], tables: str, options: Sequence[str], profile: TargetProfile, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tables.h").write_text(tables)
        native = native_sources()
        # A C++ compiler takes each file for C++ unless it is told of each.
        sources = [part for name in names for part in ("-x", "c", str(native / name))]
        exports = f"-Wl,--version-script={native / 'exports.map'}"
        command = [*_OPTIONS, f"-I{folder}", *sources, "-x", "none", *map(str, objects), exports, *options]
        run_compiler([*command, "-o", str(out)], profile, "link")


def linker(profile: TargetProfile) -> str:
    """Path of the target's compiler driver, for a GPU that of its host; CompileError with its package where it is missing."""
    found = shutil.which(profile.link.cxx)
    if found is None:
        install = f"; install it (Debian: apt-get install {profile.link.package})" if profile.link.package else ""
        raise CompileError(f"target {profile.name!r} is linked by `{profile.link.cxx}`, which is not here{install}")
    return found


def native_sources() -> Path:
    """Folder of the C sources that are linked into artifacts."""
    return Path(str(resources.files("hwprune.kernels").joinpath("native")))


def ffi_includes() -> list[str]:
    """Options that show a compiler the headers of TVM's calling convention."""
    from tvm_ffi import libinfo

    return [f"-I{path}" for path in (libinfo.find_include_path(), libinfo.find_dlpack_include_path())]


def last_line(err: Exception) -> str:
    lines = [line for line in str(err).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(err).__name__


def run_compiler(arguments: Sequence[str], profile: TargetProfile, what: str = "compile") -> None:
    """Run the target's compiler driver. CompileError with its first error, or with its package where it is missing."""
    done = subprocess.run([linker(profile), *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [*done.stderr.splitlines(), f"exit code {done.returncode}"]
        raise CompileError(f"`{profile.link.cxx}` cannot {what} for target {profile.name!r}: {lines[0].strip()}")
