"""Object files of kernels, built once for a measuring process and its successors.

A kernel that was timed by itself is linked into whole networks again; only the link is new.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Sequence

from hwprune.compile.link import last_line, write_object
from hwprune.errors import CompileError, Infeasible
from hwprune.kernels import primfunc
from hwprune.kernels.schedule import Config
from hwprune.measure.device import available_cores
from hwprune.target import TargetProfile
from hwprune.workload import Workload


def kernel_name(workload: Workload, config: Config) -> str:
    """The symbol of a kernel that is the same in every library."""
    return "k" + hashlib.sha256(f"{workload.key} {config.to_text()}".encode()).hexdigest()[:16]


class Objects:
    """The object files in ``folder``, for one profile. Nothing is timed while they are built: all cores build."""

    def __init__(self, profile: TargetProfile, folder: Path):
        self.profile, self.folder = profile, folder
        self._builders = ThreadPoolExecutor(available_cores())

    def build(self, kernels: Sequence[tuple[Workload, str]]) -> tuple[dict[str, Path], dict[str, str]]:
        """Object file of each kernel (workload, schedule's text) by symbol, and why the others cannot be built."""
        results = {
            kernel_name(w, Config.from_text(text)): self._builders.submit(self._build, w, Config.from_text(text))
            for w, text in kernels
        }
        built, failures = {}, {}
        for symbol, future in results.items():
            try:
                built[symbol] = future.result()
            except (Infeasible, CompileError, RuntimeError, ValueError, TypeError) as err:
                failures[symbol] = last_line(err)
        return built, failures

    def _build(self, workload: Workload, config: Config) -> Path:
        symbol = kernel_name(workload, config)
        path = self.folder / f"{symbol}.o"
        if not path.exists():
            unfinished = self.folder / f"{symbol}.{os.getpid()}.o"
            write_object({symbol: primfunc(workload, self.profile, config)}, self.profile, unfinished)
            os.replace(unfinished, path)
        return path

    def forget(self, symbols: Sequence[str]) -> None:
        """Drop object files that nobody will ask for again."""
        for symbol in symbols:
            (self.folder / f"{symbol}.o").unlink(missing_ok=True)
