"""Build an artifact: the folder that ships.

    network.so            kernels and the program that calls them
    weights.safetensors   one tensor, all constants packed as the kernels read them
    manifest.json         shapes, memory, target, versions, each kernel's schedule, SHA-256 of the other files
"""

from __future__ import annotations

import datetime
import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping

import numpy as np

from hwprune import __version__
from hwprune.compile.constants import Constant, Shapes, as_type
from hwprune.compile.emit_c import INPUT, OUTPUT, WEIGHTS, WORKSPACE, Argument, Facts, KernelCall
from hwprune.compile.link import link
from hwprune.compile.lower import Emitted, Network
from hwprune.compile.memory import MemoryPlan, aligned
from hwprune.errors import CompileError, HwpruneError
from hwprune.fsio import sha256_file, write_json_atomic
from hwprune.kernels import KERNELS_VERSION, kernel_inputs, primfunc, repacked
from hwprune.kernels.schedule import Config, Repack
from hwprune.runtime import FORMAT
from hwprune.target import TargetProfile
from hwprune.workload import TensorSpec, Workload

SchedulePicker = Callable[[Workload], Config]
KernelName = Callable[[Workload, Config], str]
#: a constant, and how its kernel wants it instead of as the workload has it
Packed = tuple[Constant, Repack | None]


@dataclass(frozen=True)
class _Layout:
    """Where constants lie in the weight file, each packed as its kernels read it, and which kernel serves each distinct
    workload."""

    offsets: dict[Packed, int]
    specs: dict[Packed, TensorSpec]
    size: int
    symbols: dict[str, str]  # workload key -> symbol


@dataclass(frozen=True)
class NetworkProgram:
    """What is linked into a network's library, before anything is built.

    kernels : symbol -> workload and schedule. calls : of the program, in order.
    """

    kernels: dict[str, tuple[Workload, Config]]
    calls: list[KernelCall]
    facts: Facts
    emitted: list[Emitted]
    layout: _Layout
    memory: MemoryPlan


def network_program(
    network: Network, profile: TargetProfile, pick: SchedulePicker, shapes: Shapes | None = None, name: KernelName | None = None
) -> NetworkProgram:
    """The program of ``network`` under ``shapes`` (its own by default).

    name : what the kernel of a workload and a schedule is called; by default kernels are numbered.
    """
    emitted = network.emitted(shapes)
    chosen = {e.workload.key: pick(e.workload) for e in emitted}
    layout, memory = _plan(emitted, chosen, name), network.memory(shapes)
    calls = _calls(network, emitted, chosen, layout, memory)
    facts = _facts(network, layout, memory, profile, shapes or network.traced.shape)
    kernels = {layout.symbols[e.workload.key]: (e.workload, chosen[e.workload.key]) for e in emitted}
    return NetworkProgram(kernels, calls, facts, emitted, layout, memory)


def build_artifact(
    network: Network, profile: TargetProfile, pick: SchedulePicker, out: str | os.PathLike, *, record: dict | None = None
) -> Path:
    """Compile ``network`` for ``profile`` into the folder ``out``, replacing an artifact that is there.

    Parameters
    ----------
    pick : workload -> schedule, from the tuner's store.
    record : anything worth keeping beside the manifest's own facts (where the network came from).

    Raises
    ------
    CompileError : a kernel does not build, or the target's linker is missing (the sentence names its package).
    """
    out = Path(out)
    program = network_program(network, profile, pick)
    functions = {symbol: primfunc(w, profile, config) for symbol, (w, config) in program.kernels.items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as err:
        raise HwpruneError(f"cannot write artifact {out}: {err.strerror}; choose another folder with --out") from None
    try:
        link(functions, program.calls, program.facts, profile, folder / "network.so")
        _write_weights(network, program.layout, profile, folder)
        manifest = _manifest(network, program, profile, record or {})
        manifest["files"] = {
            name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}
            for name in ("network.so", "weights.safetensors")
        }
        write_json_atomic(folder / "manifest.json", manifest)
        _replace(folder, out)
    except OSError as err:
        raise HwpruneError(f"cannot write artifact {out}: {err.strerror}; free some space or choose another folder") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def amend_manifest(folder: Path, **facts: object) -> None:
    """Add what was found out about a finished artifact to its manifest."""
    path = folder / "manifest.json"
    write_json_atomic(path, {**json.loads(path.read_text()), **facts})


def _operands(emitted: Emitted, config: Config) -> list[tuple[TensorSpec, str | Packed]]:
    """Each input of a call as the kernel of ``config`` reads it, and its binding."""
    packed = repacked(emitted.workload, config)
    specs = kernel_inputs(emitted.workload, config)
    return [
        (spec, binding if isinstance(binding, str) else (binding, packed.get(i)))
        for i, (spec, binding) in enumerate(zip(specs, emitted.bindings))
    ]


