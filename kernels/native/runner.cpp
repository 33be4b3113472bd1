// Runs an artifact on a machine without Python.
//
//     hwprune-run ARTIFACT INPUT.npy OUTPUT.npy [--bench RUNS]
//
// Inputs and outputs are float32 .npy files in C order; networks with several of either are given several, inputs first.
// HWPRUNE_THREADS sets the number of threads; the number that the artifact was tuned for is the default.

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "pages.h"

namespace {

constexpr int64_t kFactsFormat = 2;   // hwprune/library.py: FACTS_FORMAT
using Run = int32_t (*)(void* const*, void* const*, void*, void*, int32_t);
using Time = int32_t (*)(void* const*, void* const*, void*, void*, int32_t, int32_t, int32_t, int64_t, int64_t, int64_t, int64_t, int64_t*);
using Error = const char* (*)();

// What hwprune_facts begins with (kernels/native/program.c).
struct Facts {
  int64_t format, inputs, outputs, weights_bytes, workspace_bytes, steps, threads;
  int64_t elements[1];  // of each input and output
};

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t bytes) : size_(bytes) {
    const size_t rounded = whole_pages(bytes);
    data_.reset(pages(rounded));
    if (!data_) fail("out of memory: " + std::to_string(rounded) + " bytes");
    std::memset(data_.get(), 0, rounded);
  }
  char* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> data_;
  size_t size_;
};

std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The one tensor of weights.safetensors: 8 bytes of header length, the header, the data.
void read_weights(const std::string& path, AlignedBuffer& into) {
  const std::vector<char> bytes = read_file(path);
  uint64_t header = 0;
  if (bytes.size() < sizeof(header)) fail(path + " is not a safetensors file");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header > bytes.size() - sizeof(header)) fail(path + " is cut short");
  const size_t start = sizeof(header) + header;
  if (bytes.size() - start < into.size()) fail(path + " holds fewer weights than the network reads");
  std::memcpy(into.data(), bytes.data() + start, into.size());
}

// Data of a float32 .npy file in C order; the header is checked by text, as numpy writes it.
void read_npy(const std::string& path, AlignedBuffer& into) {
  const std::vector<char> bytes = read_file(path);
  if (bytes.size() < 12 || std::memcmp(bytes.data(), "\x93NUMPY", 6) != 0) fail(path + " is not a .npy file");
  const bool second = bytes[6] >= 2;
  const auto* length = reinterpret_cast<const unsigned char*>(bytes.data() + 8);
  const size_t header = second ? length[0] | length[1] << 8 | length[2] << 16 | size_t{length[3]} << 24 : length[0] | length[1] << 8;
  const size_t start = (second ? 12 : 10) + header;
  if (bytes.size() < start) fail(path + " is cut short");
  const std::string text(bytes.data() + (second ? 12 : 10), header);
  if (text.find("'<f4'") == std::string::npos) fail(path + " must hold float32");
  if (text.find("'fortran_order': False") == std::string::npos) fail(path + " must be in C order");
  if (bytes.size() - start != into.size())
    fail(path + " holds " + std::to_string((bytes.size() - start) / 4) + " elements, the network takes " + std::to_string(into.size() / 4));
  std::memcpy(into.data(), bytes.data() + start, into.size());
}

void write_npy(const std::string& path, const AlignedBuffer& from) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(from.size() / 4) + ",), }";
  header.append(63 - (10 + header.size()) % 64, ' ').push_back('\n');
  std::ofstream file(path, std::ios::binary);
  const char length[2] = {static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  file.write("\x93NUMPY\x01\x00", 8).write(length, 2) << header;
  file.write(from.data(), static_cast<std::streamsize>(from.size()));
  if (!file.flush()) fail("cannot write " + path);
}

void* symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (found == nullptr) fail(std::string("the artifact lacks ") + name);
  return found;
}

struct Network {
  void* library;
  const Facts* facts;
  AlignedBuffer weights, workspace;
  std::vector<AlignedBuffer> tensors;
  std::vector<void*> inputs, outputs;
  int32_t threads;

  explicit Network(const std::string& artifact)
      : library(open(artifact + "/network.so")),
        facts(static_cast<const Facts*>(symbol(library, "hwprune_facts"))),
        weights(static_cast<size_t>(checked(facts)->weights_bytes)),
        workspace(static_cast<size_t>(facts->workspace_bytes)),
        threads(static_cast<int32_t>(facts->threads)) {
    if (const char* asked = std::getenv("HWPRUNE_THREADS")) threads = std::atoi(asked);
    read_weights(artifact + "/weights.safetensors", weights);
    for (int64_t i = 0; i < facts->inputs + facts->outputs; ++i) {
      tensors.emplace_back(static_cast<size_t>(facts->elements[i]) * sizeof(float));
      (i < facts->inputs ? inputs : outputs).push_back(tensors.back().data());
    }
  }

  static void* open(const std::string& path) {
    void* handle = dlopen(path.find('/') == 0 ? path.c_str() : ("./" + path).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) fail("cannot load " + path + ": " + dlerror());
    return handle;
  }

  static const Facts* checked(const Facts* facts) {
    if (facts->format != kFactsFormat) fail("the artifact is of another version");
    return facts;
  }

  void must(int32_t status) const {
    if (status != 0) fail(reinterpret_cast<Error>(symbol(library, "hwprune_error"))());
  }

  void run() {
    must(reinterpret_cast<Run>(symbol(library, "hwprune_run"))(inputs.data(), outputs.data(), weights.data(), workspace.data(), threads));
  }

  void bench(int64_t runs) {
    std::vector<int64_t> samples(static_cast<size_t>(runs));
    must(reinterpret_cast<Time>(symbol(library, "hwprune_time"))(inputs.data(), outputs.data(), weights.data(), workspace.data(), threads,
                                                                 0, static_cast<int32_t>(facts->steps), 1, 0, 0, runs, samples.data()));
    std::sort(samples.begin(), samples.end());
    const auto at = [&](double q) { return static_cast<double>(samples[static_cast<size_t>(q * static_cast<double>(runs - 1))]) / 1e3; };
    std::printf("latency_us median %.1f low %.1f high %.1f runs %lld threads %d\n", at(0.5), at(0.05), at(0.95),
                static_cast<long long>(runs), threads);
  }
};

int run(int argc, char** argv) {
  std::vector<std::string> files;
  int64_t runs = 0;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--bench" && i + 1 < argc)
      runs = std::atoll(argv[++i]);
    else
      files.emplace_back(argv[i]);
  }
  if (files.size() < 3) {
    std::fprintf(stderr, "usage: hwprune-run ARTIFACT INPUT.npy... OUTPUT.npy... [--bench RUNS]\n");
    return 2;
  }
  Network network(files[0]);
  const size_t inputs = network.inputs.size(), outputs = network.outputs.size();
  if (files.size() != 1 + inputs + outputs)
    fail("the network has " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) + " outputs, but got " +
         std::to_string(files.size() - 1) + " files");
  for (size_t i = 0; i < inputs; ++i) read_npy(files[1 + i], network.tensors[i]);
  network.run();
  for (size_t i = 0; i < outputs; ++i) write_npy(files[1 + inputs + i], network.tensors[inputs + i]);
  if (runs > 0) network.bench(runs);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "hwprune-run: %s\n", error.what());
    return 1;
  }
}
