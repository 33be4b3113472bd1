#include "rounds.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "clock.h"
#include "device.h"
#include "energy.h"
#include "library.h"
#include "text.h"

namespace {

// One kernel, and how often it runs in a burst.
struct Contender {
  int id;
  const Kernel* kernel;
  Library* library;
  Watched* watched;
  double run_us = 0;

  double time(int64_t runs, bool again = false) const {
    watched->kernel = id;
    watched->steps = watched->steps + 1;
    return library->time_us(kernel->step, kernel->constants_bytes, runs, again);
  }
  void warm_up() {
    time(2);  // first touch of code and data
    run_us = time(3);
  }
  double burst(double burst_us) const {
    return time(std::max<int64_t>(1, static_cast<int64_t>(burst_us / std::max(run_us, 0.1))));
  }
};

Contender contender(const Job& job, int id, Library& library, Watched* watched) {
  Contender made{id, &job.kernels[static_cast<size_t>(id)], &library, watched};
  made.warm_up();
  return made;
}

double lower_quartile(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return samples[(samples.size() + 3) / 4 - 1];
}

// A GPU at rest has lowered its clocks; they are up again after this long.
constexpr double kWakingSeconds = 0.3;

struct Reference {
  Library library;
  Contender timer;
  Gpu gpu;

  Reference(const Job& job, const std::string& folder, const std::vector<int>& cpus, Watched* watched)
      : library(folder + "/" + job.libraries[0].file, job.host_threads(), 0),
        timer{0, &job.kernels[0], &library, watched},
        gpu(job.gpu.empty() ? "" : library.device().back()) {
    keep_to(cpus);
    timer.warm_up();
    // By now the pool's workers are bound to other processors than this thread's; it stays where it is, too. Where it was
    // moved meanwhile, the pool gives way when the next kernel runs.
    if (static_cast<int>(cpus.size()) >= job.host_threads()) keep_to({sched_getcpu()});
    timer.warm_up();
    const Clock::time_point start = Clock::now();
    while (!job.gpu.empty() && seconds_since(start) < kWakingSeconds) timer.burst(job.burst_us);
  }
};

struct Group {
  int workload;
  std::vector<Contender> contenders;
  std::vector<std::vector<double>> samples;  // of each contender
  std::string screened;                      // members of a JSON object: those left out, with their best burst

  // The contender whose lower quartile is the lowest, and the width of that one's interval: the others need no exact figure.
  size_t fastest() const {
    size_t best = 0;
    for (size_t i = 1; i < samples.size(); ++i)
      if (lower_quartile(samples[i]) < lower_quartile(samples[best])) best = i;
    return best;
  }
  double interval() const { return relative_interval(samples[fastest()]); }
};

// Long beside what lies between two bursts, short beside what a counter of energy takes to move.
constexpr double kEnergyBurstUs = 1e4;

// Leaves the fastest few of each group, by a few short bursts.
void screen(const Job& job, std::vector<Group>& groups) {
  for (Group& g : groups) {
    const size_t most = static_cast<size_t>(job.finalists);
    if (g.contenders.size() <= most) continue;
    std::vector<std::pair<double, size_t>> best;
    for (size_t i = 0; i < g.contenders.size(); ++i) best.emplace_back(g.contenders[i].burst(job.burst_us / 2), i);
    for (int round = 1; round < job.screen_rounds; ++round)
      for (auto& [us, i] : best) us = std::min(us, g.contenders[i].burst(job.burst_us / 2));
    std::sort(best.begin(), best.end());
    std::vector<Contender> kept;
    for (size_t rank = 0; rank < best.size(); ++rank) {
      const Contender& c = g.contenders[best[rank].second];
      if (rank < most)
        kept.push_back(c);
      else
        g.screened += (g.screened.empty() ? "" : ",") + quoted(std::to_string(c.id)) + ":" + number(best[rank].first);
    }
    g.contenders = kept;
  }
}

// Microjoules of one run of the fastest contender, and of what; empty where the device does not tell.
std::string energy(const Group& g, const EnergyMeter& meter) {
  const Contender& c = g.contenders[g.fastest()];
  const auto runs = std::max<int64_t>(1, static_cast<int64_t>(kEnergyBurstUs / std::max(c.run_us, 0.1)));
  const std::optional<double> used = meter.per_run_uj([&] {
    c.time(runs, true);
    return runs;
  });
  if (!used) return {};
  return ",\"energy\":{\"kernel\":" + std::to_string(c.id) + ",\"energy_uj\":" + number(*used) + ",\"of\":" + quoted(meter.of()) + "}";
}

std::string record(const Group& g, const std::vector<double>& reference, double interval, const char* stopped,
                   const Condition& before, const std::vector<int>& cpus, const Gpu& gpu, const EnergyMeter& meter) {
  std::string kernels;
  for (size_t i = 0; i < g.contenders.size(); ++i)
    kernels += std::string(i ? "," : "") + "{\"kernel\":" + std::to_string(g.contenders[i].id) +
               ",\"samples_us\":" + numbers(g.samples[i]) + "}";
  const Condition after = condition(cpus, gpu);
  return "{\"workload\":" + std::to_string(g.workload) + ",\"kernels\":[" + kernels + "],\"reference_us\":" + numbers(reference) +
         ",\"screened_us\":{" + g.screened + "},\"interval\":" + number(interval) + ",\"stopped\":\"" + stopped +
         "\",\"before\":" + before.json() + ",\"after\":" + after.json() +
         ",\"throttled\":" + (throttled(before, after) ? "true" : "false") + energy(g, meter) + "}";
}

}  // namespace

