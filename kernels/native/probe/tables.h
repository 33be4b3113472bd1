/* Tables of a network of kernels that do nothing, for ../program.c: what is left is what a kernel and a call cost.
 * Each kernel has data, weights and a result of rank 4, as a convolution has. */
extern int32_t __tvm_ffi_nothing(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
enum { STEP_COUNT = 64, ALONE = 0, MOST_ARGUMENTS = 3 };
#define FACTS 2, 0, 0, 64, 64, STEP_COUNT, 1
#define FOUR(...) __VA_ARGS__, __VA_ARGS__, __VA_ARGS__, __VA_ARGS__
static const kernel_t KERNELS[] = {__tvm_ffi_nothing};
static const int64_t SHAPES[] = {1, 1, 1, 16};
static const argument_t ARGUMENTS[] = {{WORKSPACE, 4, 0, 0, 0}, {WEIGHTS, 4, 0, 0, 0}, {WORKSPACE, 4, 0, 0, 0}};
#define STEP {0, 0, 3}
static const step_t STEPS[] = {FOUR(FOUR(FOUR(STEP)))};
