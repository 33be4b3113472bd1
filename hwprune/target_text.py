"""Target profiles as TOML text: what ``hwprune targets show`` prints and ``hwprune targets new`` writes."""

from __future__ import annotations

import json
from typing import Any, Iterator

from pydantic import BaseModel

from hwprune.target import SCHEMA_VERSION, TargetProfile

_TABLES = ("codegen", "link", "core", "memory", "overhead", "incore", "gpu")


def to_toml(profile: TargetProfile) -> str:
    """A complete profile file, sources included."""
    lines = list(_lines(profile, sources_beside=False))
    if profile.source:
        lines += ["", "[source]", *(f"{json.dumps(key)} = {_value(text)}" for key, text in profile.source.items())]
    return "\n".join(lines) + "\n"


def to_annotated(profile: TargetProfile) -> str:
    """The same values with the source of each beside it, to read."""
    return "\n".join(_lines(profile, sources_beside=True)) + "\n"


def extending(name: str, base: TargetProfile) -> str:
    """A new profile file that takes everything from ``base``; what a board usually changes stands there as comments."""
    figures = ("core.frequency_mhz", "memory.l2_bytes", "memory.dram_gb_per_s")
    lines = [
        f"# What is not written here comes from {base.name!r}; `hwprune targets show {name}` prints the result.",
        f"schema = {SCHEMA_VERSION}",
        f"extends = {_value(base.name)}",
        f"name = {_value(name)}",
        f"description = {_value(f'like {base.name}: {base.description}')}",
        f"# cores = {base.cores}",
        f"# threads = {base.threads}",
    ]
    for figure in figures:
        table, key = figure.split(".")
        lines += ["", f"# [{table}]", f"# {key} = {_value(getattr(getattr(base, table), key))}"]
    return "\n".join([*lines, "", "# [source]", '# "core.frequency_mhz" = "where the figure is from"']) + "\n"


def _lines(profile: TargetProfile, *, sources_beside: bool) -> Iterator[str]:
    source = profile.source if sources_beside else {}
    yield f"schema = {profile.schema_version}"
    for key in ("name", "description", "architecture", "alias_of", "processors", "cores", "threads", "host"):
        if getattr(profile, key) not in (None, ()):
            yield _line(key, getattr(profile, key), source.get(key))
    for name in _TABLES:
        table: BaseModel | None = getattr(profile, name)
        if table is None:
            continue
        yield ""
        yield f"[{name}]" + (f"  # {source[name]}" if name in source else "")
        for key in type(table).model_fields:
            value = getattr(table, key)
            if value is not None:
                yield _line(key, value, source.get(f"{name}.{key}"))


def _line(key: str, value: Any, source: str | None) -> str:
    text = f"{key} = {_value(value)}"
    return f"{text:<28}  # {source}" if source else text


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:.1f}" if value == int(value) else repr(value)
    # A JSON string is a TOML basic string, but for DEL, which no profile needs.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
