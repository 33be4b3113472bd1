// The clock by which the agent waits.
#ifndef HWPRUNE_AGENT_CLOCK_H
#define HWPRUNE_AGENT_CLOCK_H

#include <chrono>

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

#endif
