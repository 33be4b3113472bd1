#include "device.h"

#include <dirent.h>
#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cstdlib>

#include "text.h"

namespace {

const std::string kCpus = "/sys/devices/system/cpu/cpu";

// Key and value of the lines of the first processor in /proc/cpuinfo.
std::vector<std::pair<std::string, std::string>> cpuinfo() {
  std::vector<std::pair<std::string, std::string>> found;
  bool there = false;
  for (const std::string& line : split(read_file("/proc/cpuinfo", &there), '\n')) {
    const size_t colon = line.find(':');
    if (line.empty() && !found.empty()) break;
    if (colon == std::string::npos) continue;
    const auto trimmed = [](const std::string& s) {
      const size_t first = s.find_first_not_of(" \t"), last = s.find_last_not_of(" \t");
      return first == std::string::npos ? std::string() : s.substr(first, last - first + 1);
    };
    found.emplace_back(trimmed(line.substr(0, colon)), trimmed(line.substr(colon + 1)));
  }
  return found;
}

std::string cpuinfo_of(const std::string& key) {
  for (const auto& [name, value] : cpuinfo())
    if (name == key) return value;
  return {};
}

}  // namespace

std::vector<std::string> entries(const std::string& folder, const std::string& prefix) {
  std::vector<std::string> found;
  if (DIR* open = opendir(folder.c_str())) {
    while (const dirent* entry = readdir(open))
      if (std::string(entry->d_name).compare(0, prefix.size(), prefix) == 0) found.push_back(folder + "/" + entry->d_name);
    closedir(open);
  }
  std::sort(found.begin(), found.end());
  return found;
}

double figure(const std::string& path) {
  const std::string text = first_line(path);
  return text.empty() ? -1 : std::strtod(text.c_str(), nullptr);
}

std::string machine_name() {
  utsname names;
  return uname(&names) == 0 ? names.machine : "";
}

std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0)
    for (int c = 0; c < CPU_SETSIZE; ++c)
      if (CPU_ISSET(c, &set)) cpus.push_back(c);
  return cpus;
}

std::vector<int> fastest_cpus(const std::vector<int>& allowed, int threads) {
  std::vector<double> capacities;
  for (const int c : allowed) capacities.push_back(figure(kCpus + std::to_string(c) + "/cpu_capacity"));
  std::vector<double> sorted = capacities;
  std::sort(sorted.rbegin(), sorted.rend());
  std::vector<int> chosen;
  for (size_t i = 0; i < allowed.size(); ++i)
    if (capacities[i] >= sorted[static_cast<size_t>(threads) - 1]) chosen.push_back(allowed[i]);
  return chosen;
}

bool keep_to(const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int c : cpus) CPU_SET(c, &set);
  return sched_setaffinity(0, sizeof(set), &set) == 0;
}

std::string emulator() {
  const std::string machine = machine_name(), kernel = first_line("/proc/sys/kernel/arch");
  if (!kernel.empty() && kernel != machine) return "the kernel is of " + kernel + ", the program of " + machine;
  if (machine == "aarch64") {
    if (!cpuinfo_of("vendor_id").empty())
      return "the processor is one of " + cpuinfo_of("vendor_id") + ", the program of aarch64";
    const std::string implementer = cpuinfo_of("CPU implementer");
    if (!implementer.empty() && std::strtol(implementer.c_str(), nullptr, 16) == 0)
      return "the processor names no maker, as those that qemu makes up";
  }
  if (machine == "x86_64" && cpuinfo_of("model name").find("TCG") != std::string::npos)
    return "the processor is qemu's: " + cpuinfo_of("model name");
  return {};
}

