/* A driver without a GPU: its memory is the host's, its kernels are functions of the library FAKE_CUDA_KERNELS, its clock moves by
 * what a kernel's threads are said to take. Streams are captured, graphs launched and pointers checked as the real one does.
 *
 * FAKE_CUDA_LOG: file that says what was called. FAKE_CUDA_FAIL: `function=code@n`, the n-th call of one fails with that code.
 * FAKE_CUDA_BAD_KERNEL: one that reads where nothing is. FAKE_CUDA_CAPABILITY (8.9), FAKE_CUDA_DEVICES (1), FAKE_CUDA_MEMORY (bytes).
 * FAKE_NVML_WITHOUT: functions that NVML lacks. FAKE_NVML_REASONS: why clocks are lower. FAKE_NVML_MIG: whether others share the card.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_BLOCKS = 4096, MOST_NODES = 1 << 16, MOST_PARAMETERS = 16, MOST_KERNELS = 1024 };
typedef void (*function_t)(void** parameters);
typedef struct { function_t run; int arguments; int64_t ns; char name[128]; } kernel_t;
typedef struct { int64_t at_ns; } event_t;
typedef struct { kernel_t* kernel; event_t* event; uint64_t parameters[MOST_PARAMETERS]; int64_t ns; } node_t;
typedef struct { int count; node_t* nodes; } graph_t;

static struct { char* start; size_t bytes; } blocks[MOST_BLOCKS];
static kernel_t kernels[MOST_KERNELS];
static int kernel_count;
static size_t taken;
static int64_t clock_ns;
static graph_t* capturing;
static void* library;
static const unsigned char* image;

static const char* setting(const char* name, const char* otherwise) {
  const char* value = getenv(name);
  return value ? value : otherwise;
}

static void note(const char* format, ...) {
  const char* path = getenv("FAKE_CUDA_LOG");
  FILE* file = path ? fopen(path, "a") : NULL;
  if (!file) return;
  va_list values;
  va_start(values, format);
  vfprintf(file, format, values);
  va_end(values);
  fputc('\n', file);
  fclose(file);
}

static int told_to_fail(const char* name) {
  static char last[64];
  static int calls;
  const char* asked = getenv("FAKE_CUDA_FAIL");
  char who[64] = "";
  int code = 0, nth = 1;
  if (!asked || sscanf(asked, "%63[^=]=%d@%d", who, &code, &nth) < 2 || strcmp(who, name) != 0) return 0;
  if (strcmp(last, asked) != 0) calls = 0, snprintf(last, sizeof(last), "%s", asked);
  return ++calls == nth ? code : 0;
}
#define MAY_FAIL                               \
  do {                                         \
    const int code = told_to_fail(__func__);   \
    if (code) return code;                     \
  } while (0)
#define NOT_WHILE_CAPTURING \
  if (capturing) return 900

static int is_memory(uint64_t address) {
  for (int i = 0; i < MOST_BLOCKS; ++i)
    if (blocks[i].start && address >= (uintptr_t)blocks[i].start && address < (uintptr_t)blocks[i].start + blocks[i].bytes) return 1;
  return 0;
}

static int run_node(const node_t* n) {
  void* parameters[MOST_PARAMETERS];
  if (n->event) {
    n->event->at_ns = clock_ns;
    return 0;
  }
  for (int i = 0; i < n->kernel->arguments; ++i) {
    if (!is_memory(n->parameters[i])) return 700;
    parameters[i] = (void*)(uintptr_t)n->parameters[i];
  }
  if (strcmp(n->kernel->name, setting("FAKE_CUDA_BAD_KERNEL", "")) == 0) return 700;
  n->kernel->run(parameters);
  clock_ns += n->ns;
  return 0;
}

static int enqueue(const node_t* n) {
  if (!capturing) return run_node(n);
  if (capturing->count == MOST_NODES) return 2;
  capturing->nodes[capturing->count++] = *n;
  return 0;
}

int cuInit(unsigned flags) { (void)flags; MAY_FAIL; return 0; }
int cuDriverGetVersion(int* version) { MAY_FAIL; *version = 12040; return 0; }
int cuGetErrorName(int code, const char** name) {
  *name = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 900 ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" : "CUDA_ERROR_OTHER";
  return 0;
}
int cuGetErrorString(int code, const char** text) { *text = code == 700 ? "an illegal memory access was encountered" : "it failed"; return 0; }
int cuDeviceGetCount(int* count) { MAY_FAIL; *count = atoi(setting("FAKE_CUDA_DEVICES", "1")); return 0; }
int cuDeviceGet(int* device, int ordinal) { MAY_FAIL; *device = ordinal; return 0; }
int cuDeviceGetName(char* name, int size, int device) { (void)device; MAY_FAIL; snprintf(name, (size_t)size, "Fake RTX"); return 0; }
int cuDeviceGetPCIBusId(char* id, int size, int device) { (void)device; MAY_FAIL; snprintf(id, (size_t)size, "0000:01:00.0"); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  int major = 0, minor = 0;
  (void)device;
  MAY_FAIL;
  sscanf(setting("FAKE_CUDA_CAPABILITY", "8.9"), "%d.%d", &major, &minor);
  *value = attribute == 75 ? major : attribute == 76 ? minor : attribute == 16 ? 128 : -1;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) { (void)device; MAY_FAIL; *context = &kernels; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; note("release"); return 0; }
int cuCtxSetCurrent(void* context) { (void)context; MAY_FAIL; return 0; }

/* Machine code is an ELF file for CUDA; tests where no nvcc is have a word instead. */
int cuModuleLoadData(void** module, const void* data) {
  const Elf64_Ehdr* header = data;
  MAY_FAIL;
  NOT_WHILE_CAPTURING;
  const int elf = memcmp(header->e_ident, ELFMAG, SELFMAG) == 0 && header->e_machine == EM_CUDA;
  if (!elf && memcmp(data, "FAKE", 4) != 0) return 200;
  image = elf ? data : NULL;
  library = dlopen(setting("FAKE_CUDA_KERNELS", ""), RTLD_NOW | RTLD_LOCAL);
  if (!library) return 301;
  *module = library;
  note("module %s", elf ? "machine code" : "fake");
  return 0;
}
int cuModuleUnload(void* module) { (void)module; return 0; }

