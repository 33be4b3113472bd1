"""PruningPlan: the only thing handed from the search to what comes after it.

A plan is a value: frozen, versioned JSON that a person can read, edit and diff. It names, for each pruning group, the
units that are kept. Everything else in it is the record of how it came about.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hwprune.errors import PlanError

SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GroupChoice(_Frozen):
    """What is kept of one pruning group: ``kept`` are sorted unit indices in ``range(width)``. None are kept of a
    residual branch that goes as a whole, and of the groups inside of it."""

    group: str
    width: int = Field(gt=0)
    kept: tuple[int, ...]

    @model_validator(mode="after")
    def _indices(self) -> "GroupChoice":
        if not self.kept:
            return self  # a residual branch that goes; the graph knows whether it may
        if list(self.kept) != sorted(set(self.kept)):
            raise ValueError(f"group {self.group!r}: `kept` must be sorted and without repeats")
        if self.kept[0] < 0 or self.kept[-1] >= self.width:
            raise ValueError(f"group {self.group!r}: `kept` must lie in 0..{self.width - 1}, but got {self.kept[0]}..{self.kept[-1]}")
        return self


class Figure(_Frozen):
    """A number with its provenance: ``measured``, ``simulated`` or ``analytic``."""

    value: float
    provenance: str
    low: float | None = None
    high: float | None = None


class Predicted(_Frozen):
    """What the search expects of a network."""

    latency_us: Figure
    macs: int
    parameters: int
    size_bytes: int
    peak_memory_bytes: int


class PruningPlan(_Frozen):
    """See the module docstring. ``record`` holds settings and versions; nothing reads it back to decide anything."""

    schema_version: int = SCHEMA_VERSION
    target: str
    model: str
    input_shape: tuple[int, ...]
    importance: str
    strategy: str
    choices: tuple[GroupChoice, ...]
    dense: Predicted
    predicted: Predicted
    importance_kept: float = Field(description="share of total importance that is kept, 0 to 1")
    gap: float | None = Field(default=None, description="certified relative optimality gap of the search; None if not certified")
    record: dict[str, Any] = Field(default_factory=dict)

    def kept(self, group: str) -> tuple[int, ...] | None:
        for choice in self.choices:
            if choice.group == group:
                return choice.kept
        return None

    @property
    def widths(self) -> dict[str, int]:
        return {c.group: len(c.kept) for c in self.choices}

    def to_text(self) -> str:
        """JSON, one group a line, so that two plans diff well."""
        data = self.model_dump(mode="json")
        rows = ",\n    ".join(json.dumps(c) for c in data.pop("choices"))
        text = json.dumps({**data, "choices": []}, indent=2)
        return text.replace('"choices": []', f'"choices": [\n    {rows}\n  ]') + "\n"

    def save(self, path: str | os.PathLike) -> None:
        from hwprune.fsio import write_text_atomic

        write_text_atomic(Path(path), self.to_text())

    @staticmethod
    def load(path: str | os.PathLike) -> "PruningPlan":
        """Read a plan; PlanError says what is wrong with it and where."""
        path = Path(path)
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError:
            raise PlanError(f"no pruning plan at {path}; a run folder holds `plan.json` once its search is done") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as err:
            raise PlanError(f"{path} is not JSON ({err}); restore it or search again") from None
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise PlanError(f"{path} has schema_version {version!r}, this hwprune reads {SCHEMA_VERSION}; search again")
        try:
            return PruningPlan.model_validate(data)
        except ValidationError as err:
            first = err.errors()[0]
            where = ".".join(map(str, first["loc"])) or "plan"
            raise PlanError(f"{path}: {where}: {first['msg']}") from None
