"""Weights in and out: safetensors, or a ``state_dict`` that ``torch.load(weights_only=True)`` accepts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hwprune.errors import ModelError
from hwprune.fsio import sha256_file, write_atomic

# Where training scripts commonly put the state_dict inside a checkpoint.
_NESTED = ("state_dict", "model_state_dict", "model")
_SHOWN = 5


def load_weights(module: nn.Module, path: str | Path) -> str:
    """Copy the weights in ``path`` into ``module``, which must have exactly these tensors.

    A checkpoint ``{"state_dict": ...}`` and the ``module.`` prefix of ``nn.DataParallel`` are accepted.

    Returns
    -------
    The SHA-256 of the file, in hexadecimal.

    Raises
    ------
    ModelError
        The file is missing, is not weights only, or its tensors do not fit (up to five keys and the counts are named).
    """
    path = Path(path)
    state = read_state(path)
    expected = module.state_dict()
    if state and not set(state) & set(expected) and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    _check_fit(state, expected, path)
    # strict=False for the step counters alone (see _check_fit); everything else was compared above.
    module.load_state_dict(state, strict=False)
    return sha256_file(path)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU; ModelError when it holds anything else."""
    if not path.is_file():
        raise ModelError(f"no weights file {path}; the path is relative to {Path.cwd()}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _NESTED:
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    others = [f"{key!r} ({type(value).__name__})" for key, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        held = f"also holds {_few(others)}" if others else "holds no tensors"
        raise ModelError(f"{path} {held}; save only the weights: torch.save(model.state_dict(), 'weights.pt')")
    bad = [key for key, value in state.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if bad:
        raise ModelError(f"{path} has NaN or infinity in {_few(bad)} ({len(bad)} of {len(state)} tensors); "
                         f"train it again")
    return dict(state)


def save_state(state: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically. Tensors that share storage are written once each."""
    tensors = {key: value.detach().to("cpu").contiguous().clone() for key, value in state.items()}
    # not save_file: on a full disk it raises an error of its own that hides the system's
    write_atomic(Path(path), lambda temporary: temporary.write_bytes(save(tensors, metadata=metadata)))


def _read_safetensors(path: Path) -> dict:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as err:
        raise ModelError(f"{path} is not a whole safetensors file ({err}); save or download it again") from None


def _read_torch(path: Path) -> dict:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise ModelError(f"{path} holds more than weights{_refused_class(err)} and loading it could run code; "
                         f"save torch.save(model.state_dict(), 'weights.pt') where you trust it") from None
    except Exception as err:  # torch raises EOFError, RuntimeError, ValueError and others on files that are not its own
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise ModelError(f"{path} is not a file of torch.save ({reason}); "
                         f"save torch.save(model.state_dict(), 'weights.pt') or safetensors") from None
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{path} holds a {type(loaded).__name__}, not a state_dict; "
                         f"save torch.save(model.state_dict(), 'weights.pt')")
    return dict(loaded)


def _refused_class(err: Exception) -> str:
    """`` (it names package.Class)`` when torch says which global it refused."""
    words = str(err).split("GLOBAL ", 1)
    return f" (it names {words[1].split()[0]})" if len(words) == 2 and words[1].split() else ""


def _check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Every tensor of the module is there with its shape, and nothing else."""
    # Checkpoints of torch < 0.4.1 lack BatchNorm's step counter, which only cumulative averaging reads.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    misshapen = [f"{key} {_x(state[key])} for {_x(expected[key])}"
                 for key in expected if key in state and state[key].shape != expected[key].shape]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    faults = [f"{len(keys)} {title} ({_few(keys)})" for title, keys in found.items() if keys]
    if faults:
        raise ModelError(f"{path} does not fit the model's {len(expected)} tensors: {'; '.join(faults)}; "
                         f"give the weights of this very network")


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _x(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
