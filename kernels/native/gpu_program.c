/* The program of an artifact for a GPU: the counterpart of program.c, with the same functions and more.
 *
 * What is fixed stands here; what differs between networks is in tables.h, written by hwprune/compile/emit_gpu.py: the
 * kernels' machine code, and which kernel is launched with what. A network is launched as one captured graph.
 *
 * Callers' memory is the host's. Constants are copied to the GPU once for an address: who changes them in place, or gives
 * them memory that had others before, calls hwprune_release first. Calls from several threads take turns.
 *
 * Functions return 0, or -1 with a sentence in hwprune_error(). Samples are nanoseconds.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_driver.h"

typedef struct {
  uint8_t space;
  uint64_t offset;
} argument_t;
typedef struct {
  uint32_t kernel, first, count; /* arguments */
  uint32_t grid[3], block[3], shared_bytes;
} launch_t;
typedef struct {
  uint32_t first, count; /* launches */
} step_t;
enum { WORKSPACE, WEIGHTS, INPUT, OUTPUT };

#include "tables.h"

#define EXPORT __attribute__((visibility("default")))

/* Machine code of all kernels, for one architecture. */
extern const unsigned char hwprune_kernels_image[] __attribute__((visibility("hidden")));
__asm__(".section .rodata\n.balign 64\nhwprune_kernels_image: .incbin \"kernels.cubin\"\n.byte 0\n.previous\n");

/* Format, inputs, outputs, weight bytes, workspace bytes, steps, threads, then the elements of each input and output. */
EXPORT const int64_t hwprune_facts[] = {FACTS};
/* Libraries of one process are loaded globally, and the first one's exports stand for all; what is read here is static. */
static const int64_t facts[] = {FACTS};
enum { FACT_INPUTS = 1, FACT_OUTPUTS, FACT_WEIGHTS_BYTES, FACT_WORKSPACE_BYTES, FACT_ELEMENTS = 7 };

/* Steps that are captured as a graph: `runs` times the `count` steps from `first` on. `copies` of the constants, `stride` bytes
 * apart, take turns from number `turn` on. `events` are recorded before the first step, and after the last one or after each. */
typedef struct {
  uint32_t first, count;
  int64_t runs, copies, stride, turn;
  cu_event* events;
  int each;
} chain_t;

static _Thread_local char error_text[1024];
static pthread_mutex_t turn_of = PTHREAD_MUTEX_INITIALIZER;
static cuda_t cuda;

static struct {
  int open;
  void* driver;
  int version, capability[2], multiprocessors;
  char name[128], bus[32], described[256];
  cu_device device;
  cu_context context;
  cu_module module;
  cu_stream stream;
  cu_function kernels[KERNEL_COUNT];
  cu_pointer tensors[TENSOR_COUNT], workspace, weights;
  int64_t weights_size;     /* bytes allocated */
  const void* host_weights; /* whose copy that is; NULL if of none */
  int64_t copied;           /* bytes of it */
  uint8_t has_run[STEP_COUNT];
  cu_graph_exec network;
  struct {
    chain_t of;
    cu_event events[2];
    cu_graph_exec exec;
  } burst; /* the last one: the same again is launched without being captured anew */
} gpu;

static int say(const char* text) {
  snprintf(error_text, sizeof(error_text), "%s", text);
  return -1;
}

static int failed(cu_result result, const char* what) {
  const char *name = NULL, *text = NULL;
  if (result == 0) return 0;
  if (cuda.GetErrorName(result, &name) != 0 || !name) name = "an unknown error";
  if (cuda.GetErrorString(result, &text) != 0 || !text) text = "the driver does not say more";
  snprintf(error_text, sizeof(error_text), "%s failed on GPU %s: %s (%s)", what, gpu.name[0] ? gpu.name : "0", text, name);
  return -1;
}

#define TRY(call, what)                   \
  do {                                    \
    if (failed((call), what)) return -1;  \
  } while (0)

/* --- opening ------------------------------------------------------------------------------------------------------- */

