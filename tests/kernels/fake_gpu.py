"""A GPU for tests: ``fake_cuda.c`` as the driver, and kernels whose schedules run on the CPU (``kernels.cuda.emulate``)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Mapping

import numpy as np
from tvm import tirx

from hwprune.compile.link import ffi_includes, native_sources
from hwprune.kernels.cuda.code import Launch, device_code
from hwprune.kernels.cuda.emulate import build
from hwprune.target import TargetProfile

HERE = Path(__file__).parent

#: What a kernel that TVM made for the CPU asks of its surroundings; and how one is called as the driver calls kernels.
_AROUND = """
#include <stdint.h>
#include <stdio.h>
#include <tvm/ffi/c_api.h>
#include "pool.h"
int (*__TVMBackendParallelLaunch)(hwprune_task_t, void*, int) = hwprune_pool_v1_launch;
void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = hwprune_pool_v1_alloc;
int (*__TVMBackendFreeWorkspace)(int, int, void*) = hwprune_pool_v1_free;
void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  for (int32_t i = 0; i < count; ++i) fprintf(stderr, "%s", parts[i] ? parts[i] : kind);
}
typedef int32_t (*function_t)(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
static void call(function_t f, int32_t count, void** data, const int* order, int64_t** shapes, const int* ranks) {
  DLTensor tensors[16];
  TVMFFIAny values[16], result = {.type_index = kTVMFFINone};
  for (int32_t i = 0; i < count; ++i) {
    const int a = order[i];
    tensors[a] = (DLTensor){.data = data[i], .device = {kDLCPU, 0}, .ndim = ranks[a], .dtype = {kDLFloat, 32, 1}, .shape = shapes[a]};
    values[a] = (TVMFFIAny){.type_index = kTVMFFIDLTensorPtr, .v_ptr = &tensors[a]};
  }
  if (f(0, values, count, &result) != 0) __builtin_trap();
}
"""


def _compile(sources: list[str], out: Path) -> Path:
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-pthread", *sources, "-o", str(out), "-ldl", "-lm"], check=True)
    return out


def driver(folder: Path) -> Path:
    """The fake driver, and NVML with it."""
    return _compile([str(HERE / "fake_cuda.c")], folder / "libcuda.so.1")


def emulated(
    functions: Mapping[str, tirx.PrimFunc], gpu: TargetProfile, out: Path, here: Mapping[str, tirx.PrimFunc] | None = None
) -> Path:
    """A library of the kernels of ``functions``, under the names and with the parameters that a GPU's program launches.

    here : what they do, where that is not the functions themselves with their threads as loops (``emulate.function``).
    """
    text, objects = [_AROUND], out.with_suffix(".o")
    for name, launches in device_code(functions, gpu).launches.items():
        (launch,) = launches
        function = functions[name]
        shapes = [[int(d) for d in p.shape] for p in function.params]
        rows = "".join(f"  static int64_t s{i}[] = {{{', '.join(map(str, s))}}};\n" for i, s in enumerate(shapes))
        text.append(
            f"extern int32_t __tvm_ffi_{name}(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);\n"
            f"const int {launch.kernel}_arguments = {len(shapes)};\n"
            f"void {launch.kernel}(void** data) {{\n{rows}"
            f"  static int64_t* shapes[] = {{{', '.join(f's{i}' for i in range(len(shapes)))}}};\n"
            f"  static const int ranks[] = {{{', '.join(str(len(s)) for s in shapes)}}}, order[] = {{{', '.join(map(str, launch.arguments))}}};\n"
            f"  call(__tvm_ffi_{name}, {len(shapes)}, data, order, shapes, ranks);\n}}\n"
        )
    source = out.with_suffix(".c")
    source.write_text("".join(text))
    build(dict(here or functions)).write_to_file(str(objects))
    native = native_sources()
    return _compile([*ffi_includes(), f"-I{native}", str(source), str(native / "pool.c"), str(objects)], out)


def nothing_at_all(kernels: int, out: Path) -> Path:
    """A library of kernels called as those of a bundle are, which do nothing. All have two arguments at least."""
    source = out.with_suffix(".c")
    source.write_text("".join(f"const int kernel{i}_kernel_arguments = 2; void kernel{i}_kernel(void** p) {{}}\n" for i in range(kernels)))
    return _compile([str(source)], out)


def own_us(launch: Launch) -> float:
    """What the fake driver says that a kernel takes."""
    return (1000 + int(np.prod(launch.grid) * np.prod(launch.block)) // 64) / 1e3


def thread_extents(function: tirx.PrimFunc) -> dict[str, int]:
    """Extent of each of a schedule's thread axes, read from its loops."""
    found: dict[str, int] = {}

    def walk(node) -> None:
        if isinstance(node, tirx.For) and node.thread_binding is not None:
            tag, extent = str(node.thread_binding.thread_tag), int(node.extent)
            assert found.setdefault(tag, extent) == extent
        for part in ("body", "block", "seq", "init"):
            child = getattr(node, part, None)
            for one in child if part == "seq" and child is not None else [child]:
                if one is not None:
                    walk(one)

    walk(function.body)
    return found
