/* Starts a program on a board behind TVM's RPC server: a module whose function `hwprune_start` takes the path of the
 * program, the agent beside its job and libraries or the probe, and the program's arguments, and returns its exit code;
 * what it prints goes to printed.txt there, and what it says on stderr to said.txt.
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

enum { CANNOT_START = 127, LONGEST = 4096, MOST_ARGUMENTS = 8 };

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

static int into(const char* file, int descriptor) {
  const int opened = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  return opened >= 0 && dup2(opened, descriptor) >= 0;
}

static void run(char* const* command, const char* folder) {
  prctl(PR_SET_PDEATHSIG, SIGKILL); /* nobody asks for the results of a session that is cut */
  if (chdir(folder) != 0 || !into("printed.txt", 1) || !into("said.txt", 2)) _exit(CANNOT_START);
  execv(command[0], command);
  _exit(CANNOT_START);
}

__attribute__((visibility("default"))) int32_t __tvm_ffi_hwprune_start(void* self, const TVMFFIAny* args, int32_t count,
                                                                       TVMFFIAny* result) {
  (void)self;
  static char texts[MOST_ARGUMENTS][LONGEST], folder[LONGEST]; /* the server runs one function at a time */
  char* command[MOST_ARGUMENTS + 1] = {NULL};
  int status = CANNOT_START << 8, known = count >= 1 && count <= MOST_ARGUMENTS;
  for (int32_t i = 0; known && i < count; ++i) {
    known = text_of(&args[i], texts[i]);
    command[i] = texts[i];
  }
  if (known && strrchr(texts[0], '/') != NULL) {
    strcpy(folder, texts[0]);
    *strrchr(folder, '/') = 0;
    chmod(texts[0], 0755);
    const pid_t pid = fork();
    if (pid == 0) run(command, folder);
    if (pid > 0) waitpid(pid, &status, 0);
  }
  result->type_index = kTVMFFIInt;
  result->v_int64 = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return 0;
}
