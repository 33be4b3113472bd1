"""What ``hwprune-probe`` prints, and the target profile that it makes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hwprune.errors import DataError, TargetError
from hwprune.target import Architecture, Link, TargetProfile, features_of, shipped_profiles

FORMAT = 1

#: Starts per cycle that processors have. A measured figure this close to one of them is that one; the clock makes up the rest.
_STARTS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0)
_CLOSE = 0.12

#: Implementer and part in /proc/cpuinfo -> LLVM's name of the core.
_CORES = {
    "0x41/0xd03": "cortex-a53", "0x41/0xd05": "cortex-a55", "0x41/0xd07": "cortex-a57", "0x41/0xd08": "cortex-a72",
    "0x41/0xd09": "cortex-a73", "0x41/0xd0a": "cortex-a75", "0x41/0xd0b": "cortex-a76", "0x41/0xd41": "cortex-a78",
    "0x41/0xd0c": "neoverse-n1", "0x41/0xd49": "neoverse-n2", "0x41/0xd40": "neoverse-v1", "0x41/0xd4f": "neoverse-v2",
}  # fmt: skip

#: Memory is so many times as far as the third cache, at least; where less is seen, the loads did not get beyond that.
_FARTHER = 2.0


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rate(_Frozen):
    """Of the samples' rates, the one that only a tenth exceed, and the median."""

    best: float = Field(gt=0)
    median: float = Field(gt=0)


class Reach(_Frozen):
    """One core by itself, and all threads at once together; None where the level is too small to tell."""

    one_core: Rate | None
    all_threads: Rate | None


class Bandwidth(_Frozen):
    """GB/s by level of memory."""

    l1: Reach
    l2: Reach | None = None
    l3: Reach | None = None
    dram: Reach


class Caches(_Frozen):
    l1d_bytes: int = Field(ge=0)
    l2_bytes: int = Field(ge=0)
    l3_bytes: int = Field(ge=0)
    line_bytes: int = Field(default=0, ge=0, description="0 where the system does not tell, and in results of older probes")


class ProbeResults(_Frozen):
    """See ``kernels/native/probe/main.cpp``. A copy counts what is read and what is written."""

    format: int
    architecture: Architecture
    processor: str
    part: str
    features: str
    isa: str
    vector_bits: int = Field(gt=0)
    cores: int = Field(gt=0)
    threads: int = Field(gt=0)
    rounds: int = Field(gt=0)
    clock_mhz: Rate
    fma_latency_ns: float = Field(gt=0)
    peak_gflops: Reach
    read_gb_per_s: Bandwidth
    copy_gb_per_s: Bandwidth
    handed_gb_per_s: Rate | None = Field(
        default=None, description="of copies of all threads, each from where another one wrote last to where another one read last; "
        "None of one thread, and in results of older probes",
    )  # fmt: skip
    launch_us: float = Field(gt=0)
    kernel_us: float | None
    network_us: float | None
    caches_told: bool
    caches: Caches
    plateaus_bytes: tuple[int, ...]
    latency_curve: tuple[tuple[int, float], ...]

    @property
    def emulated(self) -> bool:
        """Whether an emulator ran the probe: the system then tells of another kind of processor."""
        return (self.architecture == "aarch64") == ("sse2" in self.features.split())

    @property
    def disturbed(self) -> bool:
        """Whether other programs had the processor meanwhile: all threads together did less than one core per two of them."""
        return self.threads > 1 and self._peak("all_threads") < 0.5 * self.threads * self._peak("one_core")

    def third_cache_bytes(self) -> int:
        """Of the third cache, as much as loads find there: on a machine that others use, too, that is a part of what the system tells."""
        told = self.caches.l3_bytes
        beyond = [(size, ns) for size, ns in self.latency_curve if size > 2 * self.caches.l2_bytes]
        if not told or not beyond or beyond[-1][1] < _FARTHER * beyond[0][1]:
            return told
        between = math.sqrt(beyond[0][1] * beyond[-1][1])
        return min(told, max(size for size, ns in beyond if ns <= between))

    def fma_per_cycle(self) -> float:
        """Vector multiply-adds that one core starts in a cycle."""
        per_cycle = self._peak("one_core") * 1e3 / (2 * self.vector_bits / 32) / self.clock_mhz.best
        nearest = min(_STARTS, key=lambda starts: abs(starts - per_cycle))
        return nearest if abs(nearest - per_cycle) <= _CLOSE * nearest else round(per_cycle, 4)

    def vector_clock_mhz(self) -> float:
        """The clock at which all threads reach the measured peak."""
        return self._peak("all_threads") * 1e3 / (2 * self.vector_bits / 32) / self.fma_per_cycle() / self.threads

    def _peak(self, on: str) -> float:
        rate: Rate = getattr(self.peak_gflops, on)
        return rate.best


