// Runs an artifact on a machine without Python.
//
//     hwprune-run ARTIFACT INPUT.npy OUTPUT.npy [--bench RUNS]
//
// Needs libtvm_ffi.so and libtvm_runtime.so where the loader finds them (LD_LIBRARY_PATH). Inputs and outputs are
// float32 .npy files in C order; networks with several of either are given several, inputs first. TVM_NUM_THREADS sets
// the number of worker threads.

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

namespace {

constexpr size_t kAlignment = 64;     // kernels load whole vectors
constexpr int64_t kFactsFormat = 1;   // hwprune/compile/emit_c.py: FACTS_FORMAT
constexpr int32_t kTypeInt = 1;       // TVM FFI: kTVMFFIInt

// One argument of a TVM FFI call: type index, padding, 64 bits of value (tvm/ffi/c_api.h: TVMFFIAny).
struct Any {
  int32_t type_index = kTypeInt;
  uint32_t zero_padding = 0;
  int64_t value = 0;
};
using PackedFunction = int32_t (*)(void*, const Any*, int32_t, Any*);

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t bytes) : size_(bytes) {
    const size_t rounded = (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    data_.reset(static_cast<char*>(std::aligned_alloc(kAlignment, rounded)));
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

void* open_library(const std::string& name) {
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) fail(std::string("cannot load ") + name + ": " + dlerror());
  return handle;
}

// Kernels reach the thread pool and scratch memory through these pointers, which the loader of a library fills in.
void connect_runtime(void* network, void* runtime) {
  for (const char* name : {"TVMBackendParallelLaunch", "TVMBackendAllocWorkspace", "TVMBackendFreeWorkspace"}) {
    if (auto** slot = static_cast<void**>(dlsym(network, (std::string("__") + name).c_str()))) {
      *slot = dlsym(runtime, name);
      if (*slot == nullptr) fail(std::string("libtvm_runtime.so lacks ") + name);
    }
  }
}

PackedFunction function_of(void* library, const char* name) {
  void* symbol = dlsym(library, (std::string("__tvm_ffi_") + name).c_str());
  if (symbol == nullptr) fail(std::string("the artifact lacks function ") + name);
  return reinterpret_cast<PackedFunction>(symbol);
}

void call(PackedFunction function, const std::vector<Any>& arguments) {
  Any result;
  if (function(nullptr, arguments.data(), static_cast<int32_t>(arguments.size()), &result) != 0) fail("a kernel failed");
}

void bench(void* network, std::vector<Any> arguments, int64_t runs) {
  std::vector<int64_t> samples(static_cast<size_t>(runs));
  arguments.push_back({kTypeInt, 0, runs});
  arguments.push_back({kTypeInt, 0, reinterpret_cast<int64_t>(samples.data())});
  call(function_of(network, "bench"), arguments);
  std::sort(samples.begin(), samples.end());
  const auto at = [&](double q) { return static_cast<double>(samples[static_cast<size_t>(q * static_cast<double>(runs - 1))]) / 1e3; };
  std::printf("latency_us median %.1f low %.1f high %.1f runs %lld\n", at(0.5), at(0.05), at(0.95), static_cast<long long>(runs));
}

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
  open_library("libtvm_ffi.so");
  void* runtime = open_library("libtvm_runtime.so");
  const std::string library = files[0] + "/network.so";
  void* network = open_library(library.find('/') == 0 ? library : "./" + library);
  connect_runtime(network, runtime);

  const auto* facts = static_cast<const int64_t*>(dlsym(network, "hwprune_facts"));
  if (facts == nullptr || facts[0] != kFactsFormat) fail(library + " is not an artifact of this version");
  const size_t inputs = static_cast<size_t>(facts[1]), outputs = static_cast<size_t>(facts[2]);
  if (files.size() != 1 + inputs + outputs)
    fail("the network has " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) + " outputs, but got " +
         std::to_string(files.size() - 1) + " files");

  AlignedBuffer weights(static_cast<size_t>(facts[3])), workspace(static_cast<size_t>(facts[4]));
  read_weights(files[0] + "/weights.safetensors", weights);
  std::vector<AlignedBuffer> tensors;
  std::vector<Any> arguments;
  for (size_t i = 0; i < inputs + outputs; ++i) {
    tensors.emplace_back(static_cast<size_t>(facts[5 + i]) * sizeof(float));
    if (i < inputs) read_npy(files[1 + i], tensors.back());
    arguments.push_back({kTypeInt, 0, reinterpret_cast<int64_t>(tensors.back().data())});
  }
  for (const AlignedBuffer* buffer : {&weights, &workspace})
    arguments.push_back({kTypeInt, 0, reinterpret_cast<int64_t>(buffer->data())});

  call(function_of(network, "run"), arguments);
  for (size_t i = 0; i < outputs; ++i) write_npy(files[1 + inputs + i], tensors[inputs + i]);
  if (runs > 0) bench(network, arguments, runs);
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
