// What is to be measured: job.tsv, written by hwprune/measure/job.py, which also describes its lines.
#ifndef HWPRUNE_AGENT_JOB_H
#define HWPRUNE_AGENT_JOB_H

#include <cstdint>
#include <string>
#include <vector>

struct Kernel {
  int workload = -1, library = 0, step = 0;
  int64_t constants_bytes = 0;
};

struct LibraryFile {
  std::string file, sha256;
};

struct Job {
  std::string text, sha256;  // of the whole file
  std::string target, machine, gpu;  // gpu: architecture of the GPU on which kernels run; empty where they run on the processor
  int threads = 0, finalists = 0, screen_rounds = 0, min_rounds = 0, max_rounds = 0, baseline_rounds = 0;
  int64_t spread_bytes = 0;
  double interval = 0, calm = 0, burst_us = 0, pause_us = 0, batch_s = 0, hang_s = 0;
  // Library 0 holds the reference kernel, which is kernel 0 and of no workload.
  std::vector<LibraryFile> libraries;
  std::vector<Kernel> kernels;
  int workloads = 0;

  int host_threads() const { return gpu.empty() ? threads : 1; }  // of the processor
};

// Fails with a sentence if the file is of another version or does not hold together.
Job read_job(const std::string& path);

#endif
