"""The probe ``hwprune-probe`` (``kernels/native/probe``): built for a target, and run here."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from hwprune.errors import CompileError, MeasureError
from hwprune.measure.probe_results import ProbeResults, from_text
from hwprune.target import TargetProfile

#: Over which the samples are spread.
SECONDS = 2.0


def build(profile: TargetProfile, out: Path, static: bool = True) -> None:
    """Compile the probe for ``profile`` into the file ``out``; one program serves all instruction sets of its architecture.

    static : link everything in, so that the program runs on any Linux of the architecture.
    Raises CompileError: the target is a GPU, or its compiler is missing or fails.
    """
    if profile.gpu is not None:
        raise CompileError(f"target {profile.name!r} is a GPU, and the probe measures CPUs")
    from hwprune.compile.link import ffi_includes, linker, native_sources

    compiler, native = linker(profile), native_sources()
    common = [compiler, "-O2", *ffi_includes(), f"-I{native / 'probe'}", "-c"]
    with tempfile.TemporaryDirectory(prefix="hwprune.") as folder:
        objects = []
        for name, language, standard in (("probe/main.cpp", "c++", "c++17"), ("program.c", "c", "gnu11"), ("pool.c", "c", "gnu11")):
            objects.append(str(Path(folder, f"{Path(name).stem}.o")))
            _compile(profile, [*common, "-DHWPRUNE_PROBE_NETWORK", f"-std={standard}", "-x", language, str(native / name), "-o", objects[-1]])
        linked = str(Path(folder, "hwprune-probe"))
        _compile(profile, [compiler, *objects, *(["-static"] if static else []), "-pthread", "-o", linked])
        shutil.move(linked, out)


def _compile(profile: TargetProfile, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [f"exit code {done.returncode}"]
        raise CompileError(f"`{profile.link.cxx}` cannot build the probe for target {profile.name!r}: {lines[0].strip()}")


def run_here(profile: TargetProfile, seconds: float | None = None) -> ProbeResults:
    """Probe this machine with the vectors of ``profile``. MeasureError, CompileError."""
    with tempfile.TemporaryDirectory(prefix="hwprune.") as folder:
        program = Path(folder, "hwprune-probe")
        try:
            build(profile, program, static=False)
        except CompileError:  # no compiler here: the program that came with the package, if it did
            program = Path(str(resources.files("hwprune").joinpath("bin", "hwprune-probe")))
            if not program.is_file():
                raise
        return run([str(program), "--vector-bits", str(profile.core.vector_bits)], seconds)


def run(command: list[str], seconds: float | None = None) -> ProbeResults:
    """What the probe that ``command`` starts prints, its samples spread over ``seconds``. MeasureError if it fails."""
    seconds = SECONDS if seconds is None else seconds
    try:
        done = subprocess.run([*command, "--seconds", str(seconds)], capture_output=True, text=True, timeout=60 + 10 * seconds)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise MeasureError(f"the probe did not run to its end: {err}") from None
    if done.returncode != 0:
        raise MeasureError(f"the probe failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return from_text(done.stdout, "what the probe printed")
