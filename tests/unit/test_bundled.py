"""The bundled network: small enough for the repository, good enough to prune, and reproduced by its script."""

from pathlib import Path

import torch
from safetensors import safe_open

from hwprune.bundled import MODELS
from hwprune.bundled.train_digits import train
from hwprune.spec.data import check_fits, load_data
from hwprune.spec.model import load_model
from hwprune.train.evaluate import accuracy

CHECKPOINT = MODELS["digits_resnet"].checkpoint


def test_it_classifies_digits_it_has_not_seen():
    model, data = load_model().module, load_data(MODELS["digits_resnet"].data)
    check_fits(model, data)
    assert accuracy(model, data) >= 0.985


def test_it_is_small_and_holds_float32_only():
    assert CHECKPOINT.stat().st_size < 1_000_000
    model = load_model().module
    assert sum(p.numel() for p in model.parameters()) == 184_138
    with safe_open(CHECKPOINT, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32, torch.int64}
        assert "train_digits" in file.metadata()["trained_by"]


def test_it_has_both_kinds_of_shortcut_and_can_be_exported():
    blocks = load_model().module.blocks
    kinds = [type(block.shortcut).__name__ for block in blocks]
    assert kinds == ["Identity", "Identity", "Sequential", "Identity", "Sequential"]
    torch.export.export(load_model().module, (torch.zeros(1, 1, 8, 8),))


def test_it_is_among_the_files_of_the_package():
    assert CHECKPOINT.parent == Path(__import__("hwprune.bundled", fromlist=["x"]).__file__).parent


def test_the_script_trains_it():
    """Two of its forty epochs: enough to see that it learns, and that the same seed gives the same network."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, report = train(epochs=2)
        again, _ = train(epochs=2)
    finally:
        torch.set_num_threads(threads)
    assert report.best_accuracy > 0.8
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
