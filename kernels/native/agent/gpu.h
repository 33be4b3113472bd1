// What NVIDIA's management library (NVML) tells of a GPU, where it is; every figure may be absent.
#ifndef HWPRUNE_AGENT_GPU_H
#define HWPRUNE_AGENT_GPU_H

#include <optional>
#include <string>

class Gpu {
 public:
  // `bus`: the GPU's place, as the driver names it. Where there is none, or no NVML, nothing is told.
  explicit Gpu(const std::string& bus);
  std::optional<double> clock_mhz() const;         // of the multiprocessors
  std::optional<double> limit_mhz() const;         // that the card would go up to
  std::optional<double> memory_mhz() const;
  std::optional<double> temperature_c() const;
  std::optional<unsigned long long> slowed() const;  // why clocks are lower than they could be, a bit a reason
  // Microjoules since the driver was loaded, of the whole card; absent where others share it (MIG).
  std::optional<double> energy_uj() const;

 private:
  template <typename... Arguments>
  bool call(const char* name, Arguments... arguments) const;
  std::optional<double> clock(const char* function, int which) const;

  void* library_ = nullptr;
  void* device_ = nullptr;
};

// Reasons for which a clock says nothing of the card: too hot, or too little power from outside. Not its own power limit, at
// which large kernels run as they do in a network.
bool slowed_by_trouble(unsigned long long reasons);
// Names of all reasons, with commas between.
std::string reasons_text(unsigned long long reasons);

#endif
