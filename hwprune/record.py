"""What a run writes down about itself: versions, machine, seeds, how long each step took."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Iterator

import hwprune
from hwprune.progress import SILENT, Progress

_PACKAGES = (
    "torch", "apache-tvm", "apache-tvm-ffi", "numpy", "scipy", "networkx", "pydantic", "safetensors", "scikit-learn",
    "onnxruntime", "openvino",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python, hwprune and the packages that a result depends on, as far as they are installed."""
    found = {"python": platform.python_version(), "hwprune": hwprune.__version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What this machine is: processor, cores that this process may use, memory, system."""
    import psutil

    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }


def cpu_model() -> str:
    """Name of the processor as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.split(":")[0].strip() in ("model name", "Model"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def now() -> str:
    """Date and time with zone, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Stopwatch:
    """Seconds of each named step, in the order in which they began; a bar for each as it runs."""

    def __init__(self, progress: Progress = SILENT):
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def step(self, name: str, title: str | None = None) -> Iterator[None]:
        """Time a step; with a ``title`` it is also shown. A name used twice adds up."""
        started = time.perf_counter()
        try:
            if title is None:
                yield
            else:
                with self._progress.task(title):
                    yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)


def data_facts(data: Any, spec: str | None) -> dict[str, Any] | None:
    """What the record says of a DataSet: enough to load it again and to see whether it is still the same."""
    if data is None:
        return None
    train = data.train
    normalize = getattr(train, "normalize", None)
    loadable = spec is not None and spec != "digits" and ":" not in spec
    return {
        "spec": spec,
        "name": data.name,
        "normalize": _normalize_text(normalize) if loadable and normalize is not None else None,
        "train_images": len(train),
        "test_images": len(data.test),
        "sha256": _tensors_sha256(train, data.test),
    }


def _normalize_text(normalize: Any) -> str:
    mean, std = (",".join(repr(v) for v in values) for values in (normalize.mean, normalize.std))
    return f"mean={mean};std={std}"


def _tensors_sha256(*sources: Any) -> str | None:
    """Hash over images and labels that lie in memory; None for the user's loaders."""
    if not all(hasattr(s, "x") and hasattr(s, "y") for s in sources):
        return None
    digest = hashlib.sha256()
    for source in sources:
        for tensor in (source.x, source.y):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
