// Measures in a process of its own, so that a kernel that crashes or hangs takes nothing else down.
#ifndef HWPRUNE_AGENT_WATCH_H
#define HWPRUNE_AGENT_WATCH_H

#include <functional>
#include <string>

#include "rounds.h"

// How a measuring process ended.
struct Ending {
  bool done = false;
  int kernel = -1;  // at fault, unless done; -1 if it is no kernel's fault
  std::string why;
};

// Runs `work` in a child; each line that it reports is handed to `receive` as it comes. The child is killed when it does
// not get on for `hang_s` seconds, and dies with its parent.
Ending watch(double hang_s, const std::function<void(Watched*, const Report&)>& work, const Report& receive);

#endif