double relative_interval(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const double n = static_cast<double>(samples.size()), middle = 0.25 * n, half = 1.96 * std::sqrt(n * 0.25 * 0.75);
  const auto at = [&](double rank) { return samples[static_cast<size_t>(std::min(std::max(rank, 1.0), n)) - 1]; };
  return (at(std::ceil(middle + half)) - at(std::floor(middle - half))) / at(std::ceil(middle));
}

void find_gpu(const Job& job, const std::string& folder, const Report& report) {
  const std::vector<std::string> d = Library(folder + "/" + job.libraries[0].file, 1, 0).device();
  report("{\"name\":" + quoted(d[0]) + ",\"capability\":" + quoted(d[1]) + ",\"multiprocessors\":" + d[2] +
         ",\"driver_cuda\":" + quoted(d[3]) + "}");
}

void measure_baseline(const Job& job, const std::string& folder, const std::vector<int>& cpus, Watched* watched,
                      const Report& report) {
  const Reference reference(job, folder, cpus, watched);
  std::vector<double> values;
  for (int r = 0; r < job.baseline_rounds; ++r) {
    values.push_back(reference.timer.burst(job.burst_us));
    usleep(static_cast<useconds_t>(job.pause_us));
  }
  report("{\"baseline_us\":" + numbers(values) + "}");
}

void measure_kernels(const Job& job, const std::string& folder, const std::vector<int>& cpus, const std::vector<int>& kernels,
                     double baseline_us, Watched* watched, const Report& report) {
  const Reference reference(job, folder, cpus, watched);
  watched->kernel = -1;
  const int number_of_library = job.kernels[static_cast<size_t>(kernels[0])].library;
  Library library(folder + "/" + job.libraries[static_cast<size_t>(number_of_library)].file, job.host_threads(), job.spread_bytes);
  std::map<int, Group> by_workload;
  for (const int id : kernels) {
    Group& g = by_workload[job.kernels[static_cast<size_t>(id)].workload];
    g.workload = job.kernels[static_cast<size_t>(id)].workload;
    g.contenders.push_back(contender(job, id, library, watched));
  }
  std::vector<Group> groups;
  for (auto& [_, g] : by_workload) groups.push_back(std::move(g));
  screen(job, groups);
  for (Group& g : groups) g.samples.resize(g.contenders.size());
  const EnergyMeter meter(job.gpu.empty() ? nullptr : &reference.gpu);
  const Condition before = condition(cpus, reference.gpu);
  const Clock::time_point start = Clock::now();
  std::vector<double> drift;
  for (int round = 1; !groups.empty(); ++round) {
    drift.push_back(reference.timer.burst(job.burst_us));
    for (Group& g : groups)
      for (size_t i = 0; i < g.contenders.size(); ++i) g.samples[i].push_back(g.contenders[i].burst(job.burst_us));
    const bool late = seconds_since(start) > job.batch_s;
    if (round >= job.min_rounds || (late && round >= 3)) {
      const double drift_interval = relative_interval(drift);
      const bool calm = lower_quartile(drift) <= job.calm * baseline_us;
      for (auto g = groups.begin(); g != groups.end();) {
        const double width = g->interval(), interval = std::sqrt(width * width + drift_interval * drift_interval);
        const char* stopped = calm && interval <= job.interval ? "interval"
                              : round >= job.max_rounds        ? "rounds"
                              : late                           ? "time"
                                                               : nullptr;
        if (stopped != nullptr) report(record(*g, drift, interval, stopped, before, cpus, reference.gpu, meter));
        g = stopped != nullptr ? groups.erase(g) : g + 1;
      }
    }
    usleep(static_cast<useconds_t>(job.pause_us));
  }
}
