/* See pool.h.
 *
 * Between the kernels of a network a worker spins; a while after the last one it sleeps on a futex. Workers are bound to
 * processors of their own, away from the caller's: where caller and worker share one, every kernel takes nearly twice as
 * long, and the system's scheduler leaves them there. HWPRUNE_BIND=0 turns binding off.
 */
#define _GNU_SOURCE
#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MOST_THREADS = 255, MOST_BLOCKS = 8, LINES = 128, PAGE = 4096 }; /* LINES: hwprune/library.py: ALIGNMENT */
static const int64_t SPIN_NS = 1000000; /* longer than the pause between two runs of a busy program */

static struct {
  pthread_mutex_t owner; /* held by the thread that is launching */
  int started;           /* workers that exist */
  int threads;           /* threads in use, the caller's included */
  int bound;
  int cpu[MOST_THREADS]; /* of each thread; [0] is the caller's */
  pthread_t worker[MOST_THREADS];
  hwprune_task_t task;
  void* data;
  hwprune_group_t group;
  /* Count of launches * 256 + threads that take part. Workers wait for it to move, and take both from one reading. */
  _Alignas(LINES) atomic_uint epoch;
  _Alignas(LINES) atomic_int pending;
  _Alignas(LINES) atomic_int sleepers;
  atomic_int failed;
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER, .threads = 1};

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void wait_for_launch(unsigned seen) {
  const int64_t until = now_ns() + SPIN_NS;
  for (int i = 1; atomic_load_explicit(&pool.epoch, memory_order_acquire) == seen; ++i) {
    relax();
    if (i % 64 == 0 && now_ns() > until) {
      atomic_fetch_add(&pool.sleepers, 1);
      while (atomic_load(&pool.epoch) == seen) syscall(SYS_futex, &pool.epoch, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
      atomic_fetch_sub(&pool.sleepers, 1);
    }
  }
}

/* Tasks index, index + threads, ... of the current launch. */
static void run_tasks(int index, int threads) {
  for (int t = index; t < pool.group.num_task; t += threads)
    if (pool.task(t, &pool.group, pool.data) != 0) atomic_store(&pool.failed, 1);
}

static void* work(void* argument) {
  const int index = (int)(intptr_t)argument;
  unsigned seen = 0;
  for (;;) {
    wait_for_launch(seen);
    seen = atomic_load_explicit(&pool.epoch, memory_order_acquire);
    const int threads = (int)(seen % 256);
    if (index >= threads) continue; /* not in use now: the launch does not wait for it */
    run_tasks(index, threads);
    atomic_fetch_sub_explicit(&pool.pending, 1, memory_order_release);
  }
  return NULL;
}

static void bind(int index) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(pool.cpu[index], &set);
  pthread_setaffinity_np(pool.worker[index], sizeof(set), &set);
}

/* A processor for every thread, if there are enough; the caller keeps the one it is on. */
static void choose_cpus(int threads) {
  cpu_set_t allowed;
  const char* asked = getenv("HWPRUNE_BIND");
  pool.bound = !(asked && atoi(asked) == 0) && sched_getaffinity(0, sizeof(allowed), &allowed) == 0 && CPU_COUNT(&allowed) >= threads;
  if (!pool.bound) return;
  pool.cpu[0] = sched_getcpu();
  int next = 1;
  for (int c = 0; c < CPU_SETSIZE && next < threads; ++c)
    if (CPU_ISSET(c, &allowed) && c != pool.cpu[0]) pool.cpu[next++] = c;
  for (int i = 1; i < threads; ++i) bind(i);
}

/* A forked child has none of its parent's workers. */
static void forget(void) {
  pthread_mutex_init(&pool.owner, NULL);
  pool.started = 0;
  pool.threads = 1;
  atomic_store(&pool.epoch, 0);
  atomic_store(&pool.sleepers, 0);
}

static int grow(int threads) {
  static int watching = 0;
  if (!watching) {
    pthread_atfork(NULL, NULL, forget);
    watching = 1;
  }
  for (int i = pool.started + 1; i < threads; ++i) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    const int status = pthread_create(&pool.worker[i], &attributes, work, (void*)(intptr_t)i);
    pthread_attr_destroy(&attributes);
    if (status != 0) return -1;
    pool.started = i;
  }
  return 0;
}

