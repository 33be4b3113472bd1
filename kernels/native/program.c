/* The program of an artifact: runs a network's kernels one after the other.
 *
 * What is fixed stands here; what differs between networks is in tables.h, written by hwprune/compile/emit_c.py.
 * Activations and constants lie at fixed offsets, so a run allocates nothing but what kernels take as scratch.
 *
 * Functions return 0, or -1 with a text in hwprune_error(). Samples are nanoseconds.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <tvm/ffi/c_api.h>

#include "pool.h"

typedef int32_t (*kernel_t)(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
typedef struct {
  uint8_t space, rank, bits;
  uint32_t shape;
  uint64_t offset, at;
} argument_t;
typedef struct {
  uint32_t kernel, first, count;
} step_t;
enum { WORKSPACE, WEIGHTS, INPUT, OUTPUT };

#include "tables.h"

#define EXPORT __attribute__((visibility("default")))

/* Kernels find thread pool, scratch memory and error reporting under TVM's names. */
int (*__TVMBackendParallelLaunch)(hwprune_task_t, void*, int) = hwprune_pool_v1_launch;
void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = hwprune_pool_v1_alloc;
int (*__TVMBackendFreeWorkspace)(int, int, void*) = hwprune_pool_v1_free;

static _Thread_local char error_text[512];

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  size_t at = (size_t)snprintf(error_text, sizeof(error_text), "%s: ", kind);
  for (int32_t i = 0; i < count && at < sizeof(error_text); ++i)
    if (parts[i]) at += (size_t)snprintf(error_text + at, sizeof(error_text) - at, "%s", parts[i]);
}

typedef struct {
  void* const* inputs;
  void* const* outputs;
  char* weights;
  char* workspace;
} memory_t;

static void* address(const argument_t* a, const memory_t* m) {
  switch (a->space) {
    case WORKSPACE: return m->workspace + a->offset;
    case WEIGHTS: return m->weights + a->offset;
    case INPUT: return (char*)m->inputs[a->offset] + a->at;
    default: return (char*)m->outputs[a->offset] + a->at;
  }
}

static int32_t run_step(const step_t* step, const memory_t* m) {
  DLTensor tensors[MOST_ARGUMENTS];
  TVMFFIAny values[MOST_ARGUMENTS], result;
  const argument_t* a = &ARGUMENTS[step->first];
  for (uint32_t i = 0; i < step->count; ++i, ++a) {
    tensors[i] = (DLTensor){.data = address(a, m), .device = {kDLCPU, 0}, .ndim = a->rank, .dtype = {kDLFloat, a->bits, 1},
                            .shape = (int64_t*)&SHAPES[a->shape]};
    values[i] = (TVMFFIAny){.type_index = kTVMFFIDLTensorPtr, .v_ptr = &tensors[i]};
  }
  result = (TVMFFIAny){.type_index = kTVMFFINone};
  return KERNELS[step->kernel](NULL, values, (int32_t)step->count, &result);
}

static int32_t run_steps(const memory_t* m, uint32_t first, uint32_t count) {
  for (uint32_t s = first; s < first + count; ++s)
    if (run_step(&STEPS[s], m) != 0) return -1;
  return 0;
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int32_t enter(int32_t threads) {
  if (hwprune_pool_v1_enter(threads) == 0) return 0;
  snprintf(error_text, sizeof(error_text), "cannot start %d threads", threads);
  return -1;
}

EXPORT const char* hwprune_error(void) { return error_text; }

/* Format, inputs, outputs, weight bytes, workspace bytes, steps, threads, then the elements of each input and output. */
EXPORT const int64_t hwprune_facts[] = {FACTS};

EXPORT int32_t hwprune_run(void* const* inputs, void* const* outputs, void* weights, void* workspace, int32_t threads) {
  const memory_t m = {inputs, outputs, weights, workspace};
  return enter(threads) != 0 ? -1 : run_steps(&m, 0, STEP_COUNT);
}

typedef struct {
  const step_t* step;
  const memory_t* memory;
} written_t;

/* A thread's share of the first activation that a step reads, written: rows of an image, as most kernels share them out. It is
 * what the kernel before has just made; what one core wrote last, another one gets several times as slowly as that one. */
static int write_share(int task, hwprune_group_t* group, void* data) {
  enum { LINE_BYTES = 64 }; /* or a part of one: then a line is written more than once */
  const written_t* w = (const written_t*)data;
  const argument_t* a = &ARGUMENTS[w->step->first];
  while (a->space != INPUT)
    if (++a == &ARGUMENTS[w->step->first + w->step->count]) return 0;
  int64_t lines = a->bits / 8;
  for (int d = 0; d < a->rank; ++d) lines *= SHAPES[a->shape + d];
  lines /= LINE_BYTES;
  char* first = (char*)address(a, w->memory);
  for (int64_t line = lines * task / group->num_task; line < lines * (task + 1) / group->num_task; ++line) {
    volatile float* number = (volatile float*)(first + line * LINE_BYTES);
    *number = *number;
  }
  return 0;
}

/* Each of `runs` runs of `count` steps from `first` on: one sample a run. There are `copies` of the weights, `stride`
 * bytes apart, that take turns from number `turn` on: so a kernel by itself finds its weights as far away as it does
 * within a network; and its first activation is where a kernel before it would have left it (ALONE). */
EXPORT int32_t hwprune_time(void* const* inputs, void* const* outputs, void* weights, void* workspace, int32_t threads,
                            int32_t first, int32_t count, int64_t copies, int64_t stride, int64_t turn, int64_t runs, int64_t* samples) {
  memory_t m = {inputs, outputs, weights, workspace};
  if (enter(threads) != 0) return -1;
  for (int64_t r = 0; r < runs; ++r) {
    m.weights = (char*)weights + (turn + r) % copies * stride;
    if (ALONE && hwprune_pool_v1_launch(write_share, &(written_t){&STEPS[first], &m}, 0) != 0) return -1;
    const int64_t start = now_ns();
    if (run_steps(&m, (uint32_t)first, (uint32_t)count) != 0) return -1;
    samples[r] = now_ns() - start;
  }
  return 0;
}

/* Each step of each of `runs` runs: samples[runs][steps]. */
EXPORT int32_t hwprune_profile(void* const* inputs, void* const* outputs, void* weights, void* workspace, int32_t threads,
                               int64_t runs, int64_t* samples) {
  const memory_t m = {inputs, outputs, weights, workspace};
  if (enter(threads) != 0) return -1;
  for (int64_t r = 0; r < runs; ++r)
    for (uint32_t s = 0; s < STEP_COUNT; ++s) {
      const int64_t start = now_ns();
      if (run_steps(&m, s, 1) != 0) return -1;
      *samples++ = now_ns() - start;
    }
  return 0;
}
