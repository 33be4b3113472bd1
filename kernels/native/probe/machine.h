// What the probe asks the system: caches, processor, memory.
#ifndef HWPRUNE_PROBE_MACHINE_H
#define HWPRUNE_PROBE_MACHINE_H

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>

// A file that describes the first core's data cache of a level; "" where the system does not tell.
inline std::string told_of_cache(int level, const char* what) {
  for (int index = 0; index < 8; ++index) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    std::ifstream level_file(folder + "level"), type_file(folder + "type"), file(folder + what);
    int found = 0;
    std::string type, text;
    if (level_file >> found && type_file >> type && file >> text && found == level && type != "Instruction") return text;
  }
  return "";
}

// Its bytes; 0 where the system does not tell.
inline int64_t told_cache_bytes(int level) {
  const std::string size = told_of_cache(level, "size");
  if (size.empty()) return 0;
  return std::atoll(size.c_str()) * (size.back() == 'K' ? 1 << 10 : size.back() == 'M' ? 1 << 20 : 1);
}

// Bytes of a line of the nearest data cache; 0 where the system does not tell.
inline int64_t told_line_bytes() { return std::atoll(told_of_cache(1, "coherency_line_size").c_str()); }

// Processors that share it, 1 where the system does not tell: "0-3,8" are five.
inline int64_t told_cache_sharers(int level) {
  const std::string text = told_of_cache(level, "shared_cpu_list");
  int64_t count = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(',', at), text.size()), dash = text.find('-', at);
    count += dash < end ? std::atoll(text.c_str() + dash + 1) - std::atoll(text.c_str() + at) + 1 : 1;
    at = end + 1;
  }
  return count > 0 ? count : 1;
}

// A field of the first processor in /proc/cpuinfo; "" if there is none.
inline std::string processor_field(const std::string& wanted) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t end = line.find_last_not_of(" \t", colon - 1), start = line.find_first_not_of(" \t", colon + 1);
    if (line.substr(0, end + 1) == wanted && start != std::string::npos) return line.substr(start);
  }
  return "";
}

inline std::string processor_name() {
  for (const char* field : {"model name", "Hardware", "CPU part"}) {
    const std::string found = processor_field(field);
    if (!found.empty()) return found;
  }
  return "unknown";
}

// Implementer and part of an Arm core, "" elsewhere.
inline std::string processor_part() {
  const std::string part = processor_field("CPU part");
  return part.empty() ? "" : processor_field("CPU implementer") + "/" + part;
}

inline int64_t memory_bytes() { return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE); }

#endif
