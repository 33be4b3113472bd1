"""Load, run and time an artifact. Needs numpy, safetensors and TVM's runtime libraries: neither torch nor the compiler."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np

from hwprune.errors import ArtifactError
from hwprune.fsio import sha256_file

FORMAT = 1
_ALIGNMENT = 64
_FILES = ("network.so", "weights.safetensors")
_KEYS = ("target", "inputs", "outputs", "calls", "workspace_bytes", "weights_bytes", "files")


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape and dtype of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Program:
    """A loaded artifact.

    ``program(x)`` takes and returns numpy arrays: one array for one output, a tuple for several.
    """

    def __init__(self, folder: Path, manifest: dict, threads: int):
        import tvm_ffi
        from safetensors.numpy import load_file

        self.manifest, self.threads = manifest, threads
        self.inputs = [TensorInfo(i["name"], tuple(i["shape"]), i["dtype"]) for i in manifest["inputs"]]
        self.outputs = [TensorInfo(o["name"], tuple(o["shape"]), o["dtype"]) for o in manifest["outputs"]]
        self._module = tvm_ffi.load_module(str(folder / "network.so"))
        self._run, self._bench, self._profile = (self._module[n] for n in ("run", "bench", "profile"))
        self._weights = _aligned(manifest["weights_bytes"])
        packed = load_file(folder / "weights.safetensors")["packed"]
        self._weights[: packed.nbytes] = packed.view(np.uint8)[: self._weights.size]
        self._workspace = _aligned(manifest["workspace_bytes"])
        self._fixed = (self._weights.ctypes.data, self._workspace.ctypes.data)

    def __call__(self, *arrays: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        arrays = self._checked(arrays)
        results = [_empty(o) for o in self.outputs]
        self._run(*(a.ctypes.data for a in (*arrays, *results)), *self._fixed)
        return results[0] if len(results) == 1 else tuple(results)

    def time_us(self, runs: int = 20, inputs: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Wall-clock microseconds of each of ``runs`` runs back to back, shape [runs]."""
        return self._timed(self._bench, runs, inputs, (runs,))

    def profile_us(self, runs: int = 20, inputs: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Wall-clock microseconds of each kernel call within ``runs`` runs, shape [runs, calls]."""
        return self._timed(self._profile, runs, inputs, (runs, len(self.manifest["calls"])))

    def _timed(self, function, runs: int, inputs, shape: tuple[int, ...]) -> np.ndarray:
        if inputs is None:
            generator = np.random.default_rng(0)
            inputs = [generator.standard_normal(i.shape).astype(i.dtype) for i in self.inputs]
        arrays = self._checked(inputs)
        results = [_empty(o) for o in self.outputs]
        samples = np.zeros(shape, np.int64)
        function(*(a.ctypes.data for a in (*arrays, *results)), *self._fixed, runs, samples.ctypes.data)
        return samples / 1e3

    def _checked(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        if len(arrays) != len(self.inputs):
            raise ArtifactError(f"this artifact takes {len(self.inputs)} inputs, but got {len(arrays)}")
        checked = []
        for array, info in zip(arrays, self.inputs):
            array = np.asarray(array)
            if array.shape != info.shape:
                raise ArtifactError(f"input {info.name!r} must have shape {info.shape}, but got {array.shape}")
            if not np.can_cast(array.dtype, info.dtype, "same_kind"):
                raise ArtifactError(f"input {info.name!r} must be {info.dtype}, but got {array.dtype}; convert it first")
            array = np.ascontiguousarray(array, info.dtype)
            if array.ctypes.data % _ALIGNMENT:  # kernels load whole vectors
                copy = _empty(info)
                copy[...] = array
                array = copy
            checked.append(array)
        return checked


def load(path: str | os.PathLike, threads: int | None = None, *, verify: bool = True) -> Program:
    """Load the artifact in the folder ``path``.

    Parameters
    ----------
    threads : worker threads; the manifest's by default. TVM's pool is sized once a process, by the first artifact.
    verify : compare each file with the manifest's SHA-256.

    Raises
    ------
    ArtifactError : a file is missing or altered, or the artifact is for another kind of machine.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if verify:
        _verify(folder, manifest)
    _check_machine(folder, manifest["target"])
    threads = threads or manifest["target"]["threads"]
    _load_runtime(threads)
    try:
        return Program(folder, manifest, threads)
    except (OSError, RuntimeError, AttributeError, ValueError) as err:
        raise ArtifactError(f"{folder} cannot be loaded ({str(err).strip().splitlines()[0]}); compile the artifact again") from None


def read_manifest(folder: Path) -> dict:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{folder} is no artifact: it has no manifest.json; `hwprune compile` makes one") from None
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{path} cannot be read ({err}); compile the artifact again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ArtifactError(f"{path} has format {found!r}, this hwprune reads {FORMAT}; compile the artifact again")
    missing = [k for k in _KEYS if k not in manifest] + [name for name in _FILES if name not in manifest.get("files", _FILES)]
    if missing:
        raise ArtifactError(f"{path} lacks {', '.join(missing)}; copy it again or compile the artifact again")
    return manifest


def _verify(folder: Path, manifest: dict) -> None:
    for name, facts in manifest["files"].items():
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder} lacks {name}; copy it again or compile the artifact again")
        found = sha256_file(folder / name)
        if found != facts["sha256"]:
            raise ArtifactError(
                f"{folder / name} is not what was compiled (SHA-256 {found[:12]}, manifest says {facts['sha256'][:12]}); "
                "copy it again or compile the artifact again"
            )


def _check_machine(folder: Path, target: dict) -> None:
    import platform

    from hwprune.target import host_features

    if platform.machine() != target["architecture"]:
        raise ArtifactError(f"{folder} is compiled for {target['architecture']}, this machine is {platform.machine()}")
    missing = sorted(set(target["features"]) - host_features())
    if missing:
        raise ArtifactError(f"{folder} needs {', '.join(missing)}, which this processor lacks; compile it for --target native")


_pool_threads: int | None = None


def _load_runtime(threads: int) -> None:
    """Bring in TVM's runtime library; its thread pool takes its size from the environment, once."""
    global _pool_threads
    if _pool_threads is None:
        os.environ["TVM_NUM_THREADS"] = str(threads)
        spec = importlib.util.find_spec("tvm")
        if spec is None or not spec.submodule_search_locations:
            raise ArtifactError("TVM's runtime is not installed; run `pip install apache-tvm apache-tvm-ffi`")
        import tvm_ffi  # noqa: F401  loads libtvm_ffi

        library = Path(spec.submodule_search_locations[0], "lib", "libtvm_runtime.so")
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        _pool_threads = threads
    elif _pool_threads != threads:
        raise ArtifactError(
            f"this process already runs artifacts on {_pool_threads} threads, and {threads} were asked for; "
            "use one thread count a process"
        )


def _empty(info: TensorInfo) -> np.ndarray:
    count = int(np.prod(info.shape, dtype=np.int64)) * np.dtype(info.dtype).itemsize
    return _aligned(count).view(info.dtype).reshape(info.shape)


def _aligned(size: int) -> np.ndarray:
    """``size`` zero bytes at an address that suits the widest vectors."""
    buffer = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size]
