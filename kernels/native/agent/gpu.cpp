#include "gpu.h"

#include <dlfcn.h>

#include <cstdlib>
#include <utility>

namespace {

// NVML API reference: nvmlClockType_t, nvmlTemperatureSensors_t, nvmlClocksThrottleReasons.
constexpr int kClockOfMultiprocessors = 1, kClockOfMemory = 2, kSensorOfGpu = 0;
constexpr std::pair<unsigned long long, const char*> kReasons[] = {
    {0x1, "idle"},          {0x2, "clocks set by the user"}, {0x4, "power limit"},          {0x8, "slowed by hardware"}, {0x10, "kept in step with others"},
    {0x20, "hot"},          {0x40, "hot, by hardware"},      {0x80, "power brake"},         {0x100, "display"}};
constexpr unsigned long long kTrouble = 0x8 | 0x20 | 0x40 | 0x80;

}  // namespace

template <typename... Arguments>
bool Gpu::call(const char* name, Arguments... arguments) const {
  if (library_ == nullptr) return false;
  const auto function = reinterpret_cast<int (*)(Arguments...)>(dlsym(library_, name));
  return function != nullptr && function(arguments...) == 0;
}

Gpu::Gpu(const std::string& bus) {
  if (bus.empty()) return;
  const char* asked = std::getenv("HWPRUNE_LIBNVML");
  library_ = dlopen(asked != nullptr ? asked : "libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!call("nvmlInit_v2") || !call("nvmlDeviceGetHandleByPciBusId_v2", bus.c_str(), &device_)) library_ = nullptr;
}

std::optional<double> Gpu::clock(const char* function, int which) const {
  unsigned mhz = 0;
  if (!call(function, device_, which, &mhz)) return std::nullopt;
  return mhz;
}

std::optional<double> Gpu::clock_mhz() const { return clock("nvmlDeviceGetClockInfo", kClockOfMultiprocessors); }
std::optional<double> Gpu::limit_mhz() const { return clock("nvmlDeviceGetMaxClockInfo", kClockOfMultiprocessors); }
std::optional<double> Gpu::memory_mhz() const { return clock("nvmlDeviceGetClockInfo", kClockOfMemory); }
std::optional<double> Gpu::temperature_c() const { return clock("nvmlDeviceGetTemperature", kSensorOfGpu); }

std::optional<unsigned long long> Gpu::slowed() const {
  unsigned long long reasons = 0;
  if (!call("nvmlDeviceGetCurrentClocksThrottleReasons", device_, &reasons)) return std::nullopt;
  return reasons;
}

std::optional<double> Gpu::energy_uj() const {
  unsigned current = 0, pending = 0;
  unsigned long long millijoules = 0;
  if (call("nvmlDeviceGetMigMode", device_, &current, &pending) && current != 0) return std::nullopt;
  if (!call("nvmlDeviceGetTotalEnergyConsumption", device_, &millijoules)) return std::nullopt;
  return static_cast<double>(millijoules) * 1e3;
}

bool slowed_by_trouble(unsigned long long reasons) { return (reasons & kTrouble) != 0; }

std::string reasons_text(unsigned long long reasons) {
  std::string out;
  for (const auto& [bit, name] : kReasons)
    if (reasons & bit) out += (out.empty() ? "" : ", ") + std::string(name);
  return out;
}
