"""Model specs: each form loads, and each mistake is one sentence with the value and the mend."""

import re
import sys
import types

import pytest
import torch
from torch import nn

from hwprune.errors import ModelError, UsageError
from hwprune.spec.model import BUNDLED, LoadedModel, load_model, parse_input_shape, resolve_input_shape
from hwprune.spec.weights import save_state

NETWORK = """
from torch import nn
from {sibling} import WIDTH

def small():
    return nn.Sequential(nn.Conv2d(1, WIDTH, 3), nn.Flatten(), nn.Linear(WIDTH * 36, 3))

def late():
    import {sibling}_late as late_sibling
    return late_sibling.build()

def no_module():
    return {{"a": 1}}

def broken():
    return nn.Linear(3,
                     1 / 0)

def quits():
    raise SystemExit("usage: train.py --data")

def needs(width, depth=3):
    return nn.Linear(width, depth)

number = 5
"""


@pytest.fixture
def user_file(tmp_path):
    sibling = f"sibling_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{sibling}.py").write_text("WIDTH = 4\n")
    (tmp_path / f"{sibling}_late.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(2, 2)\n")
    path = tmp_path / "model.py"
    path.write_text(NETWORK.format(sibling=sibling))
    return path


def refusal(spec, weights=None, error=ModelError):
    with pytest.raises(error) as caught:
        load_model(str(spec), weights)
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text
    return text


def test_file_factory_is_loaded_in_eval_mode_with_its_siblings(user_file):
    path_before = list(sys.path)
    loaded = load_model(f"{user_file}:small")
    assert loaded.module(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert not loaded.module.training and loaded.input_shape is None and loaded.weights_sha256 is None
    assert sys.path == path_before


def test_siblings_may_be_imported_while_the_factory_runs(user_file):
    assert isinstance(load_model(f"{user_file}:late").module, nn.Linear)


def test_module_factory_is_found_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "pkg_of_user").mkdir()
    (tmp_path / "pkg_of_user" / "__init__.py").write_text("")
    (tmp_path / "pkg_of_user" / "nets.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(2, 3)\n")
    monkeypatch.chdir(tmp_path)
    assert load_model("pkg_of_user.nets:net").module.out_features == 3
    assert "'pkg_of_user.nest' (nearest: pkg_of_user.nets)" in refusal("pkg_of_user.nest:net")


def test_unknown_factory_names_the_nearest(user_file):
    assert "has no 'smal' (nearest: small)" in refusal(f"{user_file}:smal")


def test_unknown_file_names_the_nearest(user_file):
    assert "(nearest: model.py)" in refusal(f"{user_file.parent / 'modle.py'}:small")


def test_factory_that_returns_something_else(user_file):
    assert "returned a dict; it must return a torch.nn.Module" in refusal(f"{user_file}:no_module")


def test_factory_that_is_not_callable_or_needs_arguments(user_file):
    assert "is a int" in refusal(f"{user_file}:number")
    assert "needs the arguments width;" in refusal(f"{user_file}:needs")


def test_what_the_users_code_prints_stays_out_of_stdout(tmp_path, capsys):
    (tmp_path / "loud.py").write_text("from torch import nn\nprint('hello')\ndef net():\n    print('again')\n    return nn.ReLU()\n")
    load_model(f"{tmp_path / 'loud.py'}:net")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "hello\nagain\n"


def test_exception_in_the_factory_names_the_users_line(user_file):
    line = 1 + user_file.read_text().split("1 / 0")[0].count("\n")
    assert f"{user_file}:{line}: ZeroDivisionError: division by zero" in refusal(f"{user_file}:broken")
    assert "SystemExit: usage: train.py --data" in refusal(f"{user_file}:quits")


def test_exception_on_import_names_the_users_line(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("import torch\nimport not_a_module_at_all\n")
    assert f"{path}:2: ModuleNotFoundError: No module named 'not_a_module_at_all'" in refusal(f"{path}:net")
    path.write_text("def net(:\n    pass\n")
    assert f"{path}:1: SyntaxError" in refusal(f"{path}:net")


@pytest.mark.parametrize("spec, says", [
    ("nothing_like_it", "no model 'nothing_like_it'; a model is package.module:factory"),
    ("torhc.nn:Linear", "no module 'torhc' (nearest: torch"),
    ("bundled:digit_resnet", "(nearest: digits_resnet)"),
    ("model.py:", "names no model factory"),
    ("missing.pt2", "no exported program missing.pt2"),
])
def test_specs_that_name_nothing(spec, says):
    assert says in refusal(spec)


def test_folder_that_is_no_run(tmp_path):
    assert "without plan.json" in refusal(tmp_path)


def test_weights_file_given_as_model(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({}, path)
    assert "weights go to --weights" in refusal(path)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_absent_package_names_the_pip_command(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    text = refusal(f"{package}:resnet18")
    assert f"pip install {package}" in text


def test_package_model_is_built_untrained_and_its_names_are_checked(monkeypatch):
    models = types.ModuleType("torchvision.models")
    asked = []
    models.list_models = lambda module=None: ["resnet18", "vgg11"]
    models.get_model = lambda name, weights: asked.append((name, weights)) or nn.Linear(1, 1)
    package = types.ModuleType("torchvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    assert isinstance(load_model("torchvision:resnet18").module, nn.Linear)
    assert asked == [("resnet18", None)]
    assert "no model 'resnet81' (nearest: resnet18)" in refusal("torchvision:resnet81")


def test_weights_are_loaded_and_their_hash_kept(user_file, tmp_path):
    module = load_model(f"{user_file}:small").module
    save_state(module.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model(f"{user_file}:small", tmp_path / "w.safetensors")
    assert re.fullmatch("[0-9a-f]{64}", loaded.weights_sha256)
    assert torch.equal(loaded.module[0].weight, module[0].weight)


def test_bundled_is_the_default():
    loaded = load_model()
    assert loaded.spec == BUNDLED and loaded.input_shape == (1, 1, 8, 8) and len(loaded.weights_sha256) == 64


@pytest.mark.parametrize("text, shape", [
    ("1x3x224x224", (1, 3, 224, 224)), ("3,224,224", (1, 3, 224, 224)), ("1, 784", (1, 784)), ("2X1X8X8", (2, 1, 8, 8)),
])
def test_input_shapes(text, shape):
    assert parse_input_shape(text) == shape


@pytest.mark.parametrize("text", ["", "224", "3x-1x2", "3x0x2", "axb", "1x2x3x4x5x6"])
def test_input_shapes_that_are_none(text):
    with pytest.raises(UsageError, match="write 1x3x224x224 or 3,224,224"):
        parse_input_shape(text)


def test_input_shape_comes_from_option_data_or_model():
    loaded = LoadedModel(nn.Identity(), "x:y", (1, 2, 4, 4))
    assert resolve_input_shape(loaded, None, None) == (1, 2, 4, 4)
    assert resolve_input_shape(loaded, (1, 3, 8, 8), None) == (1, 3, 8, 8)
    assert resolve_input_shape(loaded, (1, 3, 8, 8), "4x3x8x8") == (4, 3, 8, 8)
    with pytest.raises(UsageError, match="1x3x9x9 contradicts the data, whose images are 3x8x8"):
        resolve_input_shape(loaded, (1, 3, 8, 8), "3,9,9")
    with pytest.raises(UsageError, match="give --input-shape"):
        resolve_input_shape(LoadedModel(nn.Identity(), "x:y"), None, None)
