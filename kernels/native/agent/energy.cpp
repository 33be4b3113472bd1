#include "energy.h"

#include <algorithm>

#include "clock.h"
#include "device.h"
#include "text.h"

namespace {

// Of the kernels at work. Counters of GPUs move once in 20 to 100 ms; a sensor on a board averages over some milliseconds.
constexpr double kLeastSeconds = 0.4, kMostSeconds = 1.5;

std::optional<double> told(const std::string& path) {
  const double value = figure(path);
  return value < 0 ? std::nullopt : std::optional<double>(value);
}

// Input voltage of the whole board: other rails of the same sensor are parts of it.
bool is_input(const std::string& label) { return label == "VDD_IN" || label == "VIN" || label == "POM_5V_IN"; }

}  // namespace

EnergyMeter::EnergyMeter(const Gpu* gpu, const std::string& system) {
  if (gpu != nullptr) {
    if (gpu->energy_uj()) gpu_ = gpu, of_ = "the card";
  } else {
    for (const std::string& zone : entries(system + "/class/powercap", "intel-rapl:"))
      if (std::count(zone.begin() + static_cast<long>(zone.rfind('/')), zone.end(), ':') == 1 && figure(zone + "/energy_uj") > 0)
        packages_.push_back(zone);  // parts of a package are counted in it
    if (!packages_.empty()) of_ = "the processor's packages";
  }
  if (of_.empty()) find_rails(system);
}

void EnergyMeter::find_rails(const std::string& system) {
  for (const std::string& chip : entries(system + "/class/hwmon", "hwmon")) {
    if (first_line(chip + "/name").rfind("ina", 0) != 0) continue;
    for (int i = 1; i <= 8; ++i) {
      const std::string n = std::to_string(i);
      const std::string label = first_line(chip + "/in" + n + "_label");
      const Rail rail{chip + "/power" + n + "_input", chip + "/in" + n + "_input", chip + "/curr" + n + "_input",
                      label.empty() ? first_line(chip + "/name") + " " + n : label};
      // a further channel of an INA3221 may be the sum of the others
      if (label.rfind("sum of", 0) != 0 && (told(rail.power) || (told(rail.voltage) && told(rail.current)))) rails_.push_back(rail);
    }
  }
  const auto whole = std::find_if(rails_.begin(), rails_.end(), [](const Rail& r) { return is_input(r.label); });
  if (whole != rails_.end()) rails_ = {*whole};
  for (const Rail& rail : rails_) of_ += (of_.empty() ? "" : ", ") + rail.label;
}

std::optional<double> EnergyMeter::counter_uj() const {
  if (gpu_ != nullptr) return gpu_->energy_uj();
  double total = 0;
  for (const std::string& zone : packages_) total += figure(zone + "/energy_uj");
  return total;
}

std::optional<double> EnergyMeter::power_uw() const {
  double total = 0;
  for (const Rail& rail : rails_) {
    const std::optional<double> power = told(rail.power), volts = told(rail.voltage), amperes = told(rail.current);
    if (power)
      total += *power;
    else if (volts && amperes)
      total += *volts * *amperes;  // mV * mA = uW
    else
      return std::nullopt;
  }
  return total;
}

std::optional<double> EnergyMeter::per_run_uj(const std::function<int64_t()>& burst) const {
  return of_.empty() ? std::nullopt : rails_.empty() ? by_counter(burst) : by_power(burst);
}

// From one step of the counter to another, bursts all the time.
std::optional<double> EnergyMeter::by_counter(const std::function<int64_t()>& burst) const {
  burst();  // from here on at the clock that it runs at
  const auto moved = [&](double from, int64_t* runs, double least_s) -> std::optional<double> {
    const Clock::time_point start = Clock::now();
    while (seconds_since(start) < kMostSeconds) {
      *runs += burst();
      const std::optional<double> now = counter_uj();
      if (!now) return std::nullopt;
      if (*now != from && seconds_since(start) >= least_s) return now;
    }
    return std::nullopt;
  };
  int64_t before = 0, runs = 0;
  const std::optional<double> now = counter_uj(), start = now ? moved(*now, &before, 0) : std::nullopt;
  const std::optional<double> end = start ? moved(*start, &runs, kLeastSeconds) : std::nullopt;
  if (!end) return std::nullopt;
  double used = *end - *start;
  if (used < 0 && packages_.size() == 1) used += figure(packages_[0] + "/max_energy_range_uj");
  return used > 0 ? std::optional<double>(used / static_cast<double>(runs)) : std::nullopt;
}

// Power before and after each burst, over the burst's time.
std::optional<double> EnergyMeter::by_power(const std::function<int64_t()>& burst) const {
  burst();
  const Clock::time_point start = Clock::now();
  double used = 0, at = 0;
  int64_t runs = 0;
  std::optional<double> before = power_uw();
  while (at < kLeastSeconds) {
    runs += burst();
    const std::optional<double> after = power_uw();
    if (!before || !after) return std::nullopt;
    const double now = seconds_since(start);
    used += (*before + *after) / 2 * (now - at);
    at = now, before = after;
  }
  return used > 0 ? std::optional<double>(used / static_cast<double>(runs)) : std::nullopt;
}
