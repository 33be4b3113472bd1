// Loops of the probe, in assembly: a compiler would take apart, merge or hoist what is to be timed.
//
// One program serves every machine of its architecture: it looks at run time for the instruction sets that are there.
#ifndef HWPRUNE_PROBE_LOOPS_H
#define HWPRUNE_PROBE_LOOPS_H

#include <cstdint>

struct Isa {
  const char* name;
  int vector_bits;
  bool (*here)();
  int fmas;                                                         // multiply-adds of one iteration of `independent`
  void (*independent)(int64_t iterations);                          // each accumulator its own chain
  void (*chain)(int64_t iterations);                                // kChained multiply-adds, each waits for the last one's sum
  void (*read)(const char* from, int64_t blocks);                   // whole vectors; blocks of kBlock bytes
  void (*copy)(char* to, const char* from, int64_t blocks);
};

constexpr int kBlock = 512;   // bytes
constexpr int kChained = 8;

#define R4(X, a) X(a##0) X(a##1) X(a##2) X(a##3)
#define R8(X, a) R4(X, a) X(a##4) X(a##5) X(a##6) X(a##7)

#if defined(__x86_64__)

constexpr const char* kArchitecture = "x86_64";

// 12 accumulators of 16 registers hide a latency of 6 cycles at two starts a cycle.
#define ACCUMULATORS(X) R8(X, ) X(8) X(9) X(10) X(11)
#define CLOBBERED "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
                  "xmm14", "xmm15", "cc", "memory"

// Factors are normal numbers, and sums stay so: a processor may be slow, or suspiciously fast, on others.
alignas(64) static const float kFactors[32] = {
    1.5f, 1.5f, 1.5f, 1.5f, 1.5f, 1.5f, 1.5f, 1.5f, 1.5f, 1.5f, 1.5f, 1.5f, 1.5f, 1.5f, 1.5f, 1.5f,
    1e-3f, 1e-3f, 1e-3f, 1e-3f, 1e-3f, 1e-3f, 1e-3f, 1e-3f, 1e-3f, 1e-3f, 1e-3f, 1e-3f, 1e-3f, 1e-3f, 1e-3f, 1e-3f};

#define LOAD_FACTORS(R) "vmovaps (%1), %%" R "14\n vmovaps 64(%1), %%" R "15\n"
#define CLEAR_YMM(n) "vmovaps %%ymm14, %%ymm" #n "\n"
#define CLEAR_ZMM(n) "vmovaps %%zmm14, %%zmm" #n "\n"
#define FMA_YMM(n) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #n "\n"
#define FMA_ZMM(n) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" #n "\n"
#define CHAIN_YMM(n) "vfmadd231ps %%ymm14, %%ymm15, %%ymm0\n"
#define CHAIN_ZMM(n) "vfmadd231ps %%zmm14, %%zmm15, %%zmm0\n"

#define DEFINE_FMA(name, R, CLEAR, BODY)                                                                          \
  static void name(int64_t iterations) {                                                                          \
    __asm__ volatile(LOAD_FACTORS(R) ACCUMULATORS(CLEAR) ".p2align 5\n 1:\n" BODY "dec %0\n jnz 1b\n vzeroupper\n" \
                     : "+r"(iterations) : "r"(kFactors) : CLOBBERED);                                              \
  }
DEFINE_FMA(independent_avx2, "ymm", CLEAR_YMM, ACCUMULATORS(FMA_YMM) ACCUMULATORS(FMA_YMM))
DEFINE_FMA(independent_avx512, "zmm", CLEAR_ZMM, ACCUMULATORS(FMA_ZMM) ACCUMULATORS(FMA_ZMM))
DEFINE_FMA(chain_avx2, "ymm", CLEAR_YMM, R8(CHAIN_YMM, ))
DEFINE_FMA(chain_avx512, "zmm", CLEAR_ZMM, R8(CHAIN_ZMM, ))

#define LOAD32(n) "vmovaps " #n "*32(%[from]), %%ymm" #n "\n"
#define LOAD64(n) "vmovaps " #n "*64(%[from]), %%zmm" #n "\n"
#define STORE32(n) "vmovaps %%ymm" #n ", " #n "*32(%[to])\n"
#define STORE64(n) "vmovaps %%zmm" #n ", " #n "*64(%[to])\n"
#define SIXTEEN(X) R8(X, ) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

