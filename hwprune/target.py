"""TargetProfile: a hardware target as data.

A target is one TOML file over the schema below. Shipped profiles live in ``targets/``; a user's live in
``./targets/`` of the working folder or in the user's config folder and shadow shipped ones of the same name.
``extends = "other"`` takes everything from another profile and overrides what is given.
"""

from __future__ import annotations

import difflib
import platform
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Any, Iterator, Literal, Mapping, Sequence, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hwprune.errors import TargetError
from hwprune.present_gpu import nearest, present_gpu

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA_VERSION = 1
Architecture = Literal["x86_64", "aarch64", "cuda"]
#: LLVM's name for arithmetic of float16 in vectors, FEAT_FP16.
_FP16_FEATURE = "+fullfp16"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Codegen(_Frozen):
    """How TVM is told about the target."""

    kind: Literal["llvm", "cuda"]
    mtriple: str | None = None
    mcpu: str | None = None
    mattr: tuple[str, ...] = ()
    arch: str | None = Field(default=None, description="CUDA only: sm_XX")


class Link(_Frozen):
    """How a shared library for the target is linked."""

    cxx: str = "c++"
    package: str | None = Field(default=None, description="Debian package that brings `cxx`, named when it is missing")
    emulator: tuple[str, ...] = Field(default=(), description="command that runs the target's programs here, if any")
    sysroot: str | None = Field(default=None, description="prefix of the target's system libraries for the emulator")


class Core(_Frozen):
    """One core as the kernels see it."""

    vector_bits: int = Field(gt=0)
    vector_registers: int = Field(gt=0)
    fma_per_cycle: float = Field(gt=0, description="vector fused multiply-adds started per cycle")
    fma_latency_cycles: int = Field(default=4, gt=0)
    loads_per_cycle: float = Field(default=2, gt=0, description="started per cycle, of whole vectors or of numbers for all lanes")
    frequency_mhz: float = Field(gt=0)
    in_order: bool = False
    lane_broadcast: bool = Field(
        default=False, description="a multiply-add takes one lane of a vector register for all lanes, at no cost"
    )
    vector_load_cycles: float = Field(
        default=0, ge=0, description="for which the load of a whole vector keeps multiply-adds from starting"
    )
    precision: Literal["fp32", "fp16"] = Field(
        default="fp32",
        description="aarch64 with FEAT_FP16: type of activations and constants in memory and of multiply-adds; fp16 rounds them",
    )

    def lanes(self, dtype_bytes: int = 4) -> int:
        return self.vector_bits // (8 * dtype_bytes)


class Memory(_Frozen):
    l1d_bytes: int = Field(gt=0, description="per core")
    l2_bytes: int = Field(gt=0, description="per core that shares it")
    l3_bytes: int = Field(default=0, ge=0)
    dram_gb_per_s: float = Field(gt=0, description="all cores together")
    l2_gb_per_s: float = Field(gt=0, description="per core")
    line_bytes: int = Field(default=64, gt=0, description="of the caches: what moves at once")
    l1_gb_per_s: float | None = Field(default=None, gt=0, description="per core")
    l3_gb_per_s: float | None = Field(default=None, gt=0, description="all cores together")


class Gpu(_Frozen):
    """What a GPU gives to a kernel, after the table "Technical Specifications per Compute Capability" of NVIDIA's guide.

    The other tables keep their meaning with one *core* standing for one streaming multiprocessor (SM): ``core`` is the
    vector a single thread loads at once and the multiply-adds that an SM starts in a cycle, counted in such vectors;
    ``memory.l1d_bytes`` is the SM's own memory (shared memory and L1), ``memory.l2_bytes`` the card's L2, which every SM
    sees whole.
    """

    warp_size: int = Field(gt=0, description="threads that execute together")
    schedulers_per_sm: int = Field(gt=0, description="each starts one instruction of one warp a cycle")
    max_threads_per_block: int = Field(gt=0)
    max_threads_per_sm: int = Field(gt=0)
    max_blocks_per_sm: int = Field(gt=0)
    registers_per_sm: int = Field(gt=0, description="of 32 bits")
    max_registers_per_thread: int = Field(gt=0)
    shared_memory_per_sm_bytes: int = Field(gt=0)
    shared_memory_per_block_bytes: int = Field(gt=0, description="declared statically")
    shared_memory_per_block_opt_in_bytes: int = Field(gt=0, description="asked for when the kernel is launched")
    shared_memory_reserved_per_block_bytes: int = Field(ge=0, description="taken by the system from the SM's")
    tf32_tflops: float = Field(gt=0, description="peak of the tensor cores, without sparsity")
    fp16_tflops: float = Field(gt=0, description="the same with float16 factors and float32 sums, without sparsity")
    precision: tuple[Literal["fp32", "tf32", "fp16"], ...] = Field(
        default=("fp32",), description="what kernels may compute products in; without tf32 and fp16 no tensor cores"
    )


