// Timing the kernels of one library: in rounds, the reference kernel in each.
#ifndef HWPRUNE_AGENT_ROUNDS_H
#define HWPRUNE_AGENT_ROUNDS_H

#include <functional>
#include <string>
#include <vector>

#include "job.h"

// What a measuring process tells the one that watches it, in memory that both see.
struct Watched {
  volatile int kernel;      // at work; 0 is the reference, -1 none
  volatile unsigned steps;  // moves as long as it gets on
};

using Report = std::function<void(const std::string& json)>;

// Width of the 95 % interval of the lower quartile, by order statistics, as a share of it. The lower quartile is what
// hwprune/measure/estimate.py calls the latency.
double relative_interval(std::vector<double> samples);

// Finds the GPU on which the job's kernels run, and reports a JSON object of it.
void find_gpu(const Job& job, const std::string& folder, const Report& report);

// Times the reference kernel alone over a while and reports it as the baseline.
void measure_baseline(const Job& job, const std::string& folder, const std::vector<int>& cpus, Watched* watched,
                      const Report& report);

// Times `kernels` (ids, all of one library) and reports each workload when its interval is narrow enough and the machine
// is calm, by what the reference takes over `baseline_us`, or when a limit of the job is reached.
void measure_kernels(const Job& job, const std::string& folder, const std::vector<int>& cpus, const std::vector<int>& kernels,
                     double baseline_us, Watched* watched, const Report& report);

#endif
