#include "job.h"

#include <cstdlib>
#include <map>

#include "sha256.h"
#include "text.h"

namespace {

constexpr const char* kFirstLine = "hwprune-job\t1";  // hwprune/measure/job.py: SCHEMA_VERSION

class Fields {
 public:
  Fields(const std::string& path, const std::string& line) : path_(path), parts_(split(line, '\t')) {}
  const std::string& name() const { return parts_[0]; }
  const std::string& text(size_t i) const {
    if (i >= parts_.size()) fail(path_ + " is damaged: its line `" + parts_[0] + "` is cut short; copy the bundle again");
    return parts_[i];
  }
  double real(size_t i) const {
    char* end = nullptr;
    const double value = std::strtod(text(i).c_str(), &end);
    if (*end != '\0' || end == text(i).c_str())
      fail(path_ + " is damaged: `" + text(i) + "` is no number; copy the bundle again");
    return value;
  }
  int64_t whole(size_t i) const { return static_cast<int64_t>(real(i)); }
  int small(size_t i) const { return static_cast<int>(real(i)); }

 private:
  const std::string& path_;
  std::vector<std::string> parts_;
};

void check(const Job& job, const std::string& path) {
  const auto whole = [&](bool holds, const char* what) {
    if (!holds) fail(path + " does not hold together (" + what + "); make the bundle again");
  };
  whole(!job.libraries.empty() && !job.kernels.empty() && job.kernels[0].workload < 0, "no reference kernel");
  whole(job.threads > 0 && job.finalists > 0 && job.min_rounds > 0 && job.max_rounds >= job.min_rounds, "limits");
  std::map<int, int> library_of;
  for (size_t i = 1; i < job.kernels.size(); ++i) {
    const Kernel& k = job.kernels[i];
    whole(k.workload >= 0 && k.workload < job.workloads, "kernel of no workload");
    whole(k.library > 0 && static_cast<size_t>(k.library) < job.libraries.size(), "kernel of no library");
    whole(k.step >= 0 && k.constants_bytes >= 0, "kernel's place");
    whole(library_of.emplace(k.workload, k.library).first->second == k.library, "workload in two libraries");
  }
}

}  // namespace

Job read_job(const std::string& path) {
  Job job;
  job.text = read_file(path);
  job.sha256 = sha256_hex(job.text);
  const std::vector<std::string> lines = split(job.text, '\n');
  if (lines[0] != kFirstLine) fail(path + " is no job of this agent's version; make the bundle again");
  if (lines.size() < 2 || lines[lines.size() - 2] != "end") fail(path + " is cut short; copy the bundle again");
  const std::map<std::string, int*> counts = {
      {"threads", &job.threads},       {"finalists", &job.finalists},   {"screen_rounds", &job.screen_rounds},
      {"min_rounds", &job.min_rounds}, {"max_rounds", &job.max_rounds}, {"baseline_rounds", &job.baseline_rounds}};
  const std::map<std::string, double*> figures = {{"interval", &job.interval}, {"calm", &job.calm},
                                                  {"burst_us", &job.burst_us}, {"pause_us", &job.pause_us},
                                                  {"batch_s", &job.batch_s},   {"hang_s", &job.hang_s}};
  for (const std::string& line : lines) {
    const Fields f(path, line);
    if (const auto count = counts.find(f.name()); count != counts.end())
      *count->second = f.small(1);
    else if (const auto figure = figures.find(f.name()); figure != figures.end())
      *figure->second = f.real(1);
    else if (f.name() == "target")
      job.target = f.text(1);
    else if (f.name() == "machine")
      job.machine = f.text(1);
    else if (f.name() == "gpu")
      job.gpu = f.text(1);
    else if (f.name() == "spread_bytes")
      job.spread_bytes = f.whole(1);
    else if (f.name() == "library")
      job.libraries.push_back({f.text(1), f.text(2)});
    else if (f.name() == "workload")
      ++job.workloads;
    else if (f.name() == "reference" || f.name() == "kernel")
      job.kernels.push_back({f.small(1), f.small(2), f.small(3), f.whole(4)});
  }
  check(job, path);
  return job;
}
