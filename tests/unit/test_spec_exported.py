"""Exported programs: an ordinary one loads; a crafted one is refused before torch reads it."""

import io
import json
import os
import zipfile

import pytest
import torch
from torch import nn

from hwprune.errors import ModelError
from hwprune.spec.model import load_model


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.register_buffer("scale", torch.full((3, 1, 1), 2.0), persistent=False)
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x * self.scale)))
        return self.linear(x.mean((2, 3)).view(x.shape[0], -1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = Network().eval()
    x = torch.randn(2, 3, 8, 8)
    torch.export.save(torch.export.export(model, (x,)), folder / "fixed.pt2")
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=(batch,)), folder / "free.pt2")
    return folder, model


@pytest.mark.parametrize("name", ["fixed.pt2", "free.pt2"])
def test_program_loads_as_a_trainable_module(saved, name):
    folder, model = saved
    loaded = load_model(str(folder / name))
    x = torch.randn(2, 3, 8, 8)
    assert loaded.input_shape == (2, 3, 8, 8)
    torch.testing.assert_close(loaded.module(x), model(x))
    assert {n for n, _ in loaded.module.named_parameters()} == {n for n, _ in model.named_parameters()}
    loaded.module.train()
    loaded.module(x).sum().backward()
    assert loaded.module.conv.weight.grad is not None
    torch.export.export(loaded.module.eval(), (x,))


def crafted(saved, tmp_path, change):
    """A copy of the saved program with ``change(members)``, member names without the root folder."""
    with zipfile.ZipFile(saved[0] / "fixed.pt2") as archive:
        members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    change(members)
    path = tmp_path / "crafted.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.removeprefix("^") if name.startswith("^") else f"crafted/{name}", data)
    return path


def edit(name, change):
    def edited(members):
        data = json.loads(members[name])
        change(data)
        members[name] = json.dumps(data).encode()

    return edited


class Opens:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def pickled(path):
    buffer = io.BytesIO()
    torch.save(Opens(str(path)), buffer)
    return buffer.getvalue()


MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


def graph(data):
    return data["graph_module"]["graph"]


def signature(data):
    return data["graph_module"]["module_call_graph"][0]["signature"]


CRAFTED = {
    "samples": (lambda evil: lambda m: m.__setitem__("data/sample_inputs/model.pt", evil), "sample inputs"),
    "weights": (lambda evil: lambda m: (m.__setitem__("data/weights/weight_0", evil), edit(
        WEIGHTS, lambda d: d["config"]["conv.weight"].__setitem__("use_pickle", True))(m)),
        "pickled object 'conv.weight'"),
    "constants": (lambda evil: lambda m: (m.__setitem__("data/constants/opaque_obj_0", evil), edit(
        CONSTANTS, lambda d: d["config"]["scale"].__setitem__("path_name", "opaque_obj_0"))(m)), "opaque_obj_0"),
    "legacy weights": (lambda evil: lambda m: m.__setitem__("data/weights/model.pt", evil), "data/weights/model.pt"),
    "old format": (lambda evil: lambda m: (m.__setitem__("^version", b"8.20"),
                                           m.__setitem__("^serialized_state_dict.pt", evil)), "common folder"),
    "library": (lambda evil: lambda m: m.__setitem__("data/aotinductor/model/x.so", evil), "aotinductor"),
    "operator": (lambda evil: edit(MODEL, lambda d: graph(d)["nodes"][0].__setitem__("target", "torch.hub.load")),
                 "operator 'torch.hub.load'"),
    "sympy": (lambda evil: edit(MODEL, lambda d: graph(d)["tensor_values"]["x"]["sizes"].__setitem__(
        0, {"as_expr": {"expr_str": "__import__('os').system('true')", "hint": None}})), "symbolic size"),
    "name": (lambda evil: edit(MODEL, lambda d: graph(d)["nodes"][0]["outputs"][0]["as_tensor"].__setitem__(
        "name", "x = print('ran') #")), "the name"),
    "key": (lambda evil: edit(WEIGHTS, lambda d: d["config"].__setitem__(
        'a"); print("ran', d["config"].pop("conv.weight"))), "the name"),
    "pytree": (lambda evil: edit(MODEL, lambda d: signature(d).__setitem__("out_spec", json.dumps(
        [1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]))), "collections.defaultdict"),
    "graph": (lambda evil: edit(MODEL, lambda d: graph(d)["nodes"][0]["inputs"][0].__setitem__(
        "arg", {"as_operator": "torch.hub.load"})), "'as_operator'"),
    "guards": (lambda evil: edit(MODEL, lambda d: d.__setitem__("guards_code", ["print('ran')"])), "guards"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_program_is_refused(saved, tmp_path, case, capsys):
    change, says = CRAFTED[case]
    path = crafted(saved, tmp_path, change(pickled(tmp_path / "ran")))
    with pytest.raises(ModelError) as caught:
        load_model(str(path))
    assert says in str(caught.value) and "could run code" in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert "ran" not in capsys.readouterr().out


def test_copy_without_changes_loads(saved, tmp_path):
    """The crafted files above are refused for what was changed, not for how they were written."""
    load_model(str(crafted(saved, tmp_path, lambda members: None)))


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x05\x06" + bytes(18)])
def test_file_that_is_no_program(tmp_path, data, caplog):
    (tmp_path / "x.pt2").write_bytes(data)
    with pytest.raises(ModelError, match="x.pt2") as caught:
        load_model(str(tmp_path / "x.pt2"))
    assert "\n" not in str(caught.value) and not caplog.records
