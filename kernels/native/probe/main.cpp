// What a machine can do at most: multiply-adds, bandwidth of each level of memory, latencies, and what starting a kernel costs.
//
//     hwprune-probe [--seconds S] [--threads N] [--vector-bits B]
//
// Prints one JSON object (hwprune/measure/probe_results.py reads it). Every quantity is sampled in turn, in rounds that are
// spread over S seconds, so that a disturbance hits few samples of each; the best decile counts, the median stands beside it.

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#include "levels.h"
#include "loops.h"
#include "machine.h"
#include "sampling.h"

extern "C" {
static int nothing(int, hwprune_group_t*, void*) { return 0; }
#ifdef HWPRUNE_PROBE_NETWORK
// ../program.c over the tables of this folder: a network of kernels that only fork and join.
int32_t hwprune_time(void* const*, void* const*, void*, void*, int32_t, int32_t, int32_t, int64_t, int64_t, int64_t, int64_t, int64_t*);
int32_t __tvm_ffi_nothing(void*, const void*, int32_t, void*) { return hwprune_pool_v1_launch(nothing, nullptr, 0); }
#endif
}

namespace {

constexpr int kLeastRounds = 5;
constexpr int kSteps = 64;  // probe/tables.h: STEP_COUNT

int processors() {
  cpu_set_t allowed;
  return sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
}

struct Options {
  double seconds = 2;
  int threads = 0;
  int vector_bits = 0;
};

const Isa& isa_for(int vector_bits) {
  for (const Isa& isa : kIsas)
    if (isa.here() && (vector_bits == 0 || isa.vector_bits == vector_bits)) return isa;
  throw std::runtime_error(vector_bits ? "this processor has no vectors of " + std::to_string(vector_bits) + " bits that the probe knows"
                                       : "this processor has no vector instructions that the probe knows (AVX2 with FMA, AVX-512, NEON)");
}

void print_text(const char* key, const std::string& text) {
  std::printf("  \"%s\": \"", key);
  for (const char c : text)
    if (static_cast<unsigned char>(c) >= 0x20 && c != '"' && c != '\\') std::putchar(c);
  std::printf("\",\n");
}

class Probe {
 public:
  explicit Probe(const Options& options) : options_(options), isa_(isa_for(options.vector_bits)) {
    if (hwprune_pool_v1_enter(options_.threads) != 0) throw std::runtime_error("cannot start " + std::to_string(options_.threads) + " threads");
    const int64_t told = std::max(told_cache_bytes(3), told_cache_bytes(2));
    curve_ = latency_curve(std::min<int64_t>(std::max<int64_t>(4 * told, 16 << 20), std::min<int64_t>(128 << 20, memory_bytes() / 8)));
    caches_ = caches_of(curve_);
    levels_ = levels_of(caches_, options_.threads);
    for (const Level& level : levels_)
      if (options_.threads > 1 && std::strcmp(level.name, "l2") == 0) handed_ = (level.beside > 0 ? level.beside : level.alone) / 2 / kBlock * kBlock;
    int64_t most = 0;
    for (const Level& level : levels_) most = std::max({most, level.alone, level.beside * options_.threads});
    from_ = aligned(most), to_ = aligned(most / 2 + kPage);  // copies have half on each side
    on_all_threads([&](int thread) {  // each thread touches its part first
      const int64_t part = most / options_.threads;
      std::memset(from_.get() + thread * part, 1, static_cast<size_t>(part));
      std::memset(to_.get() + thread * (part / 2), 1, static_cast<size_t>(part / 2));
    });
    list();
  }

  void run() {
    for (Quantity& quantity : quantities_) quantity.calibrate();
    const auto start = std::chrono::steady_clock::now();
    const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
    for (rounds_ = 0; rounds_ < kLeastRounds || elapsed() < options_.seconds; ++rounds_)
      for (Quantity& quantity : quantities_) quantity.sample();
  }