int hwprune_pool_v1_enter(int threads) {
  if (threads < 1) threads = 1;
  if (threads > MOST_THREADS) threads = MOST_THREADS;
  if (pthread_mutex_trylock(&pool.owner) != 0) return 0; /* another thread is running a network: its pool stays as it is */
  int status = 0;
  if (threads != pool.threads || pool.started + 1 < threads) {
    status = grow(threads);
    if (status == 0) {
      pool.threads = threads;
      choose_cpus(threads);
    }
  } else if (pool.bound) {
    const int here = sched_getcpu();
    for (int i = 1; here != pool.cpu[0] && i < threads; ++i)
      if (pool.cpu[i] == here) {
        pool.cpu[i] = pool.cpu[0];
        pool.cpu[0] = here;
        bind(i);
      }
  }
  pthread_mutex_unlock(&pool.owner);
  return status;
}

int hwprune_pool_v1_launch(hwprune_task_t task, void* data, int count) {
  const int threads = pool.threads;
  if (threads == 1 || count == 1 || pthread_mutex_trylock(&pool.owner) != 0) { /* busy: the caller does it all */
    hwprune_group_t alone = {NULL, count > 0 ? count : threads};
    int failed = 0;
    for (int t = 0; t < alone.num_task; ++t) failed |= task(t, &alone, data);
    return failed;
  }
  pool.task = task;
  pool.data = data;
  pool.group.num_task = count > 0 ? count : threads;
  atomic_store_explicit(&pool.failed, 0, memory_order_relaxed);
  atomic_store_explicit(&pool.pending, threads - 1, memory_order_relaxed);
  atomic_store(&pool.epoch, (atomic_load_explicit(&pool.epoch, memory_order_relaxed) / 256 + 1) * 256 + (unsigned)threads);
  if (atomic_load(&pool.sleepers) > 0) syscall(SYS_futex, &pool.epoch, FUTEX_WAKE_PRIVATE, MOST_THREADS, NULL, NULL, 0);
  run_tasks(0, threads);
  for (int i = 1; atomic_load_explicit(&pool.pending, memory_order_acquire) != 0; ++i) {
    relax();
    if (i % 4096 == 0) sched_yield(); /* more threads than processors: let the worker run */
  }
  const int failed = atomic_load_explicit(&pool.failed, memory_order_relaxed);
  pthread_mutex_unlock(&pool.owner);
  return failed ? -1 : 0;
}

/* Blocks are kept and reused: kernels take the same few sizes over and over. */
typedef struct {
  void* memory;
  uint64_t bytes;
  int taken;
} block_t;
static _Thread_local block_t blocks[MOST_BLOCKS];

void* hwprune_pool_v1_alloc(int device_type, int device_id, uint64_t bytes, int type_code, int type_bits) {
  (void)device_type, (void)device_id, (void)type_code, (void)type_bits;
  block_t* spare = NULL;
  for (int i = 0; i < MOST_BLOCKS; ++i) {
    block_t* b = &blocks[i];
    if (b->taken) continue;
    if (b->bytes >= bytes) {
      b->taken = 1;
      return b->memory;
    }
    if (spare == NULL || b->bytes < spare->bytes) spare = b;
  }
  const uint64_t rounded = (bytes + PAGE - 1) / PAGE * PAGE;
  if (spare == NULL) return aligned_alloc(PAGE, rounded); /* deeper than any kernel nests: not kept */
  free(spare->memory);
  spare->memory = aligned_alloc(PAGE, rounded);
  spare->bytes = spare->memory ? rounded : 0;
  spare->taken = spare->memory != NULL;
  return spare->memory;
}

int hwprune_pool_v1_free(int device_type, int device_id, void* memory) {
  (void)device_type, (void)device_id;
  for (int i = 0; i < MOST_BLOCKS; ++i)
    if (blocks[i].memory == memory) {
      blocks[i].taken = 0;
      return 0;
    }
  free(memory);
  return 0;
}
