"""The tables of a network's program: which kernels run on which memory. ``kernels/native/program.c`` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from hwprune.library import FACTS_FORMAT
from hwprune.workload import DTYPE_BYTES

#: Address spaces of an argument, as ``program.c`` numbers them; for inputs and outputs the offset is the index.
WORKSPACE, WEIGHTS, INPUT, OUTPUT = range(4)


@dataclass(frozen=True)
class Argument:
    """at : bytes from the start of an input or output, of which a batch in parts has one after the other."""

    space: int
    offset: int
    shape: tuple[int, ...]
    dtype: str = "float32"
    at: int = 0


@dataclass(frozen=True)
class KernelCall:
    """One step of the program: the kernel's symbol and its arguments, the result last."""

    symbol: str
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Facts:
    """What a runner needs to give a network its memory. ``inputs``, ``outputs``: elements of each, float32.

    alone : the steps are kernels, each timed by itself over the inputs: before every run the threads write its first one anew, as
        a kernel before would have.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights_bytes: int
    workspace_bytes: int
    threads: int
    alone: bool = False


def tables(calls: Sequence[KernelCall], facts: Facts) -> str:
    """``tables.h`` of the program over ``calls``."""
    symbols = {name: i for i, name in enumerate(dict.fromkeys(call.symbol for call in calls))}
    shapes: list[int] = []
    arguments, steps = [], []
    for call in calls:
        steps.append(f"{{{symbols[call.symbol]}, {len(arguments)}, {len(call.arguments)}}}")
        for a in call.arguments:
            arguments.append(f"{{{a.space}, {len(a.shape)}, {8 * DTYPE_BYTES[a.dtype]}, {len(shapes)}, {a.offset}, {a.at}}}")
            shapes.extend(a.shape)
    lines = [
        *(f"extern int32_t __tvm_ffi_{s}(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);" for s in symbols),
        f"enum {{ STEP_COUNT = {len(calls)}, ALONE = {int(facts.alone)}, MOST_ARGUMENTS = {max(len(c.arguments) for c in calls)} }};",
        facts_line(facts, len(calls)),
        c_array("const kernel_t KERNELS", [f"__tvm_ffi_{s}" for s in symbols]),
        c_array("const int64_t SHAPES", shapes),
        c_array("const argument_t ARGUMENTS", arguments),
        c_array("const step_t STEPS", steps),
    ]
    return "\n".join(lines) + "\n"


def facts_line(facts: Facts, steps: int) -> str:
    """What ``hwprune_facts`` holds, as a macro."""
    numbers = [FACTS_FORMAT, len(facts.inputs), len(facts.outputs), facts.weights_bytes, facts.workspace_bytes,
               steps, facts.threads, *facts.inputs, *facts.outputs]  # fmt: skip
    return f"#define FACTS {', '.join(map(str, numbers))}"


def c_array(declaration: str, entries: Sequence[object]) -> str:
    body = ",\n  ".join(map(str, entries))
    return f"static {declaration}[] = {{\n  {body}\n}};"