class Overhead(_Frozen):
    """What a call costs beyond its work, in microseconds."""

    kernel_us: float = Field(
        default=1.0, ge=0, description="start of one kernel, fork and join of its threads included"
    )
    network_us: float = Field(default=2.0, ge=0, description="call of one network")


class InCore(_Frozen):
    """Who predicts the cycles of a loop on this core, its data in L1."""

    tool: Literal["osaca", "llvm-mca"]
    model: str = Field(min_length=1, description="the tool's name for the core: osaca's --arch, llvm-mca's -mcpu")
    instructions_per_cycle: float | None = Field(
        default=None, gt=0, description="what the front end takes in, where the tool does not count it (osaca)"
    )
    in_order_write_back: bool = Field(
        default=True,
        description="llvm-mca, in-order cores: results are written back in program order but for what LLVM's model marks; "
        "false for a core whose model lacks the marks",
    )


class TargetProfile(_Frozen):
    """See the module docstring. Every figure has its source in ``source``, keyed by ``table.key`` or ``table``."""

    schema_version: int = Field(default=SCHEMA_VERSION, alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str
    architecture: Architecture
    alias_of: str | None = Field(default=None, description="shown to the user when this profile stands for another")
    processors: tuple[str, ...] = Field(
        default=(), description="vendor/family, as /proc/cpuinfo has them, of the processors for which `native` builds on this profile"
    )
    cores: int = Field(gt=0)
    threads: int = Field(gt=0)
    host: Literal["x86_64", "aarch64"] | None = Field(
        default=None, description="cuda only: the processor beside the GPU, which runs the program that launches kernels; x86_64 if not given"
    )
    codegen: Codegen
    link: Link = Link()
    core: Core
    memory: Memory
    overhead: Overhead = Overhead()
    incore: InCore | None = None
    gpu: Gpu | None = Field(default=None, description="cuda only")
    source: dict[str, str] = {}

    @model_validator(mode="after")
    def _fits_together(self) -> "TargetProfile":
        found = list(self._contradictions())
        if found:
            raise ValueError("; ".join(found))
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.schema_version != SCHEMA_VERSION:
            yield f"`schema` = {self.schema_version}: this hwprune reads schema {SCHEMA_VERSION}"
        if self.threads > self.cores:
            yield f"`threads <= cores` must hold, but got (threads={self.threads}, cores={self.cores})"
        if self.core.vector_bits % 32:
            yield f"`core.vector_bits` must be a multiple of 32, but got {self.core.vector_bits}"
        if (self.codegen.kind == "cuda") != (self.architecture == "cuda"):
            yield (
                f"`codegen.kind` and `architecture` contradict each other: kind={self.codegen.kind!r}, "
                f"architecture={self.architecture!r}"
            )
        machine = (self.codegen.mtriple or "").split("-")[0]
        if self.codegen.kind == "llvm" and machine and machine != self.architecture:
            yield (
                f"`codegen.mtriple` and `architecture` contradict each other: mtriple={self.codegen.mtriple!r}, "
                f"architecture={self.architecture!r}"
            )
        if (self.gpu is not None) != (self.architecture == "cuda"):
            yield (
                f"`architecture` and the table `[gpu]` contradict each other: architecture={self.architecture!r}, "
                f"[gpu] is {'missing' if self.gpu is None else 'given'}"
            )
        if self.host is not None and self.architecture != "cuda":
            yield f"`host` is for GPUs, but got (host={self.host!r}, architecture={self.architecture!r})"
        if self.gpu is not None:
            yield from self._gpu_contradictions(self.gpu)
        if self.core.precision == "fp16" and (self.architecture != "aarch64" or _FP16_FEATURE not in self.codegen.mattr):
            yield (
                f"`core.precision` = 'fp16' needs `architecture` = 'aarch64' and {_FP16_FEATURE!r} in `codegen.mattr` (FEAT_FP16, which "
                f"Cortex-A55 and A76 have, A53 and A72 have not), but got (architecture={self.architecture!r}, mattr={list(self.codegen.mattr)})"
            )
        if self.memory.l2_bytes < self.memory.l1d_bytes:
            yield (
                f"`l1d_bytes <= l2_bytes` must hold, but got (l1d_bytes={self.memory.l1d_bytes}, "
                f"l2_bytes={self.memory.l2_bytes})"
            )
        for key in self.source:
            if not self._has(key):
                yield f"`source` names {key!r}, which is no key of this profile; write `table.key` or `table`"

    def _gpu_contradictions(self, gpu: Gpu) -> Iterator[str]:
        ordered = (
            ("max_threads_per_block", "max_threads_per_sm"),
            ("shared_memory_per_block_bytes", "shared_memory_per_block_opt_in_bytes"),
            ("shared_memory_per_block_opt_in_bytes", "shared_memory_per_sm_bytes"),
        )
        for low, high in ordered:
            if getattr(gpu, low) > getattr(gpu, high):
                yield f"`gpu.{low} <= {high}` must hold, but got ({low}={getattr(gpu, low)}, {high}={getattr(gpu, high)})"
        if gpu.max_threads_per_block % gpu.warp_size:
            yield (
                f"`gpu.max_threads_per_block` must be whole warps, but got (max_threads_per_block="
                f"{gpu.max_threads_per_block}, warp_size={gpu.warp_size})"
            )
        if gpu.shared_memory_per_sm_bytes > self.memory.l1d_bytes:
            yield (
                f"`gpu.shared_memory_per_sm_bytes <= memory.l1d_bytes` must hold (shared memory is a part of it), but got "
                f"(shared_memory_per_sm_bytes={gpu.shared_memory_per_sm_bytes}, l1d_bytes={self.memory.l1d_bytes})"
            )
        if "fp32" not in gpu.precision:
            yield f"`gpu.precision` must name fp32, which every kernel can fall back to, but got {list(gpu.precision)}"
        if not re.fullmatch(r"sm_[0-9]+", self.codegen.arch or ""):
            yield f"`codegen.arch` must be sm_XX for architecture 'cuda', but got {self.codegen.arch!r}"

    def _has(self, key: str) -> bool:
        value: Any = self
        for part in key.split("."):
            if not isinstance(value, BaseModel) or part not in type(value).model_fields:
                return False
            value = getattr(value, part)
        return True

    def unsourced(self) -> list[str]:
        """Figures that ``source`` does not cover, as ``table.key``."""
        tables = {"core": self.core, "memory": self.memory, "overhead": self.overhead}
        if self.gpu is not None:
            tables["gpu"] = self.gpu
        figures = [
            "cores",
            "threads",
            *(f"{name}.{key}" for name, table in tables.items() for key in type(table).model_fields),
        ]
        return [
            f
            for f in figures
            if f not in self.source and f.split(".")[0] not in self.source and not self._is_default(f)
        ]

    def _is_default(self, figure: str) -> bool:
        table, _, key = figure.partition(".")
        # `in_order = false`, no L3 and exact float32 are the absence of something; nobody publishes that.
        return bool(key) and (key not in getattr(self, table).model_fields_set or getattr(getattr(self, table), key) in (False, 0, None, "fp32"))

    @property
    def dtype(self) -> str:
        """Type of activations and constants in memory; a network's inputs and outputs are float32 whatever it is."""
        return "float16" if self.core.precision == "fp16" else "float32"

    @property
    def lanes(self) -> int:
        """Elements of ``dtype`` in one vector."""
        return self.core.lanes(2 if self.core.precision == "fp16" else 4)

    @property
    def half_vectors(self) -> bool:
        """Whether half a vector is thought to take half the time: of cores that start one whole multiply-add a cycle."""
        return self.gpu is None and not self.core.lane_broadcast and self.core.fma_per_cycle <= 1

    @property
    def joins_windows(self) -> bool:
        """Whether kernels exist that are a convolution and the depthwise one, or the pool, that reads it."""
        return self.gpu is None

    @property
    def second_cache_bytes(self) -> int:
        """Bytes of the second caches of all threads: one that they share where there is no third one."""
        return self.memory.l2_bytes * (self.threads if self.memory.l3_bytes else 1)

    @property
    def peak_flops(self) -> float:
        """Operations of ``dtype`` per second on ``threads`` cores; a fused multiply-add is two."""
        return 2 * self.lanes * self.core.fma_per_cycle * self.core.frequency_mhz * 1e6 * self.threads

    @property
    def machine(self) -> str:
        """Architecture of the processor that runs the target's programs, as uname names it."""
        return (self.host or "x86_64") if self.architecture == "cuda" else self.architecture

    @property
    def host_threads(self) -> int:
        """Threads of that processor that a network runs on: a GPU's program needs one."""
        return self.threads if self.gpu is None else 1

    def runs_here(self) -> bool:
        """Whether this machine can execute the profile's code."""
        if platform.machine() != self.architecture:
            return False
        return all(a.lstrip("+") in host_features() for a in self.codegen.mattr if a.startswith("+"))

    def digest(self) -> str:
        """Hash of everything that affects generated code or a cost model."""
        import hashlib

        unread: dict[str, Any] = dict.fromkeys(("source", "description", "name", "alias_of", "processors"), True)
        # digests of profiles that say nothing of these, under which measurements are kept, are older than the keys
        unread |= {table: True for table in ("incore", "gpu", "host") if getattr(self, table) is None}
        unread["core"] = {key for key in ("lane_broadcast", "vector_load_cycles") if not getattr(self.core, key)}
        unread["core"] |= {"precision"} if self.core.precision == "fp32" else set()
        unread["core"] |= {"loads_per_cycle"} if self.core.loads_per_cycle == 2 else set()
        unread["memory"] = {key for key in ("l1_gb_per_s", "l3_gb_per_s") if getattr(self.memory, key) is None}
        unread["memory"] |= {"line_bytes"} if self.memory.line_bytes == 64 else set()
        text = self.model_dump_json(exclude=unread)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


# /proc/cpuinfo and LLVM do not agree on every name.
_CPUINFO_TO_LLVM = {"avx512_vnni": "avx512vnni", "sse4_2": "sse4.2", "sse4_1": "sse4.1", "asimd": "neon", "asimdhp": "fullfp16"}


def host_features() -> frozenset[str]:
    """Instruction set extensions of this machine, under LLVM's names."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.split(":")[0].strip() in ("flags", "Features"):
            return features_of(line.split(":", 1)[1])
    return frozenset()


def features_of(text: str) -> frozenset[str]:
    """Extensions named in ``text`` as /proc/cpuinfo names them, under LLVM's names."""
    return frozenset(_CPUINFO_TO_LLVM.get(f, f) for f in text.split())


def search_path() -> list[Path]:
    """Folders that are searched for ``NAME.toml``, the first hit wins."""
    import platformdirs

    return [Path.cwd() / "targets", Path(platformdirs.user_config_dir("hwprune")) / "targets", shipped_folder()]


def shipped_folder() -> Path:
    return Path(str(resources.files("hwprune").joinpath("targets")))


def profiles() -> dict[str, list[Path]]:
    """All profile files by name, in search order (the first shadows the rest)."""
    found: dict[str, list[Path]] = {}
    seen: set[Path] = set()
    for folder in search_path():
        for path in sorted(folder.glob("*.toml")) if folder.is_dir() else ():
            if path.resolve() not in seen:
                seen.add(path.resolve())
                found.setdefault(path.stem, []).append(path)
    return found


def load(name: str) -> TargetProfile:
    """The profile called ``name``, or the one in the file ``name`` if it ends in ``.toml``.

    ``native`` is this machine, probed; the shipped ``cuda`` is the profile of the GPU that is here, if there is one. Raises
    TargetError with the nearest names, the unknown key or the value at fault.
    """
    if name == "native":
        from hwprune.measure.probe import native_profile

        return native_profile()
    if name.endswith(".toml"):
        return load_file(Path(name))
    known = profiles()
    if name not in known:
        near = difflib.get_close_matches(name, [*known, "native"], n=3, cutoff=0.4)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else f"known targets: {', '.join(sorted([*known, 'native']))}"
        )
        raise TargetError(f"unknown target {name!r}; {hint} (`hwprune targets list` shows all)")
    return (_of_present_gpu(known) if name == "cuda" else None) or load_file(known[name][0])


