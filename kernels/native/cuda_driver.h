/* What is used of NVIDIA's driver, declared here and looked up in libcuda.so.1 when it is needed: so artifacts are built
 * without NVIDIA's headers, and load where no driver is, to say so.
 *
 * Names, numbers and types are those of the CUDA Driver API reference. The newest call is of CUDA 11.4.
 */
#ifndef HWPRUNE_CUDA_DRIVER_H
#define HWPRUNE_CUDA_DRIVER_H

#include <stddef.h>

typedef int cu_result; /* 0 is success */
typedef int cu_device;
typedef unsigned long long cu_pointer; /* an address on the GPU */
typedef struct cu_context_st* cu_context;
typedef struct cu_module_st* cu_module;
typedef struct cu_function_st* cu_function;
typedef struct cu_stream_st* cu_stream;
typedef struct cu_event_st* cu_event;
typedef struct cu_graph_st* cu_graph;
typedef struct cu_graph_exec_st* cu_graph_exec;

enum {
  CU_INVALID_IMAGE = 200,
  CU_NO_BINARY_FOR_GPU = 209,
  CU_UNSUPPORTED_PTX_VERSION = 222,
  CU_OUT_OF_MEMORY = 2,
  CU_NO_DEVICE = 100,
  /* device attributes */
  CU_MULTIPROCESSOR_COUNT = 16,
  CU_CAPABILITY_MAJOR = 75,
  CU_CAPABILITY_MINOR = 76,
  /* function attribute */
  CU_MAX_DYNAMIC_SHARED_SIZE = 8,
  CU_STREAM_NON_BLOCKING = 1,
  CU_CAPTURE_THREAD_LOCAL = 1,
  CU_EVENT_RECORD_EXTERNAL = 1, /* within a captured stream: a node of the graph that records */
};

/* X(name, symbol in the driver, parameters) */
#define CUDA_CALLS(X)                                                                                                   \
  X(Init, cuInit, (unsigned flags))                                                                                     \
  X(DriverGetVersion, cuDriverGetVersion, (int* version))                                                               \
  X(GetErrorName, cuGetErrorName, (cu_result, const char** name))                                                       \
  X(GetErrorString, cuGetErrorString, (cu_result, const char** text))                                                   \
  X(DeviceGetCount, cuDeviceGetCount, (int* count))                                                                     \
  X(DeviceGet, cuDeviceGet, (cu_device*, int ordinal))                                                                  \
  X(DeviceGetName, cuDeviceGetName, (char* name, int size, cu_device))                                                  \
  X(DeviceGetAttribute, cuDeviceGetAttribute, (int* value, int attribute, cu_device))                                   \
  X(DeviceGetPCIBusId, cuDeviceGetPCIBusId, (char* id, int size, cu_device))                                            \
  X(DevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (cu_context*, cu_device))                                         \
  X(DevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, (cu_device))                                                 \
  X(CtxSetCurrent, cuCtxSetCurrent, (cu_context))                                                                       \
  X(ModuleLoadData, cuModuleLoadData, (cu_module*, const void* image))                                                  \
  X(ModuleUnload, cuModuleUnload, (cu_module))                                                                          \
  X(ModuleGetFunction, cuModuleGetFunction, (cu_function*, cu_module, const char* name))                                \
  X(FuncSetAttribute, cuFuncSetAttribute, (cu_function, int attribute, int value))                                      \
  X(MemGetInfo, cuMemGetInfo_v2, (size_t* free_bytes, size_t* all_bytes))                                               \
  X(MemAlloc, cuMemAlloc_v2, (cu_pointer*, size_t bytes))                                                               \
  X(MemFree, cuMemFree_v2, (cu_pointer))                                                                                \
  X(MemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, (cu_pointer, const void* from, size_t bytes, cu_stream))                     \
  X(MemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, (void* to, cu_pointer, size_t bytes, cu_stream))                             \
  X(StreamCreate, cuStreamCreate, (cu_stream*, unsigned flags))                                                         \
  X(StreamDestroy, cuStreamDestroy_v2, (cu_stream))                                                                     \
  X(StreamSynchronize, cuStreamSynchronize, (cu_stream))                                                                \
  X(StreamBeginCapture, cuStreamBeginCapture_v2, (cu_stream, int mode))                                                 \
  X(StreamEndCapture, cuStreamEndCapture, (cu_stream, cu_graph*))                                                       \
  X(LaunchKernel, cuLaunchKernel,                                                                                       \
    (cu_function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z, \
     unsigned shared_bytes, cu_stream, void** parameters, void** extra))                                                \
  X(GraphInstantiate, cuGraphInstantiateWithFlags, (cu_graph_exec*, cu_graph, unsigned long long flags))                \
  X(GraphLaunch, cuGraphLaunch, (cu_graph_exec, cu_stream))                                                             \
  X(GraphDestroy, cuGraphDestroy, (cu_graph))                                                                           \
  X(GraphExecDestroy, cuGraphExecDestroy, (cu_graph_exec))                                                              \
  X(EventCreate, cuEventCreate, (cu_event*, unsigned flags))                                                            \
  X(EventDestroy, cuEventDestroy_v2, (cu_event))                                                                        \
  X(EventRecordWithFlags, cuEventRecordWithFlags, (cu_event, cu_stream, unsigned flags))                                \
  X(EventElapsedTime, cuEventElapsedTime, (float* milliseconds, cu_event start, cu_event end))

#define CUDA_DECLARE(name, symbol, parameters) cu_result(*name) parameters;
typedef struct {
  CUDA_CALLS(CUDA_DECLARE)
} cuda_t;
#undef CUDA_DECLARE

#endif
