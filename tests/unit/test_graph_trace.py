"""Refusals name the user's line; the module is left as it was."""

import pytest
import torch
from graph_networks import network
from torch import nn

from hwprune.errors import TraceError
from hwprune.graph import trace


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # the line to name
            return x
        return -x


class Fails(nn.Module):
    def forward(self, x):
        raise ValueError("no such\nthing")


def line_of(text):
    lines = open(__file__).read().splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.strip().startswith(text))


@pytest.mark.parametrize(
    ("module", "text", "message"),
    [(Branches(), "if x.sum() > 0", "data-dependent"), (Fails(), "raise ValueError", "ValueError: no such")],
)
def test_refusal_names_the_line(module, text, message, capfd):
    with pytest.raises(TraceError) as caught:
        trace(module, torch.randn(2, 2))
    assert f"test_graph_trace.py:{line_of(text)}" in str(caught.value)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_training_flags_are_restored():
    module, x = network("flat")
    module.train()
    module.features[0].eval()
    trace(module, x)
    assert module.training and not module.features[0].training and module.fc1.training


def test_source_shape_and_targets():
    module, x = network("option_a")
    traced = trace(module, (x,))
    source = traced.source("conv2d_1")
    assert source.module == "conv1" and source.file.endswith("graph_networks.py")
    assert "self.conv1(x)" in source.text
    assert traced.shape("conv2d_1") == (2, 16, 4, 4)
    assert traced.targets["p_linear_weight"] == "linear.weight"
