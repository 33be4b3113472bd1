"""This machine as a target profile: what the system tells about it, over the shipped profile of its instruction set."""

from __future__ import annotations

import platform
import re
from functools import lru_cache
from pathlib import Path
from typing import Mapping

from hwprune.errors import TargetError
from hwprune.measure.device import available_cores, cpuinfo
from hwprune.target import TargetProfile, host_features, load_file, shipped_folder, shipped_profiles

#: Shipped profiles that any machine may build on, the most capable first.
_BASES = ("x86-avx512", "x86", "rpi5")

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@lru_cache
def native_profile() -> TargetProfile:
    """Profile of this machine, called ``native``.

    Cores, caches and clock are read from the system; vector registers and ports come from the shipped profile that names the
    processor, or that of the widest instruction set that it has. TargetError if none fits.
    """
    told = cpuinfo()
    base = _base(told)
    caches, sizes = _caches(), {}
    for level, key in ((1, "l1d_bytes"), (2, "l2_bytes"), (3, "l3_bytes")):
        if level in caches:
            sizes[key] = caches[level]
    sizes["l2_bytes"] = max(sizes.get("l2_bytes", base.memory.l2_bytes), sizes.get("l1d_bytes", base.memory.l1d_bytes))
    clock = _clock_mhz(told)
    cores = available_cores()
    read = "read from this machine's /sys and /proc"
    source = {key: text for key, text in base.source.items() if not key.startswith(("cores", "threads"))}
    source |= {"cores": read, "threads": "all cores"} | {f"memory.{key}": read for key in sizes}
    if clock:
        source["core.frequency_mhz"] = read
    core = {"frequency_mhz": clock} if clock else {}
    data = base.model_dump(by_alias=True) | {
        "name": "native",
        "description": f"this machine: {told.get('model name') or platform.machine()}, over the profile {base.name}",
        "alias_of": None, "processors": (), "cores": cores, "threads": cores, "source": source,
        "core": base.core.model_dump() | core,
        "memory": base.memory.model_dump() | sizes,
        "link": {"cxx": "c++", "package": "g++"},
    }
    return TargetProfile.model_validate(data)


def _base(told: Mapping[str, str]) -> TargetProfile:
    """told : see ``cpuinfo``."""
    here = f"{told.get('vendor_id')}/{told.get('cpu family')}"
    named = [profile for profile in shipped_profiles() if here in profile.processors]
    for profile in (*named, *(load_file(shipped_folder() / f"{name}.toml") for name in _BASES)):
        if profile.runs_here():
            return profile
    raise TargetError(
        f"no shipped profile fits this machine ({platform.machine()}, {len(host_features())} features); "
        "write one for it: `hwprune targets new NAME`"
    )


def _caches() -> dict[int, int]:
    """Level -> bytes of the first core's data caches."""
    found = {}
    for folder in sorted(_CACHES.glob("index*")) if _CACHES.is_dir() else ():
        try:
            level, kind = int((folder / "level").read_text()), (folder / "type").read_text().strip()
            size = re.fullmatch(r"(\d+)([KMG]?)", (folder / "size").read_text().strip())
        except (OSError, ValueError):
            continue
        if kind in ("Data", "Unified") and size:
            found[level] = int(size[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[2]]
    return found


def _clock_mhz(told: Mapping[str, str]) -> float | None:
    """The clock that the system reports, in MHz; None where it does not. told : see ``cpuinfo``."""
    if "cpu MHz" in told:
        return round(float(told["cpu MHz"]), 1)
    for line in _lines("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"):
        return int(line) / 1e3
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
