#include "watch.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>

#include "clock.h"
#include "text.h"

namespace {

enum { DONE = 0, FAILED = 3 };

void send(int pipe_end, const std::string& line) {
  for (size_t done = 0; done < line.size();) {
    const ssize_t n = write(pipe_end, line.data() + done, line.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) _exit(FAILED);  // nobody listens any more
    done += static_cast<size_t>(n);
  }
}

[[noreturn]] void child(int pipe_end, Watched* watched, const std::function<void(Watched*, const Report&)>& work) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  int code = DONE;
  try {
    work(watched, [&](const std::string& json) { send(pipe_end, json + "\n"); });
  } catch (const std::exception& error) {
    code = FAILED;
    std::string why = error.what();
    std::replace(why.begin(), why.end(), '\n', ' ');
    send(pipe_end, "!" + why + "\n");
  }
  _exit(code);
}

// Passes whole lines on; what is not JSON is the child's last word.
void take_lines(std::string& pending, std::string& last_word, const Report& receive) {
  for (size_t end; (end = pending.find('\n')) != std::string::npos; pending.erase(0, end + 1)) {
    const std::string line = pending.substr(0, end);
    if (line[0] == '!')
      last_word = line.substr(1);
    else
      receive(line);
  }
}

}  // namespace

Ending watch(double hang_s, const std::function<void(Watched*, const Report&)>& work, const Report& receive) {
  static auto* watched =
      static_cast<Watched*>(mmap(nullptr, sizeof(Watched), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  int ends[2];
  if (watched == MAP_FAILED || pipe(ends) != 0) fail(std::string("cannot start a measuring process: ") + std::strerror(errno));
  watched->kernel = -1;
  const pid_t pid = fork();
  if (pid < 0) fail(std::string("cannot start a measuring process: ") + std::strerror(errno));
  if (pid == 0) {
    close(ends[0]);
    child(ends[1], watched, work);
  }
  close(ends[1]);
  std::string pending, last_word;
  bool hung = false;
  unsigned seen = watched->steps;
  Clock::time_point moved = Clock::now();
  const auto stop = [&] {
    kill(pid, SIGKILL);
    close(ends[0]);
  };
  for (;;) {
    pollfd one{ends[0], POLLIN, 0};
    if (poll(&one, 1, 100) > 0) {
      char block[1 << 16];
      const ssize_t n = read(ends[0], block, sizeof(block));
      if (n == 0) break;
      if (n > 0) pending.append(block, static_cast<size_t>(n));
      try {
        take_lines(pending, last_word, receive);
      } catch (...) {  // the journal cannot be written
        stop();
        waitpid(pid, nullptr, 0);
        throw;
      }
    }
    if (watched->steps != seen) seen = watched->steps, moved = Clock::now();
    if (seconds_since(moved) > hang_s && !hung) {
      hung = true;
      kill(pid, SIGKILL);
    }
  }
  close(ends[0]);
  int status = 0;
  waitpid(pid, &status, 0);
  Ending ending;
  // Killed by somebody else, or by the system for want of memory: no kernel's fault.
  const bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && !hung;
  ending.kernel = killed ? -1 : watched->kernel;
  ending.done = WIFEXITED(status) && WEXITSTATUS(status) == DONE && !hung;
  ending.why = killed ? "the measuring process was killed (is there enough memory?); start ./measure again to go on where it was"
               : hung ? "did not end within " + number(hang_s) + " s"
               : WIFSIGNALED(status) ? std::string("crashed: ") + strsignal(WTERMSIG(status))
               : last_word.empty()   ? "ended with code " + std::to_string(WEXITSTATUS(status))
                                     : last_word;
  return ending;
}
