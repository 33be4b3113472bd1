"""A compiled library, called through its C functions (``kernels/native/program.c``, ``gpu_program.c``)."""

from __future__ import annotations

import ctypes
import itertools
import weakref
from pathlib import Path
from typing import Sequence

import numpy as np

#: Kernels load whole vectors: what they work on begins at a multiple of this.
VECTOR_BYTES = 64
#: Offsets of what is laid out in a buffer: processors fetch lines in pairs, and rows of pixels that begin in the middle of one were
#: measured to take up to twice as long. Buffers themselves begin with a page.
ALIGNMENT = 128
_PAGE = 4096

#: First entry of ``hwprune_facts``; ``compile/emit_c.py`` writes it, ``kernels/native/runner.cpp`` checks it too.
FACTS_FORMAT = 2

_POINTER = ctypes.c_void_p


class Library:
    """The library at ``path``, which stays loaded as long as the process lives: its thread pool may serve others.

    Attributes: inputs, outputs (elements of each), weights_bytes, workspace_bytes, steps (kernel calls), threads.
    Raises OSError if it cannot be loaded, ValueError if it is no library of this version.
    """

    def __init__(self, path: Path):
        # Global, so that libraries in one process share one thread pool; everything else in them is local.
        self._library = ctypes.CDLL(_fresh_name(path.resolve()), mode=ctypes.RTLD_GLOBAL)
        try:
            head = (ctypes.c_int64 * 7).in_dll(self._library, "hwprune_facts")
        except ValueError:
            raise ValueError(f"{path} is no library of hwprune") from None
        if head[0] != FACTS_FORMAT:
            raise ValueError(f"{path} has format {head[0]}, this hwprune reads {FACTS_FORMAT}")
        count = head[1] + head[2]
        elements = tuple((ctypes.c_int64 * (7 + count)).in_dll(self._library, "hwprune_facts"))[7:]
        self.inputs, self.outputs = elements[: head[1]], elements[head[1] :]
        self.weights_bytes, self.workspace_bytes, self.steps, self.threads = head[3], head[4], head[5], head[6]
        self._library.hwprune_error.restype = ctypes.c_char_p
        self._on_gpu = hasattr(self._library, "hwprune_open")
        self._memory: Memory | None = None
        if self._on_gpu:
            weakref.finalize(self, self._library.hwprune_release).atexit = False

    def open(self) -> None:
        """Find the GPU and take its memory, so that what is missing is said early. RuntimeError, with the sentence. On a CPU
        there is nothing to find."""
        if self._on_gpu and self._library.hwprune_open() != 0:
            raise RuntimeError(self._error())

    def run(self, memory: "Memory", threads: int) -> None:
        """Run all steps once."""
        self._call("hwprune_run", memory, ctypes.c_int32(threads))

    def time_ns(self, memory: "Memory", threads: int, runs: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Nanoseconds of each of ``runs`` runs of steps ``first .. first + count``, int64 [runs].

        Where the memory has several copies of the weights they take turns.
        """
        samples = np.zeros(runs, np.int64)
        count = self.steps - first if count is None else count
        self._call("hwprune_time", memory, ctypes.c_int32(threads), ctypes.c_int32(first), ctypes.c_int32(count),
                   ctypes.c_int64(memory.copies), ctypes.c_int64(memory.stride),
                   ctypes.c_int64(memory.take_turns(runs)), ctypes.c_int64(runs), _POINTER(samples.ctypes.data))  # fmt: skip
        return samples

    def profile_ns(self, memory: "Memory", threads: int, runs: int) -> np.ndarray:
        """Nanoseconds of each step within ``runs`` runs, int64 [runs, steps]."""
        samples = np.zeros((runs, self.steps), np.int64)
        self._call("hwprune_profile", memory, ctypes.c_int32(threads), ctypes.c_int64(runs), _POINTER(samples.ctypes.data))
        return samples

    def _call(self, function: str, memory: "Memory", *arguments) -> None:
        if getattr(self._library, function)(*memory.arguments, *arguments) != 0:
            raise RuntimeError(self._error())
        if self._on_gpu:  # the GPU has constants by their address: it may not become that of others
            self._memory = memory

    def _error(self) -> str:
        return self._library.hwprune_error().decode(errors="replace") or "a kernel failed"


_names = itertools.count()


def _fresh_name(path: Path) -> str:
    """The path in a spelling not used before: the loader takes a name it knows for the file that it has loaded, even if
    another one lies there by now."""
    return path.parent.as_posix() + "".join("/." if bit == "1" else "/" for bit in f"{next(_names):b}") + f"/{path.name}"


class Memory:
    """What a library works on. The arrays must be aligned (``aligned``) and stay alive as long as this object.

    copies : how often the weights lie in ``weights``, one after the other, for timing.
    """

    def __init__(
        self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], weights: np.ndarray, workspace: np.ndarray, copies: int = 1
    ):
        self.copies, self.stride, self._turn = copies, weights.size // copies, 0
        self._arrays = (*inputs, *outputs, weights, workspace)
        self.arguments = (
            (_POINTER * max(len(inputs), 1))(*(a.ctypes.data for a in inputs)),
            (_POINTER * max(len(outputs), 1))(*(a.ctypes.data for a in outputs)),
            _POINTER(weights.ctypes.data),
            _POINTER(workspace.ctypes.data),
        )

    def take_turns(self, runs: int) -> int:
        """Number of the copy whose turn it is, before ``runs`` of them have theirs."""
        turn, self._turn = self._turn, (self._turn + runs) % self.copies
        return turn


def aligned(size: int) -> np.ndarray:
    """``size`` zero bytes from the beginning of a page on, uint8 [size]."""
    buffer = np.zeros(size + _PAGE, np.uint8)
    start = -buffer.ctypes.data % _PAGE
    return buffer[start : start + size]
