"""Images and labels from an ``.npz`` file with the arrays train_x, train_y, test_x, test_y.

``*_x`` are uint8 or float: [N, H, W] (one channel), [N, H, W, C], [N, C, H, W] or [N, features] (floats). Which of the
four-dimensional layouts it is, the channels tell: the axis of length 1, 3 or 4. Where both axes or neither have such a
length, a fifth entry ``layout`` with the text ``NHWC`` or ``NCHW`` must say it; where it is there, it decides.
``*_y`` are integers [N] or [N, 1], counted from 0.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hwprune.errors import DataError

_NAMES = ("train_x", "train_y", "test_x", "test_y")
_CHANNELS = (1, 3, 4)
_LAYOUTS = ("NHWC", "NCHW")


def load_npz(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """train_x, train_y, test_x, test_y: images uint8 or float32 [N, C, H, W] (or [N, features]), labels int64 [N].

    Raises
    ------
    DataError
        The file is missing or damaged, an array is missing, or its type or shape is not one of those above.
    """
    arrays = _read(path)
    missing = [name for name in _NAMES if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)} (it has {', '.join(arrays) or 'nothing'}); "
                        f"save numpy.savez(path, train_x=…, train_y=…, test_x=…, test_y=…)")
    layout = str(arrays["layout"]) if "layout" in arrays else None
    if layout not in (None, *_LAYOUTS):
        raise DataError(f"{path}: layout is {layout!r}; it must be NHWC or NCHW")
    return (_images(path, "train_x", arrays["train_x"], layout), _labels(path, "train_y", arrays["train_y"]),
            _images(path, "test_x", arrays["test_x"], layout), _labels(path, "test_y", arrays["test_y"]))


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"no data file {path}; the path is relative to {Path.cwd()}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name in (*_NAMES, "layout")}
    except (OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as err:
        raise DataError(f"{path} is not a whole .npz file ({err}); save it again with numpy.savez") from None
    except ValueError as err:  # numpy refuses arrays of Python objects, which would have to be unpickled
        raise DataError(f"{path} holds something else than plain arrays ({err}); "
                        f"save numeric arrays with numpy.savez") from None


def _images(path: Path, name: str, array: np.ndarray, layout: str | None) -> Tensor:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{path}: {name} has type {array.dtype}; images must be uint8 or float")
    x = torch.from_numpy(np.ascontiguousarray(array))
    if x.dtype != torch.uint8:
        x = x.to(torch.float32)
    if x.ndim == 2 and x.dtype != torch.uint8:
        return x
    if x.ndim == 3:
        return x.unsqueeze(1)
    if x.ndim != 4:
        raise DataError(f"{path}: {name} has shape {list(array.shape)}; images are [N, H, W], [N, H, W, C], "
                        f"[N, C, H, W], or [N, features] for floats")
    return x.permute(0, 3, 1, 2).contiguous() if (layout or _layout(path, name, array.shape)) == "NHWC" else x


def _layout(path: Path, name: str, shape: tuple[int, ...]) -> str:
    last, first = shape[3] in _CHANNELS, shape[1] in _CHANNELS
    if last == first:
        which = "both axes" if last else "neither axis 1 nor the last"
        raise DataError(f"{path}: {name} has shape {list(shape)}, where {which} could be 1, 3 or 4 channels; "
                        f"add an entry layout='NHWC' or layout='NCHW' to the file")
    return "NHWC" if last else "NCHW"


def _labels(path: Path, name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "iu" or not (array.ndim == 1 or array.ndim == 2 and array.shape[1] == 1):
        raise DataError(f"{path}: {name} is {array.dtype} {list(array.shape)}; "
                        f"labels must be integers [N], counted from 0")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))
