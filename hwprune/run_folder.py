"""The folder of one run: what is in it, and when it may be written.

    plan.json  frontier.json  rewrites.json  proof.json  run.json  dense.safetensors  model.safetensors
    finetune/  artifact/  artifact_dense/

Every file is written whole or not at all. ``run.json`` says ``"status": "running"`` from the first file on and
``"finished"`` at the end; a finished run is never overwritten unless that was asked for.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

from hwprune.errors import HwpruneError, UsageError
from hwprune.fsio import write_json_atomic

SCHEMA_VERSION = 1
RUNS = Path("runs")
_FOLDERS = ("finetune", "artifact", "artifact_dense")


class RunFolder:
    """Paths and state of a run folder; making one touches nothing."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.plan = self.path / "plan.json"
        self.frontier = self.path / "frontier.json"
        self.rewrites = self.path / "rewrites.json"
        self.proof = self.path / "proof.json"
        self.record = self.path / "run.json"
        self.dense = self.path / "dense.safetensors"
        self.model = self.path / "model.safetensors"
        self.finetune = self.path / "finetune"
        self.artifact = self.path / "artifact"
        self.artifact_dense = self.path / "artifact_dense"

    def check_writable(self, force: bool) -> None:
        """Before the long work: UsageError if there is something here to keep, HwpruneError if nothing can be written."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file; give a folder with --out")
        if self.is_finished() and not force:
            raise UsageError(
                f"{self.path} holds a finished run; give another folder with --out, or replace it with --force"
            )
        if self.path.is_dir() and any(self.path.iterdir()) and not self.record.exists():
            raise UsageError(f"{self.path} is not empty and holds no run; give a new or empty folder with --out")
        made = self._missing_parents()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path) as probe:
                probe.write(b"x")
                probe.flush()
        except OSError as err:
            raise HwpruneError(
                f"cannot write to {self.path}: {err.strerror or err}; choose another folder with --out"
            ) from None
        finally:
            for folder in made:  # a search that fails later leaves no empty folder behind
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def begin(self, record: dict[str, Any]) -> None:
        """From here on the folder is this run's: what an earlier one left beside the files to be rewritten goes."""
        self.save_record({**record, "status": "running"})
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def save_record(self, record: dict[str, Any]) -> None:
        write_json_atomic(self.record, {"schema_version": SCHEMA_VERSION, **record})

    def is_finished(self) -> bool:
        try:
            return json.loads(self.record.read_text()).get("status") == "finished"
        except (OSError, ValueError, AttributeError):
            return False

    def load_record(self) -> dict[str, Any]:
        """UsageError if this is no run folder, or one that this version cannot read."""
        record = self.read_json(self.record)
        version = record.get("schema_version") if isinstance(record, dict) else None
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"{self.record} has schema_version {version!r}, this hwprune reads {SCHEMA_VERSION}; search again"
            )
        return record

    def read_json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            raise UsageError(
                f"{self.path} is no run folder: it has no {path.name}; give a folder that `hwprune search` wrote"
            ) from None
        except (OSError, ValueError) as err:
            raise UsageError(f"{path} cannot be read ({err}); restore it or search again") from None

    def _missing_parents(self) -> list[Path]:
        """Folders that making this one would make, the innermost first."""
        return [p for p in (self.path, *self.path.parents) if not p.exists()]


def default_out(model_spec: str, target: str) -> Path:
    """``runs/<model>-<target>-<date>``, with ``-2`` and so on where that exists."""
    model = re.split(r"[:/\\]", model_spec.removesuffix(".pt2").rstrip("/\\"))[-1]
    stem = "-".join(_plain(t) for t in (model, Path(target).stem if target.endswith(".toml") else target))
    base = f"{stem}-{date.today():%Y%m%d}"
    names = (base if n == 1 else f"{base}-{n}" for n in count(1))
    return next(RUNS / name for name in names if not (RUNS / name).exists())


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", text).strip("_.") or "model"
