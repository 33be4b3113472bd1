"""Libraries of kernels that are timed on a device, built as artifacts are, and as the measuring process here builds its own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Iterable, Sequence

from tvm import tirx

from hwprune.compile.emit_c import INPUT, OUTPUT, WEIGHTS, Argument, Facts, KernelCall
from hwprune.compile.link import last_line, link
from hwprune.errors import CompileError, Infeasible
from hwprune.kernels import candidates, kernel_inputs, primfunc
from hwprune.kernels.schedule import Config
from hwprune.library import ALIGNMENT
from hwprune.target import TargetProfile
from hwprune.workload import DTYPE_BYTES, OpCall, TensorSpec, Workload


#: The reference kernel, a product of 256 pixels by so many channels: it misses no cache, is long enough to time, and its
#: threads meet once.
REFERENCE = dict(height=16, width=16, channels=128)


@dataclass(frozen=True)
class Kernel:
    """A workload and the text of one of its schedules."""

    workload: Workload
    config: str


def scheduled(workload: Workload, configs: Sequence[str], profile: TargetProfile) -> tuple[dict[str, tirx.PrimFunc], dict[str, str]]:
    """The function of each schedule; or why there is none."""
    functions, failures = {}, {}
    for text in configs:
        try:
            functions[text] = primfunc(workload, profile, Config.from_text(text))
        except (Infeasible, CompileError, RuntimeError, ValueError, TypeError) as err:
            failures[text] = last_line(err)
    return functions, failures


def link_kernels(
    kernels: Sequence[Kernel], functions: Iterable[tirx.PrimFunc], profile: TargetProfile, threads: int, out: Path
) -> list[int]:
    """Link the functions of ``kernels`` into the library ``out``, a step each, and return the bytes of each one's constants.

    They share inputs, output and constants, which are as large as the largest of them needs. Raises CompileError.
    """
    operands = [operands_of(kernel_inputs(k.workload, Config.from_text(k.config))) for k in kernels]
    results = [k.workload.output for k in kernels]
    calls = [
        KernelCall(f"kernel{i}", (*arguments, Argument(OUTPUT, 0, result.shape, result.dtype)))
        for i, ((arguments, _), result) in enumerate(zip(operands, results))
    ]
    sizes = [size for _, size in operands]
    activations = [[float32_elements(t) for t in k.workload.inputs if t.role != "weight"] for k in kernels]
    inputs = tuple(max(column) for column in zip_longest(*activations, fillvalue=0))
    threads = threads if profile.gpu is None else 1
    facts = Facts(inputs, (max(map(float32_elements, results)),), max(sizes), 0, threads, alone=True)
    link({c.symbol: f for c, f in zip(calls, functions)}, calls, facts, profile, out)
    return sizes


def float32_elements(spec: TensorSpec) -> int:
    """How many float32 take as much memory: what ``Facts`` counts inputs and outputs in."""
    return -(-spec.size_bytes // DTYPE_BYTES["float32"])


def operands_of(specs: Sequence[TensorSpec]) -> tuple[list[Argument], int]:
    """Where a kernel's inputs lie, its constants one after the other; and the bytes of these."""
    arguments, activations, size = [], 0, 0
    for spec in specs:
        if spec.role == "weight":
            arguments.append(Argument(WEIGHTS, size, spec.shape, spec.dtype))
            size += -(-spec.size_bytes // ALIGNMENT) * ALIGNMENT
        else:
            arguments.append(Argument(INPUT, activations, spec.shape, spec.dtype))
            activations += 1
    return arguments, size


def reference(profile: TargetProfile) -> tuple[Workload, str]:
    """The reference kernel of a profile, and its schedule."""
    v = profile.lanes
    h, w, c = REFERENCE["height"], REFERENCE["width"], -(-REFERENCE["channels"] // v) * v
    conv = OpCall.make("conv2d", 0, 1, padding=(0, 0, 0, 0), stride=(1, 1), dilation=(1, 1), groups=1, channels=0,
                       layout="nhwc", out=(1, h, w))
    image, weight = TensorSpec((1, h, w, c), dtype=profile.dtype), TensorSpec((c // v, 1, 1, c, v), "weight", profile.dtype)
    workload = Workload((image, weight), (conv,), image)
    return workload, candidates(workload, profile)[0].to_text()
