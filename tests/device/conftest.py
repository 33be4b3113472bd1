"""A board that is not there: cross compiler, TVM's AArch64 runtime, and qemu to run what was compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUNNER = HERE.parents[1] / "kernels" / "native" / "runner.cpp"
#: wheel -> the library in it that the runner loads
LIBRARIES = {"apache-tvm": "tvm/lib/libtvm_runtime.so", "apache-tvm-ffi": "tvm_ffi/lib/libtvm_ffi.so"}
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_24_aarch64", "manylinux2014_aarch64")
TIMEOUT_S = 240


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.device)


@dataclass(frozen=True)
class Board:
    """Runs the native runner: ``command`` starts it, ``environment`` lets it find TVM's runtime."""

    command: tuple[str, ...]
    environment: dict[str, str]

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
def aarch64_libraries(request, tmp_path_factory) -> Path:
    """Folder with TVM's AArch64 runtime libraries, taken from its wheels once and kept in pytest's cache."""
    wanted = [f"{name}=={version(name)}" for name in LIBRARIES]
    kept = Path(request.config.cache.mkdir("-".join(["aarch64", *wanted]).replace("==", "-")))
    missing = [name for name, member in LIBRARIES.items() if not (kept / Path(member).name).is_file()]
    if missing:
        wheels = tmp_path_factory.mktemp("wheels")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(wheels),
                   "--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"]  # fmt: skip
        command += [word for platform in PLATFORMS for word in ("--platform", platform)]
        done = subprocess.run([*command, *wanted], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"pip cannot download {' and '.join(wanted)} for AArch64 ({done.stderr.strip()[-200:]}); check the network and try again")
        for name in missing:
            (wheel,) = wheels.glob(f"{name.replace('-', '_')}-[0-9]*.whl")
            with zipfile.ZipFile(wheel) as archive:
                partial = kept / f"{Path(LIBRARIES[name]).name}.partial"
                partial.write_bytes(archive.read(LIBRARIES[name]))
                partial.rename(partial.with_suffix(""))
    return kept


@pytest.fixture(scope="session")
def arm_board(aarch64_libraries, tmp_path_factory) -> Board:
    """AArch64 under qemu, on two threads."""
    from hwprune.target import load_file, shipped_folder

    link = load_file(shipped_folder() / "arm.toml").link
    _need(link.cxx, link.package)
    _need(link.emulator[0], "qemu-user")
    runner = _runner(link.cxx, tmp_path_factory.mktemp("arm"))
    target = ("-E", f"LD_LIBRARY_PATH={aarch64_libraries}", "-E", "TVM_NUM_THREADS=2")
    return Board((*link.emulator, *target, str(runner)), {"QEMU_LD_PREFIX": link.sysroot})


@pytest.fixture(scope="session")
def native_board(tmp_path_factory) -> Board:
    """This machine, through the same runner."""
    import tvm_ffi.libinfo
    from importlib.util import find_spec

    _need("c++", "g++")
    runner = _runner("c++", tmp_path_factory.mktemp("native"))
    folders = [Path(find_spec("tvm").submodule_search_locations[0], "lib"), Path(tvm_ffi.libinfo.find_libtvm_ffi()).parent]
    return Board((str(runner),), {"LD_LIBRARY_PATH": os.pathsep.join(map(str, folders)), "TVM_NUM_THREADS": "2"})