  void print() const {
    std::printf("{\n  \"format\": 1,\n");
    print_text("architecture", kArchitecture);
    print_text("processor", processor_name());
    print_text("part", processor_part());
    print_text("features", processor_field("flags") + processor_field("Features"));
    print_text("isa", isa_.name);
    std::printf("  \"vector_bits\": %d,\n  \"cores\": %d,\n  \"threads\": %d,\n  \"rounds\": %d,\n", isa_.vector_bits,
                processors(), options_.threads, rounds_);
    std::printf("  \"clock_mhz\": ");
    print_rate("clock", kAdds / 1e6);
    std::printf(",\n  \"fma_latency_ns\": %.4f,\n", best("chain") * 1e9 / kChained);
    std::printf("  \"peak_gflops\": {\"one_core\": ");
    const double flops = 2.0 * isa_.fmas * isa_.vector_bits / 32;
    print_rate("fma", flops / 1e9);
    std::printf(", \"all_threads\": ");
    print_rate("fma on all", flops * options_.threads / 1e9);
    std::printf("},\n");
    print_bandwidth("read", 1);
    print_bandwidth("copy", 2);
    std::printf("  \"handed_gb_per_s\": ");
    print_handed();
    std::printf(",\n  \"launch_us\": %.4f,\n", best("launch") * 1e6);
    print_network();
    print_caches();
    std::printf("  \"latency_curve\": [");
    for (size_t i = 0; i < curve_.size(); ++i)
      std::printf("%s[%lld, %.2f]", i ? ", " : "", static_cast<long long>(curve_[i].bytes), curve_[i].ns);
    std::printf("]\n}\n");
  }

 private:
  void list() {
    quantities_.push_back({"clock", add_chain});
    quantities_.push_back({"chain", isa_.chain});
    quantities_.push_back({"fma", isa_.independent});
    quantities_.push_back({"fma on all", [this](int64_t n) { on_all_threads([&](int) { isa_.independent(n); }); }, isa_.independent});
    for (const Level& level : levels_) {
      add_memory(level.name, level.alone, level.far, false);
      add_memory(level.name, level.beside, level.far, true);
    }
    quantities_.push_back({"launch", [](int64_t n) {
                             for (int64_t i = 0; i < n; ++i) hwprune_pool_v1_launch(nothing, nullptr, 0);
                           }});
    if (handed_ > 0) {
      const auto pass = [this](char* to, const char* from) {
        on_all_threads([&](int thread) {
          isa_.copy(to + thread * handed_, from + (thread + 1) % options_.threads * handed_, handed_ / kBlock);
        });
      };
      quantities_.push_back({"handed", [this, pass](int64_t n) {
                               for (int64_t i = 0; i < n; ++i) pass(i % 2 ? from_.get() : to_.get(), i % 2 ? to_.get() : from_.get());
                             }});
    }
#ifdef HWPRUNE_PROBE_NETWORK
    for (const int steps : {1, kSteps})
      quantities_.push_back({"steps " + std::to_string(steps), [this, steps](int64_t n) {
                               std::vector<int64_t> ns(static_cast<size_t>(n));
                               hwprune_time(nullptr, nullptr, from_.get(), to_.get(), options_.threads, 0, steps, 1, 0, 0, n, ns.data());
                             }});
#endif
  }

  // Passes over `bytes`; a copy has half of them on each side, so that both sides lie in the level.
  void add_memory(const std::string& level, int64_t bytes, bool far, bool all) {
    if (bytes < 2 * kBlock) return;
    const std::string where = level + (all ? " on all" : "");
    const int64_t blocks = bytes / kBlock;
    const auto add = [&](const char* kind, const std::function<void(int)>& pass) {
      const auto passes = [pass](int64_t n, int thread) {
        for (int64_t i = 0; i < n; ++i) pass(thread);
      };
      const auto alone = [passes](int64_t n) { passes(n, 0); };
      const auto beside = [passes](int64_t n) { on_all_threads([&](int thread) { passes(n, thread); }); };
      if (all)
        quantities_.push_back({kind + where, beside, alone});
      else
        quantities_.push_back({kind + where, alone});
    };
    add("read ", [=](int thread) { isa_.read(from_.get() + thread * bytes, blocks); });
    if (far)
      add("read ", [=](int thread) {
        const char* from = from_.get() + thread * bytes;
        const int64_t part = bytes / kStreams;
        for (int64_t at = 0; at < part; at += kPage)
          for (int s = 0; s < kStreams; ++s) isa_.read(from + s * part + at, kPage / kBlock);
      });
    add("copy ", [=](int thread) { isa_.copy(to_.get() + thread * (blocks / 2 * kBlock), from_.get() + thread * bytes, blocks / 2); });
  }