static int load_driver(void) {
  const char* asked = getenv("HWPRUNE_LIBCUDA");
  gpu.driver = dlopen(asked ? asked : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!gpu.driver) {
    snprintf(error_text, sizeof(error_text),
             "NVIDIA's driver cannot be loaded (%s); this program is for a GPU ('%s'): install the driver, or compile the network for a "
             "CPU's target",
             dlerror(), TARGET);
    return -1;
  }
#define CUDA_LOOK_UP(name, symbol, parameters)                                                                             \
  if (!(cuda.name = (cu_result(*) parameters)dlsym(gpu.driver, #symbol)))                                                  \
    return say("NVIDIA's driver is older than CUDA 11.4 (it lacks " #symbol "): update it");
  CUDA_CALLS(CUDA_LOOK_UP)
#undef CUDA_LOOK_UP
  return 0;
}

static int find_device(void) {
  int count = 0;
  const cu_result result = cuda.Init(0);
  if (result == CU_NO_DEVICE || (result == 0 && cuda.DeviceGetCount(&count) == 0 && count == 0)) {
    snprintf(error_text, sizeof(error_text),
             "NVIDIA's driver finds no GPU; this program needs one ('%s'): does CUDA_VISIBLE_DEVICES hide it, or is it not passed to this "
             "container?",
             TARGET);
    return -1;
  }
  TRY(result, "starting the driver");
  TRY(cuda.DriverGetVersion(&gpu.version), "asking for the driver's version");
  TRY(cuda.DeviceGet(&gpu.device, 0), "finding the GPU");
  TRY(cuda.DeviceGetName(gpu.name, sizeof(gpu.name), gpu.device), "asking for the GPU's name");
  TRY(cuda.DeviceGetPCIBusId(gpu.bus, sizeof(gpu.bus), gpu.device), "asking for the GPU's bus");
  TRY(cuda.DeviceGetAttribute(&gpu.capability[0], CU_CAPABILITY_MAJOR, gpu.device), "asking for the GPU's capability");
  TRY(cuda.DeviceGetAttribute(&gpu.capability[1], CU_CAPABILITY_MINOR, gpu.device), "asking for the GPU's capability");
  TRY(cuda.DeviceGetAttribute(&gpu.multiprocessors, CU_MULTIPROCESSOR_COUNT, gpu.device), "asking for the GPU's size");
  /* Machine code runs on later minor versions of its architecture and on nothing else. */
  if (gpu.capability[0] != ARCH_MAJOR || gpu.capability[1] < ARCH_MINOR) {
    snprintf(error_text, sizeof(error_text),
             "this program is compiled for '%s', a GPU of compute capability %d.%d, but the GPU here is %s of %d.%d: compile the network "
             "with the --target of that card",
             TARGET, ARCH_MAJOR, ARCH_MINOR, gpu.name, gpu.capability[0], gpu.capability[1]);
    return -1;
  }
  TRY(cuda.DevicePrimaryCtxRetain(&gpu.context, gpu.device), "making a context");
  TRY(cuda.CtxSetCurrent(gpu.context), "making a context current");
  return 0;
}

static int load_kernels(void) {
  const cu_result result = cuda.ModuleLoadData(&gpu.module, hwprune_kernels_image);
  if (result == CU_NO_BINARY_FOR_GPU || result == CU_INVALID_IMAGE || result == CU_UNSUPPORTED_PTX_VERSION) {
    snprintf(error_text, sizeof(error_text),
             "the driver of GPU %s (CUDA %d.%d) does not take this program's machine code, made by %s for %d.%d: update the driver, or compile "
             "the network with an older toolkit on PATH",
             gpu.name, gpu.version / 1000, gpu.version % 1000 / 10, COMPILER, ARCH_MAJOR, ARCH_MINOR);
    return -1;
  }
  TRY(result, "loading the kernels");
  for (int i = 0; i < KERNEL_COUNT; ++i) {
    TRY(cuda.ModuleGetFunction(&gpu.kernels[i], gpu.module, KERNELS[i].name), KERNELS[i].name);
    if (KERNELS[i].shared_bytes > 0)
      TRY(cuda.FuncSetAttribute(gpu.kernels[i], CU_MAX_DYNAMIC_SHARED_SIZE, (int)KERNELS[i].shared_bytes), KERNELS[i].name);
  }
  return 0;
}

static int allocate(cu_pointer* memory, int64_t bytes) {
  const size_t size = bytes > 0 ? (size_t)bytes : 1;
  const cu_result result = cuda.MemAlloc(memory, size);
  size_t unused = 0, all = 0;
  if (result != CU_OUT_OF_MEMORY) return failed(result, "taking memory");
  cuda.MemGetInfo(&unused, &all);
  snprintf(error_text, sizeof(error_text),
           "GPU %s has %zu of its %zu MiB free, but %zu MiB more are needed: end what else uses it, or compile the network for a smaller batch",
           gpu.name, unused >> 20, all >> 20, (size + (1 << 20) - 1) >> 20);
  return -1;
}

static int take_memory(void) {
  for (int i = 0; i < TENSOR_COUNT; ++i)
    if (allocate(&gpu.tensors[i], facts[FACT_ELEMENTS + i] * 4)) return -1;
  if (allocate(&gpu.workspace, facts[FACT_WORKSPACE_BYTES])) return -1;
  gpu.weights_size = facts[FACT_WEIGHTS_BYTES];
  return allocate(&gpu.weights, gpu.weights_size);
}

static void forget_burst(void) {
  if (gpu.burst.exec) cuda.GraphExecDestroy(gpu.burst.exec);
  for (int e = 0; e < 2; ++e)
    if (gpu.burst.events[e]) cuda.EventDestroy(gpu.burst.events[e]);
  memset(&gpu.burst, 0, sizeof(gpu.burst));
}

/* Gives everything back that was taken; a GPU in error gives errors back, which say nothing new. */
static void release(void) {
  forget_burst();
  if (gpu.network) cuda.GraphExecDestroy(gpu.network);
  for (int i = 0; i < TENSOR_COUNT; ++i)
    if (gpu.tensors[i]) cuda.MemFree(gpu.tensors[i]);
  if (gpu.workspace) cuda.MemFree(gpu.workspace);
  if (gpu.weights) cuda.MemFree(gpu.weights);
  if (gpu.stream) cuda.StreamDestroy(gpu.stream);
  if (gpu.module) cuda.ModuleUnload(gpu.module);
  if (gpu.context) cuda.DevicePrimaryCtxRelease(gpu.device);
  /* the driver stays loaded: it does not survive being unloaded */
  memset(&gpu, 0, sizeof(gpu));
}

static int open_gpu(void) {
  if (gpu.open) return failed(cuda.CtxSetCurrent(gpu.context), "making a context current");
  if (load_driver() == 0 && find_device() == 0 && load_kernels() == 0 &&
      failed(cuda.StreamCreate(&gpu.stream, CU_STREAM_NON_BLOCKING), "making a stream") == 0 && take_memory() == 0) {
    gpu.open = 1;
    return 0;
  }
  release();
  return -1;
}

/* --- memory -------------------------------------------------------------------------------------------------------- */

static void forget_graphs(void) {
  if (gpu.network) cuda.GraphExecDestroy(gpu.network);
  gpu.network = NULL;
  forget_burst();
}

static int copy_weights(const void* host, int64_t bytes) {
  if (host == gpu.host_weights && bytes <= gpu.copied) return 0;
  gpu.host_weights = NULL;
  if (bytes > gpu.weights_size) {
    forget_graphs(); /* they hold the old address */
    cuda.MemFree(gpu.weights);
    gpu.weights = 0, gpu.weights_size = 0;
    if (allocate(&gpu.weights, bytes)) return -1;
    gpu.weights_size = bytes;
  }
  if (bytes > 0) TRY(cuda.MemcpyHtoDAsync(gpu.weights, host, (size_t)bytes, gpu.stream), "copying constants");
  TRY(cuda.StreamSynchronize(gpu.stream), "copying constants");
  gpu.host_weights = host, gpu.copied = bytes;
  return 0;
}

static int copy_inputs(void* const* inputs) {
  for (int64_t i = 0; i < facts[FACT_INPUTS]; ++i)
    TRY(cuda.MemcpyHtoDAsync(gpu.tensors[i], inputs[i], (size_t)facts[FACT_ELEMENTS + i] * 4, gpu.stream), "copying an input");
  return 0;
}

static int copy_outputs(void* const* outputs) {
  const int64_t first = facts[FACT_INPUTS];
  for (int64_t i = 0; i < facts[FACT_OUTPUTS]; ++i)
    TRY(cuda.MemcpyDtoHAsync(outputs[i], gpu.tensors[first + i], (size_t)facts[FACT_ELEMENTS + first + i] * 4, gpu.stream),
        "copying an output");
  TRY(cuda.StreamSynchronize(gpu.stream), "running the network");
  return 0;
}

static cu_pointer address(const argument_t* a, cu_pointer weights) {
  switch (a->space) {
    case WORKSPACE: return gpu.workspace + a->offset;
    case WEIGHTS: return weights + a->offset;
    case INPUT: return gpu.tensors[a->offset];
    default: return gpu.tensors[facts[FACT_INPUTS] + (int64_t)a->offset];
  }
}

/* --- kernels ------------------------------------------------------------------------------------------------------- */

static int launch_step(uint32_t step, cu_pointer weights) {
  for (uint32_t i = STEPS[step].first; i < STEPS[step].first + STEPS[step].count; ++i) {
    const launch_t* l = &LAUNCHES[i];
    cu_pointer addresses[MOST_ARGUMENTS];
    void* parameters[MOST_ARGUMENTS];
    for (uint32_t a = 0; a < l->count; ++a) {
      addresses[a] = address(&ARGUMENTS[l->first + a], weights);
      parameters[a] = &addresses[a];
    }
    TRY(cuda.LaunchKernel(gpu.kernels[l->kernel], l->grid[0], l->grid[1], l->grid[2], l->block[0], l->block[1], l->block[2],
                          l->shared_bytes, gpu.stream, parameters, NULL),
        KERNELS[l->kernel].name);
  }
  return 0;
}

/* Each step once by itself before it is captured: a driver may load code at its first launch, which it must not do within a
 * capture, and an error then is that of one kernel. */
static int run_once(uint32_t first, uint32_t count) {
  for (uint32_t s = first; s < first + count; ++s) {
    if (gpu.has_run[s]) continue;
    if (launch_step(s, gpu.weights)) return -1;
    TRY(cuda.StreamSynchronize(gpu.stream), KERNELS[LAUNCHES[STEPS[s].first].kernel].name);
    gpu.has_run[s] = 1;
  }
  return 0;
}

static int launch_chain(const chain_t* c) {
  cu_event* next = c->events;
  if (next) TRY(cuda.EventRecordWithFlags(*next++, gpu.stream, CU_EVENT_RECORD_EXTERNAL), "recording an event");
  for (int64_t r = 0; r < c->runs; ++r)
    for (uint32_t s = c->first; s < c->first + c->count; ++s) {
      if (launch_step(s, gpu.weights + (cu_pointer)((c->turn + r) % c->copies * c->stride))) return -1;
      if (next && c->each) TRY(cuda.EventRecordWithFlags(*next++, gpu.stream, CU_EVENT_RECORD_EXTERNAL), "recording an event");
    }
  if (next && !c->each) TRY(cuda.EventRecordWithFlags(*next, gpu.stream, CU_EVENT_RECORD_EXTERNAL), "recording an event");
  return 0;
}

static int capture(const chain_t* c, cu_graph_exec* exec) {
  cu_graph graph = NULL;
  TRY(cuda.StreamBeginCapture(gpu.stream, CU_CAPTURE_THREAD_LOCAL), "beginning to capture the network");
  const int launched = launch_chain(c);
  const cu_result ended = cuda.StreamEndCapture(gpu.stream, &graph); /* in any case: the stream has to come back */
  int status = launched ? -1 : failed(ended, "capturing the network");
  if (status == 0) status = failed(cuda.GraphInstantiate(exec, graph, 0), "making a graph of the network");
  if (graph) cuda.GraphDestroy(graph);
  return status;
}

static int capture_network(void) {
  const chain_t whole = {.first = 0, .count = STEP_COUNT, .runs = 1, .copies = 1};
  if (gpu.network) return 0;
  return run_once(0, STEP_COUNT) ? -1 : capture(&whole, &gpu.network);
}

static int launch_and_wait(cu_graph_exec exec) {
  TRY(cuda.GraphLaunch(exec, gpu.stream), "launching the network");
  TRY(cuda.StreamSynchronize(gpu.stream), "running the network");
  return 0;
}

/* --- timing -------------------------------------------------------------------------------------------------------- */

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* As a caller waits for it, with the launch of the graph and without copies between host and GPU. */
static int time_network(int64_t runs, int64_t* samples) {
  if (capture_network()) return -1;
  for (int64_t r = 0; r < runs; ++r) {
    const int64_t start = now_ns();
    if (launch_and_wait(gpu.network)) return -1;
    samples[r] = now_ns() - start;
  }
  return 0;
}

static int elapsed_ns(cu_event start, cu_event end, int64_t* ns) {
  float milliseconds = 0;
  TRY(cuda.EventElapsedTime(&milliseconds, start, end), "reading an event");
  *ns = (int64_t)((double)milliseconds * 1e6 + 0.5);
  return 0;
}

static int same_burst(const chain_t* a, const chain_t* b) {
  return a->first == b->first && a->count == b->count && a->runs == b->runs && a->copies == b->copies && a->stride == b->stride &&
         a->turn == b->turn;
}

static int capture_burst(const chain_t* c) {
  if (gpu.burst.exec && same_burst(&gpu.burst.of, c)) return 0;
  forget_burst();
  for (int e = 0; e < 2; ++e) TRY(cuda.EventCreate(&gpu.burst.events[e], 0), "making an event");
  gpu.burst.of = *c;
  gpu.burst.of.events = gpu.burst.events;
  return capture(&gpu.burst.of, &gpu.burst.exec);
}

/* The GPU's own time for `runs` runs of some steps in one graph, as within a network; each sample is the mean. */
static int burst(void* weights, uint32_t first, uint32_t count, int64_t copies, int64_t stride, int64_t turn, int64_t runs,
                 int64_t* samples) {
  const chain_t chain = {.first = first, .count = count, .runs = runs, .copies = copies, .stride = stride, .turn = turn % copies};
  const int64_t all = copies > 1 ? copies * stride : facts[FACT_WEIGHTS_BYTES];
  int64_t total = 0;
  if (copy_weights(weights, all) || run_once(first, count) || capture_burst(&chain) || launch_and_wait(gpu.burst.exec) ||
      elapsed_ns(gpu.burst.events[0], gpu.burst.events[1], &total))
    return -1;
  for (int64_t r = 0; r < runs; ++r) samples[r] = total / runs;
  return 0;
}

/* Each step of each of `runs` runs, between the events after it and after the one before. */
static int profile_chain(const chain_t* c, int64_t runs, int64_t* samples) {
  cu_graph_exec exec = NULL;
  int status = capture(c, &exec);
  for (int64_t r = 0; status == 0 && r < runs; ++r) {
    status = launch_and_wait(exec);
    for (int s = 0; status == 0 && s < STEP_COUNT; ++s) status = elapsed_ns(c->events[s], c->events[s + 1], samples++);
  }
  if (exec) cuda.GraphExecDestroy(exec);
  return status;
}

static int profile(void* const* inputs, void* weights, int64_t runs, int64_t* samples) {
  cu_event events[STEP_COUNT + 1] = {NULL};
  const chain_t chain = {.first = 0, .count = STEP_COUNT, .runs = 1, .copies = 1, .events = events, .each = 1};
  if (copy_weights(weights, facts[FACT_WEIGHTS_BYTES]) || copy_inputs(inputs) || run_once(0, STEP_COUNT)) return -1;
  int status = 0;
  for (int e = 0; status == 0 && e <= STEP_COUNT; ++e) status = failed(cuda.EventCreate(&events[e], 0), "making an event");
  if (status == 0) status = profile_chain(&chain, runs, samples);
  for (int e = 0; e <= STEP_COUNT; ++e)
    if (events[e]) cuda.EventDestroy(events[e]);
  return status;
}

/* --- what others call ---------------------------------------------------------------------------------------------- */

#define LOCKED(call)                              \
  do {                                            \
    pthread_mutex_lock(&turn_of);                 \
    const int status = open_gpu() ? -1 : (call);  \
    pthread_mutex_unlock(&turn_of);               \
    return status;                                \
  } while (0)

EXPORT const char* hwprune_error(void) { return error_text; }

/* Finds the GPU and takes its memory, which every other function does as well: so one can say early what is missing. */
EXPORT int32_t hwprune_open(void) { LOCKED(0); }

/* Gives the GPU's memory back; the next call takes it again. */
EXPORT void hwprune_release(void) {
  pthread_mutex_lock(&turn_of);
  if (gpu.open && cuda.CtxSetCurrent(gpu.context) == 0) release();
  pthread_mutex_unlock(&turn_of);
}

static int describe(void) {
  snprintf(gpu.described, sizeof(gpu.described), "%s\t%d.%d\t%d\t%d.%d\t%s", gpu.name, gpu.capability[0], gpu.capability[1],
           gpu.multiprocessors, gpu.version / 1000, gpu.version % 1000 / 10, gpu.bus);
  return 0;
}

/* Name, compute capability, multiprocessors, the driver's version of CUDA, PCI bus, with tabs between; NULL if there is none. */
EXPORT const char* hwprune_device(void) {
  pthread_mutex_lock(&turn_of);
  const int status = open_gpu() ? -1 : describe();
  pthread_mutex_unlock(&turn_of);
  return status ? NULL : gpu.described;
}

static int run(void* const* inputs, void* const* outputs, void* weights) {
  if (copy_weights(weights, facts[FACT_WEIGHTS_BYTES]) || copy_inputs(inputs) || capture_network()) return -1;
  TRY(cuda.GraphLaunch(gpu.network, gpu.stream), "launching the network");
  return copy_outputs(outputs);
}

/* `workspace` and `threads` are those of a CPU's program, and not used. */
EXPORT int32_t hwprune_run(void* const* inputs, void* const* outputs, void* weights, void* workspace, int32_t threads) {
  (void)workspace, (void)threads;
  LOCKED(run(inputs, outputs, weights));
}

/* The whole network: one sample a run. A part of it: as hwprune_burst. */
EXPORT int32_t hwprune_time(void* const* inputs, void* const* outputs, void* weights, void* workspace, int32_t threads,
                            int32_t first, int32_t count, int64_t copies, int64_t stride, int64_t turn, int64_t runs, int64_t* samples) {
  const int whole = first == 0 && count == STEP_COUNT && copies == 1;
  (void)outputs, (void)workspace, (void)threads;
  LOCKED(copy_inputs(inputs) ? -1
         : !whole            ? burst(weights, (uint32_t)first, (uint32_t)count, copies, stride, turn, runs, samples)
         : copy_weights(weights, facts[FACT_WEIGHTS_BYTES]) ? -1
                                                                    : time_network(runs, samples));
}

/* As hwprune_time of program.c, but that the runs are timed together, by the GPU: each sample is their mean. */
EXPORT int32_t hwprune_burst(void* const* inputs, void* const* outputs, void* weights, void* workspace, int32_t threads,
                             int32_t first, int32_t count, int64_t copies, int64_t stride, int64_t turn, int64_t runs, int64_t* samples) {
  (void)outputs, (void)workspace, (void)threads;
  LOCKED(copy_inputs(inputs) ? -1 : burst(weights, (uint32_t)first, (uint32_t)count, copies, stride, turn, runs, samples));
}

/* Each step of each of `runs` runs: samples[runs][steps]. The events between the steps make each some longer. */
EXPORT int32_t hwprune_profile(void* const* inputs, void* const* outputs, void* weights, void* workspace, int32_t threads,
                               int64_t runs, int64_t* samples) {
  (void)outputs, (void)workspace, (void)threads;
  LOCKED(profile(inputs, weights, runs, samples));
}
