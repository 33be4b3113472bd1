"""Measurements that come with hwprune: ``cost_models/TARGET/*.tsv``, exports of a measurement store."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Iterator

from hwprune.measure.store import Row
from hwprune.measure.store_text import read
from hwprune.target import TargetProfile


def shipped_rows(profile: TargetProfile) -> Iterator[Row]:
    """What was measured or simulated for ``profile``, whatever it was made with. DataError for a file that is not as exported."""
    folder = shipped_folder() / (profile.alias_of or profile.name)
    for path in sorted(folder.glob("*.tsv")) if folder.is_dir() else ():
        yield from read(path)[0]


def shipped_folder() -> Path:
    return Path(str(resources.files("hwprune").joinpath("cost_models")))
