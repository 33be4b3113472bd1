// The levels of memory: caches as the system tells them or as loads see them, and how much to read so that it comes from each.
#ifndef HWPRUNE_PROBE_LEVELS_H
#define HWPRUNE_PROBE_LEVELS_H

#include <cmath>
#include <utility>

#include "loops.h"
#include "machine.h"
#include "sampling.h"

constexpr int64_t kLine = 64;  // bytes

// Sizes of the machine, from the system or, where it does not tell, from the latency of loads.
struct Caches {
  int64_t bytes[3];    // L1 data, L2, L3; 0 for none
  int64_t told[3];
  int64_t sharers[3];  // cores that share it
};

struct Point {
  int64_t bytes;
  double ns;
};

// Nanoseconds of loads that wait for each other, in random order over a growing part of memory.
inline std::vector<Point> latency_curve(int64_t most_bytes) {
  std::vector<Point> curve;
  Buffer memory = aligned(most_bytes);
  uint64_t random = 88172645463325252u;
  for (double size = 8192; size <= static_cast<double>(most_bytes); size *= std::sqrt(2.0)) {
    const int64_t lines = static_cast<int64_t>(size) / kLine;
    std::vector<int32_t> next(static_cast<size_t>(lines));
    for (int64_t i = 0; i < lines; ++i) next[static_cast<size_t>(i)] = static_cast<int32_t>(i);
    for (int64_t i = lines - 1; i > 0; --i) {  // Sattolo: one cycle through all lines
      random ^= random << 13, random ^= random >> 7, random ^= random << 17;
      std::swap(next[static_cast<size_t>(i)], next[random % static_cast<uint64_t>(i)]);
    }
    for (int64_t i = 0; i < lines; ++i)
      *reinterpret_cast<char**>(memory.get() + i * kLine) = memory.get() + next[static_cast<size_t>(i)] * kLine;
    char* at = memory.get();
    const auto walk = [&](int64_t steps) {
      for (int64_t i = 0; i < steps; ++i) at = *reinterpret_cast<char**>(at);
      __asm__ volatile("" : : "r"(at) : "memory");
    };
    Quantity loads{"", walk};
    walk(std::min<int64_t>(lines, 1 << 16));
    loads.calibrate();
    for (int round = 0; round < 5; ++round) loads.sample();
    curve.push_back({lines * kLine, loads.at(0) * 1e9});
  }
  return curve;
}

// Ends of the curve's plateaus: the caches, as loads see them.
inline std::vector<int64_t> plateaus(const std::vector<Point>& curve) {
  std::vector<int64_t> ends;
  double level = curve[0].ns;
  bool flat = true;
  for (size_t i = 1; i < curve.size(); ++i) {
    if (flat && curve[i].ns > 1.4 * level) {
      ends.push_back(curve[i - 1].bytes);
      flat = false;
    } else if (!flat && curve[i].ns < 1.15 * curve[i - 1].ns) {
      flat = true;
      level = curve[i].ns;
    }
  }
  return ends;
}

inline Caches caches_of(const std::vector<Point>& curve) {
  Caches caches{};
  for (int level = 0; level < 3; ++level) {
    caches.told[level] = caches.bytes[level] = told_cache_bytes(level + 1);
    caches.sharers[level] = told_cache_sharers(level + 1);
  }
  if (caches.told[0] == 0) {
    const std::vector<int64_t> seen = plateaus(curve);
    for (size_t level = 0; level < 3; ++level) caches.bytes[level] = level < seen.size() ? seen[level] : 0;
  }
  return caches;
}

// A level of memory: how much each thread reads of it so that it comes from there, alone and beside the others. 0: not there.
struct Level {
  const char* name;
  int64_t alone, beside;
  bool far;
};

// Memory that is far away is read in two ways, of which the faster counts: in one stream, and in several, page by page in turn.
constexpr int kStreams = 8;

inline std::vector<Level> levels_of(const Caches& caches, int threads) {
  constexpr int64_t unit = kStreams * kPage;
  const auto between = [](double low, double high) { return std::max<int64_t>(1, static_cast<int64_t>(std::sqrt(low * high)) / unit) * unit; };
  const auto share = [&](int level) {
    return static_cast<double>(caches.bytes[level]) / static_cast<double>(std::max<int64_t>(1, std::min<int64_t>(caches.sharers[level], threads)));
  };
  const double l1 = static_cast<double>(caches.bytes[0]), l2 = static_cast<double>(caches.bytes[1]), l3 = static_cast<double>(caches.bytes[2]);
  std::vector<Level> levels = {{"l1", static_cast<int64_t>(l1) / 2 / kBlock * kBlock, static_cast<int64_t>(l1) / 2 / kBlock * kBlock, false}};
  if (l2 > 0) levels.push_back({"l2", between(l1, l2), share(1) > 2 * l1 ? between(l1, share(1)) : 0, false});
  if (l3 > 0) levels.push_back({"l3", between(l2, l3), share(2) > 2 * share(1) ? between(share(1), share(2)) : 0, true});
  // Some caches keep a part of what streams through them: what is read must be many times as large.
  const double held = std::max({8 * l3, 8 * threads * l2, double{64 << 20}});
  const int64_t total = static_cast<int64_t>(std::min(held, static_cast<double>(memory_bytes()) / 8)) / unit * unit;
  levels.push_back({"dram", total, total / threads / unit * unit, true});
  return levels;
}

#endif
