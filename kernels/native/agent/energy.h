// Energy that kernels take, where the device has a sensor for it.
#ifndef HWPRUNE_AGENT_ENERGY_H
#define HWPRUNE_AGENT_ENERGY_H

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "gpu.h"

// The first that there is: of a GPU its own counter, of a processor its packages' (RAPL); or power sensors on the board (INA).
class EnergyMeter {
 public:
  // `gpu`: on which the kernels run; nullptr where they run on the processor. `system`: where the system's figures lie.
  explicit EnergyMeter(const Gpu* gpu, const std::string& system = "/sys");

  const std::string& of() const { return of_; }  // what is measured; empty where nothing can be
  // Microjoules of one run. `burst` runs some and says how many. Absent where the sensor stands still.
  std::optional<double> per_run_uj(const std::function<int64_t()>& burst) const;

 private:
  struct Rail {
    std::string power, voltage, current;  // files: microwatts, or millivolts and milliamperes
    std::string label;
  };
  std::optional<double> counter_uj() const;
  std::optional<double> power_uw() const;
  std::optional<double> by_counter(const std::function<int64_t()>& burst) const;
  std::optional<double> by_power(const std::function<int64_t()>& burst) const;
  void find_rails(const std::string& system);

  const Gpu* gpu_ = nullptr;
  std::vector<std::string> packages_;
  std::vector<Rail> rails_;
  std::string of_;
};

#endif
