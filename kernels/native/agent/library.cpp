#include "library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "../pages.h"
#include "text.h"

namespace {

constexpr int64_t kFactsFormat = 2;  // hwprune/library.py: FACTS_FORMAT
enum { FORMAT, INPUTS, OUTPUTS, WEIGHTS_BYTES, WORKSPACE_BYTES, STEPS, THREADS, ELEMENTS };

using Time = int32_t (*)(void* const*, void* const*, void*, void*, int32_t, int32_t, int32_t, int64_t, int64_t, int64_t, int64_t,
                         int64_t*);
using Error = const char* (*)();

void* symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (found == nullptr) fail(std::string("a library of kernels lacks ") + name + "; copy the bundle again");
  return found;
}

// Global, so that the libraries of one process share one thread pool; everything else in them is local.
void* load(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) fail(std::string("cannot load kernels: ") + dlerror());
  return library;
}

const int64_t* facts_of(void* library) {
  const auto* facts = static_cast<const int64_t*>(symbol(library, "hwprune_facts"));
  if (facts[FORMAT] != kFactsFormat) fail("the kernels are of another version than this agent; make the bundle again");
  return facts;
}

size_t weights_size(const int64_t* facts, int64_t spread_bytes) {
  const int64_t most = facts[WEIGHTS_BYTES];
  return static_cast<size_t>(spread_bytes > 0 ? std::max(spread_bytes, 2 * most) : most);
}

}  // namespace

Buffer::Buffer(size_t bytes) : size_(whole_pages(bytes)) {
  data_.reset(pages(size_));
  if (!data_) fail("out of memory: " + std::to_string(size_) + " bytes");
  auto* values = reinterpret_cast<float*>(data_.get());
  uint32_t state = 2463534242u;  // xorshift; zeros or subnormal numbers would be multiplied at another speed
  for (size_t i = 0; i < size_ / sizeof(float); ++i) {
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    const float value = static_cast<float>(state) / 2147483648.0f - 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    bits = (bits & 0xFFFF0000u) | bits >> 16;  // as two float16 they are normal numbers too, of magnitude 0.1 to 2
    std::memcpy(&values[i], &bits, sizeof(bits));
  }
}

Library::Library(const std::string& path, int threads, int64_t spread_bytes)
    : library_(load(path)),
      threads_(threads),
      spread_(spread_bytes > 0),
      weights_(weights_size(facts_of(library_), spread_bytes)) {
  const int64_t* facts = facts_of(library_);
  for (int64_t i = 0; i < facts[INPUTS] + facts[OUTPUTS]; ++i) {
    tensors_.emplace_back(static_cast<size_t>(facts[ELEMENTS + i]) * sizeof(float));
    (i < facts[INPUTS] ? inputs_ : outputs_).push_back(tensors_.back().data());
  }
  tensors_.emplace_back(static_cast<size_t>(facts[WORKSPACE_BYTES]));
  workspace_ = tensors_.back().data();
  turns_.resize(static_cast<size_t>(facts[STEPS]));
}

std::vector<std::string> Library::device() const {
  const char* found = reinterpret_cast<const char* (*)()>(symbol(library_, "hwprune_device"))();
  if (found == nullptr) fail(reinterpret_cast<Error>(symbol(library_, "hwprune_error"))());
  return split(found, '\t');
}

double Library::time_us(int step, int64_t constants_bytes, int64_t runs, bool again) {
  if (static_cast<size_t>(step) >= turns_.size()) fail("the job names a kernel that its library lacks; copy the bundle again");
  const int64_t copies =
      spread_ && constants_bytes > 0 ? std::max<int64_t>(static_cast<int64_t>(weights_.size()) / constants_bytes, 1) : 1;
  int64_t& turn = turns_[static_cast<size_t>(step)];
  std::vector<int64_t> samples(static_cast<size_t>(runs));
  void* by_the_gpu = dlsym(library_, "hwprune_burst");
  const auto time = reinterpret_cast<Time>(by_the_gpu != nullptr ? by_the_gpu : symbol(library_, "hwprune_time"));
  if (time(inputs_.data(), outputs_.data(), weights_.data(), workspace_, threads_, step, 1, copies, constants_bytes, turn, runs,
           samples.data()) != 0)
    fail(reinterpret_cast<Error>(symbol(library_, "hwprune_error"))());
  if (!again) turn = (turn + runs) % copies;
  std::sort(samples.begin(), samples.end());
  const size_t half = samples.size() / 2;
  return static_cast<double>(samples.size() % 2 ? samples[half] : (samples[half - 1] + samples[half]) / 2) / 1e3;
}
