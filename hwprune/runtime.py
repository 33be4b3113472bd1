"""Load, run and time an artifact. Needs numpy and safetensors: neither torch nor TVM."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np

from hwprune.errors import ArtifactError
from hwprune.fsio import sha256_file
from hwprune.library import VECTOR_BYTES, Library, Memory, aligned

FORMAT = 1
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

    ``program(x)`` takes and returns numpy arrays: one array for one output, a tuple for several. It may be called from
    several Python threads; as there is one workspace, one call runs at a time.
    """

    def __init__(self, folder: Path, manifest: dict, threads: int):
        from safetensors.numpy import load_file

        self.manifest, self.threads = manifest, threads
        self.inputs = [TensorInfo(i["name"], tuple(i["shape"]), i["dtype"]) for i in manifest["inputs"]]
        self.outputs = [TensorInfo(o["name"], tuple(o["shape"]), o["dtype"]) for o in manifest["outputs"]]
        self._library = Library(folder / "network.so")
        self._weights = aligned(manifest["weights_bytes"])
        packed = load_file(folder / "weights.safetensors")["packed"]
        self._weights[: packed.nbytes] = packed.view(np.uint8)[: self._weights.size]
        self._workspace = aligned(manifest["workspace_bytes"])
        self._busy = threading.Lock()

    def open(self) -> None:
        """Find the device that the artifact runs on. ArtifactError, if it is not here or has no room. ``load`` does it."""
        with self._running():
            self._library.open()

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """One call at a time; what the library says of a failure is what the user reads."""
        with self._busy:
            try:
                yield
            except RuntimeError as err:
                raise ArtifactError(str(err)) from None

    def __call__(self, *arrays: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        memory, results = self._memory(arrays)
        with self._running():
            self._library.run(memory, self.threads)
        return results[0] if len(results) == 1 else tuple(results)

    def time_us(self, runs: int = 20, inputs: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Wall-clock microseconds of each of ``runs`` runs back to back, shape [runs]. On a GPU without copies from and to it."""
        memory, _ = self._memory(self._given(inputs))
        with self._running():
            return self._library.time_ns(memory, self.threads, runs) / 1e3

    def profile_us(self, runs: int = 20, inputs: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Wall-clock microseconds of each kernel call within ``runs`` runs, shape [runs, calls]."""
        memory, _ = self._memory(self._given(inputs))
        with self._running():
            return self._library.profile_ns(memory, self.threads, runs) / 1e3

    def time_call_us(self, call: int, runs: int = 20, inputs: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Wall-clock microseconds of each of ``runs`` runs of kernel call number ``call`` by itself, shape [runs]. On a GPU all
        have their mean, by its own clock."""
        memory, _ = self._memory(self._given(inputs))
        with self._running():
            return self._library.time_ns(memory, self.threads, runs, first=call, count=1) / 1e3

    def _given(self, inputs: Sequence[np.ndarray] | None) -> Sequence[np.ndarray]:
        if inputs is not None:
            return inputs
        generator = np.random.default_rng(0)
        return [generator.standard_normal(i.shape).astype(i.dtype) for i in self.inputs]

    def _memory(self, inputs: Sequence[np.ndarray]) -> tuple[Memory, list[np.ndarray]]:
        results = [_empty(o) for o in self.outputs]
        return Memory(self._checked(inputs), results, self._weights, self._workspace), results

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
            if array.ctypes.data % VECTOR_BYTES:  # kernels load whole vectors
                copy = _empty(info)
                copy[...] = array
                array = copy
            checked.append(array)
        return checked


def load(path: str | os.PathLike, threads: int | None = None, *, verify: bool = True) -> Program:
    """Load the artifact in the folder ``path``.

    Parameters
    ----------
    threads : threads that work on it; the manifest's by default.
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
    try:
        program = Program(folder, manifest, threads)
    except (OSError, RuntimeError, AttributeError, ValueError) as err:
        raise ArtifactError(f"{folder} cannot be loaded ({str(err).strip().splitlines()[0]}); compile the artifact again") from None
    program.open()
    return program


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

    needed = target.get("machine", target["architecture"])
    if platform.machine() != needed:
        raise ArtifactError(f"{folder} is compiled for {needed}, this machine is {platform.machine()}")
    missing = sorted(set(target["features"]) - host_features())
    if missing:
        raise ArtifactError(f"{folder} needs {', '.join(missing)}, which this processor lacks; compile it for --target native")


def _empty(info: TensorInfo) -> np.ndarray:
    count = int(np.prod(info.shape, dtype=np.int64)) * np.dtype(info.dtype).itemsize
    return aligned(count).view(info.dtype).reshape(info.shape)
