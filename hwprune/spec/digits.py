"""scikit-learn's digits: 1,797 grey images of 8x8 pixels in ten classes, without a download."""

from __future__ import annotations

import torch

from hwprune.errors import DataError
from hwprune.spec.batches import Normalize
from hwprune.spec.data import DataSet, from_arrays, stratified

# The split is part of what "accuracy on digits" means here: change it and every recorded figure changes its meaning.
_TEST_SHARE = 500 / 1797
_SPLIT_SEED = 0
# Pixels are 0..16. Mean and standard deviation are those of all pixels / 16.
_NORMALIZE = Normalize(mean=(0.3053,), std=(0.3760,))


def load_digits() -> DataSet:
    """1,297 training and 500 test images 1x8x8, stratified by class; DataError when scikit-learn is missing."""
    try:
        from sklearn import datasets
    except ImportError:
        raise DataError("data `digits` needs scikit-learn, which is not installed; "
                        "run `pip install scikit-learn`") from None
    bunch = datasets.load_digits()
    x = torch.from_numpy(bunch.images).to(torch.float32).div(16).unsqueeze(1)
    y = torch.from_numpy(bunch.target).to(torch.int64)
    test, train = stratified(y, _TEST_SHARE, _SPLIT_SEED)
    return from_arrays("digits", x[train], y[train], x[test], y[test], normalize=_NORMALIZE)
