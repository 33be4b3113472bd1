"""Load the data that a SPEC names.

    digits                     scikit-learn's digits: 1,797 images 1x8x8, 1,297 to train and 500 to test
    path/file.npz              arrays train_x, train_y, test_x, test_y (see ``npz``)
    path/folder                images in train/<class>/ and test/<class>/ (see ``folder``)
    module:function            a function that returns the loaders (train, test) or (train, validation, test);
    path/file.py:function      they yield float images and integer labels

``--normalize "mean=0.485,0.456,0.406;std=0.229,0.224,0.225"`` is applied to arrays and folders; bytes are scaled to
[0, 1] before it. For folders, ``resize=224;mean=...`` also scales each image's short side and cuts out the center.
Loaders and ``digits`` come normalized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator

import torch
from torch import Tensor, nn

from hwprune.errors import DataError
from hwprune.spec.batches import ArraySource, Augment, LoaderSource, Normalize, checked_batch
from hwprune.spec.importing import call_user

Source = ArraySource | LoaderSource

# Below this height and width a shift by four pixels loses what the image shows, and digits must not be flipped.
_AUGMENT_FROM_PIXELS = 24

# Of images in one batch of an evaluation: 27 images 3x224x224.
_EVALUATION_ELEMENTS = 2**22


@dataclass(frozen=True, eq=False)
class DataSet:
    """Training and test data with what a model must fit.

    Attributes
    ----------
    name : the spec, for records.
    train, test : where batches come from.
    validation : decides which epoch is best; None until `hold_out`, or when the user's loaders bring none.
    num_classes : one more than the largest label; None for loaders that do not say.
    input_shape : of one image with batch, e.g. (1, 3, 32, 32).
    """

    name: str
    train: Source
    test: Source
    num_classes: int | None
    input_shape: tuple[int, ...]
    validation: Source | None = None

    def train_batches(self, batch_size: int = 128, seed: int | None = 0, augment: bool = False,
                      drop_last: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of (x float32 [N, C, H, W], y int64 [N]), shuffled by ``seed``; in order when it is None."""
        return self.train.batches(batch_size, seed, augment, drop_last)

    def test_batches(self, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images in order; without a batch size, as many at once as memory easily takes."""
        return self.test.batches(batch_size or self.evaluation_batch)

    def validation_batches(self, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        if self.validation is None:
            raise DataError(f"{self.name} has no validation part; call hold_out first")
        return self.validation.batches(batch_size or self.evaluation_batch)

    @property
    def evaluation_batch(self) -> int:
        """256 small images, fewer large ones: activations are some tens of times as large as the images."""
        return max(1, min(256, _EVALUATION_ELEMENTS // math.prod(self.input_shape)))

    def hold_out(self, share: float, seed: int = 0) -> "DataSet":
        """Move ``share`` of the training images of each class to ``validation``.

        Loaders cannot be split and come back unchanged, with the validation loader that they may have brought.
        """
        if share <= 0 or self.validation is not None or not isinstance(self.train, ArraySource):
            return self
        held, rest = stratified(self.train.y, share, seed)
        if len(held) == 0:
            return self
        return replace(self, train=self.train.subset(rest), validation=self.train.subset(held))


def load_data(spec: str, normalize: str | None = None) -> DataSet:
    """Load data by its spec.

    Parameters
    ----------
    spec : one of the forms in the module docstring.
    normalize : ``mean=...;std=...``, one number or one a channel; for arrays and image folders. For folders also
        ``resize=PIXELS``.

    Raises
    ------
    DataError
        What the spec names is missing, or its shapes, types, values or labels do not fit together.
    """
    path = Path(spec)
    if normalize is not None and (spec == "digits" or ":" in spec):
        raise DataError(f"--normalize is for .npz files and image folders; {spec!r} comes normalized, so leave it out")
    if spec == "digits":
        from hwprune.spec.digits import load_digits

        return load_digits()
    norm, resize = parse_normalize(normalize)
    if resize is not None and not path.is_dir():
        raise DataError(f"resize={resize} is for image folders, and {spec!r} is none; leave it out")
    if path.suffix == ".npz":
        from hwprune.spec.npz import load_npz

        return from_arrays(spec, *load_npz(path), normalize=norm)
    if path.is_dir():
        from hwprune.spec.folder import load_folder

        return from_arrays(spec, *load_folder(path, resize), normalize=norm)
    if ":" in spec:
        return from_loaders(spec, call_user(spec, "data function", DataError))
    raise DataError(f"no data {spec!r}; data is `digits`, an .npz file, a folder with train/<class> and test/<class>, "
                    f"module:function or path/file.py:function")


def parse_normalize(text: str | None) -> tuple[Normalize, int | None]:
    """``resize=224;mean=0.485,0.456,0.406;std=0.229,0.224,0.225`` as (mean 0 and std 1 if left out, pixels or None)."""
    found: dict[str, tuple[float, ...]] = {}
    for part in (text or "").split(";") if text else []:
        key, _, numbers = part.partition("=")
        try:
            values = tuple(float(number) for number in numbers.split(","))
        except ValueError:
            values = ()
        if key.strip() not in ("mean", "std", "resize") or key.strip() in found or not values:
            raise DataError(f"normalization {text!r} is not understood at {part!r}; "
                            f"write mean=0.5,0.5,0.5;std=0.2,0.2,0.2")
        found[key.strip()] = values
    if min(found.get("std", (1.0,))) <= 0:
        raise DataError(f"normalization {text!r} divides by {min(found['std'])}; every std must be above 0")
    resize = found.pop("resize", None)
    if resize is not None and (len(resize) != 1 or resize[0] < 1 or resize[0] != int(resize[0])):
        raise DataError(f"normalization {text!r} resizes to {resize}; it must be one whole number of pixels, like resize=224")
    return Normalize(**found), None if resize is None else int(resize[0])


def from_arrays(name: str, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor,
                normalize: Normalize = Normalize(), augment: Augment | None = None) -> DataSet:
    """A DataSet of tensors: x uint8 or float32 [N, C, H, W] (or [N, features]), y int64 [N], checked.

    Natural images of 24 pixels and more are shifted by up to an eighth of their side and flipped in training; say
    ``augment`` for anything else.
    """
    train_y, test_y = train_y.to(torch.int64), test_y.to(torch.int64)
    for part, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        _check_part(name, part, x, y)
    if train_x.shape[1:] != test_x.shape[1:]:
        raise DataError(f"{name}: training images are {_x(train_x.shape[1:])} but test images {_x(test_x.shape[1:])}; "
                        f"both must have one shape")
    channels = train_x.shape[1]
    for key in ("mean", "std"):
        if len(getattr(normalize, key)) not in (1, channels):
            raise DataError(f"{name}: normalization gives {len(getattr(normalize, key))} numbers for {key}, "
                            f"but the images have {channels} channels; give one or {channels}")
    if augment is None and train_x.ndim == 4 and min(train_x.shape[2:]) >= _AUGMENT_FROM_PIXELS:
        augment = Augment(pad=min(train_x.shape[2:]) // 8, flip=True)
    classes = int(max(train_y.max(), test_y.max())) + 1
    return DataSet(name, ArraySource(train_x, train_y, normalize, augment), ArraySource(test_x, test_y, normalize),
                   classes, (1, *train_x.shape[1:]))


def from_loaders(name: str, loaders: Any) -> DataSet:
    """A DataSet of loaders (train, test) or (train, validation, test); the first batch of each is checked."""
    several = isinstance(loaders, (tuple, list)) and len(loaders) in (2, 3)
    if not several or not all(hasattr(part, "__iter__") for part in loaders):
        raise DataError(f"{name} returned a {type(loaders).__name__}; it must return two loaders (train, test), "
                        f"or three (train, validation, test)")
    titles = ("train", "test") if len(loaders) == 2 else ("train", "validation", "test")
    parts = {}
    for title, loader in zip(titles, loaders):
        if iter(loader) is loader or not hasattr(loader, "__len__"):
            raise DataError(f"{name}: the {title} loader is a {type(loader).__name__} without a length, "
                            f"good for one pass; return a torch DataLoader or a list of batches")
        first = next(iter(loader), None)
        if first is None:
            raise DataError(f"{name}: the {title} loader is empty; it must give at least one batch")
        x, y = checked_batch(first, f"{name} ({title} loader)")
        _check_part(name, title, x, y)
        parts[title] = LoaderSource(loader, f"{name} ({title} loader)", tuple(x.shape[1:]))
    shapes = {title: part.item_shape for title, part in parts.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{name}: the loaders disagree on the shape of an image: "
                        f"{', '.join(f'{t} {_x(s)}' for t, s in shapes.items())}")
    classes = getattr(getattr(loaders[0], "dataset", None), "classes", None)
    return DataSet(name, parts["train"], parts["test"], len(classes) if classes else None, (1, *shapes["train"]),
                   parts.get("validation"))


def check_fits(model: nn.Module, data: DataSet) -> None:
    """Run the model on one test batch and compare its output with the labels.

    Raises
    ------
    DataError
        The model does not take these images, does not give one row of logits an image, or has too few outputs.
    """
    x, y = next(iter(data.test_batches(8)))
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            out = model(x)
    except Exception as err:  # whatever the user's forward raises
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise DataError(f"the network does not take the {_x(x.shape[1:])} images of {data.name} ({reason}); "
                        f"give data of the network's input shape") from None
    finally:
        for module, flag in flags:
            module.training = flag
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(x):
        got = f"a tensor {_x(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise DataError(f"the network gives {got} for {len(x)} images of {data.name}; "
                        f"it must give logits {len(x)}xclasses")
    check_labels(y, out.shape[1], data.name)
    if data.num_classes is not None and data.num_classes > out.shape[1]:
        raise DataError(f"labels of {data.name} reach {data.num_classes - 1} but the network has {out.shape[1]} "
                        f"outputs; give data with labels 0..{out.shape[1] - 1} or a network with {data.num_classes} outputs")


def check_labels(y: Tensor, outputs: int, name: str) -> None:
    """DataError when a label of a batch lies outside the network's outputs."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= outputs:
        raise DataError(f"labels of {name} reach {low if low < 0 else high} but the network has {outputs} outputs; "
                        f"labels must lie in 0..{outputs - 1}")


def stratified(y: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split positions so that each class gives ``share`` of its own (rounded) to the first part; both parts sorted."""
    generator = torch.Generator().manual_seed(seed)
    held = []
    for label in y.unique(sorted=True):
        index = (y == label).nonzero().flatten()
        held.append(index[torch.randperm(len(index), generator=generator)[:round(len(index) * share)]])
    mask = torch.zeros(len(y), dtype=torch.bool)
    mask[torch.cat(held)] = True
    return mask.nonzero().flatten(), (~mask).nonzero().flatten()


def _check_part(name: str, part: str, x: Tensor, y: Tensor) -> None:
    if len(x) == 0:
        raise DataError(f"{name}: the {part} part is empty; it needs at least one image")
    if len(x) != len(y):
        raise DataError(f"{name}: {len(x)} images in {part}_x but {len(y)} labels in {part}_y; give one label an image")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
        raise DataError(f"{name}: {part}_x has NaN or infinity, first in image {bad}; remove or repair such images")
    if int(y.min()) < 0:
        raise DataError(f"{name}: {part}_y has the label {int(y.min())}; labels count from 0")


def _x(shape: Any) -> str:
    return "x".join(map(str, shape))