std::string device_facts(const std::vector<int>& cpus, bool emulated, const std::string& gpu) {
  const char* wanted[] = {"model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part"};
  std::string out =
      "{\"machine\":" + quoted(machine_name()) + ",\"cores\":" + std::to_string(allowed_cpus().size()) + ",\"cpuinfo\":{";
  bool first = true;
  for (const auto& [name, value] : cpuinfo())
    for (const char* key : wanted)
      if (name == key) {
        out += (first ? "" : ",") + quoted(name) + ":" + quoted(value);
        first = false;
      }
  out += "},\"board\":" + quoted(first_line("/proc/device-tree/model")) + ",\"cpus\":[";
  for (size_t i = 0; i < cpus.size(); ++i) out += (i ? "," : "") + std::to_string(cpus[i]);
  const std::string found = emulator();
  return out + "],\"emulated\":" + quoted(!found.empty() ? found : emulated ? "the user says so" : "") +
         (gpu.empty() ? "" : ",\"gpu\":" + gpu) + "}";
}

Condition condition(const std::vector<int>& cpus, const Gpu& gpu) {
  Condition now;
  for (const int c : cpus) {
    const std::string folder = kCpus + std::to_string(c);
    const double mhz = figure(folder + "/cpufreq/scaling_cur_freq") / 1e3,
                 limit = figure(folder + "/cpufreq/scaling_max_freq") / 1e3;
    if (mhz > 0) now.frequency_mhz = now.frequency_mhz < 0 ? mhz : std::min(now.frequency_mhz, mhz);
    if (limit > 0) now.limit_mhz = now.limit_mhz < 0 ? limit : std::min(now.limit_mhz, limit);
    if (now.governor.empty()) now.governor = first_line(folder + "/cpufreq/scaling_governor");
    const double events = figure(folder + "/thermal_throttle/core_throttle_count");
    if (events >= 0) now.throttle_events = std::max<int64_t>(now.throttle_events, 0) + static_cast<int64_t>(events);
  }
  for (const std::string& zone : entries("/sys/class/thermal", "thermal_zone"))
    now.temperature_c = std::max(now.temperature_c, figure(zone + "/temp") / 1e3);
  // The Raspberry Pi's firmware: bits 0 to 3 say what holds now (under-voltage, clock capped, throttled, soft limit).
  const std::string firmware = first_line("/sys/devices/platform/soc/soc:firmware/get_throttled");
  if (!firmware.empty()) now.throttle_events = std::strtol(firmware.c_str(), nullptr, 16) & 0xf;
  now.gpu_mhz = gpu.clock_mhz(), now.gpu_limit_mhz = gpu.limit_mhz(), now.gpu_memory_mhz = gpu.memory_mhz();
  now.gpu_temperature_c = gpu.temperature_c(), now.gpu_slowed = gpu.slowed();
  return now;
}

std::string Condition::json() const {
  std::string out;
  const auto add = [&](const char* name, const std::string& value) {
    out += std::string(out.empty() ? "" : ",") + "\"" + name + "\":" + value;
  };
  if (!governor.empty()) add("governor", quoted(governor));
  if (frequency_mhz >= 0) add("frequency_mhz", number(frequency_mhz));
  if (limit_mhz >= 0) add("limit_mhz", number(limit_mhz));
  if (temperature_c >= 0) add("temperature_c", number(temperature_c));
  if (throttle_events >= 0) add("throttle_events", std::to_string(throttle_events));
  if (gpu_mhz) add("gpu_mhz", number(*gpu_mhz));
  if (gpu_limit_mhz) add("gpu_limit_mhz", number(*gpu_limit_mhz));
  if (gpu_memory_mhz) add("gpu_memory_mhz", number(*gpu_memory_mhz));
  if (gpu_temperature_c) add("gpu_temperature_c", number(*gpu_temperature_c));
  if (gpu_slowed) add("gpu_slowed", quoted(reasons_text(*gpu_slowed)));
  return "{" + out + "}";
}

bool throttled(const Condition& before, const Condition& after) {
  for (const Condition* c : {&before, &after})
    if (c->gpu_slowed && slowed_by_trouble(*c->gpu_slowed)) return true;
  return after.throttle_events > before.throttle_events || after.limit_mhz < before.limit_mhz;
}
