// A library of kernels, called through the functions of kernels/native/program.c or gpu_program.c.
#ifndef HWPRUNE_AGENT_LIBRARY_H
#define HWPRUNE_AGENT_LIBRARY_H

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

// Memory at an address that suits the widest vectors, filled with random numbers.
class Buffer {
 public:
  explicit Buffer(size_t bytes);
  char* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> data_;
  size_t size_;
};

class Library {
 public:
  // Loads the library. Copies of a kernel's constants take up `spread_bytes` and take turns, as in a network of so many
  // bytes; there is one copy if that is 0.
  Library(const std::string& path, int threads, int64_t spread_bytes);
  // Median microseconds of `runs` runs of a step whose constants take `constants_bytes`; on a GPU the mean of all. Fails if
  // the kernel does. `again`: with the copies of its constants that the runs before had, which a GPU's program launches at once.
  double time_us(int step, int64_t constants_bytes, int64_t runs, bool again = false);
  // Of the GPU on which the kernels run: name, compute capability, multiprocessors, the driver's CUDA, PCI bus. Fails where
  // there is none.
  std::vector<std::string> device() const;

 private:
  void* library_;
  int threads_;
  bool spread_;
  std::vector<Buffer> tensors_;
  std::vector<void*> inputs_, outputs_;
  Buffer weights_;
  char* workspace_;
  std::vector<int64_t> turns_;
};

#endif
