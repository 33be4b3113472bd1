// Samples of a quantity, on one thread or on all of the pool.
#ifndef HWPRUNE_PROBE_SAMPLING_H
#define HWPRUNE_PROBE_SAMPLING_H

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

extern "C" {
#include "../pool.h"
}

constexpr double kSampleSeconds = 1e-3;
constexpr int64_t kPage = 4096;  // bytes

inline double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Free {
  void operator()(char* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<char, Free>;

inline Buffer aligned(int64_t bytes) {
  Buffer made(static_cast<char*>(std::aligned_alloc(kPage, static_cast<size_t>((bytes + kPage - 1) / kPage * kPage))));
  if (!made) throw std::runtime_error("out of memory: " + std::to_string(bytes) + " bytes");
  return made;
}

// Runs `body(thread)` on every thread of the pool that artifacts use.
inline void on_all_threads(const std::function<void(int)>& body) {
  const auto task = [](int index, hwprune_group_t*, void* data) {
    (*static_cast<const std::function<void(int)>*>(data))(index);
    return 0;
  };
  hwprune_pool_v1_launch(task, const_cast<std::function<void(int)>*>(&body), 0);
}

// Something to be measured: `run(n)` does n units of work; a sample is seconds for one of them. `alone`, if it is given, does the
// share of one thread: how much work makes a sample must not depend on when the others of a busy machine's threads get their turn.
struct Quantity {
  std::string name;
  std::function<void(int64_t)> run;
  std::function<void(int64_t)> alone = nullptr;
  int64_t units = 1;
  std::vector<double> samples = {};

  void calibrate() {
    const auto& work = alone ? alone : run;
    for (units = 1; units < (int64_t{1} << 40); units *= 2) {
      double took = seconds_of([&] { work(units); });
      for (int again = 0; again < 3 && took >= kSampleSeconds / 2; ++again)  // unless something came between
        took = std::min(took, seconds_of([&] { work(units); }));
      if (took >= kSampleSeconds / 2) return;
    }
  }
  void sample() {
    samples.push_back(seconds_of([&] { run(units); }) / static_cast<double>(units));
  }
  double at(double quantile) const {
    std::vector<double> sorted = samples;
    std::sort(sorted.begin(), sorted.end());
    return sorted[static_cast<size_t>(quantile * static_cast<double>(sorted.size() - 1))];
  }
};

#endif
