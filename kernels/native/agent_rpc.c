/* Starts the agent on a board behind TVM's RPC server: a module whose function `hwprune_agent` takes the path of the
 * agent, which lies beside its job and libraries, and returns its exit code; what it says goes to measure.log there.
 *
 * The agent runs as a program of its own and not within the server, so that it is the same program, with the same
 * threads and the same protection against kernels that crash, whichever way a device is reached.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

enum { CANNOT_START = 127, LONGEST = 4096 };

/* Copies a string argument with its end; 0 if it is none, or too long. */
static int text_of(const TVMFFIAny* value, char* out) {
  const char* text = NULL;
  size_t size = 0;
  if (value->type_index == kTVMFFIRawStr) {
    text = value->v_c_str, size = strlen(text);
  } else if (value->type_index == kTVMFFISmallStr) {
    text = value->v_bytes, size = value->small_str_len;
  } else if (value->type_index == kTVMFFIStr) {
    const TVMFFIByteArray* bytes = (const TVMFFIByteArray*)((const char*)value->v_obj + sizeof(TVMFFIObject));
    text = bytes->data, size = bytes->size;
  }
  if (text == NULL || size >= LONGEST) return 0;
  memcpy(out, text, size);
  out[size] = 0;
  return 1;
}

static void run(char* program, const char* folder) {
  prctl(PR_SET_PDEATHSIG, SIGKILL); /* nobody asks for the results of a session that is cut */
  if (chdir(folder) != 0) _exit(CANNOT_START);
  const int log = open("measure.log", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (log < 0 || dup2(log, 2) < 0) _exit(CANNOT_START);
  char* arguments[] = {program, NULL};
  execv(program, arguments);
  _exit(CANNOT_START);
}

__attribute__((visibility("default"))) int32_t __tvm_ffi_hwprune_agent(void* self, const TVMFFIAny* args, int32_t count,
                                                                       TVMFFIAny* result) {
  (void)self;
  char program[LONGEST], folder[LONGEST];
  int status = CANNOT_START << 8;
  if (count == 1 && text_of(&args[0], program) && strrchr(program, '/') != NULL) {
    strcpy(folder, program);
    *strrchr(folder, '/') = 0;
    chmod(program, 0755);
    const pid_t pid = fork();
    if (pid == 0) run(program, folder);
    if (pid > 0) waitpid(pid, &status, 0);
  }
  result->type_index = kTVMFFIInt;
  result->v_int64 = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return 0;
}