def _of_present_gpu(known: Mapping[str, Sequence[Path]]) -> TargetProfile | None:
    """``cuda`` as the profile of the GPU of this machine; None where there is none, or no profile has its architecture, or the user
    has a profile of that name."""
    if known["cuda"][0].parent.resolve() != shipped_folder().resolve() or (gpu := present_gpu()) is None:
        return None
    cards = {p.name: p for p in shipped_profiles() if p.gpu is not None and p.alias_of is None}
    found = nearest(gpu, {name: profile.codegen.arch for name, profile in cards.items()})
    return cards[found].model_copy(update={"name": "cuda", "alias_of": found}) if found else None


def shipped_profiles() -> Iterator[TargetProfile]:
    """Shipped profiles; those that stand for themselves come before those that extend another one."""
    for path in sorted(sorted(shipped_folder().glob("*.toml")), key=lambda path: "extends" in _read(path)):
        yield load_file(path)


def load_file(path: Path) -> TargetProfile:
    data = _resolve(path, ())
    data.setdefault("name", path.stem)
    found = _check(path, data)
    if isinstance(found, list):
        raise TargetError(f"{path}: {'; '.join(found)}")
    return found


def complaints(path: Path) -> list[str]:
    """Everything that is wrong with a profile file; empty when it is valid."""
    try:
        data = _resolve(path, ())
    except TargetError as err:
        return [str(err)]
    data.setdefault("name", path.stem)
    found = _check(path, data)
    return found if isinstance(found, list) else []


