"""From scheduled functions to what a GPU runs: CUDA source, and how each of its kernels is launched.

TVM splits a function into kernels and a host function that launches them with fixed extents. That host function needs
TVM's runtime; here it is read instead, and a program of hwprune's own (``kernels/native/gpu_program.c``) launches what it
would have launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Mapping

import tvm
from tvm import tirx
from tvm.tirx.build import codegen_build, split_host_device_mods

from hwprune.errors import CompileError
from hwprune.occupancy import gpu_of
from hwprune.target import TargetProfile

_AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    arguments : numbers of the function's arguments, in the order in which the kernel takes them.
    grid, block : extents along x, y and z. shared_bytes : dynamic shared memory of a block, beyond what is declared.
    """

    kernel: str
    arguments: tuple[int, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int


@dataclass(frozen=True)
class DeviceCode:
    """CUDA source of some functions; launches : of each function, by its symbol, in order."""

    source: str
    launches: Mapping[str, tuple[Launch, ...]]


def device_code(functions: Mapping[str, tirx.PrimFunc], profile: TargetProfile) -> DeviceCode:
    """The only way from functions with GPU schedules to CUDA. CompileError: TVM cannot, or a launch is none that a program can
    repeat."""
    from hwprune.kernels import tvm_target

    target = tvm_target(profile).with_host(tvm.target.Target("llvm"))
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    try:
        # the steps of tvm.tirx.build, but for code of the host
        pipeline, _, finish = tirx.get_default_tir_pipeline(target)
        lowered = pipeline(tirx.transform.BindTarget(target)(module))
        hosts, devices = split_host_device_mods(lowered)
        source = "\n".join(codegen_build(finish()(device), of).inspect_source() for of, device in devices.items())
    except Exception as err:  # TVM raises all kinds of exceptions
        reasons = [line for line in str(err).splitlines() if "failed" in line] or str(err).strip().splitlines()[-1:]
        raise CompileError(f"TVM cannot generate CUDA for target {profile.name!r}: {reasons[0].strip()}") from err
    return DeviceCode(source, {name: _launches(name, hosts[name], profile) for name in functions})


def _launches(name: str, host: tirx.PrimFunc, profile: TargetProfile) -> tuple[Launch, ...]:
    """What the host function launches. Its arguments arrive packed; each is bound to a handle, and that to a buffer."""
    bound: dict[int, tirx.Expr] = {}
    found = []
    for node, certain in _statements(host.body, True):
        if isinstance(node, tirx.Bind):
            bound[hash(node.var)] = node.value
        elif isinstance(node, tirx.DeclBuffer):
            bound[hash(node.buffer)] = node.data
        elif isinstance(node, tirx.AllocBuffer):
            raise CompileError(f"kernel {name!r} wants memory between two kernels of its own, which a GPU's program does not give")
        elif isinstance(node, tirx.Evaluate) and _op(node.value) == "tirx.call_ffi_kernel":
            if not certain:
                raise CompileError(f"kernel {name!r} is launched in a loop or on a condition, which a GPU's program does not repeat")
            found.append(_launch(node.value, host.params[1], bound))
    limit = gpu_of(profile).shared_memory_per_block_opt_in_bytes
    for launch in found:
        if launch.shared_bytes > limit:
            raise CompileError(f"kernel {name!r} asks for {launch.shared_bytes} bytes of shared memory, but the card has {limit}")
    return tuple(found)


def _statements(node: tirx.Stmt, certain: bool) -> Iterator[tuple[tirx.Stmt, bool]]:
    """All statements in order, and whether each runs exactly once."""
    yield node, certain
    inner = certain and not isinstance(node, (tirx.For, tirx.While, tirx.IfThenElse))
    children = list(node.seq) if isinstance(node, tirx.SeqStmt) else [getattr(node, part, None) for part in ("body", "then_case", "else_case")]
    for child in children:
        if child is not None:
            yield from _statements(child, inner)


def _launch(call: tirx.Call, packed: tirx.Var, bound: Mapping[int, tirx.Expr]) -> Launch:
    axes = [str(axis) for axis in call.attrs.launch_params]
    kernel, *rest = call.args
    pointers, numbers = rest[: len(rest) - len(axes)], [int(n) for n in rest[len(rest) - len(axes) :]]
    extents = dict(zip(axes, numbers))
    grid, block = (tuple(extents.pop(f"{of}.{axis}", 1) for axis in _AXES) for of in ("blockIdx", "threadIdx"))
    shared = extents.pop("tirx.use_dyn_shared_memory", 0)
    if extents:
        raise CompileError(f"kernel {kernel.value!r} is launched with {', '.join(extents)}, which a GPU's program does not know")
    return Launch(str(kernel.value), tuple(_argument(p, packed, bound) for p in pointers), grid, block, shared)


def _argument(pointer: tirx.Expr, packed: tirx.Var, bound: Mapping[int, tirx.Expr]) -> int:
    """Number of the argument from which ``pointer`` comes."""
    numbers = _sources(pointer, packed, bound)
    if len(numbers) != 1:
        raise CompileError(f"a kernel takes {pointer}, which is none of its function's arguments")
    return numbers.pop()


def _sources(value: tirx.Expr, packed: tirx.Var, bound: Mapping[int, tirx.Expr]) -> set[int]:
    if hash(value) in bound:
        return _sources(bound[hash(value)], packed, bound)
    if _op(value) == "tirx.tvm_struct_get" and value.args[0].same_as(packed):
        return {int(value.args[1])}
    return {n for part in getattr(value, "args", ()) for n in _sources(part, packed, bound)}


def _op(value: tirx.Expr) -> str:
    return getattr(getattr(value, "op", None), "name", "")
