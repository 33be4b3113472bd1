// Measures kernels on a device: reads job.tsv and the libraries beside this program, keeps a journal there, and writes
// results.json, which `hwprune measure --import` takes. Needs the C library, for a GPU's kernels its driver, and nothing else.
//
//     ./measure [--emulated]
//
// Killed at any moment, it goes on where it was when it is started again.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "device.h"
#include "job.h"
#include "journal.h"
#include "rounds.h"
#include "sha256.h"
#include "text.h"
#include "watch.h"

namespace {

std::string own_folder() {
  char path[4096];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
  const std::string text(path, n > 0 ? static_cast<size_t>(n) : 0);
  const size_t slash = text.rfind('/');
  return slash == std::string::npos ? "." : text.substr(0, slash);
}

// What the journal says is done.
struct Progress {
  std::string device;
  std::vector<double> baseline_us;
  std::set<int> workloads, failed;  // measured; kernels that crash or hang
  size_t unsettled = 0;             // throttled, or at a limit before the interval was narrow and the machine calm

  // What hwprune/measure/estimate.py calls the reference kernel undisturbed: a tenth of the values are lower.
  double undisturbed_us() const {
    std::vector<double> sorted = baseline_us;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 10];
  }

  void take(const std::string& body) {
    int number = 0;
    if (std::sscanf(body.c_str(), "{\"workload\":%d", &number) == 1) {
      workloads.insert(number);
      unsettled +=
          body.find("\"stopped\":\"interval\"") == std::string::npos || body.find("\"throttled\":true") != std::string::npos;
    } else if (std::sscanf(body.c_str(), "{\"kernel\":%d", &number) == 1)
      failed.insert(number);
    else if (body.rfind("{\"baseline_us\":[", 0) == 0)
      for (const std::string& us : split(body.substr(body.find('[') + 1), ','))
        baseline_us.push_back(std::strtod(us.c_str(), nullptr));
    else if (body.rfind("{\"device\":", 0) == 0)
      device = body;
  }
};

class Run {
 public:
  Run(const std::string& folder, bool emulated)
      : folder_(folder), job_(read_job(folder + "/job.tsv")), journal_(folder + "/journal.jsonl", job_.sha256) {
    const std::vector<int> allowed = allowed_cpus();
    if (machine_name() != job_.machine)
      fail("this bundle is for " + job_.machine + ", this machine is " + machine_name() + "; make one for it with --target");
    if (static_cast<int>(allowed.size()) < job_.host_threads())
      fail("this bundle measures on " + std::to_string(job_.threads) + " threads, but only " + std::to_string(allowed.size()) +
           " processors may be used here; make it with --threads " + std::to_string(allowed.size()));
    cpus_ = fastest_cpus(allowed, job_.host_threads());
    check_libraries();
    for (const std::string& body : journal_.bodies()) done_.take(body);
    const std::string device = "{\"device\":" + device_facts(cpus_, emulated, gpu()) + "}";
    if (done_.device.empty())
      keep(device);
    else if (done_.device != device)
      fail(folder_ + "/journal.jsonl was begun on another device or in another way; remove it to begin anew");
  }

  void all() {
    if (done_.baseline_us.empty()) baseline();
    for (size_t library = 1; library < job_.libraries.size(); ++library) batch(static_cast<int>(library));
    write_whole(folder_ + "/results.json", results());
    std::fprintf(
        stderr,
        "measure: %zu workloads measured, %zu of them throttled, disturbed or not within %g %%, %zu schedules failed; take "
        "%s/results.json to `hwprune measure --import`\n",
        done_.workloads.size(), done_.unsettled, 100 * job_.interval, done_.failed.size(), folder_.c_str());
  }

 private:
  void check_libraries() const {
    for (const LibraryFile& library : job_.libraries)
      if (sha256_hex(read_file(folder_ + "/" + library.file)) != library.sha256)
        fail(folder_ + "/" + library.file + " is not what the bundle was made with; copy the bundle again");
  }

  // A JSON object of the GPU, if the job is for one. Found by a process of its own: a driver that was started does not survive
  // the forks to come.
  std::string gpu() const {
    std::string found;
    if (job_.gpu.empty()) return found;
    const Ending ending = watch(
        job_.hang_s, [&](Watched*, const Report& report) { find_gpu(job_, folder_, report); },
        [&](const std::string& body) { found = body; });
    if (!ending.done) fail(ending.why);
    return found;
  }

  void keep(const std::string& body) {
    journal_.append(body);
    done_.take(body);
  }

  void baseline() {
    const Ending ending = watch(
        job_.hang_s, [&](Watched* w, const Report& report) { measure_baseline(job_, folder_, cpus_, w, report); },
        [&](const std::string& body) { keep(body); });
    if (!ending.done) give_up(ending);
  }

  // Until all kernels of a library are measured or known not to run: one that takes the process down is left out.
  void batch(int library) {
    for (std::vector<int> kernels; !(kernels = open_kernels(library)).empty();) {
      const Ending ending = watch(
          job_.hang_s,
          [&](Watched* w, const Report& report) {
            measure_kernels(job_, folder_, cpus_, kernels, done_.undisturbed_us(), w, report);
          },
          [&](const std::string& body) { keep(body); });
      if (ending.done) break;
      if (ending.kernel <= 0) give_up(ending);
      if (done_.failed.count(ending.kernel) == 0)
        keep("{\"kernel\":" + std::to_string(ending.kernel) + ",\"failure\":" + quoted(ending.why) + "}");
    }
    std::fprintf(stderr, "measure: %zu of %d workloads\n", done_.workloads.size(), job_.workloads);
  }

  std::vector<int> open_kernels(int library) const {
    std::vector<int> found;
    for (size_t id = 1; id < job_.kernels.size(); ++id) {
      const Kernel& k = job_.kernels[id];
      if (k.library == library && done_.workloads.count(k.workload) == 0 && done_.failed.count(static_cast<int>(id)) == 0)
        found.push_back(static_cast<int>(id));
    }
    return found;
  }

  [[noreturn]] void give_up(const Ending& ending) const {
    if (ending.kernel < 0) fail(ending.why);
    fail("the reference kernel does not run here (" + ending.why + "): is this " + (job_.gpu.empty() ? "processor" : "GPU") +
         " one of target '" + job_.target + "'?");
  }

  // The job, the device and every line of the journal, and a hash over all that.
  std::string results() const {
    std::string text = "{\"format\":\"hwprune results\",\"schema\":1,\n\"job\":" + quoted(job_.text) + ",\n\"journal\":[\n";
    for (size_t i = 0; i < journal_.lines().size(); ++i) text += (i ? ",\n" : "") + journal_.lines()[i];
    text += "]";
    return text + ",\n\"sha256\":\"" + sha256_hex(text) + "\"}\n";
  }

  std::string folder_;
  Job job_;
  Journal journal_;
  std::vector<int> cpus_;
  Progress done_;
};

}  // namespace

int main(int argc, char** argv) {
  bool emulated = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--emulated") != 0) {
      std::fprintf(
          stderr,
          "usage: ./measure [--emulated]\n  --emulated  this is no real device: its figures must not be taken for one's\n");
      return 2;
    }
    emulated = true;
  }
  signal(SIGXFSZ, SIG_IGN);  // a file over its limit is an error of write, as a full disk is
  try {
    Run(own_folder(), emulated).all();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "measure: %s\n", error.what());
    return 1;
  }
}
