"""Checkpoints of a training run: tensors as safetensors, everything else as JSON, nothing pickled.

``state.json`` is written last and names the tensor files it belongs to, with their SHA-256. A kill at any moment leaves
the previous ``state.json`` with its own files, so a run resumes from the last epoch that was written whole.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Mapping

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hwprune.errors import UsageError
from hwprune.fsio import sha256_file, write_atomic, write_json_atomic

SCHEMA_VERSION = 1
_STATE = "state.json"
_MEND = "start the fine-tuning anew without --resume"


class Checkpoints:
    """The folder of one training run. ``last`` continues it, ``best`` is what it delivers."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def exists(self) -> bool:
        return (self.folder / _STATE).is_file()

    def read(self) -> dict[str, Any]:
        """The JSON part; UsageError when it cannot be read or is of another version."""
        path = self.folder / _STATE
        try:
            state = json.loads(path.read_text())
        except (OSError, ValueError) as err:
            raise UsageError(f"{path} cannot be read ({err}); {_MEND}") from None
        if not isinstance(state, dict) or state.get("schema_version") != SCHEMA_VERSION:
            raise UsageError(f"{path} is not of schema version {SCHEMA_VERSION}; {_MEND}")
        return state

    def tensors(self, state: Mapping[str, Any], which: str) -> dict[str, Tensor]:
        """The tensors ``last`` or ``best`` of a state that was read; UsageError when the file is missing or altered."""
        entry = state["files"][which]
        path = self.folder / entry["name"]
        try:
            if sha256_file(path) != entry["sha256"]:
                raise UsageError(f"{path} was altered after it was written; {_MEND}")
            return load_file(path)
        except (OSError, SafetensorError) as err:
            raise UsageError(f"{path} cannot be read ({err}); {_MEND}") from None

    def write(self, state: dict[str, Any], last: Mapping[str, Tensor], best: Mapping[str, Tensor] | None) -> None:
        """Write the state after an epoch. ``best`` is None when the best so far stays what it was."""
        previous = self.read()["files"] if self.exists() else {}
        files = {"last": self._put("last", last)}
        files["best"] = previous["best"] if best is None else self._put("best", best)
        write_json_atomic(self.folder / _STATE, {"schema_version": SCHEMA_VERSION, "files": files, **state})
        self._drop_all_but({entry["name"] for entry in files.values()})

    def _put(self, title: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        # Named by content, so that a new run in this folder never overwrites what the old state.json points at.
        data = save({key: value.detach().to("cpu").contiguous().clone() for key, value in tensors.items()})
        digest = hashlib.sha256(data).hexdigest()
        name = f"{title}-{digest[:16]}.safetensors"
        write_atomic(self.folder / name, lambda temporary: temporary.write_bytes(data))
        return {"name": name, "sha256": digest}

    def _drop_all_but(self, names: set[str]) -> None:
        for pattern in ("last-*.safetensors", "best-*.safetensors"):
            for path in self.folder.glob(pattern):
                if path.name not in names:
                    path.unlink(missing_ok=True)
