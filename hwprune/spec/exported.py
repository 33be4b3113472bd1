"""A program saved by ``torch.export.save`` (``.pt2``), read without running what an untrusted file could hide in it.

``torch.export.load`` (as of torch 2.13; ``torch/export/pt2_archive/_package.py``,
``torch/_export/serde/serialize.py``, ``torch/fx/graph.py``) runs code from a crafted file in several ways: it unpickles weights marked ``use_pickle``, custom
objects and sample inputs that ``weights_only`` refuses; loads compiled libraries; falls back to an older format; hands
symbolic sizes to sympy, which evaluates them; imports modules named in a pytree; and writes node and parameter names
into Python source that it compiles. So everything is compared with a list of what a plain network needs *before* torch
reads it, with torch's own reader on the same bytes, and anything else is refused.
"""

from __future__ import annotations

import io
import json
import logging
import re
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import torch
from torch import nn
from torch.export.pt2_archive import PT2ArchiveReader

from hwprune.errors import ModelError

_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = {
    "data/weights/model_weights_config.json": "weight_",
    "data/constants/model_constants_config.json": "tensor_",
}
_MEMBERS = re.compile(
    r"(models/model\.json|data/sample_inputs/model\.pt|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|archive_format|archive_version|byteorder|version"
    r"|\.data/version|\.data/serialization_id|\.format_version|\.storage_alignment)")

_OPERATOR = re.compile(r"torch\.ops\.\w+\.\w+\.\w+|_operator\.getitem")
# One whole symbol, as a free batch size gives; arithmetic on symbols would have to be evaluated.
_SYMBOL = re.compile(r"[su]\d+|Symbol\('[su]\d+'(, (positive|nonnegative|integer)=True)*\)")
# Names end up in generated Python source, in code and between quotes.
_NAME = re.compile(r"[\w.]*")
_VALUES = {f"as_{kind}" for kind in (
    "none", "tensor", "tensors", "int", "ints", "float", "floats", "string", "strings", "sym_int", "sym_ints",
    "scalar_type", "memory_format", "layout", "device", "bool", "bools", "optional_tensor", "optional_tensors",
    "name", "expr", "int_lists", "float_lists", "complex")}
# Only printed, or written with repr(): free text.
_TEXT = ("as_string", "as_strings", "metadata", "torch_version")


def load_exported(path: Path) -> tuple[nn.Module, tuple[int, ...] | None]:
    """The program as a module, and the shape of its single example input (None when the file has none).

    BatchNorm is what the export made of it: statistics of a network exported in eval mode stay as they are in training.

    Raises
    ------
    ModelError
        The file is missing, damaged, of another version, or holds something that could run code when it is read.
    """
    if not path.is_file():
        raise ModelError(f"no exported program {path}; the path is relative to {Path.cwd()}")
    data = path.read_bytes()
    try:
        _check_archive(path, data)
        with _quiet():
            program = torch.export.load(io.BytesIO(data))
        exported = program.module(check_guards=False)
    except ModelError:
        raise
    except Exception as err:  # zip, JSON, schema and version faults come as many types
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise ModelError(f"{path} is not a program that this torch {torch.__version__} reads ({reason}); "
                         f"export it again with torch.export.save") from None
    # An exported module refuses .train() and .eval(); the same graph in a plain GraphModule takes them.
    return torch.fx.GraphModule(exported, exported.graph), _example_shape(program)


def _example_shape(program: torch.export.ExportedProgram) -> tuple[int, ...] | None:
    args, _ = program.example_inputs or ((), {})
    return tuple(args[0].shape) if len(args) == 1 and isinstance(args[0], torch.Tensor) else None


def _check_archive(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    root = names[0].split("/")[0] if names else ""
    if len(set(names)) != len(names) or not all(name.startswith(f"{root}/") for name in names):
        raise _refused(path, "members with one name or without a common folder")
    reader = PT2ArchiveReader(io.BytesIO(data))
    for name in [*reader.get_file_names(), *(name.removeprefix(f"{root}/") for name in names)]:
        if not _MEMBERS.fullmatch(name):
            raise _refused(path, f"the member {name!r}")
    for name, prefix in _CONFIGS.items():
        _check_payloads(path, name, json.loads(reader.read_bytes(name)), prefix)
    # torch falls back to full unpickling only where this call fails.
    try:
        torch.load(io.BytesIO(reader.read_bytes(_SAMPLES)), weights_only=True)
    except Exception:
        raise _refused(path, "sample inputs that are more than tensors") from None
    _check_program(path, json.loads(reader.read_bytes(_MODEL)))


def _check_payloads(path: Path, member: str, config: Any, prefix: str) -> None:
    """Each tensor is raw bytes under an ordinary name."""
    for key, entry in config["config"].items():
        if entry["use_pickle"] or not re.fullmatch(rf"{prefix}\d+", entry["path_name"]):
            raise _refused(path, f"the pickled object {key!r} in {member}")
        _check_name(path, key)
        _check_values(path, entry["tensor_meta"])


def _check_program(path: Path, program: dict[str, Any]) -> None:
    graph = program["graph_module"]
    if program.get("guards_code") or graph.get("treespec_namedtuple_fields"):
        raise _refused(path, "guards or named tuples")
    for node in graph["graph"]["nodes"]:
        if not _OPERATOR.fullmatch(node["target"]):
            raise _refused(path, f"the operator {node['target']!r}")
    _check_values(path, program)


def _check_values(path: Path, value: Any, key: str = "") -> None:
    """Walk the JSON: known kinds of values, symbols that are only symbols, names that are only names."""
    if key in _TEXT:
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_name(path, name)
            if name.startswith("as_") and name not in _VALUES:
                raise _refused(path, f"a value of the kind {name!r}")
            _check_values(path, inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check_values(path, inner, key)
    elif isinstance(value, str):
        if key in ("in_spec", "out_spec"):
            _check_tree(path, json.loads(value)[1] if value else None)
        elif key == "expr_str":
            if not _SYMBOL.fullmatch(value):
                raise _refused(path, f"the symbolic size {value!r}")
        elif key != "target":
            _check_name(path, value)


def _check_tree(path: Path, tree: Any) -> None:
    """How inputs and outputs are nested: tuples and lists of tensors, and no keyword inputs."""
    if tree is None:
        return
    plain = tree["type"] in (None, "builtins.tuple", "builtins.list") and tree["context"] in (None, "null")
    empty = tree["type"] == "builtins.dict" and tree["context"] == "[]" and not tree["children_spec"]
    if not plain and not empty:
        raise _refused(path, f"inputs or outputs nested in {tree['type']!r}")
    for child in tree["children_spec"]:
        _check_tree(path, child)


def _check_name(path: Path, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise _refused(path, f"the name {name[:60]!r}")


def _refused(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} holds {what}, which is not read because a crafted file could run code that way; "
                      f"export a plain network with torch.export, or give path/file.py:factory and --weights")


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs tracebacks of what it then raises."""
    logger = logging.getLogger("torch.export")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
