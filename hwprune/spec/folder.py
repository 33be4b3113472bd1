"""Images in ``train/<class>/`` and ``test/<class>/`` (or ``val/<class>/``), one folder a class.

Classes are the sorted names of the folders in ``train``. All images must have one size, unless a resize is asked for:
the short side is then scaled to it and the center is cut out. Grey images stay grey when all of them are; else all are
read as RGB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hwprune.errors import DataError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_TEST_NAMES = ("test", "val")
_GREY_MODES = ("L", "1")


def load_folder(root: Path, resize: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """train_x, train_y, test_x, test_y: uint8 [N, C, H, W] and int64 [N].

    Raises
    ------
    DataError
        A part or a class is missing or empty, an image cannot be read, or sizes differ and no resize was asked for.
    """
    train = root / "train"
    test = next((root / name for name in _TEST_NAMES if (root / name).is_dir()), None)
    if not train.is_dir() or test is None:
        raise DataError(f"{root} has no {'train' if not train.is_dir() else 'test (or val)'} folder; "
                        f"an image folder holds train/<class>/*.png and test/<class>/*.png")
    classes = _classes(train)
    unknown = sorted(set(_classes(test)) - set(classes))
    if unknown:
        raise DataError(f"{test} has the classes {', '.join(unknown[:5])} that {train} has not; "
                        f"both need the same classes")
    files = [_files(part, classes) for part in (train, test)]
    grey = all(_mode(path) in _GREY_MODES for part in files for path, _ in part)
    parts = [[_read(path, "L" if grey else "RGB", resize) for path, _ in part] for part in files]
    _check_one_size([path for part in files for path, _ in part], [image for part in parts for image in part])
    return (*_tensors(files[0], parts[0]), *_tensors(files[1], parts[1]))


def _classes(part: Path) -> list[str]:
    names = sorted(p.name for p in part.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(f"{part} has no class folders; put the images into {part.name}/<class>/")
    return names


def _files(part: Path, classes: list[str]) -> list[tuple[Path, int]]:
    found = []
    for label, name in enumerate(classes):
        inside = sorted(p for p in (part / name).glob("*") if p.suffix.lower() in _SUFFIXES)
        if not inside:
            raise DataError(f"{part / name} has no images ({', '.join(_SUFFIXES[:3])}, …); each class needs one")
        found += [(path, label) for path in inside]
    return found


def _mode(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return image.mode
    except (OSError, UnidentifiedImageError) as err:
        raise _unreadable(path, err) from None


def _read(path: Path, mode: str, resize: int | None) -> np.ndarray:
    """[H, W] for mode L, [H, W, 3] for RGB."""
    try:
        with Image.open(path) as image:
            pixels = image.convert(mode)
    except (OSError, UnidentifiedImageError) as err:
        raise _unreadable(path, err) from None
    return np.asarray(pixels if resize is None else _resized(pixels, resize))


def _check_one_size(paths: list[Path], images: list[np.ndarray]) -> None:
    for path, image in zip(paths, images):
        if image.shape != images[0].shape:
            raise DataError(f"{path} is {_x(image)} pixels but {paths[0]} is {_x(images[0])}; "
                            f"give images of one size, or normalize with resize=PIXELS")


def _tensors(files: list[tuple[Path, int]], images: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(np.stack(images))
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
    return x, torch.tensor([label for _, label in files], dtype=torch.int64)


def _resized(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _unreadable(path: Path, err: Exception) -> DataError:
    return DataError(f"{path} cannot be read as an image ({str(err).splitlines()[0]}); remove or repair it")


def _x(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
