"""Arrays: in .npy files, read without ever unpickling, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hwprune.errors import UsageError
from hwprune.fsio import write_atomic

if TYPE_CHECKING:
    import numpy as np


def load_npy(path: Path) -> "np.ndarray":
    """The array in ``path``.

    Raises
    ------
    UsageError
        The file is missing, is no .npy file, is cut short, or holds Python objects.
    """
    import numpy as np

    try:
        with open(path, "rb") as file:
            magic = file.read(6)
            file.seek(0)
            if magic != b"\x93NUMPY":
                raise UsageError(f"{path} is not a .npy file; write one with numpy.save")
            return np.lib.format.read_array(file, allow_pickle=False)
    except OSError as err:
        raise UsageError(f"cannot read {path}: {err.strerror or err}") from None
    except ValueError as err:
        reason = "it holds Python objects" if "allow_pickle" in str(err) else str(err).rstrip(".")
        raise UsageError(f"cannot read {path}: {reason}; write it with numpy.save from an array of numbers") from None


def save_npy(path: Path, array: "np.ndarray") -> None:
    """Write ``array`` to ``path`` whole or not at all. Raises HwpruneError when the folder cannot be written."""
    import numpy as np

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)

    write_atomic(path, write)


def relative_error(got: "np.ndarray", expected: "np.ndarray") -> float:
    """Largest absolute difference over the largest absolute value of ``expected``, where ``expected`` is finite; infinite if
    ``got`` is not finite there."""
    import numpy as np

    finite = np.isfinite(expected)
    if not finite.any():
        return 0.0
    difference = np.abs(got[finite].astype(np.float64) - expected[finite])
    if not np.isfinite(difference).all():
        return float("inf")
    return float(difference.max()) / (float(np.abs(expected[finite]).max()) or 1.0)
