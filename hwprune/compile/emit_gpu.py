"""The tables of a network's program for a GPU: which kernels are launched with what. ``kernels/native/gpu_program.c`` reads
them."""

from __future__ import annotations

from typing import Mapping, Sequence

from hwprune.compile.emit_c import Facts, KernelCall, c_array, facts_line
from hwprune.kernels.cuda.code import Launch
from hwprune.target import TargetProfile


def gpu_tables(
    calls: Sequence[KernelCall], facts: Facts, launches: Mapping[str, Sequence[Launch]], profile: TargetProfile, compiler: str
) -> str:
    """``tables.h`` of the program over ``calls``. launches : of each symbol. compiler : who made the machine code, in words."""
    all_launches = [launch for symbol in dict.fromkeys(c.symbol for c in calls) for launch in launches[symbol]]
    kernels = {launch.kernel: i for i, launch in enumerate({launch.kernel: launch for launch in all_launches}.values())}
    shared = {launch.kernel: launch.shared_bytes for launch in all_launches}
    arguments, rows, steps = [], [], []
    for call in calls:
        steps.append(f"{{{len(rows)}, {len(launches[call.symbol])}}}")
        for launch in launches[call.symbol]:
            grid, block = (", ".join(map(str, extents)) for extents in (launch.grid, launch.block))
            rows.append(
                f"{{{kernels[launch.kernel]}, {len(arguments)}, {len(launch.arguments)}, {{{grid}}}, {{{block}}}, {launch.shared_bytes}}}"
            )
            arguments += [f"{{{call.arguments[n].space}, {call.arguments[n].offset}}}" for n in launch.arguments]
    major, minor = compute_capability(profile)
    most = max(len(launch.arguments) for launch in all_launches)
    lines = [
        f"enum {{ STEP_COUNT = {len(calls)}, KERNEL_COUNT = {len(kernels)}, MOST_ARGUMENTS = {most}, "
        f"TENSOR_COUNT = {len(facts.inputs) + len(facts.outputs)}, ARCH_MAJOR = {major}, ARCH_MINOR = {minor} }};",
        f'#define TARGET "{profile.name}"',
        f'#define COMPILER "{compiler}"',
        facts_line(facts, len(calls)),
        c_array("const struct { const char* name; uint32_t shared_bytes; } KERNELS", [f'{{"{k}", {shared[k]}}}' for k in kernels]),
        c_array("const argument_t ARGUMENTS", arguments),
        c_array("const launch_t LAUNCHES", rows),
        c_array("const step_t STEPS", steps),
    ]
    return "\n".join(lines) + "\n"


def compute_capability(profile: TargetProfile) -> tuple[int, int]:
    """Of ``sm_89``: 8 and 9."""
    digits = str(profile.codegen.arch).removeprefix("sm_")
    return int(digits[:-1]), int(digits[-1])