def calmest(several: Sequence[ProbeResults]) -> ProbeResults:
    """Of results of one machine at several times: the last, with the best of each rate."""
    def best(values: Sequence[Any]) -> Any:
        found = [v for v in values if v is not None]
        if not found or isinstance(found[0], Rate):
            return max(found, key=lambda rate: rate.best, default=None)
        return found[-1].model_copy(update={name: best([getattr(v, name) for v in found]) for name in type(found[-1]).model_fields})

    rates = ("clock_mhz", "peak_gflops", "read_gb_per_s", "copy_gb_per_s", "handed_gb_per_s")
    return several[-1].model_copy(update={name: best([getattr(r, name) for r in several]) for name in rates})


def from_text(text: str, where: Path | str) -> ProbeResults:
    """Checked results; DataError names what is wrong."""
    try:
        data = json.loads(text)
        if isinstance(data, dict) and data.get("format", FORMAT) != FORMAT:
            raise DataError(f"{where} has format {data['format']!r}, this hwprune reads {FORMAT}; build the probe anew")
        return ProbeResults.model_validate(data)
    except ValidationError as err:
        first = err.errors()[0]
        raise DataError(f"{where} is no result of hwprune-probe: `{'.'.join(map(str, first['loc']))}`: {first['msg'].lower()}") from None
    except ValueError as err:
        raise DataError(f"{where} is no result of hwprune-probe: {err}") from None


def read(path: Path) -> ProbeResults:
    try:
        return from_text(path.read_text(), path)
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"cannot read {path}: {getattr(err, 'strerror', None) or err}") from None


def base_for(results: ProbeResults) -> TargetProfile:
    """The shipped profile whose instructions and registers the probed processor has; TargetError if none is known to fit."""
    shipped = [p for p in shipped_profiles() if p.architecture == results.architecture and p.alias_of is None]
    core = _CORES.get(results.part)
    for profile in shipped:
        if core is not None and profile.codegen.mcpu == core:
            return profile
    if results.architecture == "x86_64":  # levels of the instruction set, not of a processor
        here = features_of(results.features)
        fitting = [p for p in shipped if {a.lstrip("+") for a in p.codegen.mattr} <= here and p.core.vector_bits == results.vector_bits]
        if fitting:
            return max(fitting, key=lambda p: len(p.codegen.mattr))
    raise TargetError(
        f"no shipped profile is known to fit the processor {core or results.part or results.processor} ({results.architecture}); "
        "say with --extends T whose instructions and registers it has"
    )