  // The faster one of those called `name`.
  const Quantity* find(const std::string& name) const {
    const Quantity* found = nullptr;
    for (const Quantity& quantity : quantities_)
      if (quantity.name == name && (found == nullptr || quantity.at(0.1) < found->at(0.1))) found = &quantity;
    return found;
  }

  double best(const std::string& name) const { return find(name)->at(0.1); }

  void print_rate(const std::string& name, double work) const {
    const Quantity* found = find(name);
    if (found == nullptr)
      std::printf("null");
    else
      std::printf("{\"best\": %.4f, \"median\": %.4f}", work / found->at(0.1), work / found->at(0.5));
  }

  void print_bandwidth(const std::string& kind, int sides) const {
    std::printf("  \"%s_gb_per_s\": {", kind.c_str());
    for (size_t i = 0; i < levels_.size(); ++i) {
      const Level& level = levels_[i];
      const auto moved = [&](int64_t bytes) { return static_cast<double>(bytes / kBlock / sides * kBlock * sides) / 1e9; };
      std::printf("%s\"%s\": {\"one_core\": ", i ? ", " : "", level.name);
      print_rate(kind + " " + level.name, moved(level.alone));
      std::printf(", \"all_threads\": ");
      print_rate(kind + " " + level.name + " on all", moved(level.beside) * options_.threads);
      std::printf("}");
    }
    std::printf("},\n");
  }

  // Of passes in which each thread reads what another one wrote last, and writes where another one read last: as kernels of a network
  // that hand each other activations. Their start is not part of it.
  void print_handed() const {
    const Quantity* passes = find("handed");
    const auto rate = [&](double quantile) {
      return 2.0 * static_cast<double>(handed_) * options_.threads / 1e9 / std::max(passes->at(quantile) - best("launch"), 1e-9);
    };
    if (passes == nullptr)
      std::printf("null");
    else
      std::printf("{\"best\": %.4f, \"median\": %.4f}", rate(0.1), rate(0.5));
  }

  void print_network() const {
#ifdef HWPRUNE_PROBE_NETWORK
    const double one = best("steps 1"), all = best("steps " + std::to_string(kSteps));
    const double kernel = (all - one) / (kSteps - 1);
    std::printf("  \"kernel_us\": %.4f,\n  \"network_us\": %.4f,\n", kernel * 1e6, std::max(0.0, one - kernel) * 1e6);
#else
    std::printf("  \"kernel_us\": null,\n  \"network_us\": null,\n");
#endif
  }

  void print_caches() const {
    const char* names[] = {"l1d_bytes", "l2_bytes", "l3_bytes"};
    std::printf("  \"caches_told\": %s,\n  \"caches\": {", caches_.told[0] ? "true" : "false");
    for (int level = 0; level < 3; ++level)
      std::printf("%s\"%s\": %lld", level ? ", " : "", names[level], static_cast<long long>(caches_.bytes[level]));
    std::printf(", \"line_bytes\": %lld},\n  \"plateaus_bytes\": [", static_cast<long long>(told_line_bytes()));
    const std::vector<int64_t> seen = plateaus(curve_);
    for (size_t i = 0; i < seen.size(); ++i) std::printf("%s%lld", i ? ", " : "", static_cast<long long>(seen[i]));
    std::printf("],\n");
  }

  Options options_;
  const Isa& isa_;
  std::vector<Point> curve_;
  Caches caches_{};
  std::vector<Level> levels_;
  Buffer from_, to_;
  int64_t handed_ = 0;  // bytes of a thread's part of what threads hand to each other; 0 where there is no other thread
  std::vector<Quantity> quantities_;
  int rounds_ = 0;
};

Options parse(int argc, char** argv) {
  Options options;
  options.threads = processors();
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (i + 1 == argc || (name != "--seconds" && name != "--threads" && name != "--vector-bits"))
      throw std::invalid_argument("usage: hwprune-probe [--seconds S] [--threads N] [--vector-bits B]");
    const double value = std::atof(argv[++i]);
    if (!(value > 0)) throw std::invalid_argument(name + " takes a positive number, but got " + argv[i]);
    if (name == "--seconds") options.seconds = value;
    if (name == "--threads") options.threads = std::min(static_cast<int>(value), 255);
    if (name == "--vector-bits") options.vector_bits = static_cast<int>(value);
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Probe probe(parse(argc, argv));
    probe.run();
    probe.print();
    return 0;
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "hwprune-probe: %s\n", error.what());
    return 1;
  }
}