def _plan(emitted: list[Emitted], chosen: Mapping[str, Config], name: KernelName | None) -> _Layout:
    offsets: dict[Packed, int] = {}
    specs: dict[Packed, TensorSpec] = {}
    symbols: dict[str, str] = {}
    size = 0
    for e in emitted:
        config = chosen[e.workload.key]
        symbols.setdefault(e.workload.key, name(e.workload, config) if name else f"kernel{len(symbols)}")
        for spec, binding in _operands(e, config):
            if not isinstance(binding, str) and binding not in offsets:
                offsets[binding], specs[binding] = size, spec
                size = aligned(size + spec.size_bytes)
    return _Layout(offsets, specs, size, symbols)


def _calls(network: Network, emitted: list[Emitted], chosen: Mapping[str, Config], layout: _Layout, memory: MemoryPlan) -> list[KernelCall]:
    ends, made = network.ends(), {call.name for call in network.calls}

    def place(name: str, spec: TensorSpec) -> Argument:
        if name not in ends:
            return Argument(WORKSPACE, memory.offsets[name], spec.shape, spec.dtype)
        number, part = ends[name]
        return Argument(OUTPUT if name in made else INPUT, number, spec.shape, spec.dtype, part * spec.size_bytes if part else 0)

    result = []
    for call, e in zip(network.calls, emitted):
        arguments = [
            place(binding, spec) if isinstance(binding, str) else Argument(WEIGHTS, layout.offsets[binding], spec.shape, spec.dtype)
            for spec, binding in _operands(e, chosen[e.workload.key])
        ]
        arguments.append(place(call.name, e.workload.output))
        result.append(KernelCall(layout.symbols[e.workload.key], tuple(arguments)))
    return result


def _facts(network: Network, layout: _Layout, memory: MemoryPlan, profile: TargetProfile, shapes: Shapes) -> Facts:
    inputs, outputs = (tuple(math.prod(network.whole_shape(n, shapes)) for n in names) for names in (network.inputs, network.output_nodes))
    return Facts(inputs, outputs, layout.size, memory.workspace_bytes, profile.host_threads)


def _write_weights(network: Network, layout: _Layout, profile: TargetProfile, folder: Path) -> None:
    from safetensors.numpy import save

    params = parameter_values(network)
    blob = np.zeros(max(layout.size // 4, 1), np.float32).view(network.dtype)
    for (constant, repack), offset in layout.offsets.items():
        spec, first = layout.specs[constant, repack], offset // blob.itemsize
        packed = constant.pack(params, profile.lanes)
        packed = packed if repack is None else repack.transform(packed)
        if packed.shape != spec.shape:
            raise CompileError(f"packing {constant} gives {packed.shape}, its kernel reads {spec.shape}")
        blob[first : first + packed.size] = as_type(packed, spec.dtype).ravel()
    (folder / "weights.safetensors").write_bytes(save({"packed": blob}))


def parameter_values(network: Network) -> Mapping[str, np.ndarray]:
    """Placeholder node name -> value of each parameter, buffer and constant of the traced network."""
    exported = network.traced.exported
    tensors = {**exported.constants, **exported.state_dict}
    return {node: tensors[name].detach().cpu().numpy() for node, name in network.traced.targets.items() if name in tensors}


def _manifest(network: Network, program: NetworkProgram, profile: TargetProfile, record: dict) -> dict:
    import tvm

    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {"hwprune": __version__, "tvm": tvm.__version__, "kernels": KERNELS_VERSION},
        "target": {"name": profile.name, "architecture": profile.architecture, "machine": profile.machine, "digest": profile.digest(),
                   "features": [a.lstrip("+") for a in profile.codegen.mattr if a.startswith("+")], "threads": profile.host_threads},
        "inputs": [{"name": n, "shape": list(network.whole_shape(n)), "dtype": "float32"} for n in network.inputs],
        "outputs": [{"name": n, "shape": list(network.whole_shape(n)), "dtype": "float32"} for n in network.output_nodes],
        "dtype": network.dtype,
        "parts": network.parts,
        "workspace_bytes": program.memory.workspace_bytes,
        "peak_memory_bytes": program.memory.peak_bytes,
        "weights_bytes": program.layout.size,
        "macs": sum(e.workload.macs for e in program.emitted),
        "calls": [
            {"makes": call.name, "kernel": program.layout.symbols[e.workload.key], "macs": e.workload.macs}
            for call, e in zip(network.calls, program.emitted)
        ],
        "kernels": {
            symbol: {"workload": workload.key, "schedule": json.loads(config.to_text())}
            for symbol, (workload, config) in program.kernels.items()
        },
        "record": record,
    }


def _replace(folder: Path, out: Path) -> None:
    """Put the finished folder where the artifact belongs; an older artifact goes only once the new one is whole."""
    os.chmod(folder, 0o755)
    if out.exists():
        if not (out / "manifest.json").is_file() and any(out.iterdir()):
            raise CompileError(f"{out} is not empty and holds no artifact; choose another folder with --out")
        old = out.with_name(f".{out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(out, old)
        os.replace(folder, out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(folder, out)