def profile_of(results: ProbeResults, base: TargetProfile, name: str, on: str, link: Link | None = None) -> TargetProfile:
    """The profile ``name`` of the probed machine: what was measured, and from ``base`` its instructions and registers.

    on : date of the measurement, for the sources. link : how to link for it, if not as for ``base``.
    Raises TargetError when ``base`` is for another kind of machine.
    """
    if (base.architecture, base.core.vector_bits) != (results.architecture, results.vector_bits):
        raise TargetError(
            f"the probe ran on {results.architecture} with vectors of {results.vector_bits} bits, but target {base.name!r} is "
            f"{base.architecture} with {base.core.vector_bits}; give another one with --extends"
        )
    where = f"hwprune-probe on {results.processor}{' under an emulator' if results.emulated else ''}, {on}"
    figures = _figures(results)
    told = "told by the system to" if results.caches_told else "seen in the latency of loads by"
    replaced = {"cores", "threads", "link" if link else "", *figures, *({"overhead"} if "overhead.network_us" in figures else ())}
    source = {key: f"profile {base.name}: {text}" for key, text in base.source.items() if key not in replaced}
    source |= {key: f"measured by {where}" for key in figures} | {
        "cores": f"told by the system to {where}", "threads": f"threads of {where}",
        "core.frequency_mhz": f"the measured peak of all threads over fma_per_cycle, by {where}; "
        f"integer adds ran at {results.clock_mhz.best:.0f} MHz",
        **{key: f"{told} {where}" for key in figures if key.endswith("_bytes")},
    }  # fmt: skip
    if results.third_cache_bytes() < results.caches.l3_bytes:
        source["memory.l3_bytes"] = f"seen in the latency of loads by {where}; the system tells of {results.caches.l3_bytes} bytes"
    if results.caches.line_bytes:
        source["memory.line_bytes"] = f"told by the system to {where}"
    for key, value in (("core.loads_per_cycle", base.core.loads_per_cycle), ("memory.line_bytes", base.memory.line_bytes)):
        source.setdefault(key, f"assumption: {value:g}, as on most processors")
    data: dict[str, Any] = base.model_dump(by_alias=True) | {
        "name": name, "alias_of": None, "processors": (), "cores": results.cores, "threads": results.threads, "source": source,
        "description": f"{results.processor}, {results.threads} threads, probed {on}; instructions and registers of {base.name}",
        "link": (link or base.link).model_dump(),
    }  # fmt: skip
    for figure, value in figures.items():
        table, key = figure.split(".")
        data[table] = data[table] | {key: value}
    try:
        return TargetProfile.model_validate(data)
    except ValidationError as err:
        raise TargetError(f"the probe's figures contradict each other: {err.errors()[0]['msg']}") from None


def _figures(results: ProbeResults) -> dict[str, float | int]:
    """``table.key`` of the profile -> what was measured."""
    read_rates, clock = results.read_gb_per_s, results.vector_clock_mhz()
    l2, l3, caches = read_rates.l2, read_rates.l3, results.caches
    found: dict[str, float | int | None] = {
        "core.fma_per_cycle": results.fma_per_cycle(),
        "core.fma_latency_cycles": max(1, round(results.fma_latency_ns * results.clock_mhz.best / 1e3)),
        "core.frequency_mhz": round(clock, 1),
        "memory.l1d_bytes": caches.l1d_bytes or None,
        "memory.l2_bytes": max(caches.l2_bytes, caches.l1d_bytes) or None,
        "memory.l3_bytes": results.third_cache_bytes() if caches.l1d_bytes else None,
        "memory.line_bytes": caches.line_bytes or None,
        "memory.l1_gb_per_s": _best(read_rates.l1.one_core),
        "memory.l2_gb_per_s": _best((l2 or read_rates.l1).one_core),
        "memory.l3_gb_per_s": _best(l3.all_threads or l3.one_core) if l3 else None,
        "memory.dram_gb_per_s": _best(read_rates.dram.all_threads),
        "overhead.kernel_us": round(results.launch_us if results.kernel_us is None else results.kernel_us, 3),
        "overhead.network_us": None if results.network_us is None else round(results.network_us, 3),
    }
    return {key: value for key, value in found.items() if value is not None}


def _best(rate: Rate | None) -> float | None:
    return None if rate is None else round(rate.best, 2)
