"""Libraries of kernels that are timed on a device, built as artifacts are, and as the measuring process here builds its own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Iterable, Sequence

from tvm import tirx

from hwprune.compile.emit_c import OUTPUT, Argument, Facts, KernelCall, tables
from hwprune.compile.link import last_line, link
from hwprune.errors import CompileError, Infeasible
from hwprune.kernels import kernel_inputs, primfunc
from hwprune.kernels.schedule import Config
from hwprune.measure.worker import _operands as operands_of
from hwprune.measure.worker import _reference as reference_of
from hwprune.target import TargetProfile
from hwprune.workload import Workload


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
        KernelCall(f"kernel{i}", (*arguments, Argument(OUTPUT, 0, result.shape)))
        for i, ((arguments, _), result) in enumerate(zip(operands, results))
    ]
    sizes = [size for _, size in operands]
    activations = [[t.size_bytes // 4 for t in k.workload.inputs if t.role != "weight"] for k in kernels]
    inputs = tuple(max(column) for column in zip_longest(*activations, fillvalue=0))
    facts = Facts(inputs, (max(r.size_bytes for r in results) // 4,), max(sizes), 0, threads)
    link({c.symbol: f for c, f in zip(calls, functions)}, tables(calls, facts), profile, out)
    return sizes


def reference(profile: TargetProfile) -> tuple[Workload, str]:
    """The reference kernel of a profile, and its schedule: the one that is timed here, too."""
    workload, config = reference_of(profile)
    return workload, config.to_text()