#define DEFINE_MEMORY(isa, VECTORS, LOAD, STORE)                                                                           \
  static void read_##isa(const char* from, int64_t blocks) {                                                              \
    __asm__ volatile(".p2align 5\n 1:\n" VECTORS(LOAD) "add $512, %[from]\n dec %[blocks]\n jnz 1b\n vzeroupper\n"         \
                     : [from] "+r"(from), [blocks] "+r"(blocks) : : CLOBBERED);                                            \
  }                                                                                                                       \
  static void copy_##isa(char* to, const char* from, int64_t blocks) {                                                    \
    __asm__ volatile(".p2align 5\n 1:\n" VECTORS(LOAD) VECTORS(STORE)                                                      \
                     "add $512, %[from]\n add $512, %[to]\n dec %[blocks]\n jnz 1b\n vzeroupper\n"                         \
                     : [to] "+r"(to), [from] "+r"(from), [blocks] "+r"(blocks) : : CLOBBERED);                             \
  }
#define EIGHT(X) R8(X, )
DEFINE_MEMORY(avx2, SIXTEEN, LOAD32, STORE32)
DEFINE_MEMORY(avx512, EIGHT, LOAD64, STORE64)

static bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static bool has_avx512() { return __builtin_cpu_supports("avx512f"); }

static const Isa kIsas[] = {
    {"avx512f", 512, has_avx512, 24, independent_avx512, chain_avx512, read_avx512, copy_avx512},
    {"avx2", 256, has_avx2, 24, independent_avx2, chain_avx2, read_avx2, copy_avx2},
};

// One add a cycle, each waiting for the last. Registers on both sides: some processors do adds of constants ahead of time.
#define ADD(n) "add %1, %0\n"
static void add_chain(int64_t iterations) {
  int64_t sum = 0, one = 1;
  __asm__ volatile(".p2align 5\n 1:\n" R8(ADD, ) R8(ADD, ) R8(ADD, ) R8(ADD, ) "dec %2\n jnz 1b\n"
                   : "+r"(sum), "+r"(one), "+r"(iterations) : : "cc");
}

#elif defined(__aarch64__)

constexpr const char* kArchitecture = "aarch64";

#define ACCUMULATORS(X) R8(X, ) X(8) X(9) R8(X, 1) X(18) X(19) X(20) X(21) X(22) X(23)
#define CLOBBERED "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", \
                  "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "cc", "memory"
#define FACTORS "fmov v24.4s, #1.5\n fmov v25.4s, #0.125\n"
#define CLEAR(n) "mov v" #n ".16b, v24.16b\n"
#define FMA(n) "fmla v" #n ".4s, v24.4s, v25.4s\n"
#define CHAIN(n) "fmla v0.4s, v24.4s, v25.4s\n"

#define DEFINE_FMA(name, BODY)                                                                                  \
  static void name(int64_t iterations) {                                                                        \
    __asm__ volatile(FACTORS ACCUMULATORS(CLEAR) ".p2align 4\n 1:\n" BODY "subs %0, %0, #1\n b.ne 1b\n"           \
                     : "+r"(iterations) : : CLOBBERED);                                                          \
  }
DEFINE_FMA(independent_neon, ACCUMULATORS(FMA))
DEFINE_FMA(chain_neon, R8(CHAIN, ))

#define LOAD(n) "ldp q0, q1, [%[from], #" #n "*32]\n"
#define COPY(n) "ldp q0, q1, [%[from], #" #n "*32]\n stp q0, q1, [%[to], #" #n "*32]\n"
#define SIXTEEN(X) R8(X, ) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
static void read_neon(const char* from, int64_t blocks) {
  __asm__ volatile(".p2align 4\n 1:\n" SIXTEEN(LOAD) "add %[from], %[from], #512\n subs %[blocks], %[blocks], #1\n b.ne 1b\n"
                   : [from] "+r"(from), [blocks] "+r"(blocks) : : CLOBBERED);
}
static void copy_neon(char* to, const char* from, int64_t blocks) {
  __asm__ volatile(".p2align 4\n 1:\n" SIXTEEN(COPY)
                   "add %[from], %[from], #512\n add %[to], %[to], #512\n subs %[blocks], %[blocks], #1\n b.ne 1b\n"
                   : [to] "+r"(to), [from] "+r"(from), [blocks] "+r"(blocks) : : CLOBBERED);
}

static bool always() { return true; }
static const Isa kIsas[] = {{"neon", 128, always, 24, independent_neon, chain_neon, read_neon, copy_neon}};

#define ADD(n) "add %0, %0, %1\n"
static void add_chain(int64_t iterations) {
  int64_t sum = 0, one = 1;
  __asm__ volatile(".p2align 4\n 1:\n" R8(ADD, ) R8(ADD, ) R8(ADD, ) R8(ADD, ) "subs %2, %2, #1\n b.ne 1b\n"
                   : "+r"(sum), "+r"(one), "+r"(iterations) : : "cc");
}

#else
#error "the probe knows x86-64 and AArch64"
#endif

constexpr int kAdds = 32;  // of one iteration of add_chain

#endif
