"""CIFAR-10 from an .npz file, normalized as the trained ResNet-56 wants it.

The file has train_x uint8 [50000, 32, 32, 3], train_y [50000], test_x uint8 [10000, 32, 32, 3], test_y [10000]. The
same from the command line: ``--data cifar10.npz --normalize "mean=0.485,0.456,0.406;std=0.229,0.224,0.225"``.
"""

from __future__ import annotations

from pathlib import Path

from hwprune.errors import DataError
from hwprune.spec.data import DataSet, load_data

NORMALIZE = "mean=0.485,0.456,0.406;std=0.229,0.224,0.225"
TRAIN_IMAGES, TEST_IMAGES, INPUT_SHAPE = 50_000, 10_000, (1, 3, 32, 32)


def cifar10(path: str | Path) -> DataSet:
    """The 50,000 training and 10,000 test images; DataError when the file holds anything else."""
    data = load_data(str(path), NORMALIZE)
    found = (len(data.train), len(data.test), data.input_shape, data.num_classes)
    expected = (TRAIN_IMAGES, TEST_IMAGES, INPUT_SHAPE, 10)
    if found != expected:
        raise DataError(f"{path} is not CIFAR-10: training images, test images, shape and classes are {found}, "
                        f"not {expected}; make the file anew")
    return data
