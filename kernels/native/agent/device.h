// The machine that the agent runs on, as far as it tells: who it is, and in what condition.
#ifndef HWPRUNE_AGENT_DEVICE_H
#define HWPRUNE_AGENT_DEVICE_H

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "gpu.h"

std::string machine_name();       // as uname says it: aarch64, x86_64
std::vector<int> allowed_cpus();  // processors that this process may use
// The `threads` processors with the highest capacity, and all that are as fast as the slowest of these.
std::vector<int> fastest_cpus(const std::vector<int>& allowed, int threads);
bool keep_to(const std::vector<int>& cpus);  // binds the calling thread

// Why this is no real machine, or empty. Programs under qemu's user mode see the emulating machine's /proc and /sys.
std::string emulator();

// Names in a folder that begin with `prefix`, as paths, sorted.
std::vector<std::string> entries(const std::string& folder, const std::string& prefix);
// The number in a file under /sys; negative where there is none.
double figure(const std::string& path);

// A JSON object: what hwprune/measure/device.py makes the device's name from. `emulated`: the user says so. `gpu`: a JSON
// object of the GPU on which kernels run, or empty.
std::string device_facts(const std::vector<int>& cpus, bool emulated, const std::string& gpu);

// Clock, governor, temperature and throttling; a figure that the system does not tell is negative.
struct Condition {
  std::string governor;
  double frequency_mhz = -1, limit_mhz = -1, temperature_c = -1;
  int64_t throttle_events = -1;  // since the start of the system, or a board's bits of throttling now
  std::optional<double> gpu_mhz, gpu_limit_mhz, gpu_memory_mhz, gpu_temperature_c;
  std::optional<unsigned long long> gpu_slowed;
  std::string json() const;
};
Condition condition(const std::vector<int>& cpus, const Gpu& gpu);
bool throttled(const Condition& before, const Condition& after);

#endif
