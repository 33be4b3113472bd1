"""The program that runs a network's kernels, as C: tables of calls and one loop.

It is linked with the kernels into one library. Activations and constants are addressed by fixed offsets, so a call of
the network allocates nothing but what kernels take for their borders, and the loop costs well under a microsecond a
kernel.

Exported, with addresses passed as integers:

    run(inputs..., outputs..., weights, workspace)
    bench(inputs..., outputs..., weights, workspace, runs, samples)      nanoseconds of each run  -> int64 samples[runs]
    profile(inputs..., outputs..., weights, workspace, runs, samples)    nanoseconds of each call -> int64 samples[runs][calls]

``hwprune_facts`` (int64: format, inputs, outputs, weight bytes, workspace bytes, then the elements of each input and
output) lets a runner without a JSON parser load the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

#: Address spaces of an argument; for inputs and outputs the offset is the index.
WORKSPACE, WEIGHTS, INPUT, OUTPUT = range(4)


@dataclass(frozen=True)
class Argument:
    space: int
    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class KernelCall:
    """One step of the program: the kernel's symbol and its arguments, the result last."""

    symbol: str
    arguments: tuple[Argument, ...]


#: First entry of ``hwprune_facts``: what the native runner checks before it reads on.
FACTS_FORMAT = 1


def program(
    calls: Sequence[KernelCall], inputs: Sequence[int], outputs: Sequence[int], weights_bytes: int, workspace_bytes: int
) -> str:
    """C source of the program over ``calls``; ``inputs`` and ``outputs`` are the elements of each."""
    symbols = list(dict.fromkeys(call.symbol for call in calls))
    shapes: list[int] = []
    arguments, steps = [], []
    for call in calls:
        steps.append(f"{{{symbols.index(call.symbol)}, {len(arguments)}, {len(call.arguments)}}}")
        for a in call.arguments:
            arguments.append(f"{{{a.space}, {len(a.shape)}, {len(shapes)}, {a.offset}}}")
            shapes.extend(a.shape)
    return _TEMPLATE.format(
        externs="\n".join(f"extern int32_t __tvm_ffi_{s}(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);" for s in symbols),
        kernels=", ".join(f"__tvm_ffi_{s}" for s in symbols),
        shapes=", ".join(map(str, shapes)),
        arguments=",\n  ".join(arguments),
        steps=",\n  ".join(steps),
        inputs=len(inputs),
        outputs=len(outputs),
        facts=", ".join(map(str, [FACTS_FORMAT, len(inputs), len(outputs), weights_bytes, workspace_bytes, *inputs, *outputs])),
        most=max(len(c.arguments) for c in calls),
    )


_TEMPLATE = """\
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <tvm/ffi/c_api.h>

{externs}

typedef int32_t (*kernel_t)(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
typedef struct {{ uint8_t space, rank; uint32_t shape; uint64_t offset; }} argument_t;
typedef struct {{ uint32_t kernel, first, count; }} step_t;

enum {{ INPUTS = {inputs}, OUTPUTS = {outputs}, MOST = {most} }};
static const kernel_t KERNELS[] = {{{kernels}}};
static const int64_t SHAPES[] = {{{shapes}}};
static const argument_t ARGUMENTS[] = {{
  {arguments}
}};
static const step_t STEPS[] = {{
  {steps}
}};
TVM_FFI_DLL_EXPORT const int64_t hwprune_facts[] = {{{facts}}};
enum {{ COUNT = sizeof(STEPS) / sizeof(STEPS[0]) }};

static int64_t now_ns(void) {{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}}

/* args: inputs, outputs, weights, workspace. With `ns`, the time of each step. */
static int32_t run_steps(const TVMFFIAny* args, int64_t* ns) {{
  char* weights = (char*)(intptr_t)args[INPUTS + OUTPUTS].v_int64;
  char* workspace = (char*)(intptr_t)args[INPUTS + OUTPUTS + 1].v_int64;
  DLTensor tensors[MOST];
  TVMFFIAny values[MOST];
  memset(tensors, 0, sizeof(tensors));
  memset(values, 0, sizeof(values));
  for (int i = 0; i < MOST; ++i) {{
    tensors[i].device.device_type = kDLCPU;
    tensors[i].dtype.code = kDLFloat;
    tensors[i].dtype.bits = 32;
    tensors[i].dtype.lanes = 1;
    values[i].type_index = kTVMFFIDLTensorPtr;
    values[i].v_ptr = &tensors[i];
  }}
  for (int s = 0; s < COUNT; ++s) {{
    const argument_t* a = &ARGUMENTS[STEPS[s].first];
    for (uint32_t i = 0; i < STEPS[s].count; ++i, ++a) {{
      tensors[i].data = a->space == 0   ? workspace + a->offset
                        : a->space == 1 ? weights + a->offset
                        : a->space == 2 ? (void*)(intptr_t)args[a->offset].v_int64
                                        : (void*)(intptr_t)args[INPUTS + a->offset].v_int64;
      tensors[i].ndim = a->rank;
      tensors[i].shape = (int64_t*)&SHAPES[a->shape];
    }}
    TVMFFIAny result;
    memset(&result, 0, sizeof(result));
    int64_t start = ns ? now_ns() : 0;
    int32_t status = KERNELS[STEPS[s].kernel](0, values, (int32_t)STEPS[s].count, &result);
    if (status != 0) return status;
    if (ns) ns[s] = now_ns() - start;
  }}
  return 0;
}}

TVM_FFI_DLL_EXPORT int32_t __tvm_ffi_run(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {{
  (void)self, (void)count, (void)result;
  return run_steps(args, 0);
}}

TVM_FFI_DLL_EXPORT int32_t __tvm_ffi_bench(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {{
  (void)self, (void)count, (void)result;
  int64_t runs = args[INPUTS + OUTPUTS + 2].v_int64;
  int64_t* samples = (int64_t*)(intptr_t)args[INPUTS + OUTPUTS + 3].v_int64;
  for (int64_t r = 0; r < runs; ++r) {{
    int64_t start = now_ns();
    int32_t status = run_steps(args, 0);
    if (status != 0) return status;
    samples[r] = now_ns() - start;
  }}
  return 0;
}}

TVM_FFI_DLL_EXPORT int32_t __tvm_ffi_profile(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {{
  (void)self, (void)count, (void)result;
  int64_t runs = args[INPUTS + OUTPUTS + 2].v_int64;
  int64_t* samples = (int64_t*)(intptr_t)args[INPUTS + OUTPUTS + 3].v_int64;
  for (int64_t r = 0; r < runs; ++r) {{
    int32_t status = run_steps(args, samples + r * COUNT);
    if (status != 0) return status;
  }}
  return 0;
}}
"""
