"""Weights files: what fits is loaded, what does not is named, and nothing is unpickled."""

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hwprune.errors import HwpruneError, ModelError
from hwprune.spec.weights import load_weights, save_state


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


@pytest.fixture
def state():
    return {name: torch.randn_like(value) if value.is_floating_point() else value + 7
            for name, value in network().state_dict().items()}


def same(module, state):
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_safetensors(tmp_path, state):
    save_file(state, tmp_path / "w.safetensors")
    module = network()
    load_weights(module, tmp_path / "w.safetensors")
    assert same(module, state)


@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: {"state_dict": s, "epoch": 3, "best": 0.9},
    lambda s: {f"module.{k}": v for k, v in s.items()},
    lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    lambda s: {"model": s},
], ids=["plain", "checkpoint", "DataParallel", "both", "model"])
def test_state_dicts_as_people_save_them(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "w.pt")
    module = network()
    load_weights(module, tmp_path / "w.pt")
    assert same(module, state)


def test_missing_step_counters_are_left_alone(tmp_path, state):
    del state["1.num_batches_tracked"]
    save_file(state, tmp_path / "w.safetensors")
    load_weights(network(), tmp_path / "w.safetensors")


def refusal(path, module=None):
    module = module or network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_weights(module, path)
    assert same(module, before), "a refused file must change nothing"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_keys_that_do_not_fit_are_named_and_counted(tmp_path, state):
    state["0.weight"] = torch.zeros(4, 1, 5, 5)
    del state["3.bias"]
    for index in range(7):
        state[f"extra{index}"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    text = refusal(tmp_path / "w.safetensors")
    assert "does not fit the model's 9 tensors" in text
    assert "1 missing (3.bias)" in text
    assert "7 unexpected (extra0, extra1, extra2, extra3, extra4, …)" in text
    assert "1 of another shape (0.weight 4x1x5x5 for 4x1x3x3)" in text


class Opens:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_pickled_module_is_refused_with_the_mend(tmp_path):
    torch.save(network(), tmp_path / "whole.pt")
    text = refusal(tmp_path / "whole.pt")
    assert "torch.nn.modules.container.Sequential" in text and "torch.save(model.state_dict()" in text


def test_code_in_a_pickle_does_not_run(tmp_path):
    torch.save({"state_dict": Opens(tmp_path / "ran")}, tmp_path / "evil.pt")
    refusal(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_files_that_hold_no_weights(tmp_path):
    assert "no weights file" in refusal(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("hello")
    assert "text.pt" in refusal(tmp_path / "text.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert "not a whole safetensors file" in refusal(tmp_path / "cut.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "holds a list, not a state_dict" in refusal(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "number.pt")
    assert "'epoch' (int)" in refusal(tmp_path / "number.pt")


def test_weights_that_are_not_numbers(tmp_path, state):
    state["3.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    assert "NaN or infinity in 3.weight (1 of 9 tensors)" in refusal(tmp_path / "w.safetensors")


def test_tied_weights_are_saved(tmp_path):
    linear = nn.Linear(3, 3)
    module = nn.Sequential(linear, linear)
    save_state(module.state_dict(), tmp_path / "w.safetensors")
    again = nn.Sequential(linear, linear)
    load_weights(again, tmp_path / "w.safetensors")


def test_a_failed_save_leaves_the_old_file(tmp_path, state, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_state(state, path)
    before = path.read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(HwpruneError, match="No space left on device"):
        save_state(state, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
