/* Thread pool of artifacts: fork and join of the parallel loops that TVM's code generator emits.
 *
 * It is linked into every artifact, so that an artifact needs no runtime library. Several artifacts in one process share
 * the first one's pool: these functions are the only ones that a library shares with others, hence the version in their
 * names.
 */
#ifndef HWPRUNE_POOL_H
#define HWPRUNE_POOL_H

#include <stdint.h>

/* As TVM's c_backend_api.h declares them (TVMParallelGroupEnv, FTVMParallelLambda). */
typedef struct {
  void* sync_handle;
  int32_t num_task;
} hwprune_group_t;
typedef int (*hwprune_task_t)(int task, hwprune_group_t* group, void* data);

/* Work on `threads` threads from now on, the caller's among them. Called before each run of a network: it also moves a
 * worker away from the processor on which the caller happens to be. Returns 0, or -1 if a thread cannot be started. */
int hwprune_pool_v1_enter(int threads);

/* Run `task` for 0 .. n-1 and wait for all; n is `count`, or the pool's threads if that is 0. Nonzero if one fails. */
int hwprune_pool_v1_launch(hwprune_task_t task, void* data, int count);

/* Scratch memory of a kernel, freed in reverse order of its taking, each thread its own. */
void* hwprune_pool_v1_alloc(int device_type, int device_id, uint64_t bytes, int type_code, int type_bits);
int hwprune_pool_v1_free(int device_type, int device_id, void* memory);

#endif