def notices(name: str, profile: TargetProfile) -> list[str]:
    """What a user should know before ``name`` is used: that it stands for another target, or shadows a shipped one."""
    told = []
    files = profiles().get(name, [])
    if len(files) > 1 and files[0].read_bytes() != files[-1].read_bytes():
        told.append(f"target {name!r} is {files[0]}, which shadows {files[1]}")
    if profile.alias_of:
        told.append(f"target {name!r} stands for {profile.alias_of}: {profile.description}{_why(profile)}")
    return told


def _why(profile: TargetProfile) -> str:
    """Of ``cuda``: whether that is the GPU of this machine."""
    if profile.gpu is None:
        return ""
    gpu = present_gpu()
    if gpu is None:
        return "; no GPU is here that would say otherwise"
    if gpu.arch != profile.codegen.arch:
        return f"; the GPU of this machine, {gpu.name} ({gpu.arch}), has no profile: write one with `hwprune targets new NAME --extends {profile.alias_of}`"
    return f"; the GPU of this machine is {gpu.name}"


def _check(path: Path, data: dict[str, Any]) -> TargetProfile | list[str]:
    """The profile, or everything that is wrong with it."""
    try:
        profile = TargetProfile.model_validate(data)
    except ValidationError as err:
        return list(_complaints(err))
    if profile.name != path.stem:
        return [
            f"`name` = {profile.name!r}, but the file is {path.name}; targets are found by file name, so make them equal"
        ]
    return profile