static int has_section(const char* kernel) {
  const Elf64_Ehdr* header = (const void*)image;
  const Elf64_Shdr* sections = (const void*)(image + header->e_shoff);
  const char* names = (const char*)image + sections[header->e_shstrndx].sh_offset;
  for (int i = 0; i < header->e_shnum; ++i)
    if (strncmp(names + sections[i].sh_name, ".text.", 6) == 0 && strcmp(names + sections[i].sh_name + 6, kernel) == 0) return 1;
  return 0;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  char count[160];
  MAY_FAIL;
  if (image && !has_section(name)) return 500;
  snprintf(count, sizeof(count), "%s_arguments", name);
  const int* arguments = dlsym(module, count);
  kernel_t* k = &kernels[kernel_count++ % MOST_KERNELS];
  k->run = (function_t)dlsym(module, name);
  if (!k->run || !arguments) return 500;
  k->arguments = *arguments;
  snprintf(k->name, sizeof(k->name), "%s", name);
  *function = k;
  return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) { MAY_FAIL; note("attribute %s %d %d", ((kernel_t*)function)->name, attribute, value); return 0; }

int cuMemGetInfo_v2(size_t* unused, size_t* all) {
  *all = strtoull(setting("FAKE_CUDA_MEMORY", "1073741824"), NULL, 10);
  *unused = *all > taken ? *all - taken : 0;
  return 0;
}
int cuMemAlloc_v2(unsigned long long* address, size_t bytes) {
  size_t unused, all;
  MAY_FAIL;
  NOT_WHILE_CAPTURING;
  cuMemGetInfo_v2(&unused, &all);
  if (bytes == 0) return 1;
  if (bytes > unused) return 2;
  for (int i = 0; i < MOST_BLOCKS; ++i)
    if (!blocks[i].start) {
      blocks[i].start = aligned_alloc(256, (bytes + 255) / 256 * 256);
      blocks[i].bytes = bytes;
      memset(blocks[i].start, 0xff, bytes); /* not numbers: what nobody wrote shows */
      taken += bytes;
      *address = (uintptr_t)blocks[i].start;
      return 0;
    }
  return 2;
}
int cuMemFree_v2(unsigned long long address) {
  for (int i = 0; i < MOST_BLOCKS; ++i)
    if (blocks[i].start && (uintptr_t)blocks[i].start == address) {
      taken -= blocks[i].bytes;
      free(blocks[i].start);
      blocks[i].start = NULL;
      return 0;
    }
  return 1;
}
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t bytes, void* stream) {
  (void)stream;
  MAY_FAIL;
  NOT_WHILE_CAPTURING;
  if (!is_memory(to) || !is_memory(to + bytes - 1)) return 700;
  memcpy((void*)(uintptr_t)to, from, bytes);
  note("copy to %zu", bytes);
  return 0;
}
int cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, size_t bytes, void* stream) {
  (void)stream;
  MAY_FAIL;
  NOT_WHILE_CAPTURING;
  if (!is_memory(from) || !is_memory(from + bytes - 1)) return 700;
  memcpy(to, (void*)(uintptr_t)from, bytes);
  return 0;
}
int cuStreamCreate(void** stream, unsigned flags) { (void)flags; MAY_FAIL; *stream = &taken; return 0; }
int cuStreamDestroy_v2(void* stream) { (void)stream; return 0; }
int cuStreamSynchronize(void* stream) { (void)stream; MAY_FAIL; NOT_WHILE_CAPTURING; return 0; }
int cuStreamBeginCapture_v2(void* stream, int mode) {
  (void)stream, (void)mode;
  MAY_FAIL;
  NOT_WHILE_CAPTURING;
  capturing = calloc(1, sizeof(graph_t));
  capturing->nodes = malloc(MOST_NODES * sizeof(node_t));
  return 0;
}
int cuStreamEndCapture(void* stream, void** graph) {
  (void)stream;
  *graph = capturing;
  capturing = NULL;
  MAY_FAIL;
  return *graph ? 0 : 901;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void* stream, void** parameters, void** extra) {
  kernel_t* k = function;
  node_t n = {.kernel = k, .ns = 1000 + (int64_t)gx * gy * gz * bx * by * bz / 64};
  (void)stream, (void)extra;
  MAY_FAIL;
  for (int i = 0; i < k->arguments; ++i) n.parameters[i] = *(uint64_t*)parameters[i];
  note("launch %s %u,%u,%u %u,%u,%u %u%s", k->name, gx, gy, gz, bx, by, bz, shared, capturing ? " captured" : "");
  return enqueue(&n);
}
/* As in the real one, a graph that was instantiated no longer needs what it was made of. */
int cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long flags) {
  const graph_t* of = graph;
  graph_t* made = calloc(1, sizeof(graph_t));
  (void)flags;
  MAY_FAIL;
  NOT_WHILE_CAPTURING;
  made->count = of->count;
  made->nodes = malloc((size_t)of->count * sizeof(node_t) + 1);
  memcpy(made->nodes, of->nodes, (size_t)of->count * sizeof(node_t));
  *exec = made;
  return 0;
}
int cuGraphLaunch(void* exec, void* stream) {
  const graph_t* g = exec;
  (void)stream;
  MAY_FAIL;
  note("graph %d", g->count);
  for (int i = 0; i < g->count; ++i) {
    const int status = run_node(&g->nodes[i]);
    if (status) return status;
  }
  return 0;
}
static int destroy(void* graph) {
  free(((graph_t*)graph)->nodes);
  free(graph);
  return 0;
}
int cuGraphDestroy(void* graph) { return destroy(graph); }
int cuGraphExecDestroy(void* exec) { return destroy(exec); }
int cuEventCreate(void** event, unsigned flags) { (void)flags; MAY_FAIL; *event = calloc(1, sizeof(event_t)); return 0; }
int cuEventDestroy_v2(void* event) { free(event); return 0; }
int cuEventRecordWithFlags(void* event, void* stream, unsigned flags) {
  const node_t n = {.event = event};
  (void)stream;
  MAY_FAIL;
  return capturing && flags != 1 ? 1 : enqueue(&n);
}
int cuEventElapsedTime(float* milliseconds, void* start, void* end) {
  MAY_FAIL;
  *milliseconds = (float)((double)(((event_t*)end)->at_ns - ((event_t*)start)->at_ns) / 1e6);
  return 0;
}

