"""A board that is not there: a cross compiler, and qemu to run what was compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
RUNNER = HERE.parents[1] / "kernels" / "native" / "runner.cpp"
TIMEOUT_S = 240


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.device)


@dataclass(frozen=True)
class Board:
    """Runs the native runner: ``command`` starts it, in ``environment``."""

    command: tuple[str, ...]
    environment: dict[str, str]

    def outputs(self, artifact: Path, inputs, like, folder: Path) -> list[np.ndarray]:
        """What the artifact makes of ``inputs`` (tensors), in the shapes of the arrays ``like``; files go to ``folder``."""
        sources = [folder / f"x{i}.npy" for i in range(len(inputs))]
        results = [folder / f"y{i}.npy" for i in range(len(like))]
        for path, x in zip(sources, inputs):
            np.save(path, x.numpy())
        done = self.run(artifact, *sources, *results)
        assert done.returncode == 0, done.stderr
        return [np.load(path).reshape(e.shape) for path, e in zip(results, like)]

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess:
        return subprocess.run([*self.command, *map(str, arguments)], env={**os.environ, **self.environment},
                              capture_output=True, text=True, timeout=TIMEOUT_S)  # fmt: skip


def _need(program: str, package: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"`{program}` is not here; install it (Debian: apt-get install {package})")


def _runner(compiler: str, folder: Path) -> Path:
    out = folder / "hwprune-run"
    subprocess.run([compiler, "-O2", "-std=c++17", "-Wall", "-Wextra", "-Werror", str(RUNNER), "-o", str(out), "-ldl", "-pthread"],
                   check=True, timeout=TIMEOUT_S)  # fmt: skip
    return out


@pytest.fixture(scope="session")
def arm_board(tmp_path_factory) -> Board:
    """AArch64 under qemu, on two threads."""
    from hwprune.target import load_file, shipped_folder

    link = load_file(shipped_folder() / "arm.toml").link
    _need(link.cxx, link.package)
    _need(link.emulator[0], "qemu-user")
    runner = _runner(link.cxx, tmp_path_factory.mktemp("arm"))
    return Board((*link.emulator, "-E", "HWPRUNE_THREADS=2", str(runner)), {"QEMU_LD_PREFIX": link.sysroot})


@pytest.fixture(scope="session")
def native_board(tmp_path_factory) -> Board:
    """This machine, through the same runner."""
    _need("c++", "g++")
    return Board((str(_runner("c++", tmp_path_factory.mktemp("native"))),), {"HWPRUNE_THREADS": "2"})