def _resolve(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's tables merged over those it extends."""
    data = _read(path)
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if path in seen:
        raise TargetError(f"{path}: `extends` runs in a circle: {' -> '.join(p.stem for p in (*seen, path))}")
    candidates = [p for p in profiles().get(str(parent), []) if p != path]
    beside = path.parent / f"{parent}.toml"
    if beside.is_file() and beside != path:
        candidates.insert(0, beside)
    if not candidates:
        near = difflib.get_close_matches(str(parent), profiles(), n=3, cutoff=0.4)
        raise TargetError(
            f"{path}: `extends = {parent!r}` names no profile" + (f"; nearest: {', '.join(near)}" if near else "")
        )
    base = _resolve(candidates[0], (*seen, path))
    base.pop("alias_of", None)
    base["name"] = path.stem
    _forget_sources(base, data)
    return _merge(base, data)


def _forget_sources(base: dict[str, Any], data: dict[str, Any]) -> None:
    """Drop the sources of figures that ``data`` overrides: they say nothing about the new value."""
    sources = base.get("source")
    if not isinstance(sources, dict):
        return
    for key, value in data.items():
        for figure in [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key]:
            sources.pop(figure, None)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as err:
        raise TargetError(f"cannot read target profile {path}: {err.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise TargetError(f"{path} is not TOML: {err}") from None


def _merge(base: dict, over: dict) -> dict:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _complaints(err: ValidationError) -> Iterator[str]:
    for item in err.errors():
        where = ".".join(str(p) for p in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(where.split(".")[-1], _keys(item["loc"]), n=1, cutoff=0.5)
            yield f"unknown key `{where}`" + (f", did you mean `{near[0]}`?" if near else "; remove it")
        elif item["type"] == "missing":
            yield f"`{where}` is missing"
        elif item["type"] == "value_error":
            yield str(item["ctx"]["error"])
        else:
            yield f"`{where}` = {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _keys(loc: tuple) -> list[str]:
    model: Any = TargetProfile
    for part in loc[:-1]:
        model = model.model_fields[part].annotation if part in model.model_fields else None
        # `Gpu | None` is the table where it is given
        model = next((m for m in (model, *get_args(model)) if hasattr(m, "model_fields")), None)
        if model is None:
            return []
    return [f.alias or n for n, f in model.model_fields.items()]