/* --- NVML ---------------------------------------------------------------------------------------------------------- */

/* The clock of energy is the host's: 100 W, counted in steps of 20 ms. */
static unsigned long long now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (unsigned long long)t.tv_sec * 1000 + (unsigned long long)t.tv_nsec / 1000000;
}
#define MAY_LACK \
  if (strstr(setting("FAKE_NVML_WITHOUT", ""), __func__)) return 3

int nvmlInit_v2(void) { MAY_LACK; return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, void** device) {
  *device = (void*)bus;
  return strcmp(bus, "0000:01:00.0") == 0 ? 0 : 6;
}
int nvmlDeviceGetClockInfo(void* device, int which, unsigned* mhz) { (void)device; MAY_LACK; *mhz = which == 1 ? 2505 : 10501; return 0; }
int nvmlDeviceGetMaxClockInfo(void* device, int which, unsigned* mhz) { (void)device; MAY_LACK; *mhz = which == 1 ? 3105 : 10501; return 0; }
int nvmlDeviceGetTemperature(void* device, int sensor, unsigned* c) { (void)device, (void)sensor; MAY_LACK; *c = 61; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void* device, unsigned long long* reasons) {
  (void)device;
  MAY_LACK;
  *reasons = strtoull(setting("FAKE_NVML_REASONS", "4"), NULL, 10);
  return 0;
}
int nvmlDeviceGetMigMode(void* device, unsigned* current, unsigned* pending) {
  (void)device;
  MAY_LACK;
  *current = *pending = (unsigned)atoi(setting("FAKE_NVML_MIG", "0"));
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void* device, unsigned long long* mj) { (void)device; MAY_LACK; *mj = now_ms() / 20 * 20 * 100; return 0; }
