"""The program that measures on a device: its sources are compiled for the target with the target's own compiler."""

from __future__ import annotations

from pathlib import Path

from hwprune.compile.link import native_sources, run_compiler
from hwprune.target import TargetProfile

#: The C++ library goes into the program: a board may have an older one, and the C library is all that is asked of it.
#: Of the C++ library only what is used: the rest asks for a newer C library.
_OPTIONS = ("-O2", "-std=c++17", "-static-libstdc++", "-static-libgcc", "-Wl,--gc-sections", "-s", "-pthread")


def build_agent(profile: TargetProfile, out: Path) -> None:
    """Compile the agent for ``profile`` into the file ``out``. CompileError names what is missing."""
    folder = native_sources() / "agent"
    # in one translation unit: most of the compiling is the C++ library's headers
    others = [part for path in sorted(folder.glob("*.cpp")) if path.name != "main.cpp" for part in ("-include", str(path))]
    run_compiler([*_OPTIONS, *others, str(folder / "main.cpp"), "-o", str(out), "-ldl"], profile)
