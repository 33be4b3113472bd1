"""The program that measures on a device: its sources are compiled for the target with the target's own compiler."""

from __future__ import annotations

from pathlib import Path

from hwprune.compile.link import native_sources, run_compiler
from hwprune.target import TargetProfile

#: The C++ library goes into the program: a board may have an older one, and the C library is all that is asked of it.
_OPTIONS = ("-O2", "-std=c++17", "-static-libstdc++", "-static-libgcc", "-s", "-pthread")


def build_agent(profile: TargetProfile, out: Path) -> None:
    """Compile the agent for ``profile`` into the file ``out``. CompileError names what is missing."""
    sources = sorted(str(path) for path in (native_sources() / "agent").glob("*.cpp"))
    run_compiler([*_OPTIONS, *sources, "-o", str(out), "-ldl"], profile)
