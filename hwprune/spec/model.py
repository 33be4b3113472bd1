"""Load the model that a SPEC names.

    bundled:digits_resnet      the network in this package, trained on scikit-learn's digits (the default)
    package.module:factory     a function without arguments that returns an nn.Module
    path/file.py:factory       the same, from a file
    torchvision:NAME           a model of torchvision, untrained unless weights are given
    timm:NAME                  a model of timm, untrained unless weights are given
    path/model.pt2             a program saved by torch.export.save
    path/run                   a run folder of `hwprune search`
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hwprune.errors import ModelError, UsageError
from hwprune.spec.importing import call_user, nearest
from hwprune.spec.weights import load_weights

BUNDLED = "bundled:digits_resnet"

_FORMS = ("package.module:factory, path/file.py:factory, torchvision:NAME, timm:NAME, a .pt2 file, "
          f"a run folder or {BUNDLED}")


@dataclass(frozen=True)
class LoadedModel:
    """A module with where it came from. ``input_shape`` (with batch) is None when the source does not say it."""

    module: nn.Module
    spec: str
    input_shape: tuple[int, ...] | None = None
    weights_sha256: str | None = None


def load_model(spec: str = BUNDLED, weights: str | Path | None = None) -> LoadedModel:
    """Load a model in eval mode on the CPU.

    Parameters
    ----------
    spec : one of the forms in the module docstring.
    weights : safetensors or a state_dict file; for a bundled model, instead of its own.

    Raises
    ------
    ModelError
        The spec is not understood, the user's code fails, or the weights do not fit.
    """
    loaded = _load(spec)
    sha256 = loaded.weights_sha256 if weights is None else load_weights(loaded.module, weights)
    return LoadedModel(loaded.module.eval(), spec, loaded.input_shape, sha256)


def parse_input_shape(text: str) -> tuple[int, ...]:
    """``1x3x224x224`` or ``3,224,224`` as a shape with batch; three numbers are channels, height, width of one image.

    Raises
    ------
    UsageError
        Not two to five positive whole numbers separated by ``x`` or commas.
    """
    parts = re.split(r"\s*[x,×]\s*", text.strip().lower())
    if not 2 <= len(parts) <= 5 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"input shape {text!r} is not understood; write 1x3x224x224 or 3,224,224")
    shape = tuple(map(int, parts))
    return (1, *shape) if len(shape) == 3 else shape


def resolve_input_shape(loaded: LoadedModel, data_shape: tuple[int, ...] | None, text: str | None) -> tuple[int, ...]:
    """The shape to trace with, from the option, else the data, else the model's own source.

    Raises
    ------
    UsageError
        Nothing says the shape, or the option contradicts the data.
    """
    asked = parse_input_shape(text) if text else None
    if asked and data_shape and asked[1:] != tuple(data_shape[1:]):
        raise UsageError(f"--input-shape {_x(asked)} contradicts the data, whose images are {_x(data_shape[1:])}; "
                         f"leave --input-shape out or give matching data")
    shape = asked or data_shape or loaded.input_shape
    if shape is None:
        raise UsageError(f"nothing says the input shape of {loaded.spec!r}; "
                         f"give --input-shape (like 1x3x224x224) or --data")
    return tuple(shape)


def _load(spec: str) -> LoadedModel:
    head, colon, rest = spec.partition(":")
    if colon and head in _NAMED:
        return _NAMED[head](spec, rest)
    path = Path(spec)
    if spec.endswith(".pt2"):
        from hwprune.spec.exported import load_exported

        module, input_shape = load_exported(path)
        return LoadedModel(module, spec, input_shape)
    if path.is_dir():
        return _load_run_folder(path, spec)
    if not colon:
        raise ModelError(f"no model {spec!r}{_mend(path)}; a model is {_FORMS}")
    module = call_user(spec, "model factory", ModelError)
    if not isinstance(module, nn.Module):
        raise ModelError(f"model factory {spec!r} returned a {_type_name(module)}; it must return a torch.nn.Module")
    return LoadedModel(module, spec)


def _mend(path: Path) -> str:
    if path.is_file():
        return f" ({path.name} is a file; weights go to --weights, a Python file needs :factory after it)"
    return ""


def _load_run_folder(path: Path, spec: str) -> LoadedModel:
    if not (path / "plan.json").is_file():
        raise ModelError(f"{path} is a folder without plan.json, so it is no run folder; a model is {_FORMS}")
    from hwprune.api import load_run

    run = load_run(path)
    return LoadedModel(run.model, spec, tuple(run.plan.input_shape))


def _load_bundled(spec: str, name: str) -> LoadedModel:
    from hwprune.bundled import MODELS

    if name not in MODELS:
        raise ModelError(f"no bundled model {name!r}{nearest(name, MODELS)}; there is {', '.join(MODELS)}")
    bundled = MODELS[name]
    module = bundled.build()
    return LoadedModel(module, spec, bundled.input_shape, load_weights(module, bundled.checkpoint))


def _load_torchvision(spec: str, name: str) -> LoadedModel:
    try:
        from torchvision import models
    except Exception as err:  # a torchvision of another torch build fails with RuntimeError, not ImportError
        raise _absent(spec, "torchvision", err) from None
    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(f"torchvision has no model {name!r}{nearest(name, known)}")
    return LoadedModel(models.get_model(name, weights=None), spec)


def _load_timm(spec: str, name: str) -> LoadedModel:
    try:
        import timm
    except Exception as err:  # timm imports torchvision; see above
        raise _absent(spec, "timm", err) from None
    known = timm.list_models()
    if name not in known:
        raise ModelError(f"timm has no model {name!r}{nearest(name, known)}")
    module = timm.create_model(name, pretrained=False)
    size = getattr(module, "default_cfg", {}).get("input_size")
    return LoadedModel(module, spec, (1, *size) if size else None)


def _absent(spec: str, package: str, err: Exception) -> ModelError:
    if isinstance(err, ModuleNotFoundError) and err.name == package:
        return ModelError(f"{spec!r} needs {package}, which is not installed; run `pip install {package}`")
    reason = (str(err).strip() or type(err).__name__).splitlines()[0]
    return ModelError(f"{spec!r} needs {package}, which is installed but cannot be imported ({reason}); "
                      f"run `pip install {package}` in the build that matches this torch")


_NAMED = {"bundled": _load_bundled, "torchvision": _load_torchvision, "timm": _load_timm}


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
