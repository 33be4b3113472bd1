"""The benchmark's ResNet-56 is the published one: its names, its size, and option-A shortcuts."""

from pathlib import Path

import torch

from hwprune.spec.model import load_model

SPEC = str(Path(__file__).parents[2] / "benchmarks" / "cifar10_resnet56" / "model.py") + ":resnet56"


def test_names_and_size_are_those_of_the_published_checkpoint():
    model = load_model(SPEC).module
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(9)]
    modules = ["conv1", "bn1", *(f"{b}.{m}" for b in blocks for m in ("conv1", "bn1", "conv2", "bn2")), "linear"]
    assert {name.rpartition(".")[0] for name in model.state_dict()} == set(modules)
    # He et al., 2016, table 6: 0.85 million parameters
    assert sum(p.numel() for p in model.parameters()) == 853_018


def test_a_narrowing_shortcut_keeps_every_second_pixel_between_zero_channels():
    block = load_model(SPEC).module.layer2[0]
    with torch.no_grad():
        block.bn2.weight.zero_()  # the convolutions' branch becomes zero: what is left is the shortcut
        x = torch.rand(1, 16, 8, 8)
        out = block(x)
    assert out.shape == (1, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2]) and not out[:, :8].any() and not out[:, 24:].any()
